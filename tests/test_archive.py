"""An archive on disk: in which order it is written, and what is left when that is cut off."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from bulkfetch.archive import Identity
from bulkfetch.archive.local import LocalArchive
from bulkfetch.errors import (
    ArchiveMismatchError,
    DestinationError,
    PathRefusedError,
    TakenError,
)
from bulkfetch.models import FileInfo, Requested, Sidecar, SidecarOutcome
from bulkfetch.plan import Held, Place
from tests.conftest import with_mounts_of_its_own

IDENTITY = Identity(api_host="127.0.0.1")
PLACE = Place("p-1", "i-1.v1")
SMALL = b"a small image"
LARGE = b"a large image" * 150_000  # beyond what waits in memory
ROOT = Path(__file__).parent.parent


def sidecar_for(place: Place, data: bytes | None, **changes: Any) -> Sidecar:
    file = None
    if data is not None:
        file = FileInfo(
            path=place.file("jpg"),
            size=len(data),
            sha256=hashlib.sha256(data).hexdigest(),
            media_type="image/jpeg",
            declared_type=None,
        )
    fields: dict[str, Any] = {
        "schema_version": 1, "image_id": place.stem.split(".")[0], "patient_id": place.directory,
        "coverage_id": None, "version": 1, "status": "UPLOADED", "deactivated": False,
        "outcome": SidecarOutcome.downloaded if file else SidecarOutcome.not_uploaded,
        "file": file, "source": None, "record": {}, "manifest": None, "run_id": "r",
        "requested": Requested(patient_id=place.directory, coverage_id=None),
        "fetched_at": datetime(2026, 1, 1, tzinfo=UTC), "bulkfetch_version": "0",
    }  # fmt: skip
    return Sidecar(**{**fields, **changes})


async def put(
    archive: LocalArchive, data: bytes, place: Place = PLACE, *, revision: int = 1
) -> None:
    """Archive an image, in the parts that a connection would bring."""
    async with archive.stage(place) as stage:
        for at in range(0, len(data), 2**18):
            await stage.write(data[at : at + 2**18])
        await archive.publish(stage, place.file("jpg"), revision, sidecar_for(place, data))


async def held(archive: LocalArchive, place: Place = PLACE, *, rehash: bool = True) -> Held | None:
    (state,) = (await archive.look([place], rehash=rehash)).held
    return state


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "archive"


@pytest.fixture
def archive(root: Path) -> Iterator[LocalArchive]:
    with LocalArchive.open(str(root), "run-1", IDENTITY) as opened:
        yield opened


def everything(directory: Path, pattern: str = "*") -> list[Path]:
    return [directory, *directory.rglob(pattern)]


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()} if directory.exists() else set()


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_what_was_put_is_held_and_nothing_but_the_final_names_remains(
    archive: LocalArchive, root: Path, data: bytes
) -> None:
    assert await held(archive) is None
    await put(archive, data)
    assert names(root / "p-1") == {"i-1.v1.jpg", "i-1.v1.json"}
    assert (root / "p-1" / "i-1.v1.jpg").read_bytes() == data
    assert await held(archive) == Held(sidecar_for(PLACE, data), 1)
    assert everything(root, "*.part") == [root]


async def test_everything_is_private_to_its_owner_whatever_the_umask(
    tmp_path: Path, root: Path
) -> None:
    before = os.umask(0)
    try:
        with LocalArchive.open(str(root / "deep" / "er"), "run-1", IDENTITY) as archive:
            await put(archive, LARGE)
            await put(archive, SMALL, Place("p-2", "i-2.v1"))
            await archive.note(PLACE, 2, sidecar_for(PLACE, LARGE, status="PENDING"))
            (root / "deep" / "er" / "p-2" / "i-2.v1.jpg").unlink()
            await archive.quarantine(Place("p-2", "i-2.v1"))
            for path in everything(root):
                wanted = 0o700 if path.is_dir() else 0o600
                # The lock has no content, and belongs to a library.
                assert path.name == "lock" or stat.S_IMODE(path.stat().st_mode) == wanted, path
    finally:
        os.umask(before)


Event = tuple[str, ...]

PUBLISHED: list[Event] = [
    ("write", "p-1/.i-1.v1.part"),
    ("fsync", "p-1/.i-1.v1.part"),
    ("rename", ".i-1.v1.part", "i-1.v1.jpg"),
    ("fsync", "p-1"),
    ("write", "p-1/.i-1.v1.json.part"),
    ("fsync", "p-1/.i-1.v1.json.part"),
    ("rename", ".i-1.v1.json.part", "i-1.v1.json"),
    ("fsync", "p-1"),
]


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("durable", [True, False])
async def test_the_image_is_on_disk_before_its_sidecar_is_begun(
    root: Path, monkeypatch: pytest.MonkeyPatch, data: bytes, durable: bool
) -> None:
    events: list[Event] = []
    fsync, rename = os.fsync, os.rename

    def noted_fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        events.append(("fsync", str(path.relative_to(root.resolve()))))
        fsync(descriptor)

    def noted_rename(old: str, new: str, **directories: int) -> None:
        events.append(("rename", old, new))
        rename(old, new, **directories)

    with LocalArchive.open(str(root), "run-1", IDENTITY, durable=durable) as archive:
        monkeypatch.setattr(os, "fsync", noted_fsync)
        monkeypatch.setattr(os, "rename", noted_rename)
        await put(archive, data)
        monkeypatch.undo()
    wanted = [event for event in PUBLISHED if event[0] != "write"]
    if durable:
        # The new directory is durable in its parent, too.
        assert events == [("fsync", "."), *wanted]
    else:
        assert events == [event for event in wanted if event[0] == "rename"]


CHILD = """
import asyncio, sys
from tests.test_archive import *

