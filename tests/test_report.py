"""`bulkfetch report`: one page that tells all, and nothing that it should not."""

from __future__ import annotations

import base64
import importlib
import io
import json
import multiprocessing
import os
import pkgutil
import re
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import bulkfetch as package
from bulkfetch.archive import files, tree_at
from bulkfetch.archive.look import local_folder
from bulkfetch.errors import BulkfetchError, ConfigurationError, DestinationError, FetchError
from bulkfetch.report import ADVICE, make_report, thumbnails
from bulkfetch.report.data import json_for_page
from bulkfetch.report.pictures import HEIGHT, PER_SHEET, WIDTH, Job
from bulkfetch.report.target import Target
from bulkfetch.report.thumbnails import sheets_of
from bulkfetch.report.timeline import MOST_STEPS, Timeline
from bulkfetch.simulator import SimulatorConfig, parse_fault
from bulkfetch.verification.events import ImageEvent
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    serving,
    start_bulkfetch,
    write_manifest,
)
from tests.deadly import deadly_sheet, dies_of
from tests.stores import Bucket
from tests.synthetic import add_image, make_empty
from tests.test_status import RUN, put, snapshot, summary

PATIENTS = 24


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """An archive of a run in which some of storage's answers failed, and the run's summary."""
    root = tmp_path_factory.mktemp("made")
    faults = (parse_fault("storage:404@20%"), parse_fault("images:503x1"))
    with serving(SimulatorConfig(patients=PATIENTS, faults=faults)) as simulator:
        manifest = write_manifest(root / "patients.csv", list(simulator.patient_ids()))
        result = download(simulator, manifest, root / "archive")
    assert result.status == 1, result.err
    return root / "archive", result.summary


def report(archive: str | Path, cwd: Path, *options: str | Path, **others: Any) -> Result:
    return bulkfetch("report", archive, *options, cwd=cwd, **others)


def data_of(page: Path) -> dict[str, Any]:
    """What the page's script is given, and `sidecars` in the images' order."""
    text = page.read_text(encoding="utf-8")
    data = json.loads(part_of(text, "application/json")[0])
    assert isinstance(data, dict)
    data["sidecars"] = [
        sidecar
        for block in part_of(text, "text/plain", "sidecars")
        for sidecar in json.loads(zlib.decompress(base64.b64decode(block)))
    ]
    return data


def part_of(text: str, kind: str, name: str | None = None) -> list[str]:
    ours = f' class="{name}"' if name else ' id="data"'
    return re.findall(rf'<script type="{kind}"{ours}>([^<]*)</script>', text)


def column(data: dict[str, Any], name: str) -> list[Any]:
    found = data["images"][name]
    return [found["values"][code] for code in found["codes"]] if "codes" in found else found


def all_bytes(page: Path) -> bytes:
    """The page, with everything in it that is packed unpacked."""
    text = page.read_text(encoding="utf-8")
    sheets = [base64.b64decode(sheet) for sheet in part_of(text, "text/plain", "thumbnails")]
    return b"".join([text.encode(), json.dumps(data_of(page)["sidecars"]).encode(), *sheets])


def picture(kind: str = "JPEG", size: tuple[int, int] = (300, 200), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, "teal").save(file, kind, **options)
    return file.getvalue()


