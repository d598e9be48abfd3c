"""Every fault that the simulator knows, met by the real command: once, and for ever."""

from __future__ import annotations

import json
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from bulkfetch.api import REFUSALS_AT_MOST
from bulkfetch.simulator import (
    KINDS,
    LEAKED_TOKENS,
    Fault,
    FaultPlan,
    Simulator,
    SimulatorConfig,
    parse_fault,
)
from tests.conftest import Serve, download, serving, sidecars, write_manifest
from tests.faulty import (
    Key,
    all_but_the_first,
    asked,
    balance,
    failures,
    in_turn,
    intact,
    journal,
    listed,
    move,
    named,
    only_for,
    patient_of,
    uploaded,
)
from tests.stores import s3_bucket

RETRIES = 1
QUICK = (f"--retries={RETRIES}", "--timeout=1")

# What harms a download: the kind that it is named by, and the requests that are made for it.
STORAGE = {
    "drop": ("connection", 2),
    "drop=1000": ("connection", 2),
    "short": ("connection", 2),
    "stall=30": ("timeout", 2),
    "drip=100": ("timeout", 2),
    "latency=30": ("timeout", 2),
    "corrupt": ("bad_body", 2),
    "wrong-length": ("bad_body", 2),
    "empty": ("bad_body", 2),
    "html": ("bad_body", 2),
    "xml": ("bad_body", 2),
    "expired": ("signed_url", 2),
    "400": ("signed_url", 2),
    "401": ("signed_url", 2),
    "403": ("signed_url", 2),
    "404": ("status", 1),
    "408": ("status", 2),
    "429=0": ("status", 2),
    "429=1": ("status", 2),
    "429=date": ("status", 2),
    "500": ("status", 2),
    "501": ("status", 1),
    "503": ("status", 2),
    "redirect=https://stranger.invalid/card?sig=1": ("host_denied", 1),
    "redirect=http://storage.googleapis.com/card": ("host_denied", 1),
}
# What harms none: the image is whole all the same.
STORAGE_HARMLESS = (
    "gzip", "chunked", "no-hash", "no-md5", "range-ignored", "range-wrong", "etag-changes",
    "latency=0.2", "drip=2000000",
)  # fmt: skip
API = {
    "drop": ("connection", 2),
    "drop=10": ("connection", 2),
    "short": ("connection", 2),
    "stall=30": ("timeout", 2),
    "drip=100": ("timeout", 2),
    "latency=30": ("timeout", 2),
    "wrong-length": ("bad_response", 2),
    "empty": ("bad_response", 2),
    "html": ("bad_response", 2),
    "xml": ("bad_response", 2),
    "bad-json": ("bad_response", 2),
    "truncated-json": ("bad_response", 2),
    "wrong-shape": ("bad_response", 1),
    "400": ("status", 1),
    "403": ("status", 1),
    "404": ("status", 1),
    "408": ("status", 2),
    "429=0": ("status", 2),
    "429=date": ("status", 2),
    "500": ("status", 2),
    "503=1": ("status", 2),
    "redirect=https://stranger.invalid/images": ("status", 1),
}
API_HARMLESS = ("chunked", "latency=0.2", "drip=100000")
# Each of these is about the service and not about one question, so it has a test of its own.
API_APART = ("token-death",)
# Nothing tells a flipped bit in JSON that is still JSON; TLS is what keeps it from happening.
API_UNDETECTED = ("corrupt",)


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    return tmp_path / "patients.csv"


def test_every_kind_of_fault_is_met_in_this_suite() -> None:
    storage = {fault.partition("=")[0] for fault in (*STORAGE, *STORAGE_HARMLESS)}
    api = {fault.partition("=")[0] for fault in (*API, *API_HARMLESS, *API_APART, *API_UNDETECTED)}
    assert storage >= {name for name, kind in KINDS.items() if "storage" in kind.targets}
    assert api >= {name for name, kind in KINDS.items() if "images" in kind.targets}


