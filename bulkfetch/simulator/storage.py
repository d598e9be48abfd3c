"""Google Cloud Storage's XML API, as far as signed URLs need it: GET with ranges, and PUT."""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from xml.sax.saxutils import escape

from aiohttp import hdrs, web

from bulkfetch.simulator.catalog import Catalog
from bulkfetch.simulator.faults import Fault
from bulkfetch.simulator.objects import ObjectStore, StoredObject
from bulkfetch.simulator.signing import InvalidUrl, UrlSigner, expired
from bulkfetch.simulator.wire import Reply

__all__ = ["Storage", "xml_error"]

_RANGE = re.compile(r"bytes=(\d*)-(\d*)")
_CODES = {
    400: ("InvalidArgument", "Invalid argument."),
    401: ("AuthenticationRequired", "Authentication required."),
    403: ("AccessDenied", "Access denied."),
    404: ("NoSuchKey", "The specified key does not exist."),
    408: ("RequestTimeout", "Request timeout."),
    412: ("PreconditionFailed", "At least one of the pre-conditions you specified did not hold."),
    416: ("InvalidRange", "The requested range cannot be satisfied."),
    429: ("TooManyRequests", "The rate of requests is too high. Reduce it and try again."),
    500: ("InternalError", "We encountered an internal error. Please try again."),
    503: ("ServiceUnavailable", "We are unable to serve the request. Please try again."),
}


def xml_error(status: int, code: str | None = None, message: str | None = None) -> Reply:
    """An error as storage words it."""
    usual_code, usual_message = _CODES.get(status, (f"Status{status}", "An error occurred."))
    text = (
        "<?xml version='1.0' encoding='UTF-8'?><Error>"
        f"<Code>{escape(code or usual_code)}</Code>"
        f"<Message>{escape(message or usual_message)}</Message></Error>"
    )
    return Reply(status, text.encode(), content_type="application/xml; charset=UTF-8")


class Storage:
    """Answers the requests that come to the storage's listener."""

    def __init__(
        self,
        signer: UrlSigner,
        objects: ObjectStore,
        catalog: Catalog,
        count_leaked_token: Callable[[], None],
    ) -> None:
        self._signer = signer
        self._objects = objects
        self._catalog = catalog
        self._count_leaked_token = count_leaked_token
        self._serials = count(1)

    async def answer(self, request: web.Request, faults: list[Fault]) -> Reply:
        """The answer to a request, before any fault that is about bytes or sending."""
        if hdrs.AUTHORIZATION in request.headers:
            # The real one would not care; a token that leaks here is what a test must not miss.
            self._count_leaked_token()
            return xml_error(400, "AuthorizationSent", "A signed URL carries its own authority.")
        kinds = {fault.kind for fault in faults}
        try:
            if "expired" in kinds:
                raise expired()
            image_id, version = self._signer.open(request.method, request.host, request.raw_path)
        except InvalidUrl as refusal:
            return xml_error(refusal.status, refusal.code, str(refusal))
        if request.method == hdrs.METH_PUT:
            return self._upload(request, image_id, version, await request.read())
        stored = self._objects.get(image_id, version)
        if stored is None:
            return xml_error(404)
        return self._download(request, stored, kinds)

    def _upload(self, request: web.Request, image_id: str, version: int, data: bytes) -> Reply:
        image = self._catalog.image(image_id)
        if image is None or image.version != version:
            return xml_error(412, message="The image has another version by now.")
        if image.status != "UPLOADED":
            self._catalog.update(replace(image, status="UPLOADED"), version)
        stored = self._objects.put(image_id, version, data, request.content_type)
        return Reply(headers=tuple(_identity(stored, stored.generation)), content_type="text/html")

    def _download(self, request: web.Request, stored: StoredObject, kinds: set[str]) -> Reply:
        generation = stored.generation
        if "etag-changes" in kinds:
            generation += next(self._serials)
        encoding = "identity"
        body = stored.data
        if "gzip" in kinds:
            stored, encoding = stored.gzipped, "gzip"
            body = stored.data
        headers = _object_headers(stored, generation, encoding, kinds)
        etag = _etag(stored, generation)
        if request.headers.get(hdrs.IF_MATCH, etag) not in (etag, "*"):
            return xml_error(412)
        if encoding == "gzip":
            if "gzip" not in request.headers.get(hdrs.ACCEPT_ENCODING, ""):
                # Decoded on the way: the hashes stay those of the stored bytes, and ranges are
                # not looked at (cloud.google.com/storage/docs/transcoding).
                headers.append(("Warning", "214 UploadServer gunzipped"))
                return Reply(200, gzip.decompress(body), tuple(headers), stored.media_type)
            headers.append(("Content-Encoding", "gzip"))
        wanted = request.headers.get(hdrs.RANGE)
        if request.headers.get(hdrs.IF_RANGE, etag) != etag or "range-ignored" in kinds:
            wanted = None
        return _ranged(Reply(200, body, tuple(headers), stored.media_type), wanted, kinds)


def _ranged(whole: Reply, wanted: str | None, kinds: set[str]) -> Reply:
    """The part of an answer that a Range header asks for (RFC 9110, 14.2)."""
    match = _RANGE.fullmatch(wanted) if wanted else None
    if match is None or match[0] == "bytes=-":
        # What is no single range of bytes is ignored.
        return whole
    size = len(whole.body)
    if match[1]:
        start = int(match[1])
        end = min(int(match[2]) if match[2] else size - 1, size - 1)
        if match[2] and int(match[2]) < start:
            return whole
    else:
        start, end = max(size - int(match[2]), 0), size - 1
    if start > end:
        unsatisfied = xml_error(416)
        return replace(unsatisfied, headers=(("Content-Range", f"bytes */{size}"),))
    if "range-wrong" in kinds:
        start = start // 2 if start else min(1, end)
    content_range = ("Content-Range", f"bytes {start}-{end}/{size}")
    return replace(
        whole,
        status=206,
        body=whole.body[start : end + 1],
        headers=(*whole.headers, content_range),
    )


def _object_headers(
    stored: StoredObject, generation: int, encoding: str, kinds: set[str]
) -> list[tuple[str, str]]:
    headers = [
        *_identity(stored, generation),
        ("Accept-Ranges", "bytes"),
        ("x-goog-metageneration", "1"),
        ("x-goog-storage-class", "STANDARD"),
        ("x-goog-stored-content-encoding", encoding),
        ("x-goog-stored-content-length", str(len(stored.data))),
        ("Cache-Control", "private, max-age=0"),
        ("Server", "UploadServer"),
    ]
    if "no-hash" in kinds:
        return headers
    hashes = [f"crc32c={stored.crc32c}"]
    if "no-md5" not in kinds:
        hashes.append(f"md5={stored.md5}")
    # Both ways of writing a list are one to HTTP (RFC 9110, 5.2), and both are seen.
    if stored.generation % 2:
        return [*headers, ("x-goog-hash", ",".join(hashes))]
    return [*headers, *(("x-goog-hash", value) for value in hashes)]


def _identity(stored: StoredObject, generation: int) -> list[tuple[str, str]]:
    return [("ETag", _etag(stored, generation)), ("x-goog-generation", str(generation))]


def _etag(stored: StoredObject, generation: int) -> str:
    return f'"{stored.crc32c.rstrip("=")}-{generation:x}"'
