"""What can be wrong before a run: one clear sentence, the right status, nothing left behind."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from bulkfetch.archive import Identity
from bulkfetch.archive.local import LocalArchive
from bulkfetch.simulator import parse_fault
from tests.conftest import (
    Result,
    Serve,
    bulkfetch,
    credentials,
    download,
    with_mounts_of_its_own,
    write_manifest,
)

TOKEN = {"BULKFETCH_TOKEN": "a-token"}


def clear(result: Result, status: int, *words: str) -> None:
    assert result.status == status, result.err
    for word in words:
        assert word in result.err
    assert "Traceback" not in result.err
    assert "internal error" not in result.err


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return write_manifest(tmp_path / "patients.csv", ["p-1"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, ["no such file"]),
        (b"", ["no rows"]),
        (b"patient_id\n", ["no rows", "--allow-empty"]),
        (bytes(range(256)) * 10, []),
        (b"mrn,name\n1,x\n", ["patient_id"]),
    ],
    ids=["missing", "empty", "header only", "binary", "no known column"],
)
def test_a_manifest_that_cannot_be_used(
    tmp_path: Path, content: bytes | None, words: list[str]
) -> None:
    path = tmp_path / "m.csv"
    if content is not None:
        path.write_bytes(content)
    result = bulkfetch("download", path, "--out", tmp_path / "archive", environment=TOKEN)
    clear(result, 2, str(path), *words)
    assert not (tmp_path / "archive").exists()


def test_a_directory_is_no_manifest(tmp_path: Path) -> None:
    result = bulkfetch("download", tmp_path, "--out", tmp_path / "archive", environment=TOKEN)
    clear(result, 2, "directory")


def test_every_bad_row_is_named_by_file_and_line_and_nothing_is_asked(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    path = tmp_path / "broken.csv"
    path.write_text('patient_id,note\np-1,x\n,y\np-2,z,too many\n"p\n3",w\n', encoding="utf-8")
    result = download(simulator, path, tmp_path / "archive")
    clear(result, 2, f"{path}:3:", f"{path}:4:", f"{path}:5:", "3 bad rows")
    assert not simulator.requests
    assert not (tmp_path / "archive").exists()


def test_a_quiet_night_is_allowed_on_request(serve: Serve, tmp_path: Path) -> None:
    path = write_manifest(tmp_path / "none.csv", [])
    result = download(serve(), path, tmp_path / "archive", "--allow-empty")
    assert result.status == 0
    assert result.summary["patients"]["total"] == 0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--query-concurrency=-3", ["--query-concurrency", "-3"]),
        ("--retries=many", ["--retries", "many"]),
        ("--timeout=0", ["--timeout"]),
        ("--api-url=http://api.invalid", ["--api-url", "https"]),
        ("--environment=produktion", ["--environment", "staging"]),
        ("--updated-since=yesterday", ["--updated-since"]),
        ("--max-file-size=lots", ["--max-file-size"]),
        ("--query-concurency=3", ["--query-concurency"]),
        ("--config=/nowhere.toml", ["/nowhere.toml", "No such file"]),
    ],
)
def test_an_option_that_cannot_be(
    tmp_path: Path, manifest: Path, option: str, words: list[str]
) -> None:
    out = tmp_path / "archive"
    clear(bulkfetch("download", manifest, "--out", out, option, environment=TOKEN), 2, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("query_concurency = 3", ["query_concurency", "no option"]),
        ("retries = -1", ["--retries", "configuration file"]),
        ("retries = ", ["not TOML"]),
        ('client_secret = "hunter2"', ["BULKFETCH_CLIENT_SECRET"]),
    ],
)
def test_a_configuration_file_that_cannot_be(
    tmp_path: Path, manifest: Path, toml: str, words: list[str]
) -> None:
    config = tmp_path / "bulkfetch.toml"
    config.write_text(toml, encoding="utf-8")
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--config", config, environment=TOKEN
    )
    clear(result, 2, *words)
    assert "hunter2" not in result.err
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ["BULKFETCH_CLIENT_ID"]),
        ({"BULKFETCH_CLIENT_ID": "x"}, ["BULKFETCH_CLIENT_SECRET"]),
        ({"BULKFETCH_TOKEN_FILE": "/nowhere"}, ["/nowhere", "cannot be read"]),
        ({**TOKEN, "BULKFETCH_CLIENT_ID": "x"}, ["unset"]),
        ({"BULKFETCH_RETRIES": "-1", **TOKEN}, ["BULKFETCH_RETRIES"]),
    ],
)
def test_credentials_that_cannot_be(
    tmp_path: Path, manifest: Path, environment: dict[str, str], words: list[str]
) -> None:
    result = bulkfetch("download", manifest, "--out", tmp_path / "archive", environment=environment)
    clear(result, 2, *words)
    assert not (tmp_path / "archive").exists()


def test_wrong_client_credentials_are_status_3_after_one_token_request(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive",
        environment={**credentials(simulator), "BULKFETCH_CLIENT_SECRET": "wrong"},
    )  # fmt: skip
    clear(result, 3, "BULKFETCH_CLIENT_ID")
    assert simulator.requests == {"token": 1}
    assert not (tmp_path / "archive").exists()


def test_a_wrong_static_token_is_status_3_after_one_request(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--api-url", simulator.api_url,
        environment=TOKEN,
    )  # fmt: skip
    clear(result, 3, "BULKFETCH_TOKEN")
    assert simulator.requests == {"images": 1}
    assert not (tmp_path / "archive").exists()


def test_a_destination_that_is_a_file(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve()
    clear(download(simulator, manifest, manifest), 4, str(manifest), "is a file")
    clear(download(simulator, manifest, manifest / "below"), 4, "is a file")
    assert not simulator.requests


def test_a_destination_without_write_access(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve()
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    # Root may write everywhere, unless it gives that up.
    as_anybody = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    within = as_anybody if os.geteuid() == 0 else []
    result = download(simulator, manifest, locked / "archive", within=within)
    clear(result, 4, str(locked), "cannot be written")
    assert not simulator.requests


def test_a_destination_on_a_read_only_file_system(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve()
    frozen = tmp_path / "frozen"
    frozen.mkdir()
    mounted = f'mount -t tmpfs -o ro none "{frozen}" && exec "$@"'
    within = with_mounts_of_its_own(mounted)
    result = download(simulator, manifest, frozen / "archive", within=within)
    clear(result, 4, str(frozen), "cannot be written")
    assert not simulator.requests


def test_an_api_that_is_not_there(tmp_path: Path, manifest: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        result = bulkfetch(
            "download", manifest, "--out", tmp_path / "archive", "--api-url", url, "--retries=1",
            environment=TOKEN,
        )  # fmt: skip
    clear(result, 1, "127.0.0.1", "--api-url", "nothing was fetched")
    assert not (tmp_path / "archive").exists()


def test_an_api_whose_name_is_unknown(tmp_path: Path, manifest: Path) -> None:
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--api-url", "https://api.invalid",
        "--retries=0", environment=TOKEN,
    )  # fmt: skip
    clear(result, 1, "api.invalid", "DNS")
    assert not (tmp_path / "archive").exists()


@pytest.fixture
def self_signed(tmp_path: Path) -> Iterator[str]:
    """A server whose certificate nobody vouches for."""
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
         "-subj", "/CN=localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        check=True, cwd=tmp_path, capture_output=True,
    )  # fmt: skip
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"https://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_an_api_whose_certificate_cannot_be_trusted(
    tmp_path: Path, manifest: Path, self_signed: str
) -> None:
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--api-url", self_signed,
        environment=TOKEN,
    )  # fmt: skip
    clear(result, 1, "certificate", "self")
    assert not (tmp_path / "archive").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_proxy_that_speaks_no_http(tmp_path: Path, manifest: Path, options: list[str]) -> None:
    proxy = {"HTTPS_PROXY": "socks5://user:secret@127.0.0.1:9"}
    result = bulkfetch(
        "download", manifest, "--out", tmp_path / "archive", "--api-url", "https://api.invalid",
        *options, environment=TOKEN | proxy,
    )  # fmt: skip
    clear(result, 2, "HTTPS_PROXY names a proxy of socks5://")
    assert "secret" not in result.err
    assert not (tmp_path / "archive").exists()


def test_an_html_page_where_json_should_be(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve(faults=(parse_fault("images:html"),))
    result = download(simulator, manifest, tmp_path / "archive", "--retries=1")
    clear(result, 1, "not JSON", "--api-url")
    assert not (tmp_path / "archive").exists()


def test_two_runs_on_one_archive(serve: Serve, tmp_path: Path, manifest: Path) -> None:
    simulator = serve()
    with LocalArchive.open(str(tmp_path / "archive"), "the-other", Identity(api_host="127.0.0.1")):
        result = download(simulator, manifest, tmp_path / "archive")
    clear(result, 4, "the-other", str(os.getpid()))


@pytest.mark.parametrize(
    "arguments", [[], ["downlaod"], ["download"], ["manifest"], ["manifest", "chekc"]]
)
def test_a_command_line_that_is_none(arguments: list[str]) -> None:
    result = bulkfetch(*arguments)
    assert result.status == 2
    assert "usage:" in result.err
    assert "rest" not in result.err
    assert not result.out
