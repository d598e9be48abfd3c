"""The vendor's own client against the simulator: what it cannot parse is a fault of ours."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
import warnings
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from bulkfetch.simulator import DEMO_CLIENT_ID, DEMO_CLIENT_SECRET, Simulator, SimulatorConfig

with warnings.catch_warnings():
    # The client declares its models in a way that pydantic 2 warns of.
    warnings.simplefilter("ignore")
    from candid.client import AsyncCandidApiClient, CandidApiClient
    from candid.core.api_error import ApiError
    from candid.environment import CandidApiClientEnvironment
    from candid.resources.auth.resources.default.errors import TooManyRequestsError
    from candid.resources.pre_encounter.resources.common.errors import (
        NotFoundError,
        VersionConflictError,
    )
    from candid.resources.pre_encounter.resources.images.resources.v_1 import (
        CoverageAssociation,
        Image,
        MutableImage,
        PatientAssociation,
    )

# So are those modules of it that are imported at their first use.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Valid config keys have changed:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

LONG_AGO = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)


@pytest.fixture(autouse=True)
def _authorities_of_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """The vendor's client does not begin without any."""
    monkeypatch.delenv("SSL_CERT_FILE")


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorConfig(patients=60)) as simulator:
        yield simulator


@pytest.fixture
async def client(simulator: Simulator) -> AsyncIterator[AsyncCandidApiClient]:
    async with httpx.AsyncClient() as http:
        yield AsyncCandidApiClient(
            environment=_environment(simulator), token=simulator.issue_token, httpx_client=http
        )


def _environment(simulator: Simulator) -> CandidApiClientEnvironment:
    return CandidApiClientEnvironment(
        candid_api=simulator.auth_url, pre_encounter=simulator.api_url
    )


def _mutable(image: Image, **changes: object) -> MutableImage:
    fields = {name: getattr(image, name) for name in MutableImage.model_fields}
    return MutableImage(**(fields | changes))


