"""`bulkfetch bag`: what it makes is valid to the Library of Congress's tool, or is not there."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from bulkfetch.archive.lock import hold_still
from bulkfetch.archive.tree import LocalTree
from bulkfetch.bag import Opening, as_tar, as_zip, in_directory, make_bag
from bulkfetch.bag.contents import encoded
from bulkfetch.errors import ConfigurationError, DestinationError
from bulkfetch.simulator import SimulatorConfig, parse_fault
from bulkfetch.verification import ADVICE, Finding, FoundError, Kind, Source
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    serving,
    start_bulkfetch,
    with_mounts_of_its_own,
    write_manifest,
)
from tests.damage import DAMAGE, flip_a_bit
from tests.faulty import uploaded
from tests.test_verify import Made, make_archive, state

FORMS = ("--to=bag", "--to=bag --copy", "--tar=bag.tar", "--tar=bag.tar.gz", "--zip=bag.zip")
has_strace = pytest.mark.skipif(not shutil.which("strace"), reason="strace is not installed")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_archive(tmp_path_factory.mktemp("sound"))


@pytest.fixture
def archive(sound: Made, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    return Path(shutil.copytree(sound.archive, tmp_path / "archive"))


@pytest.fixture
def there(tmp_path: Path) -> Path:
    """Where nothing is yet."""
    path = tmp_path / "there"
    path.mkdir()
    return path


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive of 2,000 images and more."""
    root = tmp_path_factory.mktemp("large")
    with serving(SimulatorConfig(patients=800, fixed_bytes=500)) as simulator:
        manifest = write_manifest(root / "patients.csv", list(simulator.patient_ids()))
        result = download(simulator, manifest, root / "archive", "--no-fsync")
    assert result.summary["images"]["downloaded"] >= 2000
    return root / "archive"


def bag(archive: Path, form: str, cwd: Path, *options: str, within: Sequence[str] = ()) -> Result:
    result = bulkfetch("bag", archive, *form.split(), *options, cwd=cwd, within=within)
    assert "Traceback" not in result.err
    assert "internal error" not in result.err
    return result


def unpacked(form: str, cwd: Path) -> Path:
    """Return the bag's directory, unpacked if it is a stream."""
    path = cwd / form.split(maxsplit=1)[0].partition("=")[2]
    if path.is_dir():
        return path
    into = cwd / "unpacked"
    if path.suffix == ".zip":
        with zipfile.ZipFile(path) as packed:
            assert packed.testzip() is None
            packed.extractall(into)
    else:
        into.mkdir()
        subprocess.run(["tar", "-xpf", path, "-C", into], check=True)
    (only,) = into.iterdir()
    assert only.name == "bag"
    return only


def validate(path: Path) -> None:
    """Have the reference tool judge a bag."""
    judge = Path(sys.executable).with_name("bagit.py")
    judged = subprocess.run(
        [judge, "--validate", path], capture_output=True, text=True, check=False
    )
    assert judged.returncode == 0, judged.stderr
    assert judged.stderr.splitlines()[-1].endswith("is valid"), judged.stderr
    assert "WARNING" not in judged.stderr


def tree(root: Path, *but: str) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in root.rglob("*")
        if path.is_file() and path.relative_to(root).parts[0] not in but
    }


def records(archive: Path) -> dict[str, bytes]:
    found = tree(archive / ".bulkfetch")
    return {name: data for name, data in found.items() if not name.startswith(("lock", "holder"))}


