"""Each kind of fault, as it looks from the other end of the connection."""

from __future__ import annotations

import asyncio
import time
from email.utils import parsedate_to_datetime

import aiohttp
import pytest
from yarl import URL

from .client import Answer, Caller, Serve
from .conftest import Clock


async def ready(serve: Serve, *faults: str, **options: object) -> tuple[Caller, str, bytes]:
    """A simulator with these faults, a signed URL and the bytes behind it."""
    caller = await serve(**options)
    image = await caller.image()
    caller.simulator.faults.add(*faults)
    return caller, image["signed_url"], caller.simulator.stored_bytes(image["id"], image["version"])


async def raw(url: str, *, wait_s: float = 5) -> tuple[bytes, bool]:
    """All bytes that come back for a GET, and whether the end was a reset."""
    target = URL(url, encoded=True)
    reader, writer = await asyncio.open_connection(target.host, target.port)
    writer.write(f"GET {target.raw_path_qs} HTTP/1.1\r\nHost: {target.authority}\r\n\r\n".encode())
    received, reset = b"", False
    try:
        async with asyncio.timeout(wait_s):
            while data := await reader.read(65_536):
                received += data
    except ConnectionResetError:
        reset = True
    finally:
        writer.close()
    return received, reset


@pytest.mark.parametrize("status", [400, 403, 404, 408, 429, 500, 502, 503, 504])
async def test_a_status_comes_in_the_words_of_each_host(serve: Serve, status: int) -> None:
    caller, url, _ = await ready(serve, f"storage:{status}", f"api:{status}")
    stored = await caller.fetch(url)
    assert stored.status == status
    assert stored.headers["Content-Type"].startswith("application/xml")
    assert "<Error><Code>" in stored.text
    search = await caller.api("/images/v1")
    assert search.status == status
    assert search.json["errorName"].endswith("Error")
    assert search.json["content"]["message"]
    assert "Retry-After" not in search.headers


async def test_a_retry_after_is_in_seconds_or_a_date(serve: Serve, clock: Clock) -> None:
    caller, url, _ = await ready(serve, "storage:503=7", "images:429=date", clock=clock)
    assert (await caller.fetch(url)).headers["Retry-After"] == "7"
    date = parsedate_to_datetime((await caller.api("/images/v1")).headers["Retry-After"])
    assert 1 <= date.timestamp() - clock.now <= 2