async def test_a_token_is_given_and_opens_the_api(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    pair = {"client_id": DEMO_CLIENT_ID, "client_secret": DEMO_CLIENT_SECRET}
    given = await client.auth.default.get_token(**pair)
    assert (given.token_type, given.expires_in) == ("Bearer", 18_000)
    async with httpx.AsyncClient() as http:
        fresh = AsyncCandidApiClient(
            environment=_environment(simulator),
            token=lambda: given.access_token,
            httpx_client=http,
        )
        assert await fresh.pre_encounter.images.v_1.get_multi()


async def test_a_wrong_secret_is_an_api_error_of_401(client: AsyncCandidApiClient) -> None:
    with pytest.raises(ApiError) as caught:
        await client.auth.default.get_token(client_id=DEMO_CLIENT_ID, client_secret="wrong")
    assert caught.value.status_code == 401


async def test_too_many_token_requests_are_the_clients_own_error(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    simulator.faults.add("token:429")
    with pytest.raises(TooManyRequestsError):
        await client.auth.default.get_token(client_id="x", client_secret="y")


async def test_a_dead_token_is_an_api_error_of_401(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    simulator.faults.add("images:token-deathx1")
    with pytest.raises(ApiError) as caught:
        await client.pre_encounter.images.v_1.get_multi(patient_id="x")
    assert caught.value.status_code == 401


async def test_images_of_every_patient_and_coverage_are_parsed(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    images = client.pre_encounter.images.v_1
    for patient_id in simulator.patient_ids():
        found = await images.get_multi(patient_id=patient_id)
        expected = simulator.expected_images(patient_id)
        assert [(i.id, i.version, i.status.value, i.file_name) for i in found] == [
            (i["id"], i["version"], i["status"], i["file_name"]) for i in expected
        ]
    coverage_id = next(
        c for c in simulator.coverage_ids() if simulator.expected_images(coverage_id=c)
    )
    for image in await images.get_multi(coverage_id=coverage_id):
        assert image.coverage is not None
        assert image.coverage.id == uuid.UUID(coverage_id)


async def test_a_search_takes_every_parameter(client: AsyncCandidApiClient) -> None:
    found = await client.pre_encounter.images.v_1.get_multi(
        file_type="image/jpeg",
        patient_notes="card",
        sort_field="displayName",
        sort_direction="asc",
    )
    assert found
    assert {image.file_type for image in found} == {"image/jpeg"}
    assert [i.display_name for i in found] == sorted(i.display_name for i in found)


async def test_an_image_is_got_by_id_and_an_unknown_one_is_not_found(
    client: AsyncCandidApiClient,
) -> None:
    images = client.pre_encounter.images.v_1
    image, *_ = await images.get_multi()
    assert (await images.get(image.id)).id == image.id
    with pytest.raises(NotFoundError) as caught:
        await images.get("nothing")
    assert "nothing" in caught.value.body.message


async def test_an_image_lives_from_creation_to_deactivation(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    images = client.pre_encounter.images.v_1
    patient_id = next(iter(simulator.patient_ids()))
    coverage = CoverageAssociation(id=uuid.uuid4(), side="FRONT")
    wanted = MutableImage(
        file_name="new.png",
        display_name="new",
        file_type="image/png",
        status="PENDING",
        coverage=coverage,
        patient=PatientAssociation(id=patient_id, notes="from the test"),
    )
    created = await images.create(request=wanted)
    assert _mutable(created) == wanted
    with pytest.raises(VersionConflictError) as taken:
        await images.create(request=wanted)
    assert taken.value.body.latest_version == 1

    async with httpx.AsyncClient() as http:
        uploaded = await http.put(created.signed_url, content=b"bytes")
    assert uploaded.status_code == 200
    after_upload = await images.get(created.id)
    assert (after_upload.status.value, after_upload.version) == ("UPLOADED", 2)

    renamed = await images.update(
        created.id, "2", request=_mutable(after_upload, display_name="renamed")
    )
    assert (renamed.display_name, renamed.version) == ("renamed", 3)
    assert renamed.updated_at > created.updated_at - dt.timedelta(seconds=1)
    with pytest.raises(VersionConflictError) as stale:
        await images.update(created.id, "2", request=_mutable(renamed))
    assert stale.value.body.latest_version == 3

    with pytest.raises(VersionConflictError):
        await images.deactivate(created.id, "1")
    await images.deactivate(created.id, "3")
    assert (await images.get(created.id)).deactivated
    found = await images.get_multi(patient_id=patient_id)
    assert created.id not in {image.id for image in found}
    with pytest.raises(NotFoundError):
        await images.deactivate("nothing", "1")


async def test_patients_are_scanned_from_one_time_to_the_next(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    patients = client.pre_encounter.patients.v_1
    seen: dict[str, int] = {}
    since = LONG_AGO
    while True:
        page = await patients.scan(since=since, max_results=25)
        fresh = {p.id: p.version for p in page if (p.id, p.version) not in seen.items()}
        if not fresh:
            break
        seen |= fresh
        since = page[-1].updated_at
    assert list(seen) == list(simulator.patient_ids())


async def test_patients_are_paged(client: AsyncCandidApiClient) -> None:
    patients = client.pre_encounter.patients.v_1
    first = await patients.get_multi(limit=40)
    second = await patients.get_multi(limit=40, page_token=first.next_page_token)
    assert second.next_page_token is None
    assert len({p.id for p in first.items + second.items}) == first.total
    (found,) = (await patients.get_multi(mrn=first.items[3].mrn)).items
    assert found == first.items[3] == await patients.get(found.id)


async def test_coverages_are_listed_scanned_and_got(
    client: AsyncCandidApiClient, simulator: Simulator
) -> None:
    coverages = client.pre_encounter.coverages.v_1
    scanned = await coverages.scan(since=LONG_AGO)
    assert [str(c.id) for c in scanned] == list(simulator.coverage_ids())[:100]
    coverage = scanned[0]
    listed = await coverages.get_multi(patient_id=coverage.patient)
    assert coverage.id in {c.id for c in listed}
    assert await coverages.get(coverage.id) == coverage


async def test_the_blocking_client_fetches_its_own_token(simulator: Simulator) -> None:
    def work() -> int:
        with httpx.Client() as http:
            client = CandidApiClient(
                environment=_environment(simulator),
                client_id=DEMO_CLIENT_ID,
                client_secret=DEMO_CLIENT_SECRET,
                httpx_client=http,
            )
            counts = [len(client.pre_encounter.images.v_1.get_multi()) for _ in range(3)]
            # The client asks for tokens over a connection of its own, which it never closes.
            provider: Any = client._client_wrapper._token
            wrapper = provider.__self__._auth_client._raw_client._client_wrapper
            wrapper.httpx_client.httpx_client.close()
        return counts[0]

    assert await asyncio.to_thread(work) > 0
    assert simulator.requests["token"] == 1
    assert simulator.requests["images"] == 3
