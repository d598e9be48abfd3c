"""The pages: what they say to type is typed, and nothing that the code has is left out of them."""

from __future__ import annotations

import json
import re
import shutil
import socket
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.cli.running import EXIT_STATUS
from bulkfetch.models import Summary, UnlistedSidecar
from bulkfetch.settings import ENV_PREFIX, Connection
from bulkfetch.simulator import Simulator, parse_fault
from docs import from_code, words
from tests.conftest import Serve, bulkfetch, credentials, download, sidecars, write_manifest
from tests.pages import PATIENCE_S, ROOT, blocks, compare, free_pair, page, play, steps

pytestmark = pytest.mark.timeout(PATIENCE_S + 20)


def played(name: str, here: Path, environment: Mapping[str, str], **replaced: str) -> None:
    """Type what a page says, and see that it shows what the page says."""
    text = page(name)
    for old, new in replaced.items():
        text = text.replace(old, new)
    script = steps(text)
    assert script
    compare(script, play(script, here, environment))


def archived(simulator: Simulator, here: Path) -> Path:
    """Make the archive and the manifest that a page takes for granted."""
    manifest = write_manifest(here / "patients.csv", list(simulator.patient_ids()))
    assert download(simulator, manifest, here / "archive").status == 0
    return here / "archive"


def test_the_tutorial(tmp_path: Path) -> None:
    port = free_pair()
    played("docs/tutorial.md", tmp_path, {}, **{"8080": str(port), "8081": str(port + 1)})


def test_two_nights_to_practise(tmp_path: Path) -> None:
    port = free_pair()
    played("docs/nightly.md", tmp_path, {}, **{"8080": str(port), "8081": str(port + 1)})