async def main(archive):
    {body}

with LocalArchive.open(sys.argv[1], "run-1", IDENTITY, durable={durable}) as archive:
    asyncio.run(main(archive))
"""


def child(root: Path, body: str, *within: str, durable: bool = True) -> subprocess.Popen[str]:
    """Start a process that works in an archive."""
    code = CHILD.format(body=body.strip().replace("\n", "\n    "), durable=durable)
    return subprocess.Popen(
        [*within, sys.executable, "-c", code, str(root)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def traced(text: str, root: Path) -> list[Event]:
    """The calls within an archive that a trace tells of, as they ended."""
    events: list[Event] = []
    begun: dict[str, str] = {}
    for line in text.splitlines():
        process, _, call = line.partition(" ")
        call = call.strip()
        if call.endswith("<unfinished ...>"):
            begun[process] = call
            continue
        if call.startswith("<..."):
            call = begun.pop(process)
        event: Event | None = None
        if found := re.match(r"(write|fsync|fdatasync)\(\d+<([^>]*)>", call):
            event = found[1], found[2]
        elif found := re.match(r'rename\w*\(\d+<([^>]*)>, "([^"]*)", \d+<[^>]*>, "([^"]*)"', call):
            event = "rename", f"{found[1]}/{found[2]}", found[3]
        if event and event[1].startswith(f"{root}/p-1"):
            kind, path, *rest = event
            name = path.removeprefix(f"{root}/")
            event = (kind, Path(name).name if kind == "rename" else name, *rest)
            if events[-1:] != [event]:
                events.append(event)
    return events


@pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")
@pytest.mark.parametrize("data", ["SMALL", "LARGE"])
def test_the_kernel_is_asked_in_the_same_order(root: Path, tmp_path: Path, data: str) -> None:
    trace = tmp_path / "trace"
    calls = "trace=fsync,fdatasync,rename,renameat,renameat2,write"
    tracing = ["strace", "-f", "-y", "-qq", "-s", "0", "-e", calls, "-o", str(trace)]
    with child(root, f"await put(archive, {data})", *tracing) as process:
        _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert traced(trace.read_text(encoding="utf-8"), root.resolve()) == PUBLISHED


async def test_a_note_is_written_as_durably_as_a_sidecar(
    archive: LocalArchive, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await put(archive, SMALL)
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(Path(f"/proc/self/fd/{descriptor}").readlink().name)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    later = sidecar_for(PLACE, SMALL, status="PENDING")
    await archive.note(PLACE, 2, later)
    assert synced == [".i-1.v1.r2.json.part", "p-1"]
    assert names(root / "p-1") == {"i-1.v1.jpg", "i-1.v1.json", "i-1.v1.r2.json"}
    assert await held(archive) == Held(later, 2)


async def test_the_highest_revision_is_the_state(archive: LocalArchive) -> None:
    for revision in range(1, 12):
        state = sidecar_for(PLACE, None, status=f"S{revision}")
        await archive.note(PLACE, revision, state)
        assert await held(archive) == Held(state, revision)


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_leaving_a_stage_without_publishing_leaves_nothing(
    archive: LocalArchive, root: Path, data: bytes
) -> None:
    async def fail() -> None:
        async with archive.stage(PLACE) as stage:
            await stage.write(data)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    async with archive.stage(PLACE) as stage:
        await stage.write(data)
    assert names(root / "p-1") == set()


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("moment", range(0, 40, 3))
async def test_cancelling_a_stage_in_the_middle_leaves_no_part_and_no_descriptor(
    archive: LocalArchive, root: Path, moment: int
) -> None:
    await put(archive, SMALL, Place("p-2", "i-2.v1"))  # whatever is opened once is open by now
    before = descriptors()

    async def write_for_ever() -> None:
        async with archive.stage(PLACE) as stage:
            while True:
                await stage.write(LARGE)

    task = asyncio.create_task(write_for_ever())
    while moment and not task.done():
        moment -= 1
        await asyncio.sleep(0 if moment % 2 else 0.0005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert names(root / "p-1") == set()
    assert descriptors() == before


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("times", [1, 2])
async def test_cancelling_while_publishing_leaves_a_whole_pair_or_nothing(
    archive: LocalArchive, root: Path, data: bytes, times: int
) -> None:
    await put(archive, SMALL, Place("p-2", "i-2.v1"))
    before = descriptors()
    ends = set()
    for moment in range(24):
        place = Place(f"p-{moment}x", "i-1.v1")
        task = asyncio.create_task(put(archive, data, place))
        for step in range(moment):
            await asyncio.sleep(0 if step % 3 else 0.0005)
        for _ in range(times):
            task.cancel()
            await asyncio.sleep(0)
        (error,) = await asyncio.gather(task, return_exceptions=True)
        assert error is None or isinstance(error, asyncio.CancelledError)
    await asyncio.get_running_loop().shutdown_default_executor()
    for moment in range(24):
        found = names(root / f"p-{moment}x")
        ends.add(len(found))
        assert found in (set(), {"i-1.v1.jpg", "i-1.v1.json"})
        if found:
            assert (root / f"p-{moment}x" / "i-1.v1.jpg").read_bytes() == data
    assert 0 in ends, "the first is cancelled before it began"
    assert descriptors() <= before


async def test_what_is_there_is_never_overwritten(archive: LocalArchive, root: Path) -> None:
    await put(archive, SMALL)
    with pytest.raises(TakenError):
        await put(archive, LARGE)
    with pytest.raises(TakenError):
        await archive.note(PLACE, 1, sidecar_for(PLACE, None))
    with pytest.raises(TakenError):
        await archive.quarantine(PLACE)
    assert await held(archive) == Held(sidecar_for(PLACE, SMALL), 1)
    assert names(root / "p-1") == {"i-1.v1.jpg", "i-1.v1.json"}


async def test_each_of_those_committed_together_has_its_own_end(
    archive: LocalArchive, root: Path
) -> None:
    places = [Place(f"p-{n % 5}", f"i-{n}.v1") for n in range(40)]
    (root / "p-1").write_text("in the way", encoding="utf-8")
    await put(archive, SMALL, places[2])
    ends = await asyncio.gather(*(put(archive, SMALL, p) for p in places), return_exceptions=True)
    for place, end in zip(places, ends, strict=True):
        if place.directory == "p-1":
            assert isinstance(end, PathRefusedError)
        elif place == places[2]:
            assert isinstance(end, TakenError)
        else:
            assert end is None
            assert await held(archive, place) == Held(sidecar_for(place, SMALL), 1)
    errors = [end for end in ends if end is not None]
    assert len({id(error) for error in errors}) == len(errors) == 9
    assert everything(root, "*.part") == [root]


async def test_without_a_thread_to_commit_in_every_job_fails_and_none_hangs(
    archive: LocalArchive, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        ThreadPoolExecutor, "submit", Mock(side_effect=RuntimeError("can't start new thread"))
    )
    ends = await asyncio.gather(
        *(put(archive, SMALL, Place("p-1", f"i-{n}.v1")) for n in range(100)),
        return_exceptions=True,
    )
    assert all(isinstance(end, DestinationError) for end in ends)
    monkeypatch.undo()
    await put(archive, SMALL)
    assert await held(archive) is not None


KILLED = """
import time
n = time.monotonic_ns()  # nothing is written twice
while True:
    await put(archive, (LARGE, SMALL)[n % 2] + str(n).encode(), Place(f"p-{n % 5}", f"i-{n}.v1"))
    n += 1
    print(n, flush=True)
