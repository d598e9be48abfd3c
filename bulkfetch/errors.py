"""What can go wrong, as a tree whose branches answer "what does the caller do now?".

BulkfetchError
├── ConfigurationError         correct the command line or the settings; nothing was fetched
│   ├── ManifestError          correct the manifest: every bad row is named
│   └── ArchiveMismatchError   choose another destination: this one is another account's
├── CredentialsError           correct the credentials
├── DestinationError           make room, get access, or wait for the other run
├── DamagedError               restore what an archive lacks; verify names all of it
├── GapError                   the API's lists cannot be read without a gap: nothing was written
├── UnreachableError           the API did not answer at all: nothing was fetched
├── EngineError                the cluster gives no process that works: run the same command again
└── FetchError                 one patient or one image failed; the run goes on
    ├── ConnectionFailedError  the host could not be reached, or hung up
    ├── TimedOutError          connecting or reading took longer than `timeout`
    ├── StatusError            an HTTP status that is not a success
    ├── BadResponseError       the API's body is not what its contract says
    ├── BadBodyError           the stored bytes are short, changed, empty, or no image at all
    ├── SignedURLError         storage did not accept the signed URL: a new one is needed
    ├── ServiceDownError       the API or the storage has been failing for too long: the run stops
    ├── TypeMismatchError      the bytes are of another type than declared
    ├── TakenError             another row's or shard's task did this image meanwhile: look again
    ├── PathRefusedError       something lies in the archive where a directory belongs: remove it
    ├── UnknownAccountError    nothing shows that the credentials are of the archive's organization
    ├── ProcessDiedError       a process of the run was killed with the patient in hand
    ├── HostDeniedError        a signed URL names a host that is not on the list: nothing was sent
    └── TooLargeError          the file is larger than `max_file_size`

No message holds a URL's query, a token, or text that a server sent: see `bulkfetch.logs`.
"""

from __future__ import annotations

import copyreg
from collections.abc import Sequence
from typing import ClassVar

__all__ = [
    "ArchiveMismatchError",
    "BadBodyError",
    "BadResponseError",
    "BulkfetchError",
    "ConfigurationError",
    "ConnectionFailedError",
    "CredentialsError",
    "DamagedError",
    "DestinationError",
    "EngineError",
    "FetchError",
    "GapError",
    "HostDeniedError",
    "ManifestError",
    "PathRefusedError",
    "ProcessDiedError",
    "ServiceDownError",
    "SignedURLError",
    "StatusError",
    "TakenError",
    "TimedOutError",
    "TooLargeError",
    "TypeMismatchError",
    "UnknownAccountError",
    "UnreachableError",
]


def unexpected(error: BaseException) -> str:
    """Say where an error that is none of ours came from, and not its text, which may be PHI."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f" at {trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace else ""
    return f"internal error, please report it: {type(error).__name__}{where}"


class BulkfetchError(Exception):
    """Every error that bulkfetch raises on purpose; `str()` of it is a sentence for the user."""

    exit_status: ClassVar[int] = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Copied and sent to another process as it is, and not made anew from its message."""
        # What pickle itself calls; the library's stubs leave it out.
        new = copyreg.__newobj__  # type: ignore[attr-defined]
        return new, (self.__class__, *self.args), self.__dict__


class ConfigurationError(BulkfetchError):
    """The command line, the settings or the manifest is wrong; nothing was fetched."""

    exit_status = 2


class ManifestError(ConfigurationError):
    """The manifest cannot be used.

    Attributes:
        problems: one line for each bad row, with file and line number, in the file's order.
    """

    def __init__(self, message: str, problems: Sequence[str] = ()) -> None:
        super().__init__("\n".join([message, *problems]))
        self.problems = tuple(problems)


class ArchiveMismatchError(ConfigurationError):
    """The destination holds an archive of another API host, organization, layout or template."""


class CredentialsError(BulkfetchError):
    """The API refused the credentials."""

    exit_status = 3


class DestinationError(BulkfetchError):
    """The destination cannot be used: not writable, full, or held by another run."""

    exit_status = 4


class DamagedError(BulkfetchError):
    """An archive does not hold an image as it says that it does.

    Attributes:
        path: of the sidecar or the file, relative to the archive.
    """

    def __init__(self, path: str, damage: str) -> None:
        super().__init__(f"{path}: {damage}: run bulkfetch verify")
        self.path = path


class GapError(BulkfetchError):
    """Somebody may be hidden behind what the API lists; no manifest was written."""


class UnreachableError(BulkfetchError):
    """The API could not be reached for the first question, so nothing was begun."""


class EngineError(BulkfetchError):
    """The cluster that is to do the work does not; what was finished is whole."""


class FetchError(BulkfetchError):
    """One patient's query or one image's download failed; the others go on.

    Attributes:
        kind: a stable word for journals and scripts.
        retryable: whether asking again may help.
        retry_after_s: seconds the server asked to wait, or None where it did not say.
    """

    kind: ClassVar[str] = "failed"
    retryable: bool = False
    retry_after_s: float | None = None


class ConnectionFailedError(FetchError):
    """The host could not be reached, or the connection broke."""

    kind = "connection"

    def __init__(self, message: str, *, retryable: bool = True) -> None:
        super().__init__(message)
        self.retryable = retryable


class TimedOutError(FetchError):
    """Nothing came for `timeout` seconds."""

    kind = "timeout"
    retryable = True


class StatusError(FetchError):
    """The server answered with a status that is not a success.

    408, 425, 429 and 5xx (but 501 and 505) may pass, and are retryable; the others are an answer.

    Attributes:
        body: the API's words about a 404, as they came; never shown.
    """

    kind = "status"

    def __init__(self, message: str, status: int, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.body = b""
        self.retry_after_s = retry_after_s
        self.retryable = status in (408, 425, 429) or (status >= 500 and status not in (501, 505))


class BadResponseError(FetchError):
    """The API answered 200 with a body that is not what its contract says.

    A body that is not JSON (a proxy's page, a body cut short) is retryable; JSON of another shape
    is not.
    """

    kind = "bad_response"

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class BadBodyError(FetchError):
    """The bytes that storage sent are not the whole, unchanged image."""

    kind = "bad_body"
    retryable = True


class SignedURLError(FetchError):
    """Storage answered 400, 401 or 403: the signed URL is expired or was never good."""

    kind = "signed_url"
    retryable = True


class ServiceDownError(FetchError):
    """The API or the storage has been failing for longer than a run waits."""

    kind = "service_down"


class TypeMismatchError(FetchError):
    """The bytes are of another type than was declared, and `strict_type` is set."""

    kind = "type_mismatch"


class HostDeniedError(FetchError):
    """The signed URL names a host that bulkfetch may not talk to; nothing was sent."""

    kind = "host_denied"


class PathRefusedError(FetchError):
    """A link or a file lies in the archive where a directory belongs; it was not followed."""

    kind = "path_refused"


class UnknownAccountError(FetchError):
    """An image is not known to an account that may be another one than the archive's."""

    kind = "unknown_account"


class ProcessDiedError(FetchError):
    """A process of the run ended early, killed for want of memory perhaps, with it in hand."""

    kind = "process_died"


class TakenError(FetchError):
    """Another row's or shard's task archived the image, or mended it, since it was looked at."""

    kind = "taken"


class TooLargeError(FetchError):
    """The file is larger than `max_file_size`."""

    kind = "too_large"
