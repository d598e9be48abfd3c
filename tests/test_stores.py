"""The stores that other tests use do as stores do, and fail as they are told."""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys

import obstore
import pytest
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    GenericError,
    PermissionDeniedError,
    PreconditionError,
)
from obstore.store import ObjectStore, from_url
from yarl import URL

from tests.stores import (
    SECRET,
    Bucket,
    break_off,
    damage,
    delay,
    forget,
    hang_up,
    lose,
    refuse,
    serving_s3,
)

MIB = 1024 * 1024


@pytest.fixture(params=["bucket", "google_bucket"])
def any_bucket(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Bucket:
    """A bucket of each kind, reached by this process's environment."""
    bucket: Bucket = request.getfixturevalue(request.param)
    bucket.export(monkeypatch)
    return bucket


@pytest.fixture
def store(any_bucket: Bucket) -> ObjectStore:
    """A store that tries nothing twice, at a prefix of the bucket."""
    return from_url(f"{any_bucket.url}/in/here", retry_config={"max_retries": 0})


def test_what_is_put_is_there_and_is_listed(any_bucket: Bucket, store: ObjectStore) -> None:
    store.put("a b/ü~1.txt", b"one")
    assert bytes(store.get("a b/ü~1.txt").bytes()) == b"one"
    assert store.head("a b/ü~1.txt")["size"] == 3
    assert bytes(store.get_range("a b/ü~1.txt", start=1, end=3)) == b"ne"
    assert [meta["path"] for chunk in store.list() for meta in chunk] == ["a b/ü~1.txt"]
    assert any_bucket.contents() == {"in/here/a b/ü~1.txt": b"one"}
    store.delete("a b/ü~1.txt")
    assert any_bucket.contents() == {}


def test_what_is_there_is_not_created_again(any_bucket: Bucket, store: ObjectStore) -> None:
    store.put("a", b"one", mode="create")
    with pytest.raises(AlreadyExistsError):
        store.put("a", b"two", mode="create")
    assert any_bucket.contents() == {"in/here/a": b"one"}


def test_an_update_is_refused_once_another_was_made(store: ObjectStore) -> None:
    def version() -> obstore.UpdateVersion:
        meta = store.head("a")
        if meta["version"] is None:
            return {"e_tag": meta["e_tag"]}
        return {"e_tag": meta["e_tag"], "version": meta["version"]}

    store.put("a", b"one")
    first = version()
    store.put("a", b"two", mode=first)
    with pytest.raises(PreconditionError):
        store.put("a", b"three", mode=first)
    store.put("a", b"four", mode=version())
    assert bytes(store.get("a").bytes()) == b"four"


def test_large_objects_go_in_parts(any_bucket: Bucket, store: ObjectStore) -> None:
    data = os.urandom(6 * MIB)
    store.put("large", [data, data])
    assert any_bucket.contents() == {"in/here/large": data * 2}
    assert any_bucket.proxy.count(r"^PUT .*partNumber=") == 3
    assert not any_bucket.unfinished_uploads()


def test_an_upload_left_behind_is_told(any_bucket: Bucket, store: ObjectStore) -> None:
    # Neither the part nor the abort gets through.
    any_bucket.proxy.strike(r"^PUT .*partNumber=2", refuse(500, "InternalError"))
    any_bucket.proxy.strike(r"^DELETE .*uploadId=", hang_up, times=float("inf"))
    with pytest.raises(BaseError):
        store.put("large", [bytes(6 * MIB)] * 2)
    assert any_bucket.unfinished_uploads() == ["in/here/large"]
    assert any_bucket.contents() == {}


def test_faults_strike_what_they_are_for_and_no_more(
    any_bucket: Bucket, store: ObjectStore
) -> None:
    any_bucket.proxy.strike(r"^PUT .*(/|%2F)b$", refuse(503, "SlowDown"), skip=1, times=2)
    store.put("b", b"0")
    store.put("a", b"0")
    for _ in range(2):
        with pytest.raises(GenericError, match="503"):
            store.put("b", b"1")
    store.put("b", b"2")
    assert any_bucket.contents() == {"in/here/a": b"0", "in/here/b": b"2"}
    assert [asked.status for asked in any_bucket.proxy.asked] == [200, 200, 503, 503, 200]


def test_refused_credentials_are_told_as_such(any_bucket: Bucket, store: ObjectStore) -> None:
    any_bucket.proxy.strike("^PUT", refuse(403, "InvalidAccessKeyId"))
    with pytest.raises(PermissionDeniedError) as caught:
        store.put("a", b"one")
    assert SECRET not in str(caught.value)


def test_connections_are_cut_before_and_after_the_deed(
    any_bucket: Bucket, store: ObjectStore
) -> None:
    any_bucket.proxy.strike("^PUT", hang_up)
    any_bucket.proxy.strike("^PUT", forget)
    for after in ({}, {"in/here/a": b"one"}):
        with pytest.raises(GenericError):
            store.put("a", b"one")
        assert any_bucket.contents() == after
    assert [asked.status for asked in any_bucket.proxy.asked] == [0, 0]


def test_a_body_is_broken_off_in_the_middle(any_bucket: Bucket, store: ObjectStore) -> None:
    store.put("a", bytes(MIB))
    any_bucket.proxy.strike("^GET", break_off)
    with pytest.raises(GenericError):
        store.get("a").bytes()
    assert len(store.get("a").bytes()) == MIB


def test_a_lost_object_looks_stored(any_bucket: Bucket, store: ObjectStore) -> None:
    any_bucket.proxy.strike("^PUT", lose)
    store.put("a", b"one")
    assert any_bucket.contents() == {}


@pytest.mark.parametrize(
    "options", [{}, {"AWS_CHECKSUM_ALGORITHM": "SHA256", "AWS_UNSIGNED_PAYLOAD": "true"}]
)
def test_s3_refuses_a_damaged_object(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    bucket.export(monkeypatch)
    for name, value in options.items():
        monkeypatch.setenv(name, value)
    bucket.proxy.strike("^PUT", damage)
    with pytest.raises(GenericError, match="BadDigest"):
        from_url(bucket.url).put("a", b"one")
    assert bucket.contents() == {}


def test_google_keeps_a_damaged_object_and_says_its_md5(
    google_bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    google_bucket.export(monkeypatch)
    google_bucket.proxy.strike("^PUT", damage)
    result = from_url(google_bucket.url).put("a", b"one")
    assert google_bucket.contents() == {"a": b"ond"}
    assert result["e_tag"] == f'"{hashlib.md5(b"ond").hexdigest()}"'


def test_a_late_answer_is_an_answer(any_bucket: Bucket, store: ObjectStore) -> None:
    any_bucket.proxy.strike("^PUT", delay(0.05))
    store.put("a", b"one")
    assert any_bucket.contents() == {"in/here/a": b"one"}


def test_a_store_ends_with_whoever_started_it() -> None:
    script = """
import os
from tests.stores import serving_s3
with serving_s3() as url:
    print(url, flush=True)
    os.kill(os.getpid(), 9)
"""
    told = subprocess.run([sys.executable, "-c", script], check=False, stdout=subprocess.PIPE)
    assert told.returncode == -signal.SIGKILL
    url = URL(told.stdout.decode().strip())
    # Sooner or later, and well within the time that a test may take.
    while _accepts(url):
        pass


def _accepts(url: URL) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex((url.host, url.port)) == 0


def test_a_second_store_is_another() -> None:
    with serving_s3() as one, serving_s3() as other:
        assert one != other
