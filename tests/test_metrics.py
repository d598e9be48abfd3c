"""What a run tells Prometheus, in a file and at a port."""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import socket
import struct
import threading
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from bulkfetch import errors
from bulkfetch.metrics import Metrics
from bulkfetch.models import ImageOutcome, PatientState
from bulkfetch.settings import Address
from bulkfetch.simulator.faults import parse_fault
from bulkfetch.tally import Tally
from tests.conftest import Serve, bulkfetch, credentials, download, start_bulkfetch, write_manifest

Numbers = dict[tuple[str, ...], float]


def numbers(text: str) -> Numbers:
    """The samples of a text, by their name and labels (`export` aside)."""
    return {
        (sample.name, *(v for k, v in sorted(sample.labels.items()) if k != "export")): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def by_label(found: Numbers, name: str) -> dict[str, float]:
    return {key[1]: value for key, value in found.items() if key[0] == name}


@pytest.mark.parametrize("processes", [1, 3])
def test_the_file_has_the_sums_of_the_run_whatever_processes_shared_it(
    serve: Serve, tmp_path: Path, processes: int
) -> None:
    faults = tuple(map(parse_fault, ("storage:503=0@30%x1", "images:404@5%", "images:429=0@10%x1")))
    simulator = serve(patients=120, faults=faults)
    ids = list(simulator.patient_ids())
    manifest = write_manifest(tmp_path / "patients.csv", ids)
    file = tmp_path / "nightly.prom"
    result = download(
        simulator, manifest, tmp_path / "archive",
        f"--processes={processes}", f"--metrics-file={file}", "--shard=1/1",
    )  # fmt: skip
    summary = result.summary
    text = file.read_text("utf-8")
    found = numbers(text)
    total = summary["patients"].pop("total")
    listed = summary["images"].pop("listed")
    assert result.status == 1
    assert found["bulkfetch_run_exit_status",] == 1
    assert found["bulkfetch_patients_expected",] == total
    assert by_label(found, "bulkfetch_patients_total") == summary["patients"]
    assert by_label(found, "bulkfetch_images_total") == summary["images"]
    assert by_label(found, "bulkfetch_failed_patients_total") == summary["failed_by_kind"]
    assert found["bulkfetch_image_bytes_total",] == summary["bytes"]
    retries = by_label(found, "bulkfetch_retries_total")
    assert sum(retries.values()) == summary["retries"] > 0
    assert found["bulkfetch_throttled_total",] > 0
    assert found["bulkfetch_query_duration_seconds_count",] >= total
    assert found["bulkfetch_download_duration_seconds_count",] == summary["images"]["downloaded"]
    assert (
        found["bulkfetch_run_start_timestamp_seconds",]
        < found["bulkfetch_run_finish_timestamp_seconds",]
    )
    assert set(by_label(found, "bulkfetch_in_flight").values()) == {0}
    assert listed

    # Labels have these values, and so none of an ID, a run's or a host's.
    kinds = {error.kind for error in vars(errors).values() if hasattr(error, "kind")}
    known = {*PatientState, *ImageOutcome, *kinds, "patients", "queries", "downloads", "nightly"}
    for label, value in re.findall(r'(\w+)="([^"]*)"', text):
        assert value in known or label in ("le", "version") or (label, value) == ("shard", "1/1")
    assert not list(tmp_path.glob("nightly.prom?*"))


def test_while_a_run_goes_on_its_numbers_are_at_the_port_and_in_the_file(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=40, storage_latency_s=30)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    file = tmp_path / "nightly.prom"
    arguments: list[str | Path] = [
        "download", manifest, "-o", tmp_path / "archive", "--metrics-port=0", "--progress=none",
        "--log-format=json", "--log-level=info", f"--metrics-file={file}",
    ]  # fmt: skip
    with start_bulkfetch(arguments, credentials(simulator)) as process:
        assert process.stderr
        for line in process.stderr:
            told = json.loads(line)
            if told["event"] == "metrics_served":
                url = f"http://{told['host']}:{told['port']}/metrics"
            if told["event"] == "run_started":
                break
        assert url.startswith("http://127.0.0.1:")
        found: Numbers = {}
        while not found.get(("bulkfetch_in_flight", "downloads")):
            found = numbers(urllib.request.urlopen(url).read().decode())
        assert found["bulkfetch_patients_expected",] == 40
        assert by_label(found, "bulkfetch_patients_total")["not_reached"] == 0
        assert ("bulkfetch_run_exit_status",) not in found
        assert "bulkfetch_run_exit_status" not in file.read_text("utf-8")
        process.terminate()
        process.communicate(timeout=60)
    assert process.returncode == 143
    assert numbers(file.read_text("utf-8"))["bulkfetch_run_exit_status",] == 143
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(url)


def test_everybody_may_read_the_file_whatever_the_umask(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    file = tmp_path / "nightly.prom"
    before = os.umask(0o077)
    try:
        assert download(simulator, manifest, tmp_path / "a", f"--metrics-file={file}").status == 0
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o644


def test_what_keeps_a_run_from_beginning_is_in_the_file(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2)
    good = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    bad = tmp_path / "bad.csv"
    bad.write_text("patient_id\n\x07\n", "utf-8")
    file = tmp_path / "nightly.prom"
    for manifest, secret, status in ((good, "wrong", 3), (bad, "wrong", 2)):
        result = bulkfetch(
            "download", manifest, "--out", tmp_path / "archive", f"--metrics-file={file}",
            environment={**credentials(simulator), "BULKFETCH_CLIENT_SECRET": secret},
        )  # fmt: skip
        assert result.status == status
        assert numbers(file.read_text("utf-8"))["bulkfetch_run_exit_status",] == status
        assert not (tmp_path / "archive").exists()


def test_where_metrics_cannot_be_told_nothing_is_fetched(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for option, words in (
            (f"--metrics-file={tmp_path}/nowhere/x.prom", "No such file or directory"),
            (f"--metrics-port={port}", f"--metrics-port 127.0.0.1:{port}: Address already in use"),
            ("--metrics-port=70000", "must be a port such as 9464, or HOST:PORT"),
            ("--metrics-port=nine", "must be a port such as 9464, or HOST:PORT"),
        ):
            result = download(simulator, manifest, tmp_path / "archive", option)
            assert (result.status, result.out) == (2, "")
            assert result.err.count("bulkfetch: ") == 1
            assert words in result.err
    assert not simulator.requests
    assert not (tmp_path / "archive").exists()


def test_without_the_extra_one_error_says_how_to_have_it(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=2)
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "prometheus_client.py").write_text("raise ImportError", "utf-8")
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--metrics-port=0",
        environment={**credentials(simulator), "PYTHONPATH": str(hidden)},
    )  # fmt: skip
    assert result.status == 2
    assert result.err == (
        "bulkfetch: --metrics-file and --metrics-port need prometheus-client: "
        "pip install 'bulkfetch[metrics]'\n"
    )


def test_a_file_that_can_no_longer_be_written_is_told_and_costs_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "textfiles"
    folder.mkdir()
    with caplog.at_level(logging.WARNING, "bulkfetch"), Metrics(folder / "x.prom", None, None) as m:
        m.show(Tally(1))
        shutil.rmtree(folder)
    (record,) = caplog.records
    assert record.message == (
        f"--metrics-file {folder}/x.prom cannot be written: No such file or directory; "
        "the run goes on"
    )


def test_a_file_has_the_ending_of_those_that_may_be_replaced(tmp_path: Path) -> None:
    manifest = write_manifest(tmp_path / "patients.csv", ["p-1"])
    result = bulkfetch("download", manifest, "-o", tmp_path / "a", f"--metrics-file={manifest}")
    assert result.status == 2
    assert "must end in .prom" in result.err
    assert manifest.read_text() == "patient_id\np-1\n"


def test_a_file_whose_name_is_no_utf_8_can_be_read_all_the_same(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.prom")
    with Metrics(file, None, None):
        assert 'export="caf\ufffd"' in file.read_text("utf-8")


def test_who_hangs_up_gets_no_traceback_among_the_log_lines(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.INFO, "bulkfetch")
    with Metrics(None, Address("127.0.0.1", 0), None):
        port = vars(caplog.records[0])["fields"]["port"]
        with socket.create_connection(("127.0.0.1", port)) as client:
            # With this, closing it resets the connection.
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        assert urllib.request.urlopen(f"http://127.0.0.1:{port}/").status == 200
        for thread in threading.enumerate():
            if "process_request_thread" in thread.name:
                thread.join()
    assert "Traceback" not in capsys.readouterr().err


def test_a_port_may_have_a_host_before_it() -> None:
    assert str(Address("::1", 9464)) == "[::1]:9464"
    assert str(Address("0.0.0.0", 9464)) == "0.0.0.0:9464"
