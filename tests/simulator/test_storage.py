from __future__ import annotations

import base64
import gzip
import hashlib
from typing import Any
from urllib.parse import parse_qs, urlsplit

import google_crc32c
import pytest
from yarl import URL

from bulkfetch.simulator import LEAKED_TOKENS, objects

from .client import Answer, Caller, Serve
from .conftest import Clock


def hashes(answer: Answer) -> dict[str, bytes]:
    """What `x-goog-hash` says, however many lines it has."""
    items = [item for line in answer.headers.getall("x-goog-hash") for item in line.split(",")]
    return {name: base64.b64decode(value) for name, _, value in (i.partition("=") for i in items)}


def code(answer: Answer) -> str:
    assert answer.headers["Content-Type"].startswith("application/xml")
    return answer.text.partition("<Code>")[2].partition("</Code>")[0]


async def one(caller: Caller) -> tuple[str, bytes]:
    """A signed URL and the bytes behind it."""
    image = await caller.image()
    return image["signed_url"], caller.simulator.stored_bytes(image["id"], image["version"])


async def test_every_uploaded_image_is_behind_its_url(serve: Serve) -> None:
    caller = await serve()
    shapes = set()
    for image in await caller.images():
        answer = await caller.fetch(image["signed_url"])
        if image["status"] != "UPLOADED":
            assert (answer.status, code(answer)) == (404, "NoSuchKey")
            continue
        body = caller.simulator.stored_bytes(image["id"], image["version"])
        assert (answer.status, answer.body) == (200, body)
        assert hashes(answer) == {
            "crc32c": google_crc32c.value(body).to_bytes(4, "big"),
            "md5": hashlib.md5(body).digest(),
        }
        assert answer.headers["x-goog-stored-content-length"] == str(len(body))
        assert answer.headers["x-goog-stored-content-encoding"] == "identity"
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert int(answer.headers["x-goog-generation"]) > 1_600_000_000_000_000
        shapes.add(len(answer.headers.getall("x-goog-hash")))
    assert shapes == {1, 2}


async def test_a_signed_url_has_the_form_of_version_4(serve: Serve, clock: Clock) -> None:
    caller = await serve(clock=clock, url_lifetime_s=300)
    url, _ = await one(caller)
    assert url.startswith(caller.simulator.storage_url + "/")
    query = parse_qs(urlsplit(url).query)
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"]
    assert query["X-Goog-Date"] == ["20250615T150640Z"]
    assert query["X-Goog-Expires"] == ["300"]
    assert query["X-Goog-SignedHeaders"] == ["host"]
    assert len(bytes.fromhex(query["X-Goog-Signature"][0])) == 256
    assert "%40" in url
    assert "@" not in url


async def test_a_url_expires(serve: Serve, clock: Clock) -> None:
    caller = await serve(clock=clock, url_lifetime_s=300)
    url, _ = await one(caller)
    clock.now += 299
    assert (await caller.fetch(url)).status == 200
    clock.now += 2
    answer = await caller.fetch(url)
    assert (answer.status, code(answer)) == (400, "ExpiredToken")
    fresh, _ = await one(caller)
    assert (await caller.fetch(fresh)).status == 200


async def test_a_url_of_version_2_expires_with_another_answer(serve: Serve, clock: Clock) -> None:
    caller = await serve(clock=clock, url_style="v2", url_lifetime_s=300)
    url, body = await one(caller)
    assert parse_qs(urlsplit(url).query).keys() == {"GoogleAccessId", "Expires", "Signature"}
    assert (await caller.fetch(url)).body == body
    clock.now += 301
    answer = await caller.fetch(url)
    assert (answer.status, code(answer)) == (403, "AccessDenied")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("%40", "@"),
        ("%2F", "/"),
        ("%28", "("),
        ("X-Goog-Expires=900", "X-Goog-Expires=9000"),
        ("/v", "/v1"),
        ("X-Goog-Signature=", "X-Goog-Signature=0"),
        ("&X-Goog-Signature=", "&x="),
    ],
)
async def test_a_url_that_is_changed_or_quoted_anew_is_refused(
    serve: Serve, old: str, new: str
) -> None:
    caller = await serve()
    url, _ = await one(caller)
    assert old in url
    answer = await caller.fetch(url.replace(old, new, 1))
    assert (answer.status, code(answer)) == (403, "SignatureDoesNotMatch")


async def test_a_url_is_good_for_its_host_only(serve: Serve) -> None:
    caller = await serve()
    url, _ = await one(caller)
    answer = await caller.fetch(url, headers={"Host": "storage.invalid"})
    assert (answer.status, code(answer)) == (403, "SignatureDoesNotMatch")


async def test_head_is_refused(serve: Serve) -> None:
    caller = await serve()
    url, _ = await one(caller)
    assert (await caller.fetch(url, method="HEAD")).status == 403


async def test_a_token_that_leaks_to_storage_is_loud(serve: Serve) -> None:
    caller = await serve()
    url, _ = await one(caller)
    answer = await caller.fetch(url, headers={"Authorization": f"Bearer {caller.token}"})
    assert answer.status == 400
    assert caller.simulator.requests[LEAKED_TOKENS] == 1


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-", 0, None),
        ("bytes=1000-", 1000, None),
        ("bytes=10-19", 10, 20),
        ("bytes=10-99999999", 10, None),
        ("bytes=-100", -100, None),
    ],
)
async def test_a_range_is_served(serve: Serve, asked: str, start: int, end: int | None) -> None:
    caller = await serve()
    url, body = await one(caller)
    answer = await caller.fetch(url, headers={"Range": asked})
    assert (answer.status, answer.body) == (206, body[start:end])
    first = start % len(body)
    last = first + len(answer.body) - 1
    assert answer.headers["Content-Range"] == f"bytes {first}-{last}/{len(body)}"
    assert hashes(answer)["md5"] == hashlib.md5(body).digest()


