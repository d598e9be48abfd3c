"""The events of a run: each end told once, a reader that sets the pace, and leaving at any time."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import Counter
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from pathlib import Path

import pytest

import bulkfetch
from bulkfetch import Archive, ImageEnded, PatientEnded, Settings, Summary, outcomes
from bulkfetch.archive.tree import LocalTree
from bulkfetch.simulator import Simulator
from tests.conftest import Serve, credentials, write_manifest

Outcomes = AsyncGenerator[ImageEnded | PatientEnded | Summary]


@pytest.fixture
def simulator(serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Simulator:
    """A simulator that the environment leads to, and a manifest of its patients right here."""
    made = serve(patients=40)
    at_home(made, tmp_path, monkeypatch)
    return made


def at_home(simulator: Simulator, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in credentials(simulator).items():
        monkeypatch.setenv(name, value)
    write_manifest(home / "patients.csv", list(simulator.patient_ids()))
    monkeypatch.chdir(home)


def begun(**options: object) -> Outcomes:
    return bulkfetch.run("patients.csv", Settings(out="archive", **options))  # type: ignore[arg-type]


async def told(run: Outcomes) -> tuple[list[ImageEnded], list[PatientEnded], Summary]:
    """What a run told, once its sums and their order were found right."""
    *before, summary = [outcome async for outcome in run]
    assert isinstance(summary, Summary)
    images = [outcome for outcome in before if isinstance(outcome, ImageEnded)]
    patients = [outcome for outcome in before if isinstance(outcome, PatientEnded)]
    by_outcome = Counter[str](image.outcome for image in images)
    by_state = Counter[str](patient.state for patient in patients)
    sums = summary.images.model_dump()
    assert by_outcome == Counter({n: sums[n] for n in sums if n != "listed" and sums[n]})
    states = summary.patients.model_dump(exclude={"total", "not_reached"})
    assert by_state - Counter(not_reached=by_state["not_reached"]) == +Counter(states)
    assert sum(image.bytes for image in images) == summary.bytes
    waiting = 0
    for outcome in before:
        if isinstance(outcome, PatientEnded):
            assert waiting == outcome.images
        waiting = 0 if isinstance(outcome, PatientEnded) else waiting + 1
    return images, patients, summary


def nothing_is_left() -> None:
    """No task but this one, and no run that holds the archive."""
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert not LocalTree(Path("archive").resolve()).at_work()


@pytest.mark.parametrize("processes", [1, 3])
async def test_each_end_is_told_once_and_the_sums_are_those_of_what_was_told(
    simulator: Simulator, processes: int
) -> None:
    broken = next(i for p in simulator.patient_ids() for i in simulator.expected_images(p))
    simulator.patch_image(str(broken["id"]), status=None)
    images, patients, summary = await told(begun(processes=processes))
    nothing_is_left()
    assert {patient.patient_id for patient in patients} == set(simulator.patient_ids())
    assert len({(i.patient_id, i.image_id, i.version) for i in images}) == len(images)
    (failed,) = [patient for patient in patients if patient.state == "failed"]
    assert failed.kind == "bad_response"
    assert failed.error
    assert summary.exit_code == 1
    async with Archive("archive") as archive:
        for ended in images:
            image = await archive.image(ended)
            assert image
            assert image.sidecar.image_id == ended.image_id
            assert (image.path is None) == (ended.outcome == "not_uploaded")


async def test_a_dry_run_tells_what_would_be(simulator: Simulator) -> None:
    images, _, summary = await told(begun(dry_run=True))
    assert summary.dry_run
    assert {image.outcome for image in images} >= {"downloaded"}
    assert not Path("archive").exists()  # noqa: ASYNC240  a test


@pytest.mark.usefixtures("simulator")
async def test_what_is_wrong_is_raised_from_the_loop() -> None:
    with pytest.raises(bulkfetch.ManifestError):
        await anext(bulkfetch.run("nowhere.csv", Settings(out="archive")))
    async with aclosing(begun()) as first:
        await anext(first)
        with pytest.raises(bulkfetch.DestinationError, match="held by another run"):
            await anext(begun())
    await told(begun())
    nothing_is_left()


@pytest.mark.parametrize("processes", [1, 2])
async def test_a_reader_that_does_not_go_on_holds_the_run_up(
    simulator: Simulator, monkeypatch: pytest.MonkeyPatch, processes: int
) -> None:
    monkeypatch.setattr(outcomes, "_WAITING_AT_MOST", 8)
    run = begun(processes=processes, query_concurrency=2, download_concurrency=2)
    async with aclosing(run):
        first = await anext(run)
        asked = -1
        while asked != (asked := simulator.requests["images"]):  # noqa: ASYNC110  counted elsewhere
            await asyncio.sleep(0.5)
        # Those in hand have ended: four in the first process, and eight in another if it has begun.
        assert 1 <= asked <= 30
        rest = [first, *[outcome async for outcome in run]]
    assert isinstance(rest[-1], Summary)
    assert rest[-1].patients.total == sum(isinstance(one, PatientEnded) for one in rest)
    assert rest[-1].exit_code == 0


class LeftError(Exception):
    """The program's own."""


