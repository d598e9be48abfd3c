"""Signed URLs in the two forms of Google Cloud Storage, and the judgement on one that comes back.

The signature is over the exact bytes of the request target: a client that decodes and re-encodes
the URL on the way breaks it, as it would there. It is a keyed hash instead of an RSA signature, as
long as one.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import blake2b, shake_256
from typing import Literal
from urllib.parse import parse_qs, unquote

__all__ = ["InvalidUrl", "UrlSigner", "expired"]

_BUCKET = "simulated-pre-encounter-images"
_ACCOUNT = "uploads%40simulated-project.iam.gserviceaccount.invalid"
_SIGNATURE_BYTES = 256
"""As an RSA signature of 2,048 bits: 512 hexadecimal digits."""
_V4_DATE = "%Y%m%dT%H%M%SZ"
_LONGEST_V4_S = 604_800
_METHODS = ("GET", "PUT")


class InvalidUrl(Exception):  # noqa: N818 - an answer to a client, which has its own code
    """A signed URL that does not open what it names: `code` is Google's, `status` the HTTP one."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def expired() -> InvalidUrl:
    """What becomes of a V4 URL in time."""
    return InvalidUrl(400, "ExpiredToken", "Invalid argument: the signed URL has expired.")


class UrlSigner:
    """Makes and checks the signed URLs of one storage host."""

    def __init__(
        self,
        seed: int,
        organization_id: str,
        clock: Callable[[], float],
        *,
        lifetime_s: float,
        style: Literal["v4", "v2"],
    ) -> None:
        self._key = blake2b(f"{seed}/url".encode(), digest_size=32).digest()
        self._prefix = f"/{_BUCKET}/{organization_id}/images/"
        self._clock = clock
        self._lifetime_s = min(max(1, round(lifetime_s)), _LONGEST_V4_S)
        self._style = style

    def sign(self, origin: str, image_id: str, version: int) -> str:
        """A URL that reads and uploads the image's object; `origin` is scheme and host."""
        # A path and a query that look different when a client re-quotes them.
        path = f"{self._prefix}{image_id}/v{version}%20%28original%29"
        now = int(self._clock())
        if self._style == "v2":
            query = f"GoogleAccessId={_ACCOUNT}&Expires={now + self._lifetime_s}&Signature="
        else:
            moment = datetime.fromtimestamp(now, UTC)
            query = (
                "X-Goog-Algorithm=GOOG4-RSA-SHA256"
                f"&X-Goog-Credential={_ACCOUNT}%2F{moment:%Y%m%d}%2Fauto%2Fstorage%2Fgoog4_request"
                f"&X-Goog-Date={moment:{_V4_DATE}}"
                f"&X-Goog-Expires={self._lifetime_s}"
                "&X-Goog-SignedHeaders=host&X-Goog-Signature="
            )
        target = f"{path}?{query}"
        return f"{origin}{target}{self._signature(origin.partition('://')[2], target)}"

    def open(self, method: str, host: str, target: str) -> tuple[str, int]:
        """Image ID and version of the object that a request target names.

        `target` is path and query as they came over the wire. Raises InvalidUrl.
        """
        signed, marker, signature = target.rpartition("Signature=")
        expected = self._signature(host, signed + marker)
        # A signature covers the method, so that none that was made for GET is good for HEAD.
        if method not in _METHODS or not hmac.compare_digest(signature.encode(), expected.encode()):
            raise InvalidUrl(
                403,
                "SignatureDoesNotMatch",
                "The request signature we calculated does not match the signature you provided.",
            )
        path, _, query = signed.partition("?")
        self._check_expiry(parse_qs(query))
        image_id, _, version = path.removeprefix(self._prefix).partition("/v")
        return image_id, int(unquote(version).partition(" ")[0])

    def _check_expiry(self, query: dict[str, list[str]]) -> None:
        if "Expires" in query:
            if self._clock() > int(query["Expires"][0]):
                raise InvalidUrl(403, "AccessDenied", "Request has expired.")
            return
        signed_at = datetime.strptime(query["X-Goog-Date"][0], _V4_DATE).replace(tzinfo=UTC)
        if self._clock() > signed_at.timestamp() + int(query["X-Goog-Expires"][0]):
            raise expired()

    def _signature(self, host: str, target: str) -> str:
        # A sponge's output cannot be extended, so that key and message may simply be joined.
        message = self._key + host.encode() + b"\n" + target.encode("utf-8", "surrogateescape")
        return shake_256(message).hexdigest(_SIGNATURE_BYTES)