def labels(path: Path) -> dict[str, str]:
    lines = (path / "bag-info.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split(": ", 1) for line in lines)


@pytest.mark.parametrize("form", FORMS)
def test_a_bag_of_every_form_is_valid_and_has_all_of_the_archive(
    archive: Path, there: Path, form: str
) -> None:
    before = state(archive)
    result = bag(archive, form, there, "--json")
    assert result.status == 0, result.err
    assert [path.name for path in there.iterdir()] == [form.split(maxsplit=1)[0].partition("=")[2]]
    path = unpacked(form, there)
    validate(path)
    assert tree(path / "data") == tree(archive, ".bulkfetch")
    assert tree(path / "bulkfetch") == records(archive)
    report = json.loads(result.out)["report"]
    payload = tree(path / "data")
    assert report["payload_files"] == len(payload)
    assert report["payload_bytes"] == sum(map(len, payload.values()))
    assert report["tag_files"] == len(tree(path, "data"))
    oxum = f"{report['payload_bytes']}.{report['payload_files']}"
    assert labels(path)["Payload-Oxum"] == oxum
    for found in (path, *path.rglob("*")):
        # What unpacks a ZIP file may not look at modes.
        if "zip" not in form:
            assert found.stat().st_mode & 0o777 == (0o700 if found.is_dir() else 0o600)
    assert {p: s for p, s in state(archive).items() if p.suffix} == {
        p: s for p, s in before.items() if p.suffix
    }


def test_every_form_has_the_same_manifests_in_the_paths_order(
    archive: Path, tmp_path: Path
) -> None:
    texts = set()
    for number, form in enumerate((*FORMS, FORMS[0])):
        cwd = tmp_path / f"{number}"
        cwd.mkdir()
        assert bag(archive, form, cwd).status == 0
        path = unpacked(form, cwd)
        texts.add(tuple((path / f"manifest-{a}.txt").read_text() for a in ("sha256", "sha512")))
        lines = (path / "manifest-sha256.txt").read_text().splitlines()
        names = [line.split("  ", 1)[1] for line in lines]
        assert names == sorted(names)
    assert len(texts) == 1


def test_a_bag_is_linked_to_the_archive_unless_it_is_a_copy(archive: Path, there: Path) -> None:
    assert bag(archive, "--to=linked", there).status == 0
    assert bag(archive, "--to=copied --copy", there).status == 0
    for path in (p for p in archive.glob("[!.]*/*") if p.is_file()):
        name = path.relative_to(archive)
        assert path.samefile(there / "linked" / "data" / name)
        assert not path.samefile(there / "copied" / "data" / name)
        assert path.stat().st_nlink == 2
    # What a later run may write to is never shared.
    for path in (there / "linked" / "bulkfetch").rglob("*"):
        assert path.is_dir() or path.stat().st_nlink == 1
    shutil.rmtree(there / "linked")
    assert bulkfetch("verify", archive).status == 0


def test_an_archive_is_restored_from_its_bag_by_two_copies_and_goes_on(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    first = download(simulator, manifest, tmp_path / "archive").summary
    assert bag(tmp_path / "archive", "--to=bag", tmp_path).status == 0
    script = "cp -a bag/data restored && cp -a bag/bulkfetch restored/.bulkfetch"
    subprocess.run(script, shell=True, check=True, cwd=tmp_path)
    restored = tmp_path / "restored"
    assert bulkfetch("verify", restored, "--manifest", manifest).status == 0
    again = download(simulator, manifest, restored)
    assert again.status == 0, again.err
    assert again.summary["images"]["unchanged"] == first["images"]["downloaded"]
    assert again.summary["images"]["downloaded"] == 0


@pytest.mark.parametrize("damage", [damage for damage, _ in DAMAGE], ids=lambda d: d.__name__)
@pytest.mark.parametrize("form", ["directory", "zip"])
def test_an_archive_with_any_finding_is_refused_and_nothing_is_left(
    archive: Path, there: Path, damage: Callable[[Path], Path], form: str
) -> None:
    damage(archive)
    found: list[Finding] = []
    opening = (
        partial(in_directory, str(there / "bag"), copy=False)
        if form == "directory"
        else partial(as_zip, str(there / "bag.zip"))
    )
    report = make_bag(str(archive), opening, found=found.append)
    assert report.bag is None
    assert found
    assert report.verification.findings == Counter(finding.kind for finding in found)
    assert not list(there.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_the_command_names_each_finding_and_what_to_do(
    archive: Path, there: Path, form: str
) -> None:
    damaged = flip_a_bit(archive).relative_to(archive)
    result = bag(archive, form, there)
    assert result.status == 1
    assert f"changed: {damaged}: its SHA-256 is another" in result.err
    assert ADVICE[Kind.changed] in result.err
    assert "no bag was made" in result.err
    assert not list(there.iterdir())


def test_a_bag_goes_down_a_pipe_and_one_that_is_refused_has_no_manifest(
    archive: Path, there: Path
) -> None:
    def piped() -> tuple[int, bytes]:
        with start_bulkfetch(["bag", archive, "--tar", "-"], {}) as process:
            out, err = process.communicate(timeout=120)
        assert b"Traceback" not in err
        return process.returncode, out

    status, out = piped()
    assert status == 0
    with tarfile.open(fileobj=io.BytesIO(out)) as packed:
        packed.extractall(there, filter="data")
    validate(there / "archive")
    flip_a_bit(archive)
    status, out = piped()
    assert status == 1
    with tarfile.open(fileobj=io.BytesIO(out)) as packed:
        names = packed.getnames()
    assert names
    assert not any("manifest" in name or name.endswith(".txt") for name in names)


def test_a_pipe_that_breaks_is_status_4(large: Path) -> None:
    with start_bulkfetch(["bag", large, "--tar", "-"], {}) as process:
        assert process.stdout
        process.stdout.read(100)
        process.stdout.close()
        process.wait(timeout=120)
        assert process.stderr
        err = process.stderr.read().decode()
    assert process.returncode == 4, err
    assert "standard output cannot be used: Broken pipe" in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize(
    ("form", "word"),
    [
        ("--to=../archive/bag", "is in the archive"),
        ("--to=../archive", "is in the archive"),
        ("--tar=../archive/bag.tar", "is in the archive"),
        ("--to=full", "is there already"),
        ("--to=file.tar", "is there already"),
        ("--tar=file.tar", "is there already"),
        ("--zip=file.zip", "is there already"),
        ("--tar=bag.zip", "does not end in .tar"),
        ("--zip=bag.tar", "does not end in .zip"),
        ("--zip=.zip", "does not end in .zip"),
        ("--to=/proc", "is a mount point"),
        ("--to=bag --zip=bag.zip", "not allowed with"),
        ("--tar=bag.tar --copy", "go with --to"),
        ("--zip=bag.zip --processes=2", "go with --to"),
        ("--tar=- --json", "both want standard output"),
        ("--json", "one of the arguments"),
    ],
)
def test_where_no_bag_can_be_is_status_2_and_nothing_is_touched(
    archive: Path, there: Path, form: str, word: str
) -> None:
    (there / "full").mkdir()
    for name in ("full/one", "file.tar", "file.zip"):
        (there / name).write_bytes(b"mine")
    before = state(there), state(archive)
    result = bag(archive, form, there)
    assert result.status == 2, result.err
    assert word in result.err
    assert state(there) == before[0]
    assert {p for p in state(archive) if p.name != "lock"} <= set(before[1])


def test_a_link_that_leads_to_itself_is_no_place_for_a_bag(archive: Path, there: Path) -> None:
    (there / "loop").symlink_to("loop")
    result = bag(archive, "--to=loop", there)
    assert (result.status, "cannot be used" in result.err) == (4, True), result.err


def test_an_empty_directory_may_be_there(archive: Path, there: Path) -> None:
    (there / "bag").mkdir()
    assert bag(archive, "--to=bag", there).status == 0
    validate(there / "bag")


def test_what_is_no_archive_is_status_2(there: Path) -> None:
    result = bag(there, "--to=bag", there)
    assert result.status == 2
    assert "is no archive" in result.err


@pytest.mark.parametrize("form", ["--to=none/bag", "--tar=none/bag.tar"])
def test_a_directory_that_is_missing_is_status_4_and_how_to_make_it_is_said(
    archive: Path, there: Path, form: str
) -> None:
    result = bag(archive, form, there)
    assert result.status == 4
    assert f"{there / 'none'} is not there: make it (mkdir -p {there / 'none'})" in result.err
    assert form.partition("=")[0] in result.err
    (there / "none").touch()
    result = bag(archive, form, there)
    assert result.status == 4
    assert f"{there / 'none'} is no directory" in result.err


def test_bag_info_says_what_is_true_and_what_was_given(archive: Path, there: Path) -> None:
    given = ("--info=Source-Organization: Ärchive: one", "--info=Bag-Count:  1 of 2 ")
    assert bag(archive, "--to=bag", there, *given).status == 0
    validate(there / "bag")
    told = labels(there / "bag")
    assert told["Source-Organization"] == "Ärchive: one"
    assert told["Bag-Count"] == "1 of 2"
    images = [p for p in archive.glob("[!.]*/*") if p.suffix != ".json"]
    assert told["Bulkfetch-Images"] == str(len(images))
    assert told["Bulkfetch-Patients"] == str(len(list(archive.glob("[!.]*"))))
    runs = sorted(path.name for path in archive.glob(".bulkfetch/runs/*"))
    assert told["Bulkfetch-First-Run"].startswith(f"{runs[0]}, begun 20")
    assert told["Bulkfetch-Last-Run"].startswith(runs[1])
    identity = json.loads((archive / ".bulkfetch" / "archive.json").read_bytes())
    assert told["Bulkfetch-API-Host"] == identity["api_host"]
    assert told["Bulkfetch-Organization"] == identity["organization_id"]
    assert told["External-Description"].startswith("Images of insurance cards")
    assert bag(archive, "--to=own", there, "--info=external-description: Mine").status == 0
    own = (there / "own" / "bag-info.txt").read_text(encoding="utf-8")
    assert own.lower().count("external-description") == 1


@pytest.mark.parametrize(
    "label", ["", "Name", ": value", "Name:", "A: b\nC: d", "Payload-Oxum: 1.1", "bag-size: 1 GB",
              "Bulkfetch-Images: 9", "A: \x1b[2J"],
)  # fmt: skip
def test_a_label_that_cannot_be_is_status_2(archive: Path, there: Path, label: str) -> None:
    result = bulkfetch("bag", archive, "--to", there / "bag", "--info", label)
    assert result.status == 2, result.err
    assert "--info" in result.err
    assert "\x1b" not in result.err
    assert not list(there.iterdir())


@pytest.mark.parametrize("form", FORMS)
def test_an_archive_without_an_image_makes_a_bag_without_payload(
    serve: Serve, tmp_path: Path, form: str
) -> None:
    manifest = write_manifest(tmp_path / "patients.csv", [])
    assert download(serve(), manifest, tmp_path / "archive", "--allow-empty").status == 0
    assert bag(tmp_path / "archive", form, tmp_path).status == 0
    path = unpacked(form, tmp_path)
    validate(path)
    assert labels(path)["Payload-Oxum"] == "0.0"
    assert not list((path / "data").iterdir())


def test_sidecars_without_files_odd_ids_and_deep_templates_are_bagged(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    names = ["../../../evil", "CON", "a/b", "A", "e\u0301", "50%0A", "two\nlines", "日本"]
    for (image_id, _), name in zip(uploaded(simulator), names, strict=False):
        simulator.patch_image(image_id, id=name, patient={"id": name, "notes": None})
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    template = "--path-template={patient_hash}/{patient_id}/{image_id}.v{version}"
    for number, options in enumerate(([], [template], ["--status=PENDING"])):
        cwd = tmp_path / f"{number}"
        assert download(simulator, manifest, cwd / "archive", *options).status == 0
        for form in (FORMS[0], FORMS[2]):
            assert bag(cwd / "archive", form, cwd).status == 0
            path = unpacked(form, cwd)
            validate(path)
            assert tree(path / "data") == tree(cwd / "archive", ".bulkfetch")


def test_a_path_is_encoded_as_a_manifest_needs_it() -> None:
    assert encoded("data/50%\r\n é~") == "data/50%25%0D%0A é~"
    with pytest.raises(DestinationError, match="UTF-8"):
        encoded("data/\udcff")


def test_while_a_run_is_at_work_no_bag_is_made(serve: Serve, tmp_path: Path, there: Path) -> None:
    simulator = serve(patients=60, faults=(parse_fault("storage:stall=60@50%x1"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    for options in ((), ("--shard=1/2",)):
        with start_bulkfetch(
            ["download", manifest, "--out", archive, *options], credentials(simulator)
        ) as process:
            deadline = time.monotonic() + 120
            while not list(archive.glob("[!.]*/*.json")):
                assert time.monotonic() < deadline
                time.sleep(0.05)
            result = bag(archive, "--to=bag", there)
            process.kill()
        assert result.status == 4, result.err
        assert "held by another run" in result.err
        assert not list(there.iterdir())
        shutil.rmtree(archive)


def test_while_a_bag_is_made_no_run_begins_and_another_bag_may_be(
    serve: Serve, tmp_path: Path, there: Path
) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    assert download(simulator, manifest, archive).status == 0
    (archive / ".bulkfetch" / "lock").unlink()
    with hold_still(archive / ".bulkfetch"):
        for options in ((), ("--shard=1/2",)):
            refused = download(simulator, manifest, archive, *options)
            assert refused.status == 4
            assert "is held" in refused.err
        assert bag(archive, "--to=bag", there).status == 0
    assert download(simulator, manifest, archive).status == 0


def test_two_bags_of_one_name_are_not_made_at_once(archive: Path, there: Path) -> None:
    with in_directory(str(there / "bag"), LocalTree(archive), copy=False) as target:
        before = state(there)
        result = bag(archive, "--to=bag", there)
        assert result.status == 4
        assert "another process is making this bag" in result.err
        assert state(there) == before
        target.commit()
    with as_tar(str(there / "bag.tar"), LocalTree(archive)):
        result = bag(archive, "--tar=bag.tar", there)
        assert result.status == 4
        assert "another process is writing bag.tar" in result.err
    assert [path.name for path in there.iterdir()] == ["bag"]


def test_a_bag_never_takes_the_name_of_what_came_meanwhile(archive: Path, there: Path) -> None:
    with as_zip(str(there / "bag.zip"), LocalTree(archive)) as target:
        (there / "bag.zip").write_bytes(b"mine")
        with pytest.raises(ConfigurationError, match="is there already"):
            target.commit()
    assert (there / "bag.zip").read_bytes() == b"mine"
    with in_directory(str(there / "bag"), LocalTree(archive), copy=False) as other:
        (there / "bag").mkdir()
        (there / "bag" / "mine").touch()
        with pytest.raises(DestinationError, match="not empty"):
            other.commit()
    assert sorted(path.name for path in there.iterdir()) == ["bag", "bag.zip"]


def test_a_link_in_the_parts_place_is_not_followed(archive: Path, there: Path) -> None:
    (there / "outside").mkdir()
    (there / "outside" / "mine").touch()
    (there / ".bag.bag-part").symlink_to("outside")
    (there / ".bag.tar.part").symlink_to("outside/mine")
    for form in ("--to=bag", "--tar=bag.tar"):
        assert bag(archive, form, there).status == 4
    assert (there / "outside" / "mine").exists()


@pytest.mark.parametrize("form", FORMS[1:])
def test_a_full_disk_is_status_4_and_nothing_is_left(
    archive: Path, there: Path, tmp_path: Path, form: str
) -> None:
    left = tmp_path / "left"
    script = (
        f'mount -t tmpfs -o size=256k none "{there}" && cd "{there}" && '
        f'{{ "$@"; status=$?; ls -A >"{left}"; exit $status; }}'
    )
    result = bag(archive, form, there, within=with_mounts_of_its_own(script))
    assert result.status == 4, result.err
    assert "No space left on device" in result.err
    assert left.read_text() == ""


def test_another_file_system_takes_a_copy_alone(archive: Path, there: Path, tmp_path: Path) -> None:
    left = tmp_path / "left"
    script = (
        f'mount -t tmpfs none "{there}" && cd "{there}" && '
        f'{{ "$@"; status=$?; ls -A >"{left}"; cp -r bag "{tmp_path}/kept" 2>/dev/null; '
        f"exit $status; }}"
    )
    within = with_mounts_of_its_own(script)
    result = bag(archive, "--to=bag", there, within=within)
    assert result.status == 2, result.err
    assert "give --copy" in result.err
    assert left.read_text() == ""
    result = bag(archive, "--to=bag --copy", there, within=within)
    assert result.status == 0, result.err
    validate(tmp_path / "kept")


def test_a_read_only_archive_is_bagged(archive: Path, there: Path) -> None:
    (archive / ".bulkfetch" / "lock").unlink()
    script = f'mount --bind "{archive}" "{archive}" && mount -o remount,ro,bind "{archive}" && "$@"'
    within = with_mounts_of_its_own(script)
    result = bag(archive, "--to=bag --copy", there, within=within)
    assert result.status == 0, result.err
    validate(there / "bag")


@contextmanager
def slowed(
    archive: Path, there: Path, *options: str
) -> Iterator[tuple[list[int], Callable[[], str]]]:
    """A bag in the making, each of whose links takes a while: its processes, the first one first.

    What is yielded besides waits for its end, and returns what it said.
    """
    tracing = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=linkat"]
    tracing += ["-e", "inject=linkat:delay_enter=50ms"]
    arguments: list[str | Path] = ["bag", archive, "--to", there / "bag", "--processes=2", *options]
    with start_bulkfetch(arguments, {}, within=tracing) as process:
        deadline = time.monotonic() + 120
        while len(list(there.glob(".bag.bag-part/data/*"))) < 4:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)

        def end() -> str:
            _, err = process.communicate(timeout=120)
            said = (line for line in err.decode().splitlines() if not line.startswith("strace: "))
            return f"{process.returncode} " + "\n".join(said)

        first = children(process.pid)
        yield [*first, *children(*first)], end


def children(*pids: int) -> list[int]:
    return [
        int(child)
        for pid in pids
        for task in Path(f"/proc/{pid}/task").iterdir()
        for child in (task / "children").read_text().split()
    ]


@has_strace
def test_what_a_killed_command_left_the_next_one_removes(large: Path, there: Path) -> None:
    with slowed(large, there) as (pids, end):
        assert len(pids) == 3
        os.kill(pids[0], signal.SIGKILL)
        # Its other processes end with it, or this waited for ever.
        end()
    (left,) = there.iterdir()
    assert left.name == ".bag.bag-part"
    result = bag(large, "--to=bag", there)
    assert result.status == 0, result.err
    assert [path.name for path in there.iterdir()] == ["bag"]
    validate(there / "bag")


@has_strace
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_and_leaves_nothing(
    large: Path, there: Path, number: signal.Signals
) -> None:
    with slowed(large, there) as (pids, end):
        # As a terminal does: to all of them.
        for pid in pids if number != signal.SIGTERM else pids[:1]:
            os.kill(pid, number)
        said = end()
    assert said.startswith(f"{128 + number} interrupted"), said
    assert len(said.splitlines()) == 1, said
    assert not list(there.iterdir())
    assert bulkfetch("verify", large).status == 0


@has_strace
def test_a_process_of_it_that_is_killed_is_said_and_nothing_is_left(
    large: Path, there: Path
) -> None:
    with slowed(large, there) as (pids, end):
        os.kill(pids[-1], signal.SIGKILL)
        said = end()
    assert said.startswith("1 bulkfetch: a process that was reading the archive was killed"), said
    assert not list(there.iterdir())


def test_what_a_killed_stream_left_is_written_over(archive: Path, there: Path) -> None:
    (there / ".bag.tar.part").write_bytes(b"left" * 10**6)
    assert bag(archive, "--tar=bag.tar", there).status == 0
    assert [path.name for path in there.iterdir()] == ["bag.tar"]
    validate(unpacked("--tar=bag.tar", there))


@has_strace
@pytest.mark.parametrize("form", FORMS)
def test_each_file_of_the_archive_is_opened_once(archive: Path, there: Path, form: str) -> None:
    trace = there.parent / "trace"
    tracing = ["strace", "-f", "-y", "-qq", "-e", "trace=open,openat", "-o", str(trace)]
    assert bag(archive, form, there, within=tracing).status == 0
    opened = Counter(
        found[1]
        for line in trace.read_text().splitlines()
        if (found := re.search(r"= \d+<(.+)>$", line))
    )
    files = [path for path in archive.glob("[!.]*/*") if path.is_file()]
    assert len(files) > 30
    for path in files:
        assert opened[str(path.resolve())] == 1, path


@pytest.mark.parametrize("form", ["directory", "tar", "zip"])
def test_memory_does_not_grow_with_the_archive(
    large: Path, sound: Made, there: Path, form: str
) -> None:
    def peak(archive: Path, name: str) -> int:
        openings: dict[str, Opening] = {
            "directory": partial(in_directory, str(there / name), copy=False),
            "tar": partial(as_tar, str(there / f"{name}.tar")),
            "zip": partial(as_zip, str(there / f"{name}.zip")),
        }
        tracemalloc.start()
        try:
            assert make_bag(str(archive), openings[form]).bag
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    # The tables that Python keeps of strings double now and then, whoever needs them.
    small = min(peak(sound.archive, f"small-{n}") for n in range(2))
    assert any(peak(large, f"large-{n}") < small + 2_000_000 for n in range(3))


def test_a_file_that_changes_while_it_is_read_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)

    def source(read: Callable[[int], bytes]) -> Source:
        return Source(path.stat(), read)

    shorter = source(io.BytesIO(b"x" * 60).read)
    with pytest.raises(FoundError, match="shorter") as found:
        shorter.drain()
    assert found.value.kind is Kind.changed

    def broken(_: int) -> bytes:
        raise OSError(5, "Input/output error")

    with pytest.raises(FoundError, match="Input/output error") as found:
        source(broken).read(10)
    assert found.value.kind is Kind.unreadable
    by_pieces = source(lambda wanted: b"x" * min(wanted, 7))
    assert by_pieces.read(100) == b"x" * 100
    assert by_pieces.read(100) == b""


def test_another_file_in_a_files_place_is_not_linked(archive: Path, there: Path) -> None:
    image = next(path for path in archive.glob("[!.]*/*") if path.suffix == ".jpg")
    name = image.relative_to(archive).as_posix()
    with (
        in_directory(str(there / "bag"), LocalTree(archive), copy=False) as target,
        image.open("rb") as file,
    ):
        source = Source(os.fstat(file.fileno()), file.read)
        directory = os.open(image.parent, os.O_RDONLY)
        image.rename(archive.parent / "aside")
        with pytest.raises(FoundError) as found:
            target.take(directory, name, source)
        assert found.value.kind is Kind.missing
        image.write_bytes((archive.parent / "aside").read_bytes())
        with pytest.raises(FoundError) as found:
            target.take(directory, name, source)
        assert found.value.kind is Kind.changed
        os.close(directory)