"""


async def test_a_killed_process_never_leaves_a_sidecar_without_its_whole_file(root: Path) -> None:
    published = 0
    for turn in range(4):
        with child(root, KILLED, durable=False) as process:
            assert process.stdout is not None
            for _ in range(3 + 5 * turn):
                assert process.stdout.readline(), process.stderr and process.stderr.read()
            process.send_signal(signal.SIGKILL)
            process.communicate()
        images = everything(root, "p-*/*.json")[1:]
        sidecars = [Sidecar.model_validate_json(path.read_bytes()) for path in images]
        published += len(sidecars)
        # The dead process's lock is nobody's now.
        with LocalArchive.open(str(root), "run-2", IDENTITY) as archive:
            for sidecar in sidecars:
                place = Place(str(sidecar.patient_id), f"{sidecar.image_id}.v1")
                state = await held(archive, place)
                assert state == Held(sidecar, 1)
            # What it left half-made is cleared away.
            assert everything(root, "*.part") == [root]
    assert published > 10


FILLED = """
place = PLACE
try:
    for n in range(10_000):
        place = Place("p-1", f"i-{n}.v1")
        await put(archive, DATA, place)
except DestinationError as error:
    print(error)
found = names(Path(sys.argv[1]) / "p-1")
assert len(found) % 2 == 0 and len(found) < 1000, found
assert not [name for name in found if name.endswith(".part")], found
for n in range(len(found) // 2):
    state = await held(archive, Place("p-1", f"i-{n}.v1"))
    assert state is not None and state.damage is None
os.unlink(Path(sys.argv[1]) / "p-1" / "i-0.v1.jpg")
os.unlink(Path(sys.argv[1]) / "p-1" / "i-0.v1.json")
await put(archive, DATA, Place("p-1", "i-0.v1"))
"""


@pytest.mark.parametrize("data", ["b'x' * 30_000", "LARGE"])
@pytest.mark.parametrize(
    ("reserve", "words"),
    [("-(2**40)", "No space left on device"), ("files.RESERVE_BYTES", "is full")],
)
def test_a_full_disk_is_a_destination_error_and_leaves_whole_pairs(
    root: Path, data: str, reserve: str, words: str
) -> None:
    root.mkdir()
    mounted = f'mount -t tmpfs -o size=6m none "{root}" && exec "$@"'
    within = with_mounts_of_its_own(mounted)
    reserved = f"from bulkfetch.archive import files\nfiles.RESERVE_BYTES = {reserve}\n"
    with child(root, reserved + FILLED.replace("DATA", data), *within) as process:
        out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert words in out


@pytest.mark.parametrize("action", ["publish", "note", "held", "quarantine"])
async def test_a_link_in_the_place_of_a_directory_is_never_followed(
    archive: LocalArchive, root: Path, tmp_path: Path, action: str
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "i-1.v1.json").write_text("theirs", encoding="utf-8")
    (root / "p-1").symlink_to(outside)
    doing: dict[str, Callable[[], Awaitable[object]]] = {
        "publish": lambda: put(archive, LARGE),
        "note": lambda: archive.note(PLACE, 2, sidecar_for(PLACE, None)),
        "held": lambda: held(archive),
        "quarantine": lambda: archive.quarantine(PLACE),
    }
    with pytest.raises(PathRefusedError):
        await doing[action]()
    assert names(outside) == {"i-1.v1.json"}
    assert (outside / "i-1.v1.json").read_text(encoding="utf-8") == "theirs"


@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
@pytest.mark.parametrize("name", [".i-1.v1.part", "i-1.v1.jpg", ".i-1.v1.json.part", "i-1.v1.json"])
@pytest.mark.parametrize("dangling", [True, False])
async def test_a_link_in_the_place_of_a_file_is_never_written_through(
    archive: LocalArchive, root: Path, data: bytes, name: str, dangling: bool
) -> None:
    outside = root.parent / "outside"
    if not dangling:
        outside.write_text("theirs", encoding="utf-8")
    (root / "p-1").mkdir()
    (root / "p-1" / name).symlink_to(outside)
    try:
        await put(archive, data)
    except DestinationError:
        assert name.endswith(".part")
    except TakenError:
        assert name == "i-1.v1.json"
        assert (state := await held(archive)) is not None
        assert state.damage == "its sidecar cannot be read"
    else:
        assert not (root / "p-1" / name).is_symlink()
        state = await held(archive)
        assert state is not None
        assert state.damage is None
    assert outside.exists() != dangling
    assert dangling or outside.read_text(encoding="utf-8") == "theirs"


async def test_links_in_the_place_of_sidecar_and_file_are_damage(
    archive: LocalArchive, root: Path, tmp_path: Path
) -> None:
    await put(archive, SMALL)
    for name in ("i-1.v1.jpg", "i-1.v1.json"):
        (root / "p-1" / name).rename(tmp_path / name)
        (root / "p-1" / name).symlink_to(tmp_path / name)
        state = await held(archive, rehash=False)
        assert state is not None
        assert state.damage
        (root / "p-1" / name).unlink()
        (tmp_path / name).rename(root / "p-1" / name)
    state = await held(archive)
    assert state is not None
    assert state.damage is None


def damage_file(action: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda directory: action(directory / "i-1.v1.jpg")


def replaced_by(make: Callable[[Path], None]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def damage_sidecar(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    def damage(directory: Path) -> None:
        path = directory / "i-1.v1.json"
        values = json.loads(path.read_bytes())
        change(values)
        path.write_text(json.dumps(values), encoding="utf-8")

    return damage


def named_file(name: str) -> Callable[[Path], object]:
    return damage_sidecar(lambda values: values["file"].update(path=name))


def raw_sidecar(data: bytes) -> Callable[[Path], object]:
    return lambda directory: (directory / "i-1.v1.json").write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "file gone": damage_file(Path.unlink),
    "file short": damage_file(lambda path: path.write_bytes(SMALL[:-1])),
    "file empty": damage_file(lambda path: path.write_bytes(b"")),
    "file a directory": damage_file(replaced_by(os.mkdir)),
    "file a pipe": damage_file(replaced_by(os.mkfifo)),
    "sidecar empty": raw_sidecar(b""),
    "sidecar torn": raw_sidecar(b'{"schema_version": 1, "image'),
    "sidecar a list": raw_sidecar(b"[]"),
    "sidecar deep": raw_sidecar(b"[" * 200_000),
    "sidecar no text": raw_sidecar(b"\xff\xfe\x00"),
    "sidecar of zeros": raw_sidecar(b"\0" * 900),
    "key missing": damage_sidecar(lambda values: values.pop("status")),
    "key too many": damage_sidecar(lambda values: values.update(more=1)),
    "wrong type": damage_sidecar(lambda values: values.update(version="one")),
    "schema 0": damage_sidecar(lambda values: values.update(schema_version=0)),
    "path up": named_file("../p-2/i-2.v1.jpg"),
    "path absolute": named_file("/etc/passwd"),
    "path empty": named_file(""),
    "path dot": named_file("."),
    "path with NUL": named_file("i-1.v1\0.jpg"),
    "path of another image": named_file("i-2.v1.jpg"),
    "path long": named_file("x" * 5000),
    "path a surrogate": named_file("i-1.v1.\ud800"),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_damage_is_seen_and_goes_to_quarantine_alone(
    archive: LocalArchive, root: Path, name: str
) -> None:
    neighbours = [Place("p-1", "i-10.v1"), Place("p-1", "i-1.v11"), Place("p-1", "i-1.v1.v1")]
    for place in [PLACE, *neighbours]:
        await put(archive, SMALL, place)
    DAMAGES[name](root / "p-1")
    state = await held(archive, rehash=False)
    assert state is not None
    assert state.damage

    was = {path.name for path in (root / "p-1").glob("i-1.v1.[jr]*")}
    await archive.quarantine(PLACE)
    assert await held(archive) is None
    assert names(root / ".bulkfetch" / "quarantine" / "run-1" / "p-1") == was
    for place in neighbours:
        state = await held(archive, place)
        assert state is not None
        assert state.damage is None
    await put(archive, LARGE)
    assert await held(archive) == Held(sidecar_for(PLACE, LARGE), 1)


async def test_a_changed_byte_is_seen_by_rehashing_alone(archive: LocalArchive, root: Path) -> None:
    await put(archive, SMALL)
    (root / "p-1" / "i-1.v1.jpg").write_bytes(SMALL[:-1] + b"X")
    quick, thorough = await held(archive, rehash=False), await held(archive, rehash=True)
    assert quick is not None
    assert quick.damage is None
    assert thorough is not None
    assert "SHA-256" in (thorough.damage or "")


async def test_a_sidecar_of_a_later_version_is_not_touched(
    archive: LocalArchive, root: Path
) -> None:
    await put(archive, SMALL)
    damage_sidecar(lambda values: values.update(schema_version=2, more=1))(root / "p-1")
    with pytest.raises(ArchiveMismatchError, match="later bulkfetch"):
        await held(archive)


async def test_a_sidecar_is_utf_8_json_whatever_people_wrote(
    archive: LocalArchive, root: Path
) -> None:
    words = {"note": "é 😀 \u2028 \ud83d \0 \x1b", "more": ["\udfff"]}
    sidecar = sidecar_for(PLACE, None, manifest=words, record={"display_name": "naïve\ud83d"})
    await archive.note(PLACE, 1, sidecar)
    text = (root / "p-1" / "i-1.v1.json").read_bytes().decode("utf-8")
    assert json.loads(text)["manifest"] == words
    state = await held(archive)
    assert state == Held(sidecar, 1)


async def test_an_organization_is_claimed_once_and_another_is_refused(root: Path) -> None:
    with LocalArchive.open(str(root), "run-1", IDENTITY) as archive:
        await archive.claim("one")
        await archive.claim("one")
        with pytest.raises(ArchiveMismatchError, match="another"):
            await archive.claim("another")
    told = json.loads((root / ".bulkfetch" / "archive.json").read_bytes())
    assert told["organization_id"] == "one"
    with LocalArchive.open(str(root), "run-2", IDENTITY) as archive:
        with pytest.raises(ArchiveMismatchError):
            await archive.claim("another")
        await archive.claim("one")


@pytest.mark.parametrize(
    "identity",
    [
        Identity(api_host="api.invalid"),
        Identity(api_host="127.0.0.1", path_template="{image_id}"),
    ],
)
def test_another_accounts_archive_is_refused_and_not_touched(
    root: Path, identity: Identity
) -> None:
    with LocalArchive.open(str(root), "run-1", IDENTITY):
        pass
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*.json")}
    with pytest.raises(ArchiveMismatchError):
        LocalArchive.check(str(root), identity)
    with pytest.raises(ArchiveMismatchError), LocalArchive.open(str(root), "run-2", identity):
        pass
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*.json")} == before
    with LocalArchive.open(str(root), "run-3", IDENTITY):
        pass  # a refusal holds no lock


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"api_host": 1}', b"\xff"])
def test_an_archive_whose_identity_cannot_be_read_is_refused(root: Path, content: bytes) -> None:
    (root / ".bulkfetch").mkdir(parents=True)
    (root / ".bulkfetch" / "archive.json").write_bytes(content)
    with pytest.raises(ArchiveMismatchError):
        LocalArchive.check(str(root), IDENTITY)
    assert (root / ".bulkfetch" / "archive.json").read_bytes() == content


async def test_looking_into_an_archive_makes_nothing(root: Path) -> None:
    with LocalArchive.read_only(str(root), IDENTITY) as archive:
        LocalArchive.check(str(root), IDENTITY)
        assert await held(archive) is None
        await archive.claim("one")
    assert names(root.parent) == set()
