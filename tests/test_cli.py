"""The command line around the main job: help, version, demo, simulate, progress, samples."""

from __future__ import annotations

import fcntl
import importlib
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path

import pytest

import bulkfetch as package
from bulkfetch.cli import COMMANDS, main
from bulkfetch.cli.options import DownloadSettings
from bulkfetch.simulator import parse_fault
from tests.conftest import (
    Serve,
    bulkfetch,
    credentials,
    download,
    start_bulkfetch,
    write_manifest,
)

ROOT = Path(__file__).parents[1]


def test_version_answers() -> None:
    result = bulkfetch("--version")
    assert (result.status, result.out) == (0, f"bulkfetch {package.__version__}\n")


def test_help_lists_every_command_and_each_has_help_with_an_example() -> None:
    overview = bulkfetch("--help")
    assert overview.status == 0
    for command in COMMANDS:
        assert f"  {command} " in overview.out
        text = bulkfetch(command, "--help")
        assert text.status == 0
        assert "example" in text.out
        assert f"bulkfetch {command}" in text.out.partition("example")[2]


def test_help_of_download_names_every_setting() -> None:
    text = bulkfetch("download", "--help").out
    for name, field in DownloadSettings.model_fields.items():
        option = "--" + (field.alias or name).replace("_", "-")
        secret = name.startswith(("client_", "token"))
        assert (option in text) != secret, option


def test_help_and_version_import_nothing_heavy() -> None:
    program = (
        "import sys; from bulkfetch.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'aiohttp', 'pydantic', 'tqdm', 'asyncio'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert result.stdout.splitlines()[-1] == b"[]"


def test_the_public_names_are_there_and_no_others() -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        package.nothing  # noqa: B018  the look-up is the test


def test_demo_makes_an_archive_and_the_second_time_all_is_unchanged(tmp_path: Path) -> None:
    argv = ["demo", "--patients", "20", "--out", "a demo"]
    first = bulkfetch(*argv, cwd=tmp_path)
    assert first.status == 0, first.err
    assert '"schema_version": 1' in first.err
    assert f" {shlex.join(argv)}  " in first.err.partition("Next:")[2]
    assert (tmp_path / "a demo" / "patients.csv").exists()
    downloaded = re.search(r"downloaded +(\d+)", first.err)
    assert downloaded
    second = bulkfetch(*argv, cwd=tmp_path)
    assert re.search(r"downloaded +0\n", second.err)
    assert re.search(rf"unchanged +{downloaded[1]}\n", second.err)


@pytest.mark.parametrize("options", [[], ["--static-token", "a token"]])
def test_simulate_says_what_to_type_serves_until_stopped_and_writes_a_manifest(
    tmp_path: Path, options: list[str]
) -> None:
    manifest = tmp_path / "all cards.csv"
    process = start_bulkfetch(
        ["simulate", "--patients", "5", "--manifest", manifest, "--fault", "storage:503x1",
         *options], {},
    )  # fmt: skip
    assert process.stdout
    assert process.stderr
    where = json.loads(process.stdout.readline())
    told = [line.decode() for line in iter(process.stderr.readline, b"Ctrl-C stops\n")]
    *exports, command = [shlex.split(line) for line in told[1:]]
    environment = dict(word.split("=", 1) for _export, word in exports)
    assert environment["BULKFETCH_API_URL"] == where["api_url"]
    assert ("BULKFETCH_TOKEN" in environment) is bool(options)
    result = bulkfetch(*command[command.index("download"):], "--json",
                       environment=environment, cwd=tmp_path)  # fmt: skip
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 0
    assert result.status == 0
    assert result.summary["patients"]["total"] == 5
    assert result.summary["retries"] == result.summary["images"]["downloaded"]


@pytest.mark.parametrize("fault", ["storage:nonsense", "nowhere:503", "storage"])
def test_simulate_refuses_a_fault_that_is_none(fault: str) -> None:
    result = bulkfetch("simulate", "--fault", fault)
    assert result.status == 2
    assert "Traceback" not in result.err


@pytest.mark.parametrize(
    "name", sorted(p.name for p in (ROOT / "manifests").iterdir() if p.suffix != ".md")
)
def test_each_sample_manifest_works_and_the_broken_one_names_its_lines(
    serve: Serve, tmp_path: Path, name: str
) -> None:
    simulator = serve(patients=200)
    result = download(simulator, ROOT / "manifests" / name, tmp_path / "archive")
    if name == "broken.csv":
        assert result.status == 2
        for line in (3, 4, 5, 6):
            assert f"broken.csv:{line}:" in result.err
        return
    assert result.status == 0, result.err
    assert result.summary["images"]["listed"] > 0


def test_manifest_check_counts_rows_without_any_network(tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "m.csv", ["p-1", "p-2", "p-1"])
    result = bulkfetch("manifest", "check", path, "--json")
    assert result.status == 0
    assert json.loads(result.out)["distinct"] == 2
    assert f"{path}:4 repeats line 2" in result.err


def test_wrong_options_and_a_bad_manifest_are_told_together() -> None:
    result = bulkfetch("download", ROOT / "manifests" / "broken.csv")
    assert result.status == 2
    assert "--out is missing" in result.err
    for line in (3, 4, 5, 6):
        assert f"broken.csv:{line}:" in result.err
    for wrong in (["--manifest-format=xls"], ["--retries=-1"]):
        good = bulkfetch("download", ROOT / "manifests" / "patients.csv", "--out=nowhere", *wrong)
        assert good.status == 2
        assert good.err.count("bulkfetch: ") == 1
        assert not good.out


def test_the_sample_configuration_file_holds_every_option_with_its_default() -> None:
    text = (ROOT / "bulkfetch.toml").read_text(encoding="utf-8")
    for name, field in DownloadSettings.model_fields.items():
        if name.startswith(("client_", "token")) or name == "config":
            continue
        assert re.search(rf"^# ?{field.alias or name} = ", text, re.MULTILINE), name


def test_a_bar_is_drawn_on_a_terminal_and_log_lines_stand_whole_above_it(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=60, storage_latency_s=0.1)
    ids = list(simulator.patient_ids())
    merged = [p for p in ids if simulator.expected_images(p)]
    for old, new in zip(merged[::4], merged[1::4], strict=False):
        simulator.merge_patient(old, new)
    manifest = write_manifest(tmp_path / "patients.csv", ids)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "bulkfetch", "download", manifest, "-o", tmp_path / "archive",
         "--download-concurrency=4"],
        stderr=theirs, env={**os.environ, **credentials(simulator)},
    )  # fmt: skip
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        shown += part
    os.close(ours)
    assert process.wait(20) == 0
    # Besides, the cursor goes up from the second line to the first.
    lines = re.split(r"(?:[\r\n]|\x1b\[A)+", shown.decode())
    drawn = [line for line in lines if "/60 patients" in line]
    assert len(drawn) > 3
    assert all(len(line) <= 80 for line in drawn)
    warnings = [line for line in lines if "kept under that one" in line]
    assert warnings
    assert all(line.startswith("warning: patient ") for line in warnings)


