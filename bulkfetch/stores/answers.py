"""What object stores answer when they refuse or fail, in our words.

The text of an error of `obstore` quotes the server's whole answer, which is not ours to print; of
it only the status and the code are kept.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager

from obstore import exceptions

from bulkfetch.stores import StoreError

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>(\w{1,60})</Code>")
# Refusals of what did not arrive as it was sent, or whole.
_PASSES = {
    "BadDigest",
    "IncompleteBody",
    "InvalidPart",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
# The address at which a machine in a cloud asks for its own credentials.
_METADATA_HOST = "169.254.169.254"


@contextmanager
def translated() -> Iterator[None]:
    """Turn every error of `obstore` into an `OSError` that says what a person can use.

    Raises:
        FileNotFoundError, StoreError: as the store answered.
    """
    try:
        yield
    except exceptions.AlreadyExistsError:
        # 409: only of what was to be put where there is nothing may it mean more (`Store.put`).
        raise StoreError(errno.EAGAIN, "another writer is at it", retryable=True) from None
    except (exceptions.NotFoundError, FileNotFoundError):
        what = "there is no such object, or no such bucket"
        raise FileNotFoundError(errno.ENOENT, what) from None
    except (StoreError, FileExistsError):
        raise
    except exceptions.PreconditionError:
        raise StoreError(errno.EBUSY, "another writer changed it meanwhile") from None
    except exceptions.InvalidPathError:
        # A single one keeps all others from being listed.
        what = (
            "an object there has a name that cannot be read: an empty one between two slashes, a "
            "dot or two dots, or a control character; move it away"
        )
        raise StoreError(errno.EINVAL, what) from None
    except (exceptions.BaseError, OSError) as error:
        raise _failure(error) from None
    except ValueError:
        raise StoreError(errno.EINVAL, "the store takes no such name") from None


def _failure(error: Exception) -> StoreError:
    text = str(error)
    status, code = (_found(pattern, text) for pattern in (_STATUS, _CODE))
    said = " ".join(filter(None, (status, code)))
    if _METADATA_HOST in text:
        what = "no credentials are set (AWS_*, GOOGLE_* or AZURE_*), and this machine has none"
        return StoreError(errno.EACCES, what)
    # Of a listing it is an error of no kind, so that only the status tells.
    if status in ("401", "403"):
        what = f"the store refused the credentials, or they may not do this ({said})"
        return StoreError(errno.EACCES, what)
    if code == "NoSuchBucket":
        return StoreError(errno.ENOENT, "there is no such bucket")
    if not status and "redirect" in text:
        return StoreError(errno.EIO, "the store redirects: is the region right?")
    # Without a status it is no answer, or the failure of what was begun with 200.
    if status in ("", "408", "409", "429") or status.startswith("5") or code in _PASSES:
        what = f"the store answered {said}" if said else "the store does not answer"
        return StoreError(errno.EIO, what, retryable=True)
    return StoreError(errno.EIO, f"the store answered {said}: are bucket and region right?")


def _found(pattern: re.Pattern[str], text: str) -> str:
    return match[1] if (match := pattern.search(text)) else ""