@pytest.mark.parametrize("asked", ["bytes=5-3", "bytes=0-1,4-5", "lines=1-2", "bytes=-", "junk"])
async def test_what_is_no_range_is_ignored(serve: Serve, asked: str) -> None:
    caller = await serve()
    url, body = await one(caller)
    answer = await caller.fetch(url, headers={"Range": asked})
    assert (answer.status, answer.body) == (200, body)


async def test_a_range_beyond_the_end_is_416(serve: Serve) -> None:
    caller = await serve()
    url, body = await one(caller)
    for asked in (f"bytes={len(body)}-", "bytes=-0"):
        answer = await caller.fetch(url, headers={"Range": asked})
        assert (answer.status, code(answer)) == (416, "InvalidRange")
        assert answer.headers["Content-Range"] == f"bytes */{len(body)}"


async def test_preconditions_compare_the_etag(serve: Serve) -> None:
    caller = await serve()
    url, body = await one(caller)
    etag = (await caller.fetch(url)).headers["ETag"]
    part = {"Range": "bytes=5-"}
    assert (await caller.fetch(url, headers=part | {"If-Range": etag})).body == body[5:]
    assert (await caller.fetch(url, headers=part | {"If-Range": '"other"'})).body == body
    assert (await caller.fetch(url, headers=part | {"If-Match": etag})).status == 206
    refused = await caller.fetch(url, headers=part | {"If-Match": '"other"'})
    assert (refused.status, code(refused)) == (412, "PreconditionFailed")


async def test_an_object_stored_with_gzip_is_sent_so_or_decoded_on_the_way(serve: Serve) -> None:
    caller = await serve()
    caller.simulator.faults.add("storage:gzip")
    url, body = await one(caller)
    packed = await caller.fetch(url, headers={"Accept-Encoding": "gzip"})
    assert packed.headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(packed.body) == body
    decoded = await caller.fetch(url, headers={"Accept-Encoding": "identity", "Range": "bytes=9-"})
    assert (decoded.status, decoded.body) == (200, body)
    assert "Content-Encoding" not in decoded.headers
    for answer in (packed, decoded):
        assert hashes(answer)["md5"] == hashlib.md5(packed.body).digest()
        assert answer.headers["x-goog-stored-content-encoding"] == "gzip"
        assert answer.headers["x-goog-stored-content-length"] == str(len(packed.body))


async def upload(caller: Caller, url: str, data: bytes) -> Answer:
    headers = {"Content-Type": "image/png"}
    return await caller.send("PUT", URL(url, encoded=True), data=data, headers=headers)


async def test_an_image_is_created_uploaded_and_read_back(serve: Serve) -> None:
    caller = await serve()
    patient = next(iter(caller.simulator.patient_ids()))
    content: dict[str, Any] = {
        "file_name": "new.png",
        "display_name": "new",
        "file_type": "image/png",
        "status": "PENDING",
        "patient": {"id": patient, "notes": None},
    }
    created = (await caller.api("/images/v1", method="POST", body=content)).json
    assert (created["status"], created["version"]) == ("PENDING", 1)
    assert (await caller.fetch(created["signed_url"])).status == 404
    assert (await upload(caller, created["signed_url"], b"some bytes")).status == 200
    (found,) = (i for i in await caller.images(patient_id=patient) if i["id"] == created["id"])
    assert (found["status"], found["version"]) == ("UPLOADED", 2)
    for url in (created["signed_url"], found["signed_url"]):
        answer = await caller.fetch(url)
        assert (answer.status, answer.body) == (200, b"some bytes")
        assert answer.headers["Content-Type"] == "image/png"
    assert hashes(answer)["crc32c"] == google_crc32c.value(b"some bytes").to_bytes(4, "big")
    assert caller.simulator.stored_bytes(created["id"], 2) == b"some bytes"


async def test_an_upload_replaces_a_seeded_object(serve: Serve) -> None:
    caller = await serve()
    url, body = await one(caller)
    before = (await caller.fetch(url)).headers
    await upload(caller, url, body + b"more")
    after = await caller.fetch(url)
    assert after.body == body + b"more"
    assert after.headers["x-goog-generation"] != before["x-goog-generation"]
    assert after.headers["ETag"] != before["ETag"]


async def test_each_version_keeps_what_was_uploaded_for_it(serve: Serve) -> None:
    caller = await serve(patients=60)
    image = await caller.image(status="PENDING")
    await upload(caller, image["signed_url"], b"first")
    renewed = (await caller.api(f"/images/v1/{image['id']}")).json
    assert renewed["version"] == image["version"] + 1
    await upload(caller, renewed["signed_url"], b"second")
    stored_bytes = caller.simulator.stored_bytes
    assert stored_bytes(image["id"], image["version"]) == b"first"
    assert stored_bytes(image["id"], renewed["version"]) == b"second"
    assert (await upload(caller, image["signed_url"], b"late")).status == 412


async def test_objects_at_hand_are_bounded(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "_CACHE_BYTES", 300_000)
    caller = await serve()
    for image in await caller.images():
        await caller.fetch(image["signed_url"])
    kept = list(caller.simulator._objects._cache.values())
    assert 1 < len(kept) < 20
    assert sum(len(stored.data) for stored in kept) <= 300_000


async def test_objects_are_padded_as_asked(serve: Serve) -> None:
    caller = await serve(patients=4, fixed_bytes=400_000)
    for image in await caller.images():
        if image["status"] == "UPLOADED":
            answer = await caller.fetch(image["signed_url"])
            assert abs(len(answer.body) - 400_000) <= 16