def test_without_a_terminal_progress_is_plain_lines_and_none_is_none(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=150, storage_latency_s=0.5)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    for style, wanted in (("auto", True), ("none", False)):
        result = bulkfetch(
            "download", manifest, "--out", tmp_path / style, f"--progress={style}",
            environment=credentials(simulator),
        )  # fmt: skip
        assert result.status == 0
        assert (
            re.search(r"^\d+/150 patients, .* left, ", result.err, re.MULTILINE) is not None
        ) == wanted
        assert "\r" not in result.err


def test_log_lines_are_json_on_request(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(faults=())
    old, new = [p for p in simulator.patient_ids() if simulator.expected_images(p)][:2]
    simulator.merge_patient(old, new)
    manifest = write_manifest(tmp_path / "patients.csv", [old])
    result = download(
        simulator, manifest, tmp_path / "archive", "--log-format=json", "--log-level=debug"
    )
    lines = [json.loads(line) for line in result.err.splitlines() if line.startswith("{")]
    assert any(line["level"] == "warning" and new in line["message"] for line in lines)


def test_the_demo_is_the_same_whatever_is_set_for_the_real_account(tmp_path: Path) -> None:
    environment = {
        "BULKFETCH_TOKEN": "x",
        "BULKFETCH_DRY_RUN": "true",
        "BULKFETCH_CONFIG": "/nowhere",
        "BULKFETCH_STATUS": "NOTHING",
    }
    result = bulkfetch("demo", "--patients", "3", cwd=tmp_path, environment=environment)
    assert result.status == 0, result.err
    assert "Next:" in result.err


def test_a_mistyped_variable_is_said(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive",
        environment={**credentials(simulator), "BULKFETCH_ENVIROMENT": "staging"},
    )  # fmt: skip
    assert result.status == 0
    assert "BULKFETCH_ENVIROMENT" in result.err
    assert "did you mean BULKFETCH_ENVIRONMENT?" in result.err


def test_a_filter_that_leaves_nothing_is_said(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--side=LEFT")
    assert "every image was filtered out" in result.err


def test_patients_that_are_unknown_are_empty_and_it_is_said(serve: Serve, tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "patients.csv", ["9999", "../../etc/passwd"])
    result = download(serve(), manifest, tmp_path / "archive")
    assert result.summary["patients"]["empty"] == 2
    assert "are these IDs of this account?" in result.err


def test_the_command_for_another_try_can_be_pasted(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(faults=(parse_fault("storage:404"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "my cards"
    result = download(simulator, manifest, archive)
    assert result.status == 1
    pasted = shlex.split(result.err.splitlines()[-1])
    assert pasted[:2] == ["bulkfetch", "download"]
    assert Path(pasted[2]).read_text().startswith("patient_id,")
    assert pasted[2] == result.summary["failures"]
    simulator.faults.clear()
    again = bulkfetch(*pasted[1:], environment=credentials(simulator))
    assert again.status == 0, again.err


@pytest.mark.parametrize("closed", ["2>&-", ">&-", "<&-", ">/dev/full"])
def test_a_closed_or_full_standard_stream_is_no_internal_error(
    serve: Serve, tmp_path: Path, closed: str
) -> None:
    simulator = serve()
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    arguments = f'download "{manifest}" --out "{tmp_path}/archive" --json {closed}'
    result = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" -m bulkfetch {arguments}'],
        capture_output=True, check=False, env={**os.environ, **credentials(simulator)},
    )  # fmt: skip
    assert result.returncode == (1 if "full" in closed else 0), result.stderr
    assert b"internal error" not in result.stdout + result.stderr
    assert b"Traceback" not in result.stderr
    (summary,) = tmp_path.glob("archive/.bulkfetch/runs/*/summary.json")
    assert json.loads(summary.read_bytes())["exit_code"] == 0


def test_a_run_goes_on_when_nobody_can_be_told_of_it(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(faults=(parse_fault("storage:404@20%"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    nobody, theirs = os.pipe()
    os.close(nobody)
    result = subprocess.run(
        [sys.executable, "-m", "bulkfetch", "download", manifest, "-o", tmp_path / "archive",
         "--json", "--log-level=debug", "--progress=bar"],
        stdout=subprocess.PIPE, stderr=theirs, check=False,
        env={**os.environ, **credentials(simulator)},
    )  # fmt: skip
    os.close(theirs)
    assert result.returncode == 1
    patients = json.loads(result.stdout)["patients"]
    assert patients["failed"] > 0
    assert patients["not_reached"] == 0


def test_a_path_object_and_the_home_directory_are_destinations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert package.Settings(out="~/archive").out == str(tmp_path / "archive")
    assert package.Settings(out=tmp_path).out == str(tmp_path)


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("download m.csv --out d --query-concurency 3", "--query-concurrency"),
        ("doctor --enviroment=staging", "--environment"),
        ("verify d --manifst m.csv", "--manifest"),
        ("manifest build m.csv --sinse 2026-11-01", "--since"),
        ("manifest chekc m.csv", "check"),
        ("simulate --patiens 3", "--patients"),
        ("downlaod m.csv", "download"),
        ("--verson", "--version"),
    ],
)
def test_a_mistyped_option_or_command_is_told_with_the_one_that_was_meant(
    line: str, meant: str
) -> None:
    result = bulkfetch(*line.split())
    assert result.status == 2
    assert not result.out
    assert f"; did you mean {meant}?" in result.err


def test_an_option_that_is_like_no_other_is_told_without_its_value() -> None:
    for given in (["--token=hunter2"], ["--token", "hunter2"]):
        result = bulkfetch("download", "m.csv", "--out", "d", *given)
        assert result.status == 2
        assert "no such option: --token\n" in result.err
        assert "hunter2" not in result.err


def test_a_command_that_is_like_no_other_is_told_with_those_there_are() -> None:
    result = bulkfetch("frobnicate")
    assert result.status == 2
    assert "no such command: frobnicate; there are download, verify," in result.err


def test_a_mistyped_key_of_a_file_is_told_with_the_one_that_was_meant(tmp_path: Path) -> None:
    config = tmp_path / "bulkfetch.toml"
    config.write_text("query_concurency = 3\nxyzzy = 1\n", encoding="utf-8")
    result = bulkfetch("download", "m.csv", "--out", "d", "--config", config)
    assert result.status == 2
    assert "query_concurency, xyzzy; did you mean query_concurrency?\n" in result.err


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of each command, the program's own among them."""
    yield ()
    for name in COMMANDS:
        yield (name,)
        module = importlib.import_module(f"bulkfetch.cli.{name}")
        for below in getattr(module, "COMMANDS", {}):
            yield name, below


@pytest.mark.parametrize("words", list(every_command()), ids=" ".join)
def test_help_has_an_example_and_fits_a_terminal(
    words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([*words, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []
    assert re.search(rf"^examples?:\n  .*{' '.join(['bulkfetch', *words])}", shown, re.MULTILINE)


def test_what_is_wrong_is_told_with_the_command_that_says_what_is_right() -> None:
    for words in (["verify"], ["verify", "a", "--sampel"], ["verfy"], ["manifest", "chek"]):
        result = bulkfetch(*words)
        assert result.status == 2
        where = " ".join(["bulkfetch", *(word for word in words[:1] if word in COMMANDS)])
        assert result.err.endswith(f"\nsee: {where} --help\n")
