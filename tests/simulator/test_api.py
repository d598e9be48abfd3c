from __future__ import annotations

import asyncio
import base64
import json
import socket
from contextlib import suppress
from typing import Any

import pytest
from yarl import URL

from bulkfetch.simulator import DEMO_CLIENT_ID, DEMO_CLIENT_SECRET

from .client import Answer, Caller, Serve
from .conftest import Clock

PAIR = {"client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET}


@pytest.fixture
def two_free_ports() -> int:
    """A port that is free, as is the next one."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port: int = first.getsockname()[1]
            with suppress(OSError, OverflowError):
                second.bind(("127.0.0.1", port + 1))
                return port


async def ask_token(caller: Caller, **options: Any) -> Answer:
    url = URL(caller.simulator.auth_url + "/api/auth/v2/token")
    return await caller.send("POST", url, **options)


@pytest.mark.parametrize("form", ["json", "data"])
async def test_a_token_is_given_for_the_pair_and_opens_the_api(serve: Serve, form: str) -> None:
    caller = await serve(token_lifetime_s=60)
    answer = await ask_token(caller, **{form: PAIR})
    assert answer.status == 200
    assert (answer.json["expires_in"], answer.json["token_type"]) == (60, "Bearer")
    token = answer.json["access_token"]
    header, claims, signature = token.split(".")
    assert json.loads(base64.urlsafe_b64decode(header + "=="))["typ"] == "JWT"
    opened = await caller.api("/images/v1", headers={"Authorization": f"Bearer {token}"})
    assert opened.status == 200
    forged = f"Bearer {header}.{claims}.{signature[::-1]}"
    assert (await caller.api("/images/v1", headers={"Authorization": forged})).status == 401


async def test_the_date_of_every_answer_is_the_clocks(serve: Serve, clock: Clock) -> None:
    caller = await serve(clock=clock)
    for path in ("/images/v1", "/nowhere"):
        answer = await caller.api(path)
        assert answer.headers["Date"] == "Sun, 15 Jun 2025 15:06:40 GMT"


async def test_a_wrong_pair_gets_401_in_the_shape_of_the_api(serve: Serve) -> None:
    caller = await serve()
    answer = await ask_token(caller, json=PAIR | {"client_secret": "wrong"})
    assert answer.status == 401
    assert answer.json["errorName"] == "UnauthorizedError"
    assert "client_secret" in answer.json["content"]["message"]


async def test_a_token_request_that_is_no_form_is_refused(serve: Serve) -> None:
    caller = await serve()
    assert (await ask_token(caller, data=b"x", headers={"Content-Type": "a/b"})).status == 415
    assert (await ask_token(caller, json={"client_id": "x"})).status == 400
    assert (await ask_token(caller, json=["x"])).status == 400


@pytest.mark.parametrize(
    "path", ["/images/v1", "/images/v1/x", "/patients/v1/get_multi", "/coverages/v1"]
)
@pytest.mark.parametrize("authorization", ["", "Bearer", "Bearer x.y.z", "Basic abc", "Bearer é"])
async def test_every_api_call_needs_a_bearer_token(
    serve: Serve, path: str, authorization: str
) -> None:
    caller = await serve(patients=1)
    answer = await caller.api(path, headers={"Authorization": authorization})
    assert answer.status == 401
    assert answer.json["errorName"] == "UnauthorizedError"


async def test_a_token_expires_and_can_be_revoked(serve: Serve, clock: Clock) -> None:
    caller = await serve(clock=clock, token_lifetime_s=100)
    clock.now += 99
    assert (await caller.api("/images/v1")).status == 200
    clock.now += 1
    assert (await caller.api("/images/v1")).status == 401
    caller.token = caller.simulator.issue_token()
    assert (await caller.api("/images/v1")).status == 200
    caller.simulator.revoke_token(caller.token)
    assert (await caller.api("/images/v1")).status == 401


async def test_a_static_token_is_accepted(serve: Serve) -> None:
    caller = await serve(static_token="static-for-the-test")
    caller.token = "static-for-the-test"
    assert (await caller.api("/images/v1")).status == 200


async def test_a_search_answers_what_is_expected_of_a_patient(serve: Serve) -> None:
    caller = await serve(patients=30)
    for patient in caller.simulator.patient_ids():
        found = await caller.images(patient_id=patient)
        assert all(image.pop("signed_url") for image in found)
        assert found == caller.simulator.expected_images(patient)
        assert all(image["patient"]["id"] == patient for image in found)
        times = [image["updated_at"] for image in found]
        assert times == sorted(times, reverse=True)


async def test_a_search_for_an_unknown_patient_or_coverage_is_empty(serve: Serve) -> None:
    caller = await serve()
    assert await caller.images(patient_id="nobody") == []
    assert await caller.images(coverage_id="00000000-0000-4000-8000-000000000000") == []


async def test_a_search_by_both_ids_finds_what_has_both(serve: Serve) -> None:
    caller = await serve(patients=40)
    image = next(i for i in await caller.images() if i["coverage"] and i["patient"])
    patient, coverage = image["patient"]["id"], image["coverage"]["id"]
    both = await caller.images(patient_id=patient, coverage_id=coverage)
    assert image["id"] in {i["id"] for i in both}
    assert {(i["patient"]["id"], i["coverage"]["id"]) for i in both} == {(patient, coverage)}
    stranger = next(p for p in caller.simulator.patient_ids() if p != patient)
    assert await caller.images(patient_id=stranger, coverage_id=coverage) == []


async def test_a_search_is_filtered_and_sorted_as_asked(serve: Serve) -> None:
    caller = await serve(patients=60)
    everything = await caller.images()
    pdfs = await caller.images(file_type="application/pdf")
    assert 0 < len(pdfs) < len(everything)
    assert {i["file_type"] for i in pdfs} == {"application/pdf"}
    noted = await caller.images(patient_notes="BLURRED")
    assert noted
    assert all("Blurred" in i["patient"]["notes"] for i in noted)
    for field, key in (("fileName", "file_name"), ("status", "status")):
        names = [i[key] for i in await caller.images(sort_field=field, sort_direction="asc")]
        assert names == sorted(names)
    assert (await caller.api("/images/v1", {"sort_field": "shoeSize"})).status == 400


async def test_a_deactivated_image_is_found_by_id_and_never_by_search(serve: Serve) -> None:
    caller = await serve()
    image = await caller.image()
    path = f"/images/v1/{image['id']}"
    assert (await caller.api(f"{path}/{image['version']}", method="DELETE")).status == 204
    gone = (await caller.api(path)).json
    assert (gone["deactivated"], gone["version"]) == (True, image["version"] + 1)
    assert image["id"] not in {i["id"] for i in await caller.images()}
    assert (await caller.fetch(gone["signed_url"])).status == 200


async def test_an_unknown_image_is_404(serve: Serve) -> None:
    caller = await serve()
    answer = await caller.api("/images/v1/nothing")
    assert (answer.status, answer.json["errorName"]) == (404, "NotFoundError")
    assert "nothing" in answer.json["content"]["message"]
    body = await caller.image()
    for method in ("PUT", "DELETE"):
        assert (await caller.api("/images/v1/nothing/1", method=method, body=body)).status == 404


async def test_a_scan_reads_all_patients_a_page_at_a_time(serve: Serve) -> None:
    caller = await serve(patients=90)
    seen: dict[str, Any] = {}
    since = "2020-01-01T00:00:00Z"
    while True:
        query = {"since": since, "maxResults": "25"}
        page = (await caller.api("/patients/v1/updates/scan", query)).json
        assert len(page) <= 25
        assert all(patient["updated_at"] >= since for patient in page)
        fresh = [patient for patient in page if patient["id"] not in seen]
        seen |= {patient["id"]: patient for patient in fresh}
        if not fresh:
            break
        since = page[-1]["updated_at"]
    assert list(seen) == list(caller.simulator.patient_ids())
    times = [patient["updated_at"] for patient in seen.values()]
    assert times == sorted(times)
    assert len(set(times)) < len(times)
    assert any(patient["deactivated"] for patient in seen.values())


async def test_a_scan_can_meet_a_page_with_one_time_only(serve: Serve) -> None:
    caller = await serve(patients=60, patients_per_instant=40)
    query = {"since": "2020-01-01T00:00:00Z", "maxResults": "40"}
    page = (await caller.api("/patients/v1/updates/scan", query)).json
    assert len(page) == 40
    assert len({patient["updated_at"] for patient in page}) == 1


@pytest.mark.parametrize(
    "query",
    [{}, {"since": "yesterday"}, {"since": "2020-01-01T00:00:00Z", "maxResults": "1001"}],
)
async def test_a_scan_that_makes_no_sense_is_400(serve: Serve, query: dict[str, str]) -> None:
    caller = await serve()
    answer = await caller.api("/patients/v1/updates/scan", query)
    assert (answer.status, answer.json["errorName"]) == (400, "BadRequestError")


@pytest.mark.parametrize("direction", ["asc", "desc"])
async def test_pages_of_patients_hold_each_active_one_once(serve: Serve, direction: str) -> None:
    caller = await serve(patients=130)
    query = {"limit": "30", "sort_direction": direction}
    page = (await caller.api("/patients/v1/get_multi", query)).json
    assert page["prev_page_token"] is None
    found = list(page["items"])
    while page["next_page_token"]:
        query["page_token"] = page["next_page_token"]
        page = (await caller.api("/patients/v1/get_multi", query)).json
        found += page["items"]
    assert len(found) == len({patient["id"] for patient in found}) == page["total"] < 130
    assert not any(patient["deactivated"] for patient in found)


async def test_a_patient_is_found_by_record_number(serve: Serve) -> None:
    caller = await serve(patients=50)
    patient = (await caller.api("/patients/v1/get_multi")).json["items"][7]
    page = (await caller.api("/patients/v1/get_multi", {"mrn": patient["mrn"]})).json
    assert (page["items"], page["total"]) == ([patient], 1)
    nobody = (
        await caller.api("/patients/v1/get_multi", {"mrn": "990101" + patient["mrn"][6:]})
    ).json
    assert (nobody["items"], nobody["total"]) == ([], 0)


async def test_a_page_token_that_was_never_given_is_400(serve: Serve) -> None:
    caller = await serve()
    assert (await caller.api("/patients/v1/get_multi", {"page_token": "zzz"})).status == 400


async def test_coverages_are_listed_by_patient_and_scanned(serve: Serve) -> None:
    caller = await serve(patients=80)
    simulator = caller.simulator
    patient = next(p for p in simulator.patient_ids() if len(list(simulator.coverage_ids(p))) > 1)
    mine = (await caller.api("/coverages/v1", {"patient_id": patient})).json
    assert [coverage["id"] for coverage in mine] == list(simulator.coverage_ids(patient))
    assert {coverage["patient"] for coverage in mine} == {patient}
    scanned: list[str] = []
    since = "2020-01-01T00:00:00Z"
    while True:
        page = (await caller.api("/coverages/v1/updates/scan", {"since": since})).json
        fresh = [coverage["id"] for coverage in page if coverage["id"] not in scanned]
        scanned += fresh
        if not fresh:
            break
        since = page[-1]["updated_at"]
    assert scanned == list(simulator.coverage_ids())


async def test_what_is_touched_or_added_is_at_the_end_of_its_scan_and_nowhere_else(
    serve: Serve, clock: Clock
) -> None:
    caller = await serve(patients=60, clock=clock)
    simulator = caller.simulator
    ids, coverages = list(simulator.patient_ids()), list(simulator.coverage_ids())

    async def scan(kind: str) -> list[dict[str, Any]]:
        query = {"since": "2020-01-01T00:00:00Z"}
        answer = (await caller.api(f"/{kind}/v1/updates/scan", query)).json
        assert isinstance(answer, list)
        return answer

    before = {patient["id"]: patient for patient in await scan("patients")}
    images = simulator.expected_images(ids[5])
    simulator.touch_patient(ids[5])
    simulator.touch_patient(ids[2], at=clock.now + 1)
    simulator.touch_coverage(coverages[3])
    found = await scan("patients")
    assert [p["id"] for p in found] == [*(i for i in ids if i not in (ids[5], ids[2])),
                                        ids[5], ids[2]]  # fmt: skip
    touched = found[-2]
    assert touched["updated_at"] == "2025-06-15T15:06:40.250Z"
    assert touched["version"] == before[ids[5]]["version"] + 1
    assert touched["mrn"] == before[ids[5]]["mrn"]
    assert simulator.expected_images(ids[5]) == images
    assert [c["id"] for c in await scan("coverages")] == [
        *(i for i in coverages if i != coverages[3]), coverages[3]
    ]  # fmt: skip
    added = simulator.add_patient(at=clock.now + 2)
    assert (await scan("patients"))[-1]["id"] == added
    assert list(simulator.patient_ids()) == [*ids, added]
    for touch in (simulator.touch_patient, simulator.touch_coverage):
        with pytest.raises(LookupError):
            touch("nobody")


async def test_above_the_rate_limit_is_429_with_a_time_to_wait(serve: Serve) -> None:
    caller = await serve(patients=1, rate_limit=2)
    answers = [await caller.api("/images/v1", {"patient_id": "x"}) for _ in range(6)]
    refused = [answer for answer in answers if answer.status == 429]
    assert 3 <= len(refused) <= 4
    assert all(answer.headers["Retry-After"] == "1" for answer in refused)
    await asyncio.sleep(0.6)
    assert (await caller.api("/images/v1", {"patient_id": "x"})).status == 200


async def test_fields_can_be_laid_over_an_image(serve: Serve) -> None:
    caller = await serve(extra_fields=True)
    image = await caller.image()
    assert image["capture_device"] == {"kind": "SIMULATED", "dpi": 300}
    oddity = {"status": "QUARANTINED", "signed_url": "http://host.invalid/x"}
    caller.simulator.patch_image(image["id"], **oddity)
    patched = (await caller.api(f"/images/v1/{image['id']}")).json
    assert patched == image | oddity
    (expected,) = (
        i
        for i in caller.simulator.expected_images(image["patient"]["id"])
        if i["id"] == image["id"]
    )
    assert expected["status"] == "QUARANTINED"
    assert "signed_url" not in expected
    caller.simulator.patch_image(image["id"])
    assert (await caller.api(f"/images/v1/{image['id']}")).json["status"] == "UPLOADED"


async def test_a_merged_patient_answers_with_images_of_the_other(serve: Serve) -> None:
    caller = await serve(patients=30)
    simulator = caller.simulator
    old, new, *_ = (p for p in simulator.patient_ids() if simulator.expected_images(p))
    simulator.merge_patient(old, into=new)
    found = await caller.images(patient_id=old)
    assert {image["patient"]["id"] for image in found} == {new}
    assert simulator.expected_images(old) == simulator.expected_images(new)


async def test_what_was_asked_is_counted_and_recorded(serve: Serve) -> None:
    caller = await serve(record_requests=True)
    image = await caller.image()
    await caller.fetch(image["signed_url"], headers={"Range": "bytes=0-9"})
    simulator = caller.simulator
    assert simulator.requests == {"images": 1, "storage": 1}
    assert simulator.peak_in_flight == {"images": 1, "storage": 1}
    search, get = simulator.log
    assert (search.endpoint, search.has_authorization, search.status) == ("images", True, 200)
    assert (get.endpoint, get.range, get.has_authorization) == ("storage", "bytes=0-9", False)
    assert get.status == 206
    assert "Signature" not in get.path


async def test_requests_are_not_recorded_unless_asked(serve: Serve) -> None:
    caller = await serve()
    await caller.images()
    assert caller.simulator.log == []


async def test_the_most_requests_at_once_are_known(serve: Serve) -> None:
    caller = await serve(patients=1, api_latency_s=0.1)
    await asyncio.gather(*(caller.images(patient_id="x") for _ in range(7)))
    assert caller.simulator.peak_in_flight["images"] == 7


async def test_a_running_simulator_is_steered_over_http(serve: Serve) -> None:
    caller = await serve(record_requests=True)
    faults = "/simulator/faults"
    added = await caller.api(faults, method="POST", body={"faults": ["images:503x1"]}, headers={})
    assert (added.status, added.json) == (200, {"faults": ["images:503x1"]})
    assert (await caller.api("/images/v1")).status == 503
    for wrong in ({"faults": ["images:boom"]}, {"faults": "images:503"}, ["x"], {}):
        refused = await caller.api(faults, method="POST", body=wrong)
        assert refused.status == 400
        assert refused.json["message"]
    assert (await caller.api(faults, method="DELETE")).json == {"faults": []}
    seen = (await caller.api("/simulator/requests", headers={})).json
    assert seen["requests"] == {"images": 1}
    assert seen["statuses"] == {"503": 1}
    assert seen["log"][0]["endpoint"] == "images"
    assert (await caller.api("/simulator/requests", method="DELETE")).json["requests"] == {}
    image = await caller.image()
    path = f"/simulator/images/{image['id']}"
    assert (await caller.api(path, method="POST", body={"status": "NEW"})).status == 200
    assert (await caller.api(f"/images/v1/{image['id']}")).json["status"] == "NEW"
    assert (await caller.api("/simulator/images/x", method="POST", body={})).status == 404


async def test_two_given_ports_are_one_after_the_other(serve: Serve, two_free_ports: int) -> None:
    caller = await serve(port=two_free_ports)
    assert URL(caller.simulator.api_url).port == two_free_ports
    assert URL(caller.simulator.storage_url).port == two_free_ports + 1
    assert caller.simulator.storage_host == f"127.0.0.1:{two_free_ports + 1}"
    with pytest.raises(OSError, match="address already in use"):
        await serve(port=two_free_ports)
