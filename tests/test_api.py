"""The API's answers, good and bad, from a server on loopback that sends what it is told."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from bulkfetch.api import _IMAGES, API, REFUSALS_AT_MOST, Tokens, _parse
from bulkfetch.errors import (
    BadResponseError,
    ConnectionFailedError,
    CredentialsError,
    FetchError,
    StatusError,
)
from bulkfetch.settings import ClientCredentials, StaticToken
from bulkfetch.transport import connect
from tests.test_transport import RawServer, Request, http, raw_server, settings

STATIC = StaticToken(SecretStr("a-static-token"))
CLIENT = ClientCredentials("client", SecretStr("hunter2"))
SAYS = "words-of-the-server"
IMAGE = {"id": "i-1", "version": 3, "status": "UPLOADED", "signed_url": "https://s.invalid/o?X=1"}


@asynccontextmanager
async def api_at(
    server: RawServer,
    credentials: StaticToken | ClientCredentials = STATIC,
    clock: Callable[[], float] = lambda: 0.0,
) -> AsyncIterator[API]:
    async with connect(settings(server.url)) as transport:
        tokens = Tokens(transport, server.url, credentials, clock=clock)
        yield API(transport, server.url, tokens)


class Issuer:
    """A token endpoint that counts, and an API that takes one token at a time."""

    def __init__(self, *, expires_in: object = 3600, on_refusal: int = 401) -> None:
        self.issued = 0
        self.good = {f"t{n}" for n in range(100)}
        self.expires_in = expires_in
        self.on_refusal = on_refusal

    async def __call__(self, request: Request) -> bytes:
        if request.target == "/api/auth/v2/token":
            assert json.loads(request.body) == {"client_id": "client", "client_secret": "hunter2"}
            assert "authorization" not in request.headers
            self.issued += 1
            await asyncio.sleep(0.01)
            token = f"t{self.issued}"
            return http(json.dumps({"access_token": token, "expires_in": self.expires_in}).encode())
        token = request.headers["authorization"].removeprefix("Bearer ")
        await asyncio.sleep(0)
        return http(b"[]") if token in self.good else http(b"", f"{self.on_refusal} No")


async def test_many_questions_at_once_ask_for_one_token() -> None:
    issuer = Issuer()
    async with raw_server(issuer) as server, api_at(server, CLIENT) as api:
        await asyncio.gather(*(api.images(patient_id=f"p-{n}") for n in range(30)))
    assert issuer.issued == 1
    assert len(server.requests) == 31


async def test_however_many_get_401_at_once_one_new_token_is_asked_for() -> None:
    issuer = Issuer()
    async with raw_server(issuer) as server, api_at(server, CLIENT) as api:
        await api.images(patient_id="p-0")
        issuer.good.remove("t1")
        answers = await asyncio.gather(*(api.images(patient_id=f"p-{n}") for n in range(30)))
    assert answers == [[]] * 30
    assert issuer.issued == 2


async def test_a_refusal_that_comes_late_does_not_cost_the_new_token() -> None:
    issuer = Issuer()
    async with raw_server(issuer) as server, connect(settings(server.url)) as transport:
        tokens = Tokens(transport, server.url, CLIENT)
        first = await tokens.get()
        tokens.accepted()
        tokens.refused(first)
        second = await tokens.get()
        for _ in range(10):
            tokens.refused(first)
        assert await tokens.get() == second
    assert issuer.issued == 2


async def test_a_first_token_that_is_refused_is_a_matter_of_credentials() -> None:
    issuer = Issuer()
    issuer.good.clear()
    async with raw_server(issuer) as server, api_at(server, CLIENT) as api:
        with pytest.raises(CredentialsError, match="--auth-url"):
            await api.images(patient_id="p")
    assert len(server.requests) == 2


async def test_one_new_token_after_the_other_refused_ends_in_credentials_not_in_a_loop() -> None:
    issuer = Issuer()
    async with raw_server(issuer) as server, api_at(server, CLIENT) as api:
        await api.images(patient_id="p")
        issuer.good.clear()
        refusals: list[type[Exception]] = []
        for _ in range(20):
            with pytest.raises((StatusError, CredentialsError)) as caught:
                await api.images(patient_id="p")
            refusals.append(caught.type)
            if caught.type is CredentialsError:
                break
            assert isinstance(caught.value, StatusError)
            assert caught.value.retryable
    assert refusals[-1] is CredentialsError
    assert issuer.issued <= REFUSALS_AT_MOST + 2


async def test_a_static_token_that_is_refused_is_a_matter_of_credentials_at_once() -> None:
    async with raw_server(http(SAYS.encode(), "401 No")) as server, api_at(server) as api:
        with pytest.raises(CredentialsError, match="BULKFETCH_TOKEN") as caught:
            await api.images(patient_id="p")
    assert len(server.requests) == 1
    assert "a-static-token" not in str(caught.value)
    assert SAYS not in str(caught.value)


@pytest.mark.parametrize(
    ("expires_in", "still_good_s", "due_s"),
    [(3600, 3539.9, 3540), (86_400, 86_339, 86_340), (100, 89.9, 90), (1, 0.89, 0.9)],
)
async def test_a_token_is_renewed_shortly_before_it_ends_by_the_clock_passed_in(
    expires_in: float, still_good_s: float, due_s: float
) -> None:
    now = 1000.0
    issuer = Issuer(expires_in=expires_in)
    async with raw_server(issuer) as server, api_at(server, CLIENT, lambda: now) as api:
        await api.images(patient_id="p")
        now = 1000 + still_good_s
        await api.images(patient_id="p")
        assert issuer.issued == 1
        now = 1000 + due_s
        await asyncio.gather(*(api.images(patient_id="p") for _ in range(5)))
        assert issuer.issued == 2


@pytest.mark.parametrize("status", [400, 401, 403])
async def test_a_token_endpoint_that_says_no_is_a_matter_of_credentials(status: int) -> None:
    no = http(SAYS.encode(), f"{status} {SAYS}")
    async with raw_server(no) as server, api_at(server, CLIENT) as api:
        with pytest.raises(CredentialsError) as caught:
            await api.images(patient_id="p")
    assert len(server.requests) == 1
    assert "hunter2" not in str(caught.value)
    assert SAYS not in str(caught.value)


@pytest.mark.parametrize(("status", "retryable"), [(404, False), (429, True), (500, True)])
async def test_a_token_endpoint_in_trouble_is_no_matter_of_credentials(
    status: int, retryable: bool
) -> None:
    async with raw_server(http(b"", f"{status} X")) as server, api_at(server, CLIENT) as api:
        with pytest.raises(StatusError) as caught:
            await api.images(patient_id="p")
    assert caught.value.retryable is retryable


TOKENS: list[object] = [
    {},
    {"access_token": SAYS},
    {"access_token": "", "expires_in": 1},
    {"access_token": 7, "expires_in": 1},
    {"access_token": SAYS, "expires_in": 0},
    {"access_token": SAYS, "expires_in": -1},
    {"access_token": SAYS, "expires_in": SAYS},
    {"access_token": SAYS, "expires_in": None},
    [SAYS],
    None,
    SAYS,
]


@pytest.mark.parametrize("answer", TOKENS, ids=str)
async def test_a_token_answer_that_is_none_is_a_bad_response_of_no_one_patient(
    answer: object,
) -> None:
    said = http(json.dumps(answer).encode())
    async with raw_server(said) as server, api_at(server, CLIENT) as api:
        with pytest.raises(BadResponseError) as caught:
            await api.images(patient_id="p")
    assert caught.value.retryable
    assert SAYS not in str(caught.value)


async def test_those_who_waited_for_a_token_that_is_refused_do_not_each_ask_in_vain() -> None:
    async with raw_server(http(b"", "401 No")) as server, api_at(server, CLIENT) as api:
        asking = (api.images(patient_id=f"p-{n}") for n in range(20))
        answers = await asyncio.gather(*asking, return_exceptions=True)
    assert {type(answer) for answer in answers} == {CredentialsError}
    assert len(server.requests) == 1


NOT_JSON = [
    b"",
    b" ",
    b"<!doctype html><title>words-of-the-server</title>",
    b'[{"id": "words-of-the-server"',
    b'[{"id": "i", "version": 1, "status": "UPLOADED"}',
    b"[] words-of-the-server",
    b"\xff\xfe",
    b"[" * 100_000,
    b"\x1f\x8b\x08\x00words-of-the-server",
]
NO_LISTS: list[object] = [
    None, {}, "words-of-the-server", 0, True, {"items": []}, {"items": [IMAGE]}, IMAGE,
    [None], [[]], ["words-of-the-server"], [1], [IMAGE, None],
]  # fmt: skip
WRONG_FIELDS: list[dict[str, object]] = [
    {"id": 7}, {"id": ""}, {"id": None}, {"version": SAYS}, {"version": "1"},
    {"version": 1.5}, {"version": True}, {"version": None}, {"status": None},
    {"status": ""}, {"status": 1}, {"deactivated": "no"}, {"deactivated": None},
    {"signed_url": 1}, {"signed_url": [SAYS]}, {"patient": SAYS}, {"patient": {}},
    {"patient": {"id": 5}}, {"patient": {"id": ""}}, {"coverage": []},
    {"coverage": {"id": None}}, {"coverage": {"id": "c", "side": 1}},
    {"updated_at": SAYS}, {"updated_at": 5}, {"file_type": 1}, {"organization_id": 1},
]  # fmt: skip
NO_IMAGES: list[dict[str, object]] = [
    {},
    {"id": "i", "status": "UPLOADED"},
    {"id": "i", "version": 1},
    {"version": 1, "status": "UPLOADED"},
    *({**IMAGE, **wrong} for wrong in WRONG_FIELDS),
]

Ask = Callable[[API], Awaitable[object]]
QUESTIONS: dict[str, Ask] = {
    "images": lambda api: api.images(patient_id="p"),
    "image": lambda api: api.image("i-1"),
    "coverages": lambda api: api.coverages("p"),
    "patients": lambda api: api.patients(),
}


async def refused(body: bytes, ask: Ask) -> BadResponseError:
    async with raw_server(http(body)) as server, api_at(server) as api:
        with pytest.raises(BadResponseError) as caught:
            await ask(api)
    assert SAYS not in str(caught.value)
    assert len(str(caught.value)) < 200
    assert caught.value.__cause__ is None
    return caught.value


@pytest.mark.parametrize("question", QUESTIONS)
@pytest.mark.parametrize("body", NOT_JSON, ids=lambda body: ascii(body[:30]))
async def test_what_is_no_json_is_a_bad_response_that_may_pass(question: str, body: bytes) -> None:
    assert (await refused(body, QUESTIONS[question])).retryable


@pytest.mark.parametrize("answer", NO_LISTS, ids=str)
async def test_what_is_no_list_of_records_is_a_bad_response_and_never_an_empty_list(
    answer: object,
) -> None:
    body = json.dumps(answer).encode()
    assert not (await refused(body, QUESTIONS["images"])).retryable
    if answer not in (IMAGE, [IMAGE]):
        await refused(body, QUESTIONS["coverages"])


@pytest.mark.parametrize("image", NO_IMAGES, ids=str)
async def test_a_record_of_another_shape_is_a_bad_response_that_names_the_field(
    image: dict[str, object],
) -> None:
    error = await refused(json.dumps([IMAGE, image]).encode(), QUESTIONS["images"])
    assert not error.retryable
    wrong = next((key for key, value in image.items() if IMAGE.get(key) != value), "")
    assert "1." in str(error)
    assert wrong in str(error) or len(image) < 3
    await refused(json.dumps(image).encode(), QUESTIONS["image"])


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*IMAGE, "patient", "x"]), inner, max_size=6)
    ),
    max_leaves=12,
)


@given(json_values)
def test_any_json_is_a_list_as_long_as_was_sent_or_a_bad_response(value: object) -> None:
    try:
        found = _parse(_IMAGES, json.dumps(value).encode(), "the search")
    except BadResponseError:
        assert value != []
    else:
        assert isinstance(value, list)
        assert len(found) == len(value)


@given(st.binary(max_size=60))
def test_no_bytes_get_through_as_anything_but_json(body: bytes) -> None:
    try:
        found = _parse(_IMAGES, body, "the search")
    except BadResponseError:
        return
    assert json.loads(body) == []
    assert found == []


RICH = {
    **IMAGE,
    "status": "QUARANTINED",
    "deactivated": True,
    "updated_at": "2026-01-02T03:04:05.678Z",
    "display_name": "Zoë 😀 / \n\u2028",
    "file_name": "",
    "file_type": "not/a real type",
    "coverage": {"id": "c", "side": "SPINE", "new": [1]},
    "patient": {"id": "p", "notes": None, "new": {}},
    "surprise": {"deep": [None, 1.5, {"x": "y"}]},
}


async def test_unknown_fields_statuses_and_sides_are_kept_and_the_signed_url_is_not() -> None:
    async with raw_server(http(json.dumps([RICH]).encode())) as server, api_at(server) as api:
        (image,) = await api.images(patient_id="p")
    assert image.for_sidecar() == {k: v for k, v in RICH.items() if k != "signed_url"}
    assert image.coverage is not None
    assert image.coverage.side == "SPINE"
    assert image.signed_url is not None
    assert image.signed_url.get_secret_value() == RICH["signed_url"]
    for text in (repr(image), str(image), image.model_dump_json()):
        assert "X=1" not in text
    assert "Zoë" not in repr(image)


async def test_half_an_emoji_in_a_name_costs_no_image() -> None:
    cut = b'[{"id":"i","version":1,"status":"UPLOADED","display_name":"\xc3\xa9 \\ud83d","n":1.0}]'
    async with raw_server(http(cut)) as server, api_at(server) as api:
        (image,) = await api.images(patient_id="p")
    assert image.display_name == "é \ufffd"
    assert image.for_sidecar()["n"] == 1.0


async def test_an_empty_list_is_an_answer() -> None:
    async with raw_server(http(b"[]")) as server, api_at(server) as api:
        assert await api.images(patient_id="p") == []
        assert await api.coverages("p") == []


async def test_the_first_patients_are_asked_for_by_their_number() -> None:
    known = {"version": 1, "updated_at": "2026-11-01T00:00:00Z", "mrn": "x"}
    items = [{"id": "p-1", **known}, {"id": "p-2", **known}]
    page = {"items": items, "next_page_token": "x", "total": 5}
    async with raw_server(http(json.dumps(page).encode())) as server, api_at(server) as api:
        found = await api.patients(limit=2)
    assert [patient.id for patient in found.items] == ["p-1", "p-2"]
    (request,) = server.requests
    assert request.target == "/patients/v1/get_multi?limit=2"


IDS = ["p-1", "a b", "a+b", "a&b=c", "a/b", "a?b", "a#b", "%41", "a%2Fb", "é", "e\u0301", "😀",
       "'\"<>", "..", "a;b", "*", "~", "a\\b"]  # fmt: skip


@pytest.mark.parametrize("identity", IDS)
async def test_an_id_reaches_the_api_letter_for_letter(identity: str) -> None:
    async with raw_server(http(b"[]")) as server, api_at(server) as api:
        await api.images(patient_id=identity, coverage_id=identity)
        await api.coverages(identity)
    first, second = (urlsplit(request.target) for request in server.requests)
    assert (first.path, second.path) == ("/images/v1", "/coverages/v1")
    assert parse_qs(first.query) == {"patient_id": [identity], "coverage_id": [identity]}
    assert parse_qs(second.query) == {"patient_id": [identity]}


@pytest.mark.parametrize("identity", [identity for identity in IDS if identity != ".."])
async def test_an_image_id_is_one_step_of_the_path(identity: str) -> None:
    said = http(json.dumps({**IMAGE, "id": identity}).encode())
    async with raw_server(said) as server, api_at(server) as api:
        assert (await api.image(identity)).id == identity
    target = server.requests[0].target
    assert "?" not in target
    assert [unquote(step) for step in target.split("/")] == ["", "images", "v1", identity]


async def test_an_image_id_of_dots_gets_no_other_answer_than_its_own() -> None:
    async with raw_server(http(b"[]")) as server, api_at(server) as api:
        with pytest.raises(FetchError):
            await api.image("..")


async def test_another_images_record_is_a_bad_response() -> None:
    said = http(json.dumps(IMAGE).encode())
    async with raw_server(said) as server, api_at(server) as api:
        with pytest.raises(BadResponseError, match="another image"):
            await api.image("i-2")


@pytest.mark.parametrize("status", [204, 301, 400, 403, 404, 429, 500, 503])
@pytest.mark.parametrize("question", QUESTIONS)
async def test_a_status_that_is_no_success_is_an_error_and_never_an_empty_list(
    status: int, question: str
) -> None:
    said = http(b"" if status == 204 else b"[]", f"{status} {SAYS}")
    async with raw_server(said) as server, api_at(server) as api:
        with pytest.raises(StatusError) as caught:
            await QUESTIONS[question](api)
    assert caught.value.status == status
    assert SAYS not in str(caught.value)
    assert len(server.requests) == 1


async def test_a_list_that_is_cut_off_at_a_record_is_no_shorter_list() -> None:
    body = json.dumps([IMAGE]).encode()
    cut = http(body[:-1] + b"," + body[1:]).replace(b": %d\r" % (2 * len(body) - 1), b": 9999\r")
    cut = cut.replace(b"keep-alive", b"close")
    async with raw_server(cut) as server, api_at(server) as api:
        with pytest.raises(ConnectionFailedError):
            await api.images(patient_id="p")
