"""The Candid Health pre-encounter API: signing in, and the typed questions.

The one place that knows the API's JSON. Paths, fields and the behaviour of tokens are those of the
vendor's own client (`candidhealth` 1.37.0) and reference
(https://docs.joincandidhealth.com/api-reference/pre-encounter/images/v-1/get-multi).
Each method is a single try; `bulkfetch.retry` decides about another.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, TypeAdapter, ValidationError

from bulkfetch.errors import BadResponseError, CredentialsError, StatusError
from bulkfetch.logs import Event, about
from bulkfetch.models import Coverage, ImageRecord, PatientPage, Versioned
from bulkfetch.settings import ClientCredentials, StaticToken
from bulkfetch.transport import Transport

# A token is renewed this long before it ends, or after nine tenths of a short life.
RENEW_BEFORE_S = 60.0
# Once a token was taken, a 401 is answered with a new one; so many new ones refused in a row mean
# that the account is closed to us.
REFUSALS_AT_MOST = 3
# The most that a page may hold: of patients as told, of coverages as it is.
PATIENTS_A_PAGE = 1000
COVERAGES_A_SCAN = 100
_HALF_PAIR = re.compile("[\ud800-\udfff]")

log = logging.getLogger(__name__)

T = TypeVar("T")


class _TokenAnswer(BaseModel):
    model_config = ConfigDict(extra="ignore")

    access_token: SecretStr = Field(min_length=1)
    expires_in: float = Field(gt=0, allow_inf_nan=False)


class _Problem(BaseModel):
    error_name: str = Field(alias="errorName")


_IMAGES = TypeAdapter(list[ImageRecord])
_IMAGE = TypeAdapter(ImageRecord)
_COVERAGES = TypeAdapter(list[Coverage])
_PROBLEM = TypeAdapter(_Problem)
_VERSIONED = TypeAdapter(list[Versioned])
_PATIENT_PAGE = TypeAdapter(PatientPage)
_TOKEN = TypeAdapter(_TokenAnswer)


class Token(NamedTuple):
    """A bearer token, and when to ask for another, by `time.monotonic`."""

    text: SecretStr
    renew_at: float


class TokenSource(Protocol):
    """Where a question gets its token from, and who is told what became of it."""

    async def get(self) -> str:
        """Return a token that is not about to expire."""

    def accepted(self) -> None:
        """Note that the API took a token."""

    def refused(self, token: str) -> None:
        """Note that the API answered 401 to this token."""


class Tokens:
    """Hands out a bearer token, and fetches a new one when it is due: one request at a time."""

    def __init__(
        self,
        transport: Transport,
        auth_base_url: str,
        credentials: StaticToken | ClientCredentials,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._transport = transport
        self._url = f"{auth_base_url}/api/auth/v2/token"
        self._credentials = credentials
        self._clock = clock
        self._turn = asyncio.Lock()
        self._token: Token | None = None
        self._ever_accepted = False
        self._refused_in_a_row = 0
        self._verdict: str | None = None

    async def get(self) -> str:
        """Return a token that is not about to expire.

        Raises:
            CredentialsError: the token endpoint said no (400, 401 or 403).
            FetchError: it could not be asked, or its answer is no token.
        """
        return (await self.lend()).text.get_secret_value()

    async def lend(self) -> Token:
        """Return the same with its time, for another process of this machine.

        Raises the same as `get`.
        """
        if isinstance(self._credentials, StaticToken):
            return Token(self._credentials.token, math.inf)
        async with self._turn:
            if self._verdict is not None:
                # Those that waited meanwhile would each ask in vain.
                raise CredentialsError(self._verdict)
            if self._token is None or self._clock() >= self._token.renew_at:
                self._token = await self._fetch(self._credentials)
            return self._token

    def accepted(self) -> None:
        """Note that the API took a token."""
        self._ever_accepted = True
        self._refused_in_a_row = 0

    def refused(self, token: str) -> None:
        """Note that the API answered 401 to this token, so that the next `get` fetches another.

        Raises:
            CredentialsError: the token is a static one, the API has taken none yet, or it refuses
                one new token after the other.
        """
        if isinstance(self._credentials, StaticToken):
            raise CredentialsError(
                "the API refused the token (HTTP 401): it is wrong, expired, or of another "
                "environment; set BULKFETCH_TOKEN anew"
            )
        if self._token is None or token != self._token.text.get_secret_value():
            return
        self._token = None
        self._refused_in_a_row += 1
        if not self._ever_accepted or self._refused_in_a_row > REFUSALS_AT_MOST:
            self._verdict = (
                "the API refused a token that was just made (HTTP 401): "
                "are --api-url and --auth-url of one environment?"
            )
            raise CredentialsError(self._verdict)

    async def _fetch(self, credentials: ClientCredentials) -> Token:
        asked_at = self._clock()
        try:
            body = await self._transport.ask(
                "POST",
                self._url,
                json={
                    "client_id": credentials.client_id,
                    "client_secret": credentials.client_secret.get_secret_value(),
                },
            )
        except StatusError as error:
            if error.status in (400, 401, 403):
                self._verdict = (
                    f"the token endpoint refused the credentials (HTTP {error.status}): check "
                    "BULKFETCH_CLIENT_ID, its secret, and --environment"
                )
                raise CredentialsError(self._verdict) from None
            raise
        try:
            answer = _parse(_TOKEN, body, "the token endpoint")
        except BadResponseError as error:
            # About no one patient: what answers there is no token endpoint, or not yet.
            error.retryable = True
            raise
        life_s = answer.expires_in
        log.debug(
            "a new token, good for %.0f s",
            life_s,
            extra=about(Event.signed_in, good_for_s=life_s),
        )
        return Token(answer.access_token, asked_at + max(life_s - RENEW_BEFORE_S, 0.9 * life_s))


class LentTokens:
    """Hands out a token that the first process of the run lends; it alone makes new ones.

    `borrow` is told the last token if it was refused, and whether it had been accepted.
    """

    def __init__(self, borrow: Callable[[str | None, bool], Awaitable[Token]]) -> None:
        self._borrow = borrow
        self._turn = asyncio.Lock()
        self._token: Token | None = None
        self._refused: str | None = None
        self._accepted = False

    async def get(self) -> str:
        """Return a token that is not about to expire.

        Raises the same as `Tokens.get`, and the same as `Tokens.refused` once one was refused.
        """
        async with self._turn:
            if self._token is None or time.monotonic() >= self._token.renew_at:
                refused, accepted = self._refused, self._accepted
                self._refused, self._accepted = None, False
                self._token = await self._borrow(refused, accepted)
            return self._token.text.get_secret_value()

    def accepted(self) -> None:
        """Note that the API took a token."""
        self._accepted = True

    def refused(self, token: str) -> None:
        """Note that the API answered 401 to this token, so that the next `get` fetches another."""
        if self._token is not None and token == self._token.text.get_secret_value():
            self._token, self._refused = None, token


class API:
    """The questions that bulkfetch asks, each answered in full or by an error."""

    def __init__(self, transport: Transport, base_url: str, tokens: TokenSource) -> None:
        self._transport = transport
        self._base_url = base_url
        self._tokens = tokens

    async def images(
        self, *, patient_id: str | None = None, coverage_id: str | None = None
    ) -> list[ImageRecord]:
        """Return every image of a patient, of a coverage, or of both together.

        `GET /images/v1` is not paged, and leaves deactivated images out.

        Raises:
            FetchError: the API could not be asked, or its answer is not a list of images.
            CredentialsError: the API refused the credentials.
        """
        params = {
            name: value
            for name, value in (("patient_id", patient_id), ("coverage_id", coverage_id))
            if value is not None
        }
        return _parse(_IMAGES, await self._get("/images/v1", params), "the image search")

    async def image(self, image_id: str) -> ImageRecord:
        """Return one image as it is now, with a fresh signed URL; deactivated ones too.

        Raises:
            StatusError: with status 404, the API does not know the image.
            FetchError, CredentialsError: as for `images`.
        """
        body = await self._get(f"/images/v1/{quote(image_id, safe='')}")
        record = _parse(_IMAGE, body, "the image's record")
        if record.id != image_id:
            raise BadResponseError("the API answered with another image's record", retryable=False)
        return record

    async def image_if_any(self, image_id: str) -> ImageRecord | None:
        """Return the same, or None where the API itself says that there is no such image.

        A 404 of something in between, or of a wrong path, says nothing of an image.

        Raises:
            FetchError, CredentialsError: as for `image`.
        """
        try:
            return await self.image(image_id)
        except StatusError as error:
            if error.status != HTTPStatus.NOT_FOUND or not _says_not_found(error.body):
                raise
            return None

    async def coverages(self, patient_id: str) -> list[Coverage]:
        """Return a patient's coverages.

        Raises:
            FetchError, CredentialsError: as for `images`.
        """
        body = await self._get("/coverages/v1", {"patient_id": patient_id})
        return _parse(_COVERAGES, body, "the coverage search")

    async def patients(
        self, page_token: str | None = None, *, limit: int = PATIENTS_A_PAGE
    ) -> PatientPage:
        """Return a page of up to `limit` active patients: the first, or a token's.

        Raises:
            FetchError, CredentialsError: as for `images`.
        """
        params = {"limit": str(limit)}
        if page_token is not None:
            params["page_token"] = page_token
        body = await self._get("/patients/v1/get_multi", params)
        return _parse(_PATIENT_PAGE, body, "the patient search")

    async def patients_since(self, since: str) -> list[Versioned]:
        """Return up to `PATIENTS_A_PAGE` patients updated at or after an ISO 8601 time, in order.

        Deactivated ones are among them.

        Raises:
            FetchError, CredentialsError: as for `images`.
        """
        params = {"since": since, "maxResults": str(PATIENTS_A_PAGE)}
        body = await self._get("/patients/v1/updates/scan", params)
        return _parse(_VERSIONED, body, "the patient scan")

    async def coverages_since(self, since: str) -> list[Versioned]:
        """Return up to `COVERAGES_A_SCAN` coverages updated at or after a time, in order.

        Raises:
            FetchError, CredentialsError: as for `images`.
        """
        body = await self._get("/coverages/v1/updates/scan", {"since": since})
        return _parse(_VERSIONED, body, "the coverage scan")

    async def _get(self, path: str, params: Mapping[str, str] | None = None) -> bytes:
        token = await self._tokens.get()
        try:
            return await self._get_with(token, path, params)
        except StatusError as error:
            if error.status != HTTPStatus.UNAUTHORIZED:
                raise
            self._tokens.refused(token)
        token = await self._tokens.get()
        try:
            return await self._get_with(token, path, params)
        except StatusError as error:
            if error.status == HTTPStatus.UNAUTHORIZED:
                self._tokens.refused(token)
                error.retryable = True
            raise

    async def _get_with(self, token: str, path: str, params: Mapping[str, str] | None) -> bytes:
        body = await self._transport.ask(
            "GET",
            self._base_url + path,
            headers={"Authorization": f"Bearer {token}"},
            params=params,
        )
        self._tokens.accepted()
        return body


def _parse(shape: TypeAdapter[T], body: bytes, what: str) -> T:
    try:
        return shape.validate_json(body)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False)[0]
    if problem["type"] == "json_invalid":
        if (mended := _mended(body)) is not None:
            return _parse(shape, mended, what)
        raise BadResponseError(
            f"{what} answered with something that is not JSON (a proxy's page, or a body cut "
            "short)",
            retryable=True,
        )
    # The place of a field is safe to show; what stood there is not.
    where = ".".join(str(step) for step in problem["loc"]) or "the whole"
    raise BadResponseError(
        f"{what} answered with JSON of another shape: {where}: {problem['type']}", retryable=False
    )


def _says_not_found(body: bytes) -> bool:
    try:
        return _PROBLEM.validate_json(body).error_name == "NotFoundError"
    except ValidationError:
        return False


def _mended(body: bytes) -> bytes | None:
    """Return JSON without halves of surrogate pairs, None where it has none or is no JSON.

    A name that was cut through the middle of an emoji has one, and costs no image.
    """
    try:
        text = json.dumps(json.loads(body), ensure_ascii=False)
    except (ValueError, RecursionError):
        return None
    whole = _HALF_PAIR.sub("\ufffd", text)
    return None if whole == text else whole.encode()
