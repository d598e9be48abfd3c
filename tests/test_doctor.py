"""`bulkfetch doctor`: all is well, or each thing that may be wrong is told, one at a time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from email.utils import formatdate
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from bulkfetch.archive import Identity, files
from bulkfetch.archive.local import LocalArchive
from bulkfetch.cli.options import DoctorSettings
from bulkfetch.doctor import Check, State, Sums, examine, machine, set_up
from bulkfetch.doctor.network import Network
from bulkfetch.settings import Option, Settings
from bulkfetch.simulator import Simulator, SimulatorConfig, parse_fault
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
from tests.pages import page
from tests.test_secrets import leaks
from tests.test_transport import http, raw_server

HOUR_S = 3600
NOW_S = 1_795_000_000.0
NETWORK = ("DNS", "trust", "TLS", "API", "clock", "token", "query", "storage")
LOCAL = ("destination", "archive", "file system", "writing", "disk")


class Told(NamedTuple):
    """What the command told with `--json`."""

    status: int
    settings: dict[str, dict[str, str]]
    checks: list[Check]
    err: str

    def named(self, name: str) -> Check:
        (found,) = (check for check in self.checks if check.name == name)
        return found

    def states(self, state: State) -> list[str]:
        return [check.name for check in self.checks if check.state == state]

    @property
    def problems(self) -> list[str]:
        return self.states(State.problem)

    @property
    def problem(self) -> Check:
        """The one problem that there is."""
        (found,) = (check for check in self.checks if check.state == State.problem)
        return found


def doctor(
    simulator: Simulator,
    *options: str | Path,
    environment: Mapping[str, str] | None = None,
    within: list[str] | None = None,
) -> Told:
    """Run the command against a simulator, and check what holds whatever is wrong."""
    result = bulkfetch(
        "doctor", "--json", *options,
        environment={**credentials(simulator), **(environment or {})}, within=within or (),
    )  # fmt: skip
    no_secret_in(result, simulator)
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert all(len(line) == 1 for line in lines)
    settings = {line["setting"]["name"]: line["setting"] for line in lines if "setting" in line}
    checks = [Check(**line["check"]) for line in lines if "check" in line]
    told = Told(result.status, settings, checks, result.err)
    assert lines[-1] == {"report": {state: len(told.states(state)) for state in State}}
    assert told.status == (1 if told.problems else 0)
    assert all(bool(check.advice) == (check.state == State.problem) for check in checks)
    return told


def no_secret_in(result: Result, simulator: Simulator) -> None:
    shown = result.out + result.err
    assert "Traceback" not in shown
    assert "internal error" not in shown
    # An advice may speak of NTP; but nothing that a server said is repeated.
    assert not leaks(shown, simulator), shown


def everything(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None
        for path in directory.rglob("*")
    }


def test_all_is_well_and_nothing_is_left_or_made(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    told = doctor(simulator, "--out", tmp_path / "archive")
    assert told.status == 0, told
    assert told.states(State.skipped) == ["TLS", "archive"]
    assert told.named("TLS").detail.endswith("loopback over http")
    assert "HTTP 206" in told.named("storage").detail
    assert "crc32c and md5" in told.named("storage").detail
    assert not list(tmp_path.iterdir())


def test_an_archive_is_looked_at_and_left_as_it_was(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    archive = tmp_path / "archive"
    manifest = write_manifest(tmp_path / "patients.csv", list(simulator.patient_ids()))
    assert download(simulator, manifest, archive).status == 0
    before = everything(archive)
    told = doctor(simulator, "--out", archive)
    assert told.status == 0, told
    assert told.states(State.skipped) == ["TLS"]
    assert simulator.config.organization_id in told.named("archive").detail
    assert "room for" in told.named("disk").detail
    assert "renamed" in told.named("writing").detail
    assert everything(archive) == before


def test_one_byte_of_one_image_is_asked_for_and_no_list_of_the_whole_account(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve(patients=40)
    assert doctor(simulator).status == 0
    searches = [request for request in simulator.log if request.endpoint == "images"]
    assert searches
    assert all(request.patient_id for request in searches)
    (byte,) = (request for request in simulator.log if request.endpoint == "storage")
    assert byte.range == "bytes=0-0"
    assert byte.status == 206
    assert not byte.has_authorization
    assert simulator.requests["token"] == 1


def test_a_person_reads_one_line_a_check_and_what_to_do_below_it(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    environment = {**credentials(simulator), "BULKFETCH_CLIENT_SECRET": "0badc0de"}
    result = bulkfetch("doctor", "--out", tmp_path / "archive", environment=environment)
    no_secret_in(result, simulator)
    assert result.status == 1
    assert not result.out
    settings, _, told = result.err.partition("\n\n")
    assert f"  api_url {simulator.api_url}  (BULKFETCH_API_URL)\n" in settings
    assert "  client_secret [hidden]  (BULKFETCH_CLIENT_SECRET)\n" in settings
    assert "retries 5" in settings
    lines = told.splitlines()
    assert lines[0].startswith("ok       settings     ")
    numbers = re.compile(r"([0-9]+) given, ([0-9]+) by default")
    here, in_readme = (
        sum(map(int, found.groups()))
        for text in (lines[0], page("README.md"))
        if (found := numbers.search(text))
    )
    assert here == in_readme
    at = next(n for n, line in enumerate(lines) if line.startswith("PROBLEM  token        "))
    assert "401" in lines[at]
    assert lines[at + 1].startswith("         what to do: ")
    assert lines[-1].startswith("1 problem, ")


def test_each_setting_is_told_with_where_it_comes_from(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    config = tmp_path / "bulkfetch.toml"
    config.write_text('retries = 5\nside = ["FRONT", "BACK"]\nout = "elsewhere"\n')
    told = doctor(
        simulator, "--config", config, "--out", tmp_path / "archive", "--rate-limit=2.5",
        environment={
            "BULKFETCH_SHARD": "2/4", "BULKFETCH_NO_FSYNC": "true", "BULKFETCH_STATUS": "",
        },
    )  # fmt: skip
    assert told.status == 0, told

    def setting(name: str) -> tuple[str, str]:
        return told.settings[name]["value"], told.settings[name]["source"]

    assert setting("out") == (str(tmp_path / "archive"), "command line")
    assert setting("rate_limit") == ("2.5", "command line")
    assert setting("shard") == ("2/4", "BULKFETCH_SHARD")
    assert setting("no_fsync") == ("true", "BULKFETCH_NO_FSYNC")
    assert setting("side") == ("FRONT, BACK", str(config))
    assert setting("retries") == ("5", str(config))
    assert setting("status") == ("", "default")
    assert setting("timeout") == ("60", "default")
    assert setting("json") == ("true", "command line")
    for secret in ("client_id", "client_secret"):
        assert setting(secret) == ("[hidden]", f"BULKFETCH_{secret.upper()}")
    assert set(told.settings) == {f.alias or n for n, f in DoctorSettings.model_fields.items()}


# Of this port nobody is told, and nothing listens there.
DEAD = "http://127.0.0.1:1"
WRONG = {
    "secret": ({"BULKFETCH_CLIENT_SECRET": "0badc0de"}, "token", "401", "credentials"),
    "name": ({"BULKFETCH_API_URL": "https://api.invalid"}, "DNS", "api.invalid", "--api-url"),
    "port": ({"BULKFETCH_API_URL": DEAD}, "API", "127.0.0.1", "--api-url"),
    "auth port": ({"BULKFETCH_AUTH_URL": DEAD}, "token", "127.0.0.1", "network"),
    "variable": (
        {"BULKFETCH_ENVIROMENT": "staging"}, "variables", "did you mean BULKFETCH_ENV", "name",
    ),
    "half": ({"BULKFETCH_CLIENT_ID": ""}, "credentials", "BULKFETCH_CLIENT_ID", "first"),
    "both": ({"BULKFETCH_TOKEN": "0badc0de"}, "credentials", "both set", "one of the two"),
    "retries": ({"BULKFETCH_RETRIES": "-1"}, "settings", "BULKFETCH_RETRIES", "correct"),
    "failures": ({"BULKFETCH_MAX_FAILURES": "few"}, "settings", "BULKFETCH_MAX_FAIL", "correct"),
    "authority": ({"BULKFETCH_CA_FILE": "/nowhere.pem"}, "trust", "/nowhere.pem", "first"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_here_is_the_one_problem(serve: Serve, tmp_path: Path, what: str) -> None:
    environment, name, detail, advice = WRONG[what]
    simulator = serve()
    told = doctor(simulator, "--out", tmp_path / "archive", environment=environment)
    assert told.problem.name == name
    assert detail in told.problem.detail
    assert advice in told.problem.advice
    assert told.named("destination").state == State.ok
    assert told.named("disk").state == State.ok
    assert not list(tmp_path.iterdir())
    if name in ("variables", "settings"):
        assert told.named("storage").state == State.ok
    else:
        assert told.named("storage").state == State.skipped
        assert "first" in told.named("storage").detail


FAULTS = {
    "token:html": ("token", "not JSON", "--environment"),
    "token:503": ("token", "503", "again"),
    "patients:403": ("query", "403", "vendor"),
    "images:403": ("query", "403", "vendor"),
    "images:500": ("query", "500", "again"),
    "images:429": ("query", "429", "again"),
    "images:404": ("query", "404", "--api-url"),
    "images:html": ("query", "not JSON", "--api-url"),
    "images:wrong-shape": ("query", "shape", "--api-url"),
    "images:drop": ("query", "127.0.0.1", "network"),
    "patients:wrong-shape": ("query", "patient search", "--api-url"),
    "api:token-death": ("query", "401", "credentials"),
    "storage:html": ("storage", "a page", "in between"),
    "storage:403": ("storage", "403", "clock"),
    "storage:expired": ("storage", "400", "clock"),
    "storage:404": ("storage", "404", "answers"),
    "storage:503": ("storage", "503", "again"),
    "storage:drop": ("storage", "127.0.0.1", "network"),
    "storage:redirect=https://stranger.invalid/?X-Goog-Signature=0badc0de": (
        "storage", "stranger.invalid", "--storage-host",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_there_is_the_one_problem(serve: Serve, tmp_path: Path, fault: str) -> None:
    name, detail, advice = FAULTS[fault]
    simulator = serve(faults=(parse_fault(fault),))
    told = doctor(simulator, "--out", tmp_path / "archive")
    assert told.problem.name == name
    assert detail in told.problem.detail
    assert advice in told.problem.advice
    assert told.named("clock").state == told.named("destination").state == State.ok


def test_a_storage_without_ranges_and_digests_is_told_and_no_problem(serve: Serve) -> None:
    faults = ("storage:range-ignored", "storage:no-hash")
    simulator = serve(faults=tuple(map(parse_fault, faults)), fixed_bytes=3_000_000)
    told = doctor(simulator)
    assert told.status == 0
    assert "without ranges" in told.named("storage").detail
    assert "no digest" in told.named("storage").detail


def test_a_strangers_host_in_a_signed_url_is_told_without_the_url(serve: Serve) -> None:
    simulator = serve()
    patient_id = next(
        patient_id
        for patient_id in simulator.patient_ids()
        for image in simulator.expected_images(patient_id)
        if image["status"] == "UPLOADED"
    )
    url = "https://stranger.invalid/private-path?X-Goog-Signature=0badc0de"
    for other in simulator.expected_images(patient_id):
        simulator.patch_image(str(other["id"]), signed_url=url)
    told = doctor(simulator, "--patient", patient_id)
    assert told.problem.name == "storage"
    assert "https://stranger.invalid" in told.problem.detail
    assert "private-path" not in told.problem.detail
    assert "--storage-host" in told.problem.advice
    assert not simulator.requests["storage"]


def test_the_patient_that_was_named_is_asked_for_and_no_other(serve: Serve) -> None:
    simulator = serve(faults=(parse_fault("patients:403"),))
    patient_id = next(p for p in simulator.patient_ids() if simulator.expected_images(p))
    assert doctor(simulator, "--patient", patient_id).status == 0
    nobody = doctor(simulator, "--patient", "nobody-\x1b[2J")
    assert nobody.status == 0
    assert "has 0 images" in nobody.named("query").detail
    assert nobody.named("storage").state == State.skipped
    assert "--patient" in nobody.named("storage").detail
    assert not simulator.requests["patients"]


def test_an_account_without_patients_or_images_is_no_problem(serve: Serve) -> None:
    for fields in ({"patients": 0}, {"images_per_patient": 0}):
        told = doctor(serve(**fields))
        assert told.status == 0, told
        assert told.named("storage").state == State.skipped


@pytest.mark.parametrize(("ahead_s", "word"), [(HOUR_S, "behind"), (-HOUR_S, "ahead of")])
def test_a_clock_an_hour_off_is_told_with_its_direction(ahead_s: float, word: str) -> None:
    with serving(SimulatorConfig(patients=12), lambda: time.time() + ahead_s) as simulator:
        told = doctor(simulator)
    assert told.problem.name == "clock"
    assert word in told.problem.detail
    assert "NTP" in told.problem.advice


@pytest.mark.parametrize(
    ("headers", "state"),
    [
        ({}, State.skipped),
        ({"Date": "yesterday"}, State.skipped),
        ({"Date": "Tue, 24 Nov 99999999999 15:00:00 GMT"}, State.skipped),
        ({"Date": "Fri, 31 Dec 9999 23:59:59 GMT"}, State.problem),
        ({"Date": formatdate(NOW_S, usegmt=True)}, State.ok),
        ({"Date": formatdate(NOW_S)}, State.ok),
        ({"Date": formatdate(NOW_S - HOUR_S, usegmt=True)}, State.problem),
        ({"Date": formatdate(NOW_S - HOUR_S, usegmt=True), "Age": str(HOUR_S)}, State.ok),
    ],
    ids=str,
)
async def test_the_clock_is_judged_by_the_date_that_the_api_tells(
    headers: dict[str, str], state: State
) -> None:
    checks: dict[str, Check] = {}
    async with raw_server(http(b"", "404 Not Found", **headers)) as server:
        setup = set_up(DoctorSettings, {"api_url": server.url, "token": "0badc0de"})
        await examine(
            setup, None,
            told=lambda check: checks.update({check.name: check}), clock=lambda: NOW_S,
        )  # fmt: skip
    assert checks["API"].state is State.ok
    assert checks["clock"].state is state
    assert not any("authorization" in request.headers for request in server.requests[:1])


def test_a_static_token_that_is_refused(serve: Serve) -> None:
    simulator = serve()
    environment = {
        "BULKFETCH_CLIENT_ID": "", "BULKFETCH_CLIENT_SECRET": "", "BULKFETCH_TOKEN": "0badc0de",
    }  # fmt: skip
    told = doctor(simulator, environment=environment)
    assert told.problem.name == "query"
    assert "401" in told.problem.detail
    assert "BULKFETCH_TOKEN" in told.named("credentials").detail
    assert not simulator.requests["token"]
    environment["BULKFETCH_TOKEN"] = simulator.issue_token()
    # Nobody asks the auth API, so it does not matter that it is not there.
    environment["BULKFETCH_AUTH_URL"] = "https://auth.invalid"
    assert doctor(simulator, environment=environment).status == 0


def test_a_secret_file_that_others_may_read(serve: Serve, tmp_path: Path) -> None:
    simulator = serve()
    path = tmp_path / "a secret"
    path.write_text(f"{simulator.config.client_secret}\n")
    environment = {"BULKFETCH_CLIENT_SECRET": "", "BULKFETCH_CLIENT_SECRET_FILE": str(path)}
    path.chmod(0o640)
    told = doctor(simulator, environment=environment)
    assert told.problem.name == "secret file"
    assert told.problem.advice == f"chmod 600 '{path}'"
    assert told.named("storage").state == State.ok
    path.chmod(0o600)
    assert doctor(simulator, environment=environment).status == 0
    path.unlink()
    told = doctor(simulator, environment=environment)
    assert told.problem.name == "credentials"
    assert str(path) in told.problem.detail


def test_a_secret_is_read_but_once_since_its_file_may_be_a_pipe(
    serve: Serve, tmp_path: Path
) -> None:
    simulator = serve()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    secret = simulator.config.client_secret
    with subprocess.Popen(["sh", "-c", f'printf %s {secret} >"{pipe}"']):
        told = doctor(
            simulator,
            environment={"BULKFETCH_CLIENT_SECRET": "", "BULKFETCH_CLIENT_SECRET_FILE": str(pipe)},
        )
    assert told.status == 0, told


@pytest.mark.parametrize("content", ["retries = ", 'client_secret = "0badc0de"', "nothing = 1"])
def test_where_the_configuration_file_is_bad_nothing_is_sent_and_the_rest_is_checked(
    serve: Serve, tmp_path: Path, content: str
) -> None:
    simulator = serve()
    config = tmp_path / "bulkfetch.toml"
    config.write_text(content)
    told = doctor(simulator, "--config", config, "--out", tmp_path / "archive")
    assert told.problem.name == "settings"
    assert str(config) in told.problem.detail
    assert {check.state for check in told.checks if check.name in NETWORK} == {State.skipped}
    assert told.named("destination").state == told.named("disk").state == State.ok
    assert not simulator.requests


@pytest.mark.parametrize(
    "environment",
    [
        {"BULKFETCH_ENVIRONMENT": "stagging", "BULKFETCH_API_URL": ""},
        {"BULKFETCH_API_URL": "http://api.invalid"},
        {"BULKFETCH_AUTH_URL": "api.invalid"},
    ],
    ids=str,
)
def test_credentials_go_nowhere_while_it_is_not_sure_which_api_is_meant(
    serve: Serve, tmp_path: Path, environment: dict[str, str]
) -> None:
    simulator = serve()
    told = doctor(simulator, "--out", tmp_path / "archive", environment=environment)
    assert told.problem.name == "settings"
    assert {check.state for check in told.checks if check.name in NETWORK} == {State.skipped}
    assert not simulator.requests


def test_every_option_may_be_wrong_and_all_that_are_wrong_are_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {
        field.alias or name
        for name, field in DoctorSettings.model_fields.items()
        if any(isinstance(data, Option) for data in field.metadata)
    }
    # Of others, any text is a path or a word.
    refused = {key for key in options - {"config"} if set_up(DoctorSettings, {key: "?"}).wrong}
    assert {"environment", "api_url", "retries", "path_template", "json"} <= refused
    for key in refused:
        monkeypatch.setenv(f"BULKFETCH_{key.upper()}", "?")
    setup = set_up(DoctorSettings, {})
    assert setup.wrong.keys() == refused
    assert {one.name for one in setup.every if one.wrong} == refused
    assert {one.source for one in setup.every if not one.wrong} == {"default"}
    assert {one.value for one in setup.every if one.wrong} == {"?"}
    assert not setup.tells_where


def test_a_wrong_setting_is_told_as_it_was_given_and_by_whom(serve: Serve, tmp_path: Path) -> None:
    config = tmp_path / "bulkfetch.toml"
    config.write_text('rate_limit = -3\nside = ["FRONTT", "BACK"]\n', encoding="utf-8")
    told = doctor(
        serve(), "--config", config, "--retries", "many", environment={"BULKFETCH_TIMEOUT": "abc"}
    )
    wrong = {name: one for name, one in told.settings.items() if one["wrong"]}
    assert {name: (one["value"], one["source"]) for name, one in wrong.items()} == {
        "retries": ("many", "command line"),
        "timeout": ("abc", "BULKFETCH_TIMEOUT"),
        "rate_limit": ("-3", str(config)),
        "side": ("FRONTT, BACK", str(config)),
    }
    assert "must be a number" in wrong["timeout"]["wrong"]


def test_a_person_is_told_a_wrong_setting_apart_from_those_not_set(serve: Serve) -> None:
    simulator = serve()
    result = bulkfetch(
        "doctor", environment={**credentials(simulator), "BULKFETCH_RATE_LIMIT": "abc"}
    )
    in_force, _, wrong = result.err.partition("wrong, and left aside")
    assert "rate_limit" not in in_force
    assert "\n  rate_limit abc  (BULKFETCH_RATE_LIMIT)\n" in wrong


def test_credentials_that_contradict_each_other_are_told_hidden(serve: Serve) -> None:
    simulator = serve()
    told = doctor(simulator, environment={"BULKFETCH_TOKEN": "hunter2"})
    assert told.problem.name == "credentials"
    shown = {name: one for name, one in told.settings.items() if one["wrong"]}
    assert shown.keys() == {"token", "client_id", "client_secret"}
    assert {one["value"] for one in shown.values()} == {"[hidden]"}
    assert shown["token"]["source"] == "BULKFETCH_TOKEN"


def test_a_wrong_url_with_a_password_is_told_hidden(serve: Serve) -> None:
    told = doctor(serve(), "--api-url", "https://user:hunter2@example.invalid")
    assert told.settings["api_url"]["value"] == "[hidden]"
    assert told.settings["api_url"]["wrong"]
    assert "hunter2" not in str(told)


def test_a_file_that_cannot_be_read_is_told_as_a_wrong_setting(serve: Serve) -> None:
    told = doctor(serve(), environment={"BULKFETCH_CONFIG": "/nowhere.toml"})
    config = told.settings["config"]
    assert (config["value"], config["source"]) == ("/nowhere.toml", "BULKFETCH_CONFIG")
    assert "No such file" in config["wrong"]


def test_a_certificate_of_an_unknown_authority(
    wrapped: tuple[Simulator, str], authority: Path
) -> None:
    simulator, url = wrapped
    environment = {"BULKFETCH_API_URL": url}
    told = doctor(simulator, environment=environment)
    assert told.problem.name == "TLS"
    assert "self-signed" in told.problem.detail
    assert "--ca-file" in told.problem.advice
    assert not simulator.requests

    told = doctor(simulator, "--ca-file", authority, environment=environment)
    assert told.status == 0, told
    assert (
        "TLSv1.3, certificate of test authority by test authority, 89 days left"
        in told.named("TLS").detail
    )


@pytest.mark.parametrize("authority", [5], indirect=True)
def test_a_certificate_that_is_about_to_end(
    wrapped: tuple[Simulator, str], authority: Path
) -> None:
    simulator, url = wrapped
    told = doctor(simulator, "--ca-file", authority, environment={"BULKFETCH_API_URL": url})
    assert told.problem.name == "TLS"
    assert "4 days left" in told.problem.detail
    assert "renew" in told.problem.advice


def test_what_does_not_speak_tls_is_told(serve: Serve) -> None:
    simulator = serve()
    url = simulator.api_url.replace("http:", "https:")
    told = doctor(simulator, environment={"BULKFETCH_API_URL": url})
    assert told.problem.name == "TLS"
    assert "TLS" in told.problem.detail


def test_what_a_proxy_does_is_left_to_it_and_its_password_is_not_shown(serve: Serve) -> None:
    proxy = DEAD.replace("//", "//user:0badc0de@")
    environment = {"https_proxy": proxy, "BULKFETCH_API_URL": "https://api.invalid"}
    told = doctor(serve(), environment=environment)
    assert told.problem.name == "API"
    assert "proxy" in told.problem.detail
    for name in ("DNS", "TLS"):
        assert told.named(name).state == State.skipped
        assert "proxy" in told.named(name).detail


def test_a_file_where_the_archive_should_be(serve: Serve, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "archive"):
        told = doctor(serve(), "--out", out)
        assert told.problem.name == "destination"
        assert "--out" in told.problem.advice
        assert {told.named(name).state for name in LOCAL[1:]} == {State.skipped}


def test_a_destination_that_cannot_be_written(serve: Serve, tmp_path: Path) -> None:
    within = with_mounts_of_its_own(f'mount -t tmpfs -o ro none "{tmp_path}" && exec "$@"')
    for out in (tmp_path, tmp_path / "archive"):
        told = doctor(serve(), "--out", out, within=within)
        assert told.problem.name == "destination"
        assert "cannot be written" in told.problem.detail


def test_where_numbers_are_to_go_is_tried_and_those_there_stay(
    serve: Serve, tmp_path: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = doctor(serve(), f"--metrics-port={port}")
        assert told.problem.name == "metrics"
        assert f"127.0.0.1:{port}" in told.problem.detail
        assert "--metrics-port" in told.problem.advice
    told = doctor(serve(), f"--metrics-file={tmp_path / 'nowhere' / 'nightly.prom'}")
    assert told.problem.name == "metrics"
    assert "--metrics-file" in told.problem.detail
    assert "--out" not in told.problem.advice
    (tmp_path / "a.prom").mkdir()
    told = doctor(serve(), f"--metrics-file={tmp_path / 'a.prom'}")
    assert "is a directory" in told.problem.detail
    (tmp_path / "a.prom").rmdir()
    numbers = tmp_path / "nightly.prom"
    numbers.write_text("last night's")
    told = doctor(serve(), f"--metrics-file={numbers}", f"--metrics-port={port}")
    assert told.named("metrics").state == State.ok
    assert [path.read_text() for path in tmp_path.iterdir()] == ["last night's"]
    assert "metrics" not in {check.name for check in doctor(serve()).checks}


def test_a_full_disk(serve: Serve, tmp_path: Path) -> None:
    within = with_mounts_of_its_own(
        f'mount -t tmpfs -o size=8m none "{tmp_path}" && '
        f'head -c 8100000 /dev/zero >"{tmp_path}/filler" && exec "$@"'
    )
    told = doctor(serve(), "--out", tmp_path / "archive", within=within)
    assert told.problem.name == "disk"
    assert "is full" in told.problem.detail
    assert told.named("file system").detail == "tmpfs, local"


def test_a_disk_on_which_no_byte_can_be_written(serve: Serve, tmp_path: Path) -> None:
    within = with_mounts_of_its_own(
        f'mount -t tmpfs -o size=8m none "{tmp_path}"; '
        f'cat /dev/zero >"{tmp_path}/filler" 2>/dev/null; "$@"; status=$?; '
        f'test "$(ls -A "{tmp_path}")" = filler && exit $status'
    )
    told = doctor(serve(), "--out", tmp_path, within=within)
    assert told.problems == ["writing", "disk"]
    assert "No space left" in told.named("writing").detail


@pytest.mark.parametrize("out", ["/proc", "/proc/new/archive"])
def test_a_directory_that_takes_no_file_whatever_its_permissions_say(
    serve: Serve, out: str
) -> None:
    if not Path("/proc/self").exists() or not os.access("/proc", os.W_OK):
        pytest.skip("only the superuser of a Linux is told that /proc can be written")
    told = doctor(serve(), "--out", out)
    assert told.problem.name == "writing"
    assert "/proc takes no file" in told.problem.detail
    assert "--out" in told.problem.advice


async def test_the_file_that_tries_a_directory_is_gone_also_when_interrupted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    is_there, go_on = threading.Event(), threading.Event()
    rename = files.rename

    def rename_later(directory: int, old: str, new: str) -> None:
        is_there.set()
        assert go_on.wait(60)
        rename(directory, old, new)

    monkeypatch.setattr(files, "rename", rename_later)
    destination = machine.Directory(str(tmp_path), Settings(out=str(tmp_path)))
    trying = asyncio.create_task(destination._writing())
    assert await asyncio.to_thread(is_there.wait, 60)
    (probe,) = everything(tmp_path)
    assert probe.startswith(".")
    trying.cancel()
    asyncio.get_running_loop().call_later(0.2, go_on.set)
    with pytest.raises(asyncio.CancelledError):
        await trying
    assert not everything(tmp_path)


def test_a_disk_without_inodes(serve: Serve, tmp_path: Path) -> None:
    within = with_mounts_of_its_own(
        f'mount -t tmpfs -o nr_inodes=500 none "{tmp_path}" && exec "$@"'
    )
    told = doctor(serve(), "--out", tmp_path / "archive", within=within)
    assert told.problem.name == "disk"
    assert "files" in told.problem.detail
    assert "inodes" in told.problem.advice


def test_few_open_files(serve: Serve) -> None:
    within = ["prlimit", "--nofile=100:100"]
    told = doctor(serve(), within=within)
    assert told.problem.name == "open files"
    assert "100 at most; a run needs 208" in told.problem.detail
    assert "ulimit" in told.problem.advice
    few = doctor(serve(), "--download-concurrency=2", "--query-concurrency=2", within=within)
    assert few.status == 0


def identity(**fields: str) -> Identity:
    return Identity(**{"api_host": "127.0.0.1", **fields})


@pytest.mark.parametrize(
    ("theirs", "word"),
    [
        (identity(api_host="api.invalid"), "API host"),
        (identity(organization_id="another"), "organization another"),
        (identity(path_template="x/{image_id}.v{version}"), "path template"),
    ],
)
def test_another_accounts_archive(
    serve: Serve, tmp_path: Path, theirs: Identity, word: str
) -> None:
    with LocalArchive.open(str(tmp_path / "archive"), "run", theirs):
        pass
    before = everything(tmp_path)
    told = doctor(serve(), "--out", tmp_path / "archive")
    assert told.problem.name == "archive"
    assert word in told.problem.detail
    assert "--out" in told.problem.advice
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{}", "rubbish", '{"layout": 99, "api_host": "x"}'])
def test_an_archive_that_is_none_of_this_version(
    serve: Serve, tmp_path: Path, content: str
) -> None:
    (tmp_path / ".bulkfetch").mkdir()
    (tmp_path / ".bulkfetch" / "archive.json").write_text(content)
    told = doctor(serve(), "--out", tmp_path)
    assert told.problem.name in ("destination", "archive")
    assert "another directory" in told.problem.detail
    assert (tmp_path / ".bulkfetch" / "archive.json").read_text() == content


def test_an_archive_that_a_run_holds(serve: Serve, tmp_path: Path) -> None:
    simulator, archive = serve(), tmp_path / "archive"
    with LocalArchive.open(str(archive), "the-other", identity()):
        told = doctor(simulator, "--out", archive)
        beside = doctor(simulator, "--out", archive, "--shard=1/2")
    assert told.problem.name == "archive"
    assert "a run is at work" in told.problem.detail
    assert beside.status == 0
    assert doctor(simulator, "--out", archive).status == 0


def test_the_kind_of_a_file_system_is_what_the_system_says(tmp_path: Path) -> None:
    odd = tmp_path / "a b"
    odd.mkdir()
    script = f'mount -t tmpfs none "{odd}" && mkdir "{odd}/below" && exec "$@"'
    code = (
        "import sys, pathlib; from bulkfetch.doctor.machine import _file_system_of;"
        "print(_file_system_of(pathlib.Path(sys.argv[1])))"
    )
    done = subprocess.run(
        [*with_mounts_of_its_own(script), sys.executable, "-c", code, odd / "below"],
        capture_output=True, check=True,
    )  # fmt: skip
    assert done.stdout == b"tmpfs\n"
    assert machine._file_system_of(Path("/proc/self")) == "proc"


async def examined(
    simulator: Simulator, out: Path | None = None, **given: Any
) -> tuple[Sums, dict[str, Check]]:
    """Do the checks in this process."""
    checks: dict[str, Check] = {}
    config = simulator.config
    setup = set_up(
        DoctorSettings,
        {
            "api_url": simulator.api_url, "client_id": config.client_id,
            "client_secret": config.client_secret, **given,
        },
    )  # fmt: skip
    sums = await examine(
        setup, str(out) if out else None, told=lambda check: checks.update({check.name: check})
    )
    return sums, checks


@pytest.mark.parametrize("kind", ["nfs4", "cifs", "9p", "fuse.sshfs", "fuse.gcsfuse", "lustre"])
async def test_another_machines_file_system_is_a_problem(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(machine, "_file_system_of", lambda _: kind)
    _, checks = await examined(serve(), tmp_path)
    assert checks["file system"].state is State.problem
    assert "local disk" in checks["file system"].advice


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "zfs", "fuse.fuse-overlayfs"])
async def test_a_local_one_is_none(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(machine, "_file_system_of", lambda _: kind)
    sums, _ = await examined(serve(), tmp_path)
    assert not sums.problem


async def test_what_hangs_is_left_behind_and_the_rest_is_checked(
    serve: Serve, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve()
    monkeypatch.setattr(os, "statvfs", lambda _: time.sleep(60))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(60))
    _, checks = await examined(simulator, tmp_path, timeout=0.5)
    for name in ("DNS", "disk"):
        assert checks[name].state is State.problem
        assert "not done after 0.5 s" in checks[name].detail
    assert checks["open files"].state is State.ok


def test_an_api_that_says_nothing_is_given_up(serve: Serve) -> None:
    simulator = serve(faults=(parse_fault("images:latency=600"),))
    told = doctor(simulator, "--timeout=0.5")
    assert told.problem.name == "query"
    assert "network" in told.problem.advice


async def test_whatever_a_check_comes_upon_the_others_go_on(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(_: Network) -> str:
        raise RuntimeError("0badc0de")

    monkeypatch.setattr(Network, "_skew", broken)
    sums, checks = await examined(serve())
    assert sums.problem == 1
    assert "RuntimeError" in checks["clock"].detail
    assert "0badc0de" not in str(checks)
    assert checks["storage"].state is State.ok


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_an_interrupted_examination_ends_at_once(
    serve: Serve, tmp_path: Path, number: signal.Signals, status: int
) -> None:
    simulator = serve(faults=(parse_fault("images:latency=600"),))
    with start_bulkfetch(["doctor", "--out", tmp_path], credentials(simulator)) as process:
        wait_for(lambda: simulator.requests["images"] > 0)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == status
    assert not out
    assert err.decode().endswith("interrupted\n")
    assert "Traceback" not in err.decode()
    assert not list(tmp_path.iterdir())


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_whoever_stops_reading_ends_it_without_a_word(serve: Serve) -> None:
    with start_bulkfetch(["doctor", "--json"], credentials(serve())) as process:
        assert process.stdout
        assert process.stderr
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1