@dataclass
class Story:
    """One run in which each of some images, or patients, met a fault of its own."""

    simulator: Simulator
    archive: Path
    victims: dict[str, str]
    """IDs of images, or of patients, by fault."""
    status: int
    error: str
    summary: dict[str, Any]
    requests: Counter[str]
    """Requests by the ID that they were about."""


def keys(images: Sequence[Mapping[str, Any]]) -> set[Key]:
    return {(str(image["id"]), int(image["version"])) for image in images}


@contextmanager
def told(
    directory: Path, target: str, faults: Sequence[str], count: str = "", *, s3: str = ""
) -> Iterator[Story]:
    """Run the command with the first image, or the query, of one patient after the other at fault.

    With the URL of an S3, it runs into a bucket there, and what is told of is a copy of that.

    The first patient is well, since what befalls the first question is a story of its own. A
    fault strikes at every request, or as often as `count` says.
    """
    with serving(SimulatorConfig(patients=60, record_requests=True)) as simulator:
        images = {p: simulator.expected_images(p) for p in simulator.patient_ids()}
        calm, *sick = [
            (patient_id, next(str(i["id"]) for i in found if i["status"] == "UPLOADED"))
            for patient_id, found in images.items()
            if any(i["status"] == "UPLOADED" for i in found)
        ][: len(faults) + 1]
        patients = [calm[0], *(patient_id for patient_id, _ in sick)]
        ids = [image_id if target == "storage" else patient_id for patient_id, image_id in sick]
        victims = dict(zip(faults, ids, strict=True))
        # Drawn now, so that no answer is late for that.
        for key in keys([image for patient_id in patients for image in images[patient_id]]):
            with suppress(LookupError):
                simulator.stored_bytes(*key)
        plans = {}
        for fault, victim in victims.items():
            harmless = fault in STORAGE_HARMLESS or fault in API_HARMLESS
            text = f"{target}:{fault}{'' if harmless else count}"
            plans[victim] = FaultPlan(simulator.config.seed, [parse_fault(text)])
        requests: Counter[str] = Counter()

        def strike(struck: str, resource: str) -> list[Fault]:
            for victim, plan in plans.items():
                if struck == target and victim in resource:
                    requests[victim] += 1
                    return plan.strike(struck, resource)
            return []

        simulator.faults.strike = strike  # type: ignore[method-assign, assignment]  # for this one simulator
        manifest = write_manifest(directory / "patients.csv", patients)
        archive = directory / "archive"
        if s3:
            with pytest.MonkeyPatch.context() as environment, s3_bucket(s3) as bucket:
                bucket.export(environment)
                result = download(simulator, manifest, f"{bucket.url}/archive", *QUICK)
                bucket.copy_to(directory)
        else:
            result = download(simulator, manifest, archive, *QUICK)
        assert "Traceback" not in result.err
        yield Story(
            simulator,
            archive,
            victims,
            result.status,
            result.err,
            result.summary,
            requests,
        )


def kinds_of(faults: Mapping[str, tuple[str, int]], *kinds: str) -> list[str]:
    return [fault for fault, (kind, _) in faults.items() if kind in kinds]


# So that no twenty of them come in a row, which would be an outage: see test_outage.py.
STAYING = {
    "storage that hangs up": ("storage", kinds_of(STORAGE, "connection", "timeout")),
    "storage that refuses": ("storage", kinds_of(STORAGE, "status")),
    "storage that sends rubbish": (
        "storage",
        kinds_of(STORAGE, "bad_body", "signed_url", "host_denied"),
    ),
    "an API that hangs up": ("images", kinds_of(API, "connection", "timeout")),
    "an API that refuses or sends rubbish": ("images", kinds_of(API, "status", "bad_response")),
}
PASSING = {
    "storage": [*(fault for fault, (_, n) in STORAGE.items() if n > 1), *STORAGE_HARMLESS],
    "images": [*(fault for fault, (_, n) in API.items() if n > 1), *API_HARMLESS],
}