async def test_the_first_requests_for_each_object_fail_and_then_it_is_well(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:503x2")
    answers = [await caller.fetch(url) for _ in range(3)]
    assert [a.status for a in answers] == [503, 503, 200]
    assert answers[-1].body == body


async def test_a_connection_is_reset_after_so_many_bytes(serve: Serve) -> None:
    _, url, body = await ready(serve, "storage:drop=1000")
    received, reset = await raw(url)
    head, _, sent = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert sent == body[:1000]
    assert reset


async def test_a_connection_is_reset_before_any_answer(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:drop", "images:dropx2", record_requests=True)
    assert await raw(url) == (b"", True)
    # aiohttp's client repeats a GET once by itself.
    with pytest.raises(aiohttp.ClientConnectionError):
        await caller.api("/images/v1")
    assert (await caller.api("/images/v1")).status == 200
    assert [record.status for record in caller.simulator.log] == [200, 0, 0, 0, 200]


async def test_a_short_body_ends_in_good_order(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:short", "images:short")
    received, reset = await raw(url)
    head, _, sent = received.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert sent == body[: len(body) // 2]
    assert not reset
    with pytest.raises(aiohttp.ClientPayloadError):
        await caller.api("/images/v1")


async def test_a_body_stalls_in_the_middle_and_goes_on(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:stall=0.3")
    started = time.perf_counter()
    assert (await caller.fetch(url)).body == body
    assert time.perf_counter() - started >= 0.3


async def test_a_stall_does_not_delay_the_end_of_the_simulator(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:stall=60")
    fetching = asyncio.create_task(caller.fetch(url))
    await asyncio.sleep(0.1)
    started = time.perf_counter()
    await caller.simulator.stop()
    assert time.perf_counter() - started < 3
    with pytest.raises(aiohttp.ClientError):
        await fetching


async def test_a_body_drips(serve: Serve) -> None:
    caller, url, body = await ready(serve)
    caller.simulator.faults.add(f"storage:drip={len(body) * 2}")
    started = time.perf_counter()
    assert (await caller.fetch(url)).body == body
    assert 0.3 < time.perf_counter() - started < 2


async def test_latency_delays_the_answer(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:latency=0.2", storage_latency_s=0.1)
    started = time.perf_counter()
    assert (await caller.fetch(url)).body == body
    assert time.perf_counter() - started >= 0.3


async def test_one_bit_is_wrong_in_a_corrupt_body(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:corrupt")
    sent = (await caller.fetch(url)).body
    assert len(sent) == len(body)
    assert sum(a != b for a, b in zip(sent, body, strict=True)) == 1


async def test_a_wrong_length_agrees_with_the_body_but_not_with_storage(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:wrong-length")
    answer = await caller.fetch(url)
    assert (answer.status, answer.body) == (200, body[: len(body) // 2])
    assert answer.headers["Content-Length"] == str(len(body) // 2)
    assert answer.headers["x-goog-stored-content-length"] == str(len(body))


@pytest.mark.parametrize(
    ("kind", "content_type", "start"),
    [
        ("html", "text/html", b"<!doctype html>"),
        ("xml", "application/xml", b"<?xml"),
        ("empty", "application/json", b""),
    ],
)
async def test_another_page_comes_with_200(
    serve: Serve, kind: str, content_type: str, start: bytes
) -> None:
    caller, url, _ = await ready(serve, f"storage:{kind}", f"images:{kind}")
    for answer in (await caller.fetch(url), await caller.api("/images/v1")):
        assert answer.status == 200
        assert answer.headers["Content-Type"] == content_type
        assert answer.body.startswith(start)
        assert bool(answer.body) == bool(start)


async def test_a_redirect_leads_where_the_rule_says(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:redirect=http://host.invalid/elsewhere")
    answer = await caller.fetch(url)
    assert (answer.status, answer.headers["Location"]) == (302, "http://host.invalid/elsewhere")


async def test_a_chunked_body_has_no_length(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:chunked")
    answer = await caller.fetch(url)
    assert answer.body == body
    assert "Content-Length" not in answer.headers
    assert answer.headers["Transfer-Encoding"] == "chunked"


async def test_hashes_can_be_missing(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:no-md5x1")
    line = ",".join((await caller.fetch(url)).headers.getall("x-goog-hash"))
    assert "crc32c=" in line
    assert "md5=" not in line
    caller.simulator.faults.add("storage:no-hash")
    assert "x-goog-hash" not in (await caller.fetch(url)).headers


async def test_a_range_can_be_ignored_or_wrong(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:range-ignoredx1")
    asked = {"Range": "bytes=100-"}
    whole = await caller.fetch(url, headers=asked)
    assert (whole.status, whole.body) == (200, body)
    caller.simulator.faults.clear()
    caller.simulator.faults.add("storage:range-wrong")
    wrong = await caller.fetch(url, headers=asked)
    assert (wrong.status, wrong.body) == (206, body[50:])
    assert wrong.headers["Content-Range"].startswith("bytes 50-")


async def test_the_generation_changes_at_each_request(serve: Serve) -> None:
    caller, url, body = await ready(serve, "storage:etag-changes")
    first, second = await caller.fetch(url), await caller.fetch(url)
    assert first.headers["x-goog-generation"] != second.headers["x-goog-generation"]
    assert first.headers["ETag"] != second.headers["ETag"]
    resumed = {"Range": "bytes=9-", "If-Range": first.headers["ETag"]}
    assert (await caller.fetch(url, headers=resumed)).body == body


async def test_a_url_can_be_found_expired(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:expiredx1")
    answer = await caller.fetch(url)
    assert answer.status == 400
    assert "ExpiredToken" in answer.text
    assert (await caller.fetch(url)).status == 200


async def test_json_can_be_broken_in_three_ways(serve: Serve) -> None:
    caller, _, _ = await ready(serve)
    whole = (await caller.api("/images/v1")).body
    answers: dict[str, Answer] = {}
    for kind in ("bad-json", "truncated-json", "wrong-shape"):
        caller.simulator.faults.clear()
        caller.simulator.faults.add(f"images:{kind}")
        answers[kind] = await caller.api("/images/v1")
        assert answers[kind].status == 200
    with pytest.raises(ValueError, match="Expecting value"):
        _ = answers["bad-json"].json
    # Cut at half of the bytes that this very answer had; signatures differ, lengths do not.
    assert len(answers["truncated-json"].body) == len(whole) // 2
    assert isinstance(answers["wrong-shape"].json, dict)


async def test_a_dead_token_stays_dead_and_a_new_one_works(serve: Serve) -> None:
    caller, _, _ = await ready(serve, "images:token-deathx1")
    assert (await caller.api("/images/v1")).status == 401
    assert (await caller.api("/images/v1")).status == 401
    caller.token = caller.simulator.issue_token()
    assert (await caller.api("/images/v1")).status == 200


async def test_the_token_endpoint_can_fail_too(serve: Serve) -> None:
    caller, _, _ = await ready(serve, "token:429=3x1")
    url = URL(caller.simulator.auth_url + "/api/auth/v2/token")
    answer = await caller.send("POST", url, json={})
    assert (answer.status, answer.headers["Retry-After"]) == (429, "3")
    assert answer.json["errorName"] == "TooManyRequestsError"
    assert (await caller.send("POST", url, json={})).status == 400


async def test_faults_add_up(serve: Serve) -> None:
    caller, url, _ = await ready(serve, "storage:corrupt", "storage:chunked", "storage:no-hash")
    answer = await caller.fetch(url)
    assert "Content-Length" not in answer.headers
    assert "x-goog-hash" not in answer.headers