def test_a_page_is_made_whole_and_private_and_replaces_an_earlier_one(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive, summary = made
    before = sorted(archive.rglob("*"))
    for _ in range(2):
        result = report(archive, tmp_path)
        assert (result.status, result.out) == (0, f"{tmp_path / 'report.html'}\n"), result.err
    (page,) = tmp_path.iterdir()
    assert page.stat().st_mode & 0o777 == 0o600
    assert sorted(archive.rglob("*")) == before
    data = data_of(page)
    states = Counter(column(data, "state"))
    images = summary["images"]
    assert images["failed"] > 0
    assert states["failed"] == images["failed"]
    assert states["archived"] == images["downloaded"]
    assert states["not_uploaded"] == images["not_uploaded"]
    assert states.total() == images["listed"]
    assert len(data["sidecars"]) == images["listed"]
    drawn = [place for place in column(data, "thumbnail") if place is not None]
    assert drawn == list(range(images["downloaded"]))


def test_the_page_tells_the_sums_of_the_last_run_and_what_to_do_about_what_failed(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive, summary = made
    report(archive, tmp_path, "--thumbnails=0")
    text = (tmp_path / "report.html").read_text()
    words = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", text.partition("<main")[2]))
    for total, sums in (("total", summary["patients"]), ("listed", summary["images"])):
        assert f"{sums[total]} {total} " in words
        for name, number in sums.items():
            if name != total:
                assert f" {name.replace('_', ' ')} {number} " in words
        assert f"sum: each is counted once {sums[total]} " in words
    failed = summary["failed_by_kind"]["status"]
    retried = summary["retried_by_kind"]["status"]
    assert f"status {failed} {summary['images']['failed']} {retried} {ADVICE['status']}" in words
    assert part_of(text, "text/plain", "thumbnails") == []


def test_a_run_tells_how_long_each_download_took_and_what_it_tried_again(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive, summary = made
    assert summary["retries"] == sum(summary["retried_by_kind"].values()) > 0
    (journal,) = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    events = [json.loads(line) for line in journal.read_text().splitlines()]
    took = [event for event in events if event["event"] == "image" and "seconds" in event]
    assert {event["outcome"] for event in took} == {"downloaded", "not_uploaded", "failed"}
    assert all(0 <= event["seconds"] <= summary["seconds"] for event in took)
    report(archive, tmp_path, "--thumbnails=0")
    (timeline,) = data_of(tmp_path / "report.html")["timelines"]
    assert timeline["run"] == summary["run_id"]
    _, images, size, failed, half, most = zip(*timeline["steps"], strict=True)
    assert (sum(images), sum(size)) == (summary["images"]["downloaded"], summary["bytes"])
    assert sum(failed) == summary["images"]["failed"]
    assert all(a <= b for a, b in zip(half, most, strict=True) if a is not None)


def test_every_kind_of_failure_has_its_advice() -> None:
    for module in pkgutil.walk_packages(package.__path__, "bulkfetch."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    kinds, left = set[str](), [FetchError]
    while left:
        error = left.pop()
        kinds.add(error.kind)
        left += error.__subclasses__()
    assert ADVICE.keys() == kinds


@pytest.mark.parametrize("rows", [{"complete": 2}, {"complete": 1, "not_reached": 1}])
def test_what_was_tried_again_is_well_only_if_all_was_reached(
    tmp_path: Path, rows: dict[str, int]
) -> None:
    archive = make_empty(tmp_path / "archive")
    numbers = summary(patients={"total": 2} | rows, retried_by_kind={"connection": 3})
    put(archive / ".bulkfetch" / "runs" / RUN, "summary.json", numbers)
    report(archive, tmp_path)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert ("another try succeeded" in page) is ("not_reached" not in rows)
    assert (ADVICE["connection"] in page) is ("not_reached" in rows)


def test_what_a_filter_left_out_is_told_with_the_filter(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    patients = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"

    def verdict() -> str:
        assert report(archive, tmp_path).status == 0
        page = (tmp_path / "report.html").read_text(encoding="utf-8")
        return re.sub(r"<[^>]+>", " ", page.partition('class="verdict ')[2].partition("</p>")[0])

    left_out = download(simulator, patients, archive, "--updated-since=2199-01-01").summary
    number = left_out["images"]["filtered"]
    by = "--updated-since 2199-01-01T00:00:00+00:00"
    told = verdict()
    assert told.startswith("warn")
    assert "No image is in the archive" in told
    assert f"{number} images filtered out by {by}" in told

    fronts = download(simulator, patients, archive, "--side=FRONT").summary
    assert fronts["images"]["downloaded"] > 0
    told = verdict()
    assert told.startswith("good")
    assert "All that was wanted is in the archive" in told
    assert f"{fronts['images']['filtered']} images filtered out by --side FRONT" in told
    assert "All that was listed" not in told

    assert download(simulator, patients, archive).status == 0
    told = verdict()
    assert "All that was listed is in the archive" in told
    assert "filtered" not in told


def test_no_name_note_or_column_is_in_a_page_unless_it_is_asked_for(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    secrets = {
        "display_name": "Nomen Nescio",
        "file_name": "nescio-front.jpg",
        "uploaded_by": "Clerk Klerk",
    }
    add_image(
        archive, picture(), manifest={"surname": "Nescius"}, **secrets,
        patient={"id": "a-patient", "notes": "a note", "nick": "Nessie"},
        coverage={"id": "a-coverage", "side": "FRONT", "holder": "Holderbaum"},
    )  # fmt: skip
    private = [*secrets.values(), "Nescius", "a note", "Nessie", "Holderbaum"]
    assert report(archive, tmp_path).status == 0
    page = tmp_path / "report.html"
    assert not [word for word in private if word.encode() in all_bytes(page)]
    (sidecar,) = data_of(page)["sidecars"]
    assert sidecar["record"]["coverage"] == {"id": "a-coverage", "side": "FRONT"}
    assert report(archive, tmp_path, "--show-names").status == 0
    assert not [word for word in private if word.encode() not in all_bytes(page)]
    (sidecar,) = data_of(page)["sidecars"]
    assert sidecar == json.loads(next(archive.glob("[!.]*/*.json")).read_text())
    assert column(data_of(page), "name") == ["Nomen Nescio"]


def test_a_page_goes_over_no_other_file_and_into_no_archive(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    other = tmp_path / "other.html"
    other.write_text("<!doctype html>\n<html>somebody's own")
    (tmp_path / "link.html").symlink_to(other)
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "taken.html-thumbnails").mkdir()
    (tmp_path / "taken.html-thumbnails/mine.txt").touch()
    for to, folder, status, words in (
        ("other.html", False, 2, "no page of bulkfetch report: move it away"),
        ("link.html", False, 2, "no page of bulkfetch report"),
        (".", False, 2, "no page of bulkfetch report"),
        ("/", True, 2, "/ is there, and no page of bulkfetch report"),
        ("loop", False, 2, "no page of bulkfetch report"),
        ("taken.html", True, 2, "holds no thumbnails of bulkfetch report alone"),
        ("archive/report.html", False, 2, "is in the archive"),
        ("archive/.bulkfetch/report.html", False, 2, "is in the archive"),
        ("not/there.html", False, 4, "is not there: make it (mkdir -p"),
    ):
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(BulkfetchError, match=re.escape(words)) as refused:
            make_report(str(archive), str(tmp_path / to), folder=folder)
        assert refused.value.exit_status == status
        assert sorted(tmp_path.rglob("*")) == before
    assert other.read_text().endswith("somebody's own")
    with pytest.raises(ConfigurationError, match="is no archive"):
        make_report(str(tmp_path / "nowhere"), str(tmp_path / "page.html"))
    with pytest.raises(BulkfetchError, match="Too many levels of symbolic links"):
        make_report(str(tmp_path / "loop"), str(tmp_path / "page.html"))


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    script = (
        "import sys; sys.modules['jinja2'] = None\n"
        "from bulkfetch.cli import main\n"
        f"sys.exit(main(['report', {str(archive)!r}]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "pip install 'bulkfetch[report]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["archive"]


def test_an_archive_without_a_run_or_an_image_has_a_page_too(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    assert report(archive, tmp_path).status == 0
    page = tmp_path / "report.html"
    assert "No run has begun in this archive" in page.read_text()
    assert column(data_of(page), "image_id") == []


def test_what_is_torn_damaged_missing_or_astray_is_told(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive = tmp_path / "archive"
    subprocess.run(["cp", "-a", made[0], archive], check=True)
    files = sorted(path for path in archive.glob("[!.]*/*") if path.suffix != ".json")
    torn, gone, changed, lost = files[:4]
    torn.with_suffix(".json").write_text('{"schema_version": 1, "ima')
    gone.unlink()
    changed.write_bytes(b"short")
    lost.with_suffix(".json").unlink()
    (archive / "stray").touch()
    (journal,) = archive.glob(".bulkfetch/runs/*/journal.jsonl")
    with journal.open("a") as end:
        end.write('{"event":"image","at":"2026')
    assert report(archive, tmp_path, "--thumbnails=0").status == 0
    page = tmp_path / "report.html"
    text, data = page.read_text(), data_of(page)
    states = dict(zip(column(data, "image_id"), column(data, "state"), strict=True))
    found = {file: states[file.name.partition(".")[0]] for file in (torn, gone, changed, lost)}
    assert list(found.values()) == ["damaged", "damaged", "damaged", "missing"]
    assert Counter(column(data, "problem"))["its file is missing"] == 1
    assert "4 images damaged or missing" in text
    assert "1 line of journals cannot be read" in text
    assert "1 name in the archive is no image" in text


def test_whatever_stands_in_sidecars_and_journals_there_is_a_page(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    deep = "[" * 400 + "]" * 400
    changes = {
        "coverage": ('"coverage": {"id": "a-coverage", "side": "FRONT"}', '"coverage": "x"'),
        "side": ('"side": "FRONT"', '"side": {"a": 1}'),
        "deep": ('"UPLOADED", "coverage"', f'"UPLOADED", "x": {deep}, "coverage"'),
        "size": ('"size": 3', f'"size": {-(2**80)}'),
        "infinite": ('"UPLOADED", "coverage"', '"UPLOADED", "x": [1e999, "\\ud800"], "coverage"'),
        "naive": ("2026-02-03T04:05:06Z", "0001-01-01T00:00:00"),
        "negative": ('"version": 1, "status"', f'"version": {-(2**80)}, "status"'),
    }  # fmt: skip
    for image_id, (old, new) in changes.items():
        path = add_image(archive, b"jpg", image_id=image_id)
        text = json.dumps(json.loads(path.read_text()))
        assert old in text
        path.write_text(text.replace(old, new, 1))
    run = archive / ".bulkfetch/runs/20260203T040500Z-abcdef"
    run.mkdir(parents=True)
    line = event(0, 1).model_dump(mode="json")
    wrong: list[dict[str, object]] = [
        {"seconds": float("inf")}, {"seconds": float("nan")}, {"seconds": 1e308},
        {"at": "yesterday"}, {"version": -(2**80)}, {"bytes": 10**4000}, {"bytes": -1},
        {"at": "0001-01-01T00:00:00"},
    ]  # fmt: skip
    lines = [{**line, "image_id": f"{number}-event", **one} for number, one in enumerate(wrong)]
    (run / "journal.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    page = Path(make_report(str(archive), str(tmp_path / "page.html"), show_names=True))
    data = data_of(page)
    states = dict(zip(column(data, "image_id"), column(data, "state"), strict=True))
    assert states == {
        "coverage": "damaged", "side": "damaged", "deep": "damaged", "size": "damaged",
        "infinite": "archived", "naive": "archived", "negative": "archived", "7-event": "missing",
    }  # fmt: skip
    assert "7 lines of journals cannot be read" in page.read_text()


def test_what_is_no_file_is_not_read_as_a_sidecar(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "i.v1.json")
    with (
        local_folder(tmp_path.parent, tmp_path.name) as folder,
        pytest.raises(OSError, match="no file"),
    ):
        folder.read("i.v1.json")


def test_a_run_that_was_killed_is_told_until_one_of_as_many_patients_ends_well(
    tmp_path: Path,
) -> None:
    archive = make_empty(tmp_path / "archive")
    runs: list[tuple[str, dict[str, Any], str]] = [
        ("progress.json", snapshot(), "The last run did not come to its end"),
        ("summary.json", summary(), "An earlier run did not come to its end"),
        ("summary.json", summary(patients={"total": 10}), "All that was listed is in the archive"),
        ("summary.json", summary(), "All that was listed is in the archive"),
        ("summary.json", summary(exit_code=4), "The last run did not end well"),
        ("summary.json", summary(shard="1/2"), "Not every shard has had a run"),
    ]
    for number, (name, content, words) in enumerate(runs):
        put(archive / f".bulkfetch/runs/20260101T00000{number}Z-00000a", name, content)
        page = Path(make_report(str(archive), str(tmp_path / "page.html"), thumbnails=0))
        assert f"<strong>{words}</strong>" in page.read_text()


def test_bytes_are_those_of_the_files_that_are_there(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    add_image(archive, b"12345")
    add_image(archive, b"123", image_id="gone").with_suffix(".jpg").unlink()
    page = Path(make_report(str(archive), str(tmp_path / "page.html"), thumbnails=0))
    assert "1 file, 5 B." in " ".join(page.read_text().split())


def test_pictures_that_are_none_or_too_much_get_no_thumbnail_and_the_others_theirs(
    tmp_path: Path,
) -> None:
    archive = make_empty(tmp_path / "archive")
    header = picture("PNG", (1, 1))
    bomb = header[:16] + (60_000).to_bytes(4, "big") * 2 + header[24:]
    grey = io.BytesIO()
    Image.new("I;16", (300, 200), 0x4000).save(grey, "PNG")
    pictures = {
        "a": (picture(), "image/jpeg"),
        "bomb": (bomb, "image/png"),
        "cut": (picture(size=(900, 900))[:400], "image/jpeg"),
        "grey": (grey.getvalue(), "image/png"),
        "no-pdf": (b"%PDF-1.4 and no more", "application/pdf"),
        "other": (b"whatever", "application/octet-stream"),
        "png": (picture("PNG"), "image/png"),
        "zero": (b"", "image/png"),
    }
    for image_id, (content, media_type) in pictures.items():
        add_image(archive, content, media_type, image_id=image_id)
    assert report(archive, tmp_path).status == 0
    data = data_of(tmp_path / "report.html")
    thumbnail = dict(zip(column(data, "image_id"), column(data, "thumbnail"), strict=True))
    assert {image for image, place in thumbnail.items() if place >= 0} == {
        "a", "grey", "png",
    }  # fmt: skip
    assert {thumbnail[image] for image in pictures.keys() - {"a", "grey", "png"}} == {-1}
    (sheet,) = part_of((tmp_path / "report.html").read_text(), "text/plain", "thumbnails")
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as shown:
        across = thumbnail["grey"] * WIDTH + WIDTH // 2
        shade = shown.convert("L").getpixel((across, HEIGHT // 2))
    assert shade == pytest.approx(0x40, abs=3), "16 bits are more than white"


def test_a_thumbnail_is_pixels_and_nothing_that_came_with_them(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    exif = Image.Exif()
    exif[0x010E] = "taken at the home of somebody"
    exif[0x0112] = 6  # turned by a quarter
    add_image(archive, picture(size=(400, 100), exif=exif))
    assert report(archive, tmp_path).status == 0
    page = tmp_path / "report.html"
    assert b"taken at the home" not in all_bytes(page)
    (sheet,) = part_of(page.read_text(), "text/plain", "thumbnails")
    with Image.open(io.BytesIO(base64.b64decode(sheet))) as shown:
        assert "exif" not in shown.info
        box = shown.getchannel("A").getbbox()
    assert box is not None
    left, top, right, bottom = box
    assert bottom - top > right - left, "it is shown upright"


def test_an_image_that_kills_who_decodes_it_costs_its_own_thumbnail_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_empty(tmp_path / "archive")
    jobs = []
    deadly = [3, 4, PER_SHEET]
    for number in range(2 * PER_SHEET + 1):
        image_id = "deadly" if number in deadly else "harmless"
        path = add_image(archive, picture(), image_id=f"{number:03}-{image_id}")
        file = path.with_suffix(".jpg")
        jobs.append(Job(f"a-patient/{path.stem}", file.name, file.stat().st_size))
    monkeypatch.setattr(thumbnails, "sheet_of", deadly_sheet)
    monkeypatch.setattr(thumbnails, "survives", dies_of)
    sheets = []
    for sheet in sheets_of(str(archive), jobs, 1):
        sheets.append(sheet)
        # The next ones are asked for when it is known that their process has died.
        for process in multiprocessing.active_children() if len(sheets) == 1 else ():
            process.join()
    assert [job for batch, _ in sheets for job in batch] == jobs
    made = [is_made for _, sheet in sheets for is_made in sheet.made]
    assert [number for number, is_made in enumerate(made) if not is_made] == deadly


def test_a_bucket_is_listed_once_and_has_the_same_page(
    serve: Serve, bucket: Bucket, tmp_path: Path
) -> None:
    simulator = serve(patients=6)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    environment = {**credentials(simulator), **bucket.environment}
    done = bulkfetch(
        "download", manifest, "--out", bucket.url, "--json", "--progress=none",
        environment=environment,
    )  # fmt: skip
    assert done.status == 0, done.err
    bucket.proxy.asked.clear()
    pages = tmp_path / "pages"
    pages.mkdir()
    result = report(bucket.url, pages, "--folder", environment=bucket.environment)
    assert result.status == 0, result.err
    data = data_of(pages / "report.html")
    images = done.summary["images"]
    assert Counter(column(data, "state")) == Counter(
        archived=images["downloaded"], not_uploaded=images["not_uploaded"]
    )
    assert all(place >= 0 for place in column(data, "thumbnail") if place is not None)
    assert data["archive"] is None
    sidecar = rf"GET /{bucket.name}/[^.?][^?]*\.json"
    read = [one.what for one in bucket.proxy.asked if re.match(sidecar, one.what)]
    assert len(read) == len(set(read)) == images["listed"]
    lists = [one.what for one in bucket.proxy.asked if "list-type" in one.what]
    assert len([one for one in lists if "prefix=" not in one]) == 1
    assert sorted(path.name for path in pages.iterdir()) == [
        "report.html",
        "report.html-thumbnails",
    ]


def test_a_run_at_work_is_told_as_far_as_it_is(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=200, storage_latency_s=0.5)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    command: list[str | Path] = ["download", manifest, "--out", archive, "--progress=none"]
    process = start_bulkfetch(command, credentials(simulator))
    try:
        deadline = time.monotonic() + 60
        while not list(archive.glob("[!.]*/*.json")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert report(archive, tmp_path, "--thumbnails=5").status == 0
        assert process.poll() is None
    finally:
        process.kill()
        process.communicate()
    assert "A run is at work" in (tmp_path / "report.html").read_text()


def test_ctrl_c_leaves_the_earlier_page_and_nothing_half_made(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive, _ = made
    page = tmp_path / "report.html"
    assert report(archive, tmp_path, "--thumbnails=0").status == 0
    earlier = page.read_bytes()
    command = [sys.executable, "-m", "bulkfetch", "report", str(archive), "--folder"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / ".report.html.part").exists():
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, b"interrupted: nothing was made\n")
    assert page.read_bytes() == earlier
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]


def test_a_folder_of_thumbnails_is_replaced_as_a_whole(
    made: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    archive, _ = made
    folder = tmp_path / "cards.html-thumbnails"
    folder.mkdir()
    (folder / "0123abcd-000099.webp").touch()
    assert report(archive, tmp_path, "--to=cards.html", "--folder").status == 0
    names = sorted(path.name for path in folder.iterdir())
    begins = data_of(tmp_path / "cards.html")["folder"]
    assert begins != "cards.html-thumbnails/0123abcd-"
    assert [f"cards.html-thumbnails/{name}" for name in names] == [f"{begins}000000.webp"]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    assert part_of((tmp_path / "cards.html").read_text(), "text/plain", "thumbnails") == []
    assert {path.name for path in tmp_path.iterdir()} == {"cards.html", "cards.html-thumbnails"}


def test_pages_that_differ_in_their_endings_alone_have_folders_of_their_own(
    tmp_path: Path,
) -> None:
    archive = make_empty(tmp_path / "archive")
    add_image(archive, picture())
    pages = tmp_path / "pages"
    pages.mkdir()
    for name in ("cards.html", "cards.htm", "cards"):
        assert report(archive, pages, f"--to={name}", "--folder").status == 0
    names = {"cards.html", "cards.htm", "cards"}
    folders = {f"{name}-thumbnails" for name in names}
    assert {path.name for path in pages.iterdir()} == names | folders
    for name in ("cards.html", "cards.htm", "cards"):
        assert list(pages.glob(f"{data_of(pages / name)['folder']}*.webp"))


def test_a_page_that_is_not_finished_leaves_the_earlier_one_its_thumbnails(
    tmp_path: Path,
) -> None:
    archive = make_empty(tmp_path / "archive")
    add_image(archive, picture())
    page = tmp_path / "page.html"
    make_report(str(archive), str(page), folder=True)
    before = {path: path.read_bytes() for path in tmp_path.glob("page*/*")}
    assert len(before) == 1
    target = Target(str(page), tree_at(str(archive)), folder=True)
    with suppress(KeyboardInterrupt), target.whole():
        assert target.add_sheet(0, b"another page's")
        raise KeyboardInterrupt
    assert {path: path.read_bytes() for path in tmp_path.glob("page*/*")} == before


def test_a_page_that_has_its_name_keeps_its_thumbnails_though_it_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make_empty(tmp_path / "archive")
    rename = files.rename

    def rename_and_stop(directory: int, old: str, new: str) -> None:
        rename(directory, old, new)
        raise KeyboardInterrupt

    target = Target(str(tmp_path / "page.html"), tree_at(str(archive)), folder=True)
    monkeypatch.setattr(files, "rename", rename_and_stop)
    with pytest.raises(KeyboardInterrupt), target.whole():
        target.add_sheet(0, b"its own")
    assert (tmp_path / "page.html").exists()
    assert [path.read_bytes() for path in tmp_path.glob("page*/*")] == [b"its own"]


def test_a_page_that_another_process_writes_is_left_to_it(tmp_path: Path) -> None:
    archive = make_empty(tmp_path / "archive")
    page = tmp_path / "page.html"
    with Target(str(page), tree_at(str(archive)), folder=False).whole() as file:
        file.write(b"its own")
        with pytest.raises(DestinationError, match="is being written by another process"):
            make_report(str(archive), str(page))
    assert page.read_bytes() == b"its own"


@given(st.recursive(st.text(st.characters()), lambda inner: st.dictionaries(st.text(), inner)))
def test_data_in_a_page_is_the_same_and_ends_no_tag(value: object) -> None:
    text = json_for_page(value)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == value


def event(at_s: float, seconds: float) -> ImageEvent:
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
    return ImageEvent.model_validate(
        {
            "event": "image", "image_id": "i", "version": 1, "directory": "d", "at": f"{at}.000Z",
            "outcome": "downloaded", "bytes": 7, "seconds": seconds,
        }
    )  # fmt: skip


@given(st.lists(st.tuples(st.integers(0, 10**6), st.floats(0.001, 1000)), min_size=1))
def test_a_timeline_has_few_steps_in_which_nothing_is_lost(ended: list[tuple[int, float]]) -> None:
    timeline = Timeline()
    for at_s, seconds in ended:
        timeline.note(event(at_s, seconds))
    step_s, steps = timeline.steps()
    assert len(steps) <= MOST_STEPS
    assert sum(step.images for step in steps) == len(ended)
    assert sum(step.bytes for step in steps) == 7 * len(ended)
    assert (len(steps) - 1) * step_s <= max(ended)[0] - min(ended)[0] + step_s
    longest = max(seconds for _, seconds in ended)
    assert max(step.p95_s or 0 for step in steps) <= longest * 1.05


def test_half_of_the_downloads_took_as_long_as_is_told() -> None:
    timeline = Timeline()
    for number in range(1, 101):
        timeline.note(event(0, number / 100))
    ((_, _, _, _, half, most),) = timeline.steps()[1]
    assert half == pytest.approx(0.5, rel=0.05)
    assert most == pytest.approx(0.95, rel=0.05)