async def leave(how: str, processes: int) -> None:
    """Begin a run, and leave its loop at the first patient who has an image."""
    async with aclosing(begun(processes=processes, download_concurrency=4)) as run:
        async for outcome in run:
            if isinstance(outcome, ImageEnded) and outcome.outcome == "downloaded":
                if how == "break":
                    break
                if how == "exception":
                    raise LeftError
                this = asyncio.current_task()
                assert this
                this.cancel()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("how", ["break", "exception", "cancel"])
async def test_leaving_early_ends_the_run_in_order(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, processes: int
) -> None:
    slow = serve(patients=60, storage_latency_s=0.05)
    at_home(slow, tmp_path, monkeypatch)
    with suppress(LeftError, asyncio.CancelledError):
        await asyncio.create_task(leave(how, processes))
    nothing_is_left()
    async with Archive("archive") as archive:
        (run,) = await archive.runs()
    assert run.summary
    assert run.summary.interrupted
    assert run.summary.exit_code == 130
    assert run.summary.patients.not_reached > 0
    assert bulkfetch.verify("archive").ok
    again = await bulkfetch.download_async("patients.csv", Settings(out="archive"))
    assert again.patients.not_reached == again.patients.failed == 0
    assert again.images.unchanged >= run.summary.images.downloaded > 0


async def test_after_a_plain_break_the_run_ends_by_itself(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = serve(patients=60, storage_latency_s=0.05)
    at_home(slow, tmp_path, monkeypatch)
    async for _ in begun(download_concurrency=2):
        break
    while len(asyncio.all_tasks()) > 1:  # noqa: ASYNC110  nobody tells
        await asyncio.sleep(0.02)
    nothing_is_left()


def test_a_run_that_ends_with_its_event_loop_was_interrupted(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_home(serve(storage_latency_s=60), tmp_path, monkeypatch)
    run = begun()

    async def main() -> None:
        await anext(run)

    asyncio.run(main())
    (summary,) = Path("archive").glob(".bulkfetch/runs/*/summary.json")
    assert json.loads(summary.read_bytes())["interrupted"]
    assert json.loads(summary.read_bytes())["exit_code"] == 130


async def test_an_event_loop_goes_on_while_a_manifest_is_waited_for(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve()
    at_home(simulator, tmp_path, monkeypatch)
    manifest = tmp_path / "patients.csv"
    text = manifest.read_text("utf-8")
    manifest.unlink()
    os.mkfifo(manifest)
    goes_on = threading.Event()
    went_on = []

    def write() -> None:
        went_on.append(goes_on.wait(10))
        manifest.write_text(text, "utf-8")

    writing = threading.Thread(target=write)
    writing.start()
    task = asyncio.create_task(told(begun()))
    await asyncio.sleep(0.1)
    goes_on.set()
    _, patients, _ = await task
    writing.join()
    assert went_on == [True]
    assert len(patients) == 12


async def test_being_cancelled_twice_ends_a_run_at_once(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = serve(patients=20, storage_latency_s=60)
    at_home(stuck, tmp_path, monkeypatch)
    task = asyncio.create_task(told(begun()))
    while not stuck.requests["storage"]:  # noqa: ASYNC110  counted elsewhere
        await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.sleep(0.1)
    assert not task.done()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        # Well within the grace time that it would have in order.
        async with asyncio.timeout(4):
            await task
    nothing_is_left()
    assert not list(Path("archive").glob("[!.]*/*.jpg"))  # noqa: ASYNC240  a test