@pytest.fixture(scope="module")
def stories(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Iterator[Callable[..., Story]]:
    """The runs that the tests below look at, each made when it is first asked for."""
    with ExitStack() as stack:

        @cache
        def story(name: str, where: str = "disk") -> Story:
            directory = tmp_path_factory.mktemp("story")
            there = s3 if where == "bucket" else ""
            if name in PASSING:
                return stack.enter_context(told(directory, name, PASSING[name], "x1", s3=there))
            return stack.enter_context(told(directory, *STAYING[name], s3=there))

        yield story


@pytest.mark.parametrize("where", ["disk", "bucket"])
@pytest.mark.parametrize("target", PASSING)
def test_faults_that_pass_end_in_status_0_with_every_byte_in_its_place(
    stories: Callable[..., Story], target: str, where: str
) -> None:
    story = stories(target, where)
    assert story.status == 0, story.error
    balance(story.summary)
    intact(story.simulator, story.archive, complete=False)
    assert story.summary["patients"]["failed"] == story.summary["images"]["failed"] == 0
    assert story.summary["images"]["downloaded"] > len(story.victims)


@pytest.mark.parametrize(("target", "fault"), [(t, f) for t, fs in PASSING.items() for f in fs])
def test_a_fault_that_passes_takes_one_more_request_and_a_harmless_one_none(
    stories: Callable[..., Story], target: str, fault: str
) -> None:
    story = stories(target)
    assert story.status == 0, story.error
    victim = story.victims[fault]
    harmless = fault in (STORAGE_HARMLESS if target == "storage" else API_HARMLESS)
    assert story.requests[victim] == (1 if harmless else 2)
    assert any(
        victim in (sidecar["image_id"], sidecar["patient_id"])
        for sidecar in sidecars(story.archive).values()
        if sidecar["outcome"] == "downloaded"
    )


@pytest.mark.parametrize("where", ["disk", "bucket"])
@pytest.mark.parametrize("name", STAYING)
def test_faults_that_stay_end_in_status_1_and_harm_no_other_image(
    stories: Callable[..., Story], name: str, where: str
) -> None:
    story = stories(name, where)
    target, faults = STAYING[name]
    assert story.status == story.summary["exit_code"] == 1
    balance(story.summary)
    patients, images = story.summary["patients"], story.summary["images"]
    assert patients["failed"] == len(faults)
    assert patients["complete"] == 1
    assert not patients["not_reached"]
    assert not images["not_reached"]
    assert images["failed"] == (len(faults) if target == "storage" else 0)
    intact(story.simulator, story.archive, complete=False)
    truth = {
        key
        for patient_id in story_patients(story)
        for key in keys(story.simulator.expected_images(patient_id))
    }
    held = set(sidecars(story.archive))
    if target == "storage":
        assert {key[0] for key in truth - held} == set(story.victims.values())
    else:
        assert not held & {
            key
            for patient_id in story.victims.values()
            for key in keys(story.simulator.expected_images(patient_id))
        }
        assert held


def story_patients(story: Story) -> list[str]:
    lines = journal(story.archive, story.summary["run_id"])
    return [str(line["patient_id"]) for line in lines if line["event"] == "patient"]


@pytest.mark.parametrize(
    ("name", "fault"), [(name, fault) for name, (_, faults) in STAYING.items() for fault in faults]
)
def test_a_fault_that_stays_is_named_after_as_many_requests_as_the_option_says(
    stories: Callable[..., Story], name: str, fault: str
) -> None:
    story = stories(name)
    victim = story.victims[fault]
    of_storage = STAYING[name][0] == "storage"
    kind, requests = (STORAGE if of_storage else API)[fault]
    assert story.requests[victim] == requests
    (row,) = [
        row
        for row in failures(story.archive, story.summary["run_id"])
        if victim in (row["bulkfetch_images"], row["patient_id"])
    ]
    assert row["bulkfetch_kind"] == kind, row
    assert row["bulkfetch_images"] == (victim if of_storage else "")
    assert row["bulkfetch_error"]
    (line,) = [
        line
        for line in journal(story.archive, story.summary["run_id"])
        if line.get("state", line.get("outcome")) == "failed"
        and line.get("image_id" if of_storage else "patient_id") == victim
    ]
    assert line["kind"] == kind
    # Each refusal of a signed URL that is tried again is one question for a new one.
    if of_storage:
        assert len(asked(story.simulator, "image", victim)) == (1 if kind == "signed_url" else 0)


@pytest.mark.parametrize("fault", ["503", "drop", "truncated-json", "token-death"])
def test_a_fault_while_the_record_is_asked_for_anew_costs_no_image(
    serve: Serve, tmp_path: Path, manifest: Path, fault: str
) -> None:
    simulator = serve(
        patients=2, faults=(parse_fault("storage:expiredx1"), parse_fault(f"image:{fault}x1"))
    )
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--retries=2", "--timeout=1")
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive")
    assert simulator.requests["image"] == 2 * len(uploaded(simulator))


def test_attempts_never_multiply_where_url_and_record_both_fail(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2, faults=(parse_fault("storage:expired"), parse_fault("image:503")))
    victim = uploaded(simulator)[1][0]
    only_for(monkeypatch, simulator, victim)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--retries=3")
    named(result, tmp_path / "archive", patient_of(simulator, victim), "status", victim)
    assert len(asked(simulator, "storage", victim)) == 1
    assert len(asked(simulator, "image", victim)) == 3


@pytest.mark.parametrize("fault", ["503", "html", "token-death"])
def test_a_fault_of_the_coverage_search_that_passes_costs_no_image(
    serve: Serve, tmp_path: Path, manifest: Path, fault: str
) -> None:
    simulator = serve(patients=4, faults=(parse_fault(f"coverages:{fault}x1"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *QUICK, "--include-coverages")
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive", complete=False)
    assert set(sidecars(tmp_path / "archive")) >= set(listed(simulator))


@pytest.mark.parametrize("fault", ["drop", "stall=30", "html", "429=date", "503=1"])
def test_a_fault_of_the_token_endpoint_that_passes_costs_nothing(
    serve: Serve, tmp_path: Path, manifest: Path, fault: str
) -> None:
    simulator = serve(patients=2, faults=(parse_fault(f"token:{fault}x1"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *QUICK)
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive")
    assert simulator.requests["token"] == 2
    if not fault.startswith("stall"):
        assert simulator.peak_in_flight["token"] == 1


@pytest.mark.parametrize(
    ("fault", "requests"), [("html", 2), ("wrong-shape", 2), ("drop", 2), ("404", 1)]
)
def test_a_token_endpoint_that_is_none_ends_the_run_before_it_began(
    serve: Serve, tmp_path: Path, manifest: Path, fault: str, requests: int
) -> None:
    simulator = serve(faults=(parse_fault(f"token:{fault}"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *QUICK)
    assert result.status == 1, result.err
    assert "nothing was fetched" in result.err
    assert "Traceback" not in result.err
    assert simulator.requests == {"token": requests}
    assert not (tmp_path / "archive").exists()


def test_a_token_endpoint_that_fails_for_ever_leaves_every_patient_named(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=6, faults=(parse_fault("token:503"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    assert result.status == 1, result.err
    balance(result.summary)
    assert simulator.requests == {"token": 12}
    rows = failures(archive, result.summary["run_id"])
    assert [row["bulkfetch_kind"] for row in rows] == ["status"] * 6
    assert {row["patient_id"] for row in rows} == set(simulator.patient_ids())


def test_a_token_that_dies_at_each_search_is_renewed(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=5, faults=(parse_fault("images:token-deathx1"),))
    all_but_the_first(monkeypatch, simulator)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", "--query-concurrency=1")
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive")
    # Those that waited for their turn with the token that died find another one made already.
    assert 1 < simulator.requests["token"] <= 5


def test_tokens_that_are_all_refused_end_the_run_with_status_3(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=30, faults=(parse_fault("images:token-death"),))
    all_but_the_first(monkeypatch, simulator)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    assert result.status == 3, result.err
    assert "Traceback" not in result.err
    assert simulator.requests["token"] == 1 + REFUSALS_AT_MOST
    balance(result.summary)
    intact(simulator, archive, complete=False)


def fresh_url(simulator: Simulator, image_id: str) -> str:
    request = urllib.request.Request(
        f"{simulator.api_url}/images/v1/{image_id}",
        headers={"Authorization": f"Bearer {simulator.issue_token()}"},
    )
    with urllib.request.urlopen(request) as answer:
        url = json.load(answer)["signed_url"]
    assert isinstance(url, str)
    return url


def test_a_redirect_to_an_allowed_host_is_followed(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2)
    victim = uploaded(simulator)[0][0]
    target = fresh_url(simulator, victim)
    simulator.faults.add(Fault("storage", "redirect", target, count=1))
    only_for(monkeypatch, simulator, victim)
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *QUICK)
    assert result.status == 0, result.err
    intact(simulator, tmp_path / "archive")
    assert [record.status for record in asked(simulator, "storage", victim)] == [302, 200]
    assert simulator.requests[LEAKED_TOKENS] == 0


def test_redirects_without_end_are_a_failure(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=2)
    victim = uploaded(simulator)[0]
    simulator.faults.add(Fault("storage", "redirect", fresh_url(simulator, victim[0])))
    only_for(monkeypatch, simulator, victim[0])
    write_manifest(manifest, list(simulator.patient_ids()))
    result = download(simulator, manifest, tmp_path / "archive", *QUICK)
    named(result, tmp_path / "archive", patient_of(simulator, victim[0]), "status", victim[0])
    intact(simulator, tmp_path / "archive", missing=[victim])
    assert len(asked(simulator, "storage", victim[0])) == 4


@pytest.mark.parametrize(
    "url",
    [
        "https://stranger.invalid/card?X-Goog-Signature=00",
        "http://storage.googleapis.com/card?X-Goog-Signature=00",
        "https://storage.googleapis.com.stranger.invalid/card",
        "https://storage.googleapis.com@stranger.invalid/card",
        "file:///etc/hostname",
        "",
    ],
)
def test_a_signed_url_of_a_stranger_is_a_failure_that_names_it(
    serve: Serve, tmp_path: Path, manifest: Path, url: str
) -> None:
    simulator = serve(patients=2)
    victim = uploaded(simulator)[0]
    simulator.patch_image(victim[0], signed_url=url)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    kind = "host_denied" if url else "signed_url"
    named(result, archive, patient_of(simulator, victim[0]), kind, victim[0])
    assert not asked(simulator, "storage", victim[0])
    if "stranger" in url and "@" not in url:
        assert "stranger.invalid" in result.err
    assert "Signature" not in result.err


@pytest.mark.parametrize("fault", ["", "chunked", "gzip"])
def test_max_file_size_stops_a_body_whether_its_length_is_told_or_not(
    serve: Serve, tmp_path: Path, manifest: Path, fault: str
) -> None:
    faults = (parse_fault(f"storage:{fault}"),) if fault else ()
    simulator = serve(patients=3, faults=faults)
    sizes = {key: len(simulator.stored_bytes(*key)) for key in uploaded(simulator)}
    limit = sorted(sizes.values())[len(sizes) // 2]
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK, f"--max-file-size={limit}")
    assert result.status == 1
    balance(result.summary)
    too_large = [key for key, size in sizes.items() if size > limit]
    intact(simulator, archive, missing=too_large)
    assert result.summary["images"]["failed"] == len(too_large) > 0
    assert simulator.requests["storage"] == len(sizes)


@pytest.mark.parametrize("strict", [False, True])
def test_bytes_of_another_type_than_declared_are_told_or_with_strict_type_refused(
    serve: Serve, tmp_path: Path, manifest: Path, *, strict: bool
) -> None:
    simulator = serve(patients=3)
    truth = listed(simulator)
    victim = next(key for key in uploaded(simulator) if truth[key]["file_type"] == "image/jpeg")
    simulator.patch_image(victim[0], file_type="application/pdf")
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    options: Sequence[str] = ["--strict-type"] if strict else []
    result = download(simulator, manifest, archive, *QUICK, *options)
    if strict:
        assert result.status == 1
        balance(result.summary)
        rows = failures(archive, result.summary["run_id"])
        assert {row["bulkfetch_kind"] for row in rows} == {"type_mismatch"}
        assert any(victim[0] in row["bulkfetch_images"].split() for row in rows)
        intact(simulator, archive, missing=[victim], complete=False)
        assert len(asked(simulator, "storage", victim[0])) == 1
        return
    assert result.status == 0, result.err
    intact(simulator, archive)
    file = sidecars(archive)[victim]["file"]
    assert (file["media_type"], file["declared_type"]) == ("image/jpeg", "application/pdf")
    assert file["path"].endswith(".jpg")


def test_what_failed_is_fetched_by_giving_the_failures_file_back(
    serve: Serve, tmp_path: Path, manifest: Path
) -> None:
    simulator = serve(patients=5, faults=(parse_fault("storage:corrupt@40%"),))
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    first = download(simulator, manifest, archive, "--retries=0")
    assert first.status == 1
    balance(first.summary)
    intact(simulator, archive, complete=False)
    simulator.faults.clear()
    (failed,) = archive.glob(".bulkfetch/runs/*/failures.csv")
    second = download(simulator, failed, archive)
    assert second.status == 0
    assert second.summary["images"]["downloaded"] == first.summary["images"]["failed"] > 0
    intact(simulator, archive)


def test_an_image_that_moved_while_it_was_fetched_is_fetched_as_it_is_now(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=3)
    victim, version = uploaded(simulator)[2]

    def moved() -> str:
        move(simulator, victim)
        return "expired"

    in_turn(monkeypatch, simulator, "storage", victim, moved)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    assert result.status == 0, result.err
    balance(result.summary)
    intact(simulator, archive)
    assert (victim, version + 1) in sidecars(archive)
    assert (victim, version) not in sidecars(archive)
    (told,) = [
        line
        for line in journal(archive, result.summary["run_id"])
        if line["event"] == "image_moved"
    ]
    assert told["image_id"] == victim
    assert (told["from_version"], told["to_version"]) == (version, version + 1)


def test_an_image_that_is_no_longer_uploaded_when_its_url_expired_is_noted_as_such(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=3)
    victim, version = uploaded(simulator)[2]

    def moved() -> str:
        move(simulator, victim, status="PENDING")
        return "expired"

    in_turn(monkeypatch, simulator, "storage", victim, moved)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    assert result.status == 0, result.err
    balance(result.summary)
    intact(simulator, archive)
    assert sidecars(archive)[victim, version + 1]["outcome"] == "not_uploaded"


def test_an_image_that_moves_whenever_it_is_fetched_is_named(
    serve: Serve, tmp_path: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    simulator = serve(patients=3)
    victim, _ = uploaded(simulator)[2]

    def moved() -> str:
        move(simulator, victim)
        return "expired"

    in_turn(monkeypatch, simulator, "storage", victim, *[moved] * 20)
    write_manifest(manifest, list(simulator.patient_ids()))
    archive = tmp_path / "archive"
    result = download(simulator, manifest, archive, *QUICK)
    named(result, archive, patient_of(simulator, victim), "moved", victim)
    intact(simulator, archive, complete=False)