def test_the_page_about_filters(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(patients=50)
    write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    played("docs/filters.md", tmp_path, credentials(simulator))


def test_the_page_about_bags(serve: Serve, tmp_path: Path) -> None:
    archived(serve(), tmp_path)
    played("docs/bag.md", tmp_path, {})


def test_the_page_about_hipaa(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    archived(simulator, tmp_path)
    played("docs/hipaa.md", tmp_path, credentials(simulator))


def test_a_reader_goes_by_sidecars(serve: Serve, tmp_path: Path) -> None:
    archive = archived(serve(), tmp_path)
    (script,) = blocks(page("docs/sidecar-last.md"), "python")
    read = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    images = [sidecar for sidecar in sidecars(archive).values() if sidecar["file"]]
    assert len(read.stdout.splitlines()) == len(images)
    assert all(line.endswith(" True") for line in read.stdout.splitlines())


def test_a_journal_is_read_with_jq(serve: Serve, tmp_path: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq is not installed")
    simulator = serve()
    archive = archived(simulator, tmp_path)
    (run,) = (archive / ".bulkfetch" / "runs").iterdir()
    patient = next(iter(simulator.patient_ids()))
    (script,) = blocks(page("docs/reference/journal.md"), "sh")
    read = subprocess.run(
        ["sh", "-euc", script],
        env={"run": str(run), "patient": patient, "PATH": "/usr/local/bin:/usr/bin:/bin"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert len(read.stdout.splitlines()) == len(simulator.expected_images(patient))


class Tunnel(socketserver.ThreadingTCPServer):
    """A proxy that leads every CONNECT to one port of this machine."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Through)
        self.port = port
        self.asked: list[str] = []


class _Through(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        assert isinstance(self.server, Tunnel)
        head = iter(self.rfile.readline, b"\r\n")
        self.server.asked += [line.decode().strip() for line in head]
        with socket.create_connection(("127.0.0.1", self.server.port)) as there:
            self.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
            back = threading.Thread(target=_pump, args=(there, self.connection))
            back.start()
            _pump(self.connection, there)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)


@pytest.fixture
def tunnel(wrapped: tuple[Simulator, str]) -> Iterator[Tunnel]:
    """A proxy on the way to the API."""
    with Tunnel(int(wrapped[1].rpartition(":")[2])) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        yield proxy
        proxy.shutdown()
        thread.join()


def test_the_page_about_proxies(
    wrapped: tuple[Simulator, str], tunnel: Tunnel, authority: Path, tmp_path: Path
) -> None:
    simulator, _ = wrapped
    authority.rename(tmp_path / "our-own.pem")
    (exports,) = blocks(page("docs/proxies.md"), "sh")
    environment = dict(re.findall(r"^export (\w+)=(\S+)$", exports, re.MULTILINE))
    there = f"127.0.0.1:{tunnel.server_address[1]}"
    environment["HTTPS_PROXY"] = f"http://somebody:0badc0de@{there}"
    environment |= credentials(simulator) | {
        "BULKFETCH_API_URL": "https://api.invalid",
        "BULKFETCH_CA_FILE": "our-own.pem",
    }
    played("docs/proxies.md", tmp_path, environment, **{"api.example.org": "api.invalid"})
    assert "CONNECT api.invalid:443 HTTP/1.1" in tunnel.asked
    assert any(line.startswith("Proxy-Authorization: Basic ") for line in tunnel.asked)


def test_every_place_is_filled_and_every_part_has_a_place() -> None:
    pages = [path.read_text(encoding="utf-8") for path in ROOT.glob("docs/**/*.md")]
    named = re.findall(r"<!-- from the code: (\w+) -->", "".join(pages))
    assert sorted(named) == sorted(from_code.PARTS)


def every(settings: type[Connection]) -> Iterator[type[Connection]]:
    yield settings
    for more in settings.__subclasses__():
        yield from every(more)


def test_every_option_is_in_the_reference_with_its_variable_and_key() -> None:
    options, credentials = from_code.options(), from_code.credentials()
    for settings in every(Connection):
        for name, field in settings.model_fields.items():
            key = field.alias or name
            assert field.description, key
            if f"`{ENV_PREFIX}{key.upper()}`" not in credentials:
                assert f"### `--{key.replace('_', '-')}`\n" in options
                assert f"- `{ENV_PREFIX}{key.upper()}`, in a file `{key}`" in options


def test_every_command_is_in_the_reference() -> None:
    told = from_code.commands()
    for name in from_code.every_command():
        assert f"\nusage: bulkfetch {name} " in told, name
    for group in ((), ("manifest",)):
        for name in re.findall(r"^  (\w+) {2,}\w", bulkfetch(*group, "--help").out, re.MULTILINE):
            assert f"## `{' '.join(['bulkfetch', *group, name])}`" in told


def test_every_event_and_field_that_a_journal_has_is_in_the_reference_and_no_other() -> None:
    written = from_code.written_events()
    assert set(written) == set(words.EVENTS)
    always = {"event", "at", "previous"}
    assert {name for fields in written.values() for name in fields} | always == set(words.FIELDS)
    introduced = page("docs/reference/journal.md")
    assert all(f"`{name}`" in introduced for name in always)


def test_what_a_run_writes_is_what_the_reference_says(serve: Serve, tmp_path: Path) -> None:
    simulator = serve(faults=(parse_fault("storage:404x1"),))
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    assert download(simulator, manifest, archive, "--purpose=a test").status == 1
    assert download(simulator, manifest, archive).status == 0
    written = from_code.written_events()
    for path in archive.glob(".bulkfetch/runs/*/journal.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            told: dict[str, Any] = json.loads(line)
            own = set(told) - {"event", "at", "previous"}
            assert own <= set(written[told["event"]]), line
    summary = json.loads(next(archive.glob(".bulkfetch/runs/*/summary.json")).read_bytes())
    assert set(summary) == set(Summary.model_fields)


def test_every_key_of_a_file_is_in_the_reference() -> None:
    for model, told in ((UnlistedSidecar, from_code.sidecar()), (Summary, from_code.summary())):
        assert all(f"| `{key}` |" in told for key in model.model_fields)


def test_every_exit_status_is_in_the_reference_and_in_the_readme() -> None:
    statuses = {0, *EXIT_STATUS.values()}
    statuses |= {error.exit_status for error in from_code.every_error()}
    table = page("README.md").partition("\n## Exit status\n")[2].partition("\n\nWords for")[0]
    listed = re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
    assert {int(number) for numbers in listed for number in numbers.split(",")} == statuses
    told = from_code.exit_statuses()
    assert all(f"| {status} |" in told for status in statuses - {0})
