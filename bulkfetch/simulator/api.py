"""The pre-encounter API and the token endpoint: the answers when nothing goes wrong."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from typing import Any

from aiohttp import web

from bulkfetch.simulator.catalog import SORT_FIELDS, Catalog, ImageFilter, VersionConflict
from bulkfetch.simulator.config import SimulatorConfig
from bulkfetch.simulator.documents import (
    JsonObject,
    coverage_json,
    image_json,
    mrn,
    mrn_index,
    patient_json,
)
from bulkfetch.simulator.population import CoverageRecord, ImageRecord, PatientRecord, Population
from bulkfetch.simulator.timestamps import milliseconds
from bulkfetch.simulator.tokens import Tokens
from bulkfetch.simulator.wire import Reply

__all__ = ["Api", "api_error", "json_reply"]

_PATIENTS_PER_PAGE = 100
_MOST_PATIENTS = 1000
_COVERAGES_PER_SCAN = 100
_DIRECTIONS = ("asc", "desc")
_ERROR_NAMES = {
    400: "BadRequestError",
    401: "UnauthorizedError",
    403: "ForbiddenError",
    404: "NotFoundError",
    409: "VersionConflictError",
    415: "InvalidContentTypeError",
    429: "TooManyRequestsError",
}


class _BadRequest(Exception):  # noqa: N818 - an answer to a client, not an error of this program
    """The request is not one that the API understands; the message says why."""


def api_error(status: int, message: str | None = None, **extra: object) -> Reply:
    """An error as the API words it."""
    name = _ERROR_NAMES.get(status, "InternalError")
    content = {"message": message or f"request failed with status {status}", **extra}
    return json_reply({"errorName": name, "content": content}, status)


def json_reply(content: object, status: int = 200) -> Reply:
    """Any content as a JSON answer."""
    return Reply(status, json.dumps(content, ensure_ascii=False).encode())


class Api:
    """Answers by endpoint; each method takes the request and gives the reply."""

    def __init__(
        self,
        config: SimulatorConfig,
        population: Population,
        catalog: Catalog,
        tokens: Tokens,
        sign: Callable[[ImageRecord], str],
    ) -> None:
        self._config = config
        self._population = population
        self._catalog = catalog
        self._tokens = tokens
        self._sign = sign

    async def token(self, request: web.Request) -> Reply:
        """Exchanges a client ID and secret for a bearer token."""
        form: Mapping[str, Any]
        if request.content_type == "application/json":
            form = _json_object(await request.text())
        elif request.content_type == "application/x-www-form-urlencoded":
            form = await request.post()
        else:
            return api_error(415, f"content type {request.content_type!r} is not supported")
        try:
            client_id, client_secret = str(form["client_id"]), str(form["client_secret"])
        except KeyError as missing:
            return api_error(400, f"{missing} is missing")
        if not self._tokens.accepts(client_id, client_secret):
            return api_error(401, "client_id or client_secret is wrong")
        return json_reply(
            {
                "access_token": self._tokens.issue(),
                "expires_in": int(self._config.token_lifetime_s),
                "token_type": "Bearer",
            }
        )

    async def images(self, request: web.Request) -> Reply:
        """Searches for images."""
        query = request.query
        sort_field = query.get("sort_field", "updatedAt")
        direction = query.get("sort_direction", "desc")
        if sort_field not in SORT_FIELDS or direction not in _DIRECTIONS:
            raise _BadRequest("sort_field or sort_direction is not one of those documented")
        wanted = ImageFilter(
            patient_id=query.get("patient_id"),
            coverage_id=query.get("coverage_id"),
            file_type=query.get("file_type"),
            patient_notes=query.get("patient_notes"),
        )
        found = self._catalog.search(wanted, sort_field, descending=direction == "desc")
        return json_reply([self.image_json(image) for image in found])

    async def image(self, request: web.Request) -> Reply:
        """One image by its ID."""
        image = self._catalog.image(request.match_info["id"])
        if image is None:
            return _no_such("image", request.match_info["id"])
        return json_reply(self.image_json(image))

    async def image_create(self, request: web.Request) -> Reply:
        """Adds an image."""
        image = self._image_from(_json_object(await request.text()), "")
        return json_reply(self.image_json(self._catalog.create(image)))

    async def image_update(self, request: web.Request) -> Reply:
        """Replaces what a client may change of an image."""
        image_id, version = request.match_info["id"], _version(request)
        image = self._image_from(_json_object(await request.text()), image_id)
        return json_reply(self.image_json(self._catalog.update(image, version)))

    async def image_deactivate(self, request: web.Request) -> Reply:
        """Takes an image out of all searches."""
        image_id, version = request.match_info["id"], _version(request)
        image = self._catalog.image(image_id)
        if image is None:
            return _no_such("image", image_id)
        self._catalog.update(replace(image, deactivated=True), version)
        return Reply(204)

    async def patients_scan(self, request: web.Request) -> Reply:
        """Patients in order of their last update."""
        limit = _bounded(request, "maxResults", _PATIENTS_PER_PAGE, _MOST_PATIENTS)
        found = islice(self._population.patients_since(_since(request)), limit)
        return json_reply([self._patient_json(patient) for patient in found])

    async def patients(self, request: web.Request) -> Reply:
        """A page of the patients that are not deactivated."""
        limit = _bounded(request, "limit", _PATIENTS_PER_PAGE, _MOST_PATIENTS)
        direction = request.query.get("sort_direction", "asc")
        if direction not in _DIRECTIONS:
            raise _BadRequest("sort_direction must be asc or desc")
        size = self._population.size
        total = self._population.active_patients_before(size)
        order = range(size) if direction == "asc" else range(size - 1, -1, -1)
        wanted = request.query.get("mrn")
        if wanted is not None:
            index = mrn_index(wanted)
            known = index is not None and index < size
            patient = self._population.patient(index) if known and index is not None else None
            matches = patient is not None and not patient.deactivated and mrn(patient) == wanted
            order = range(patient.index, patient.index + 1) if patient and matches else range(0)
            total = len(order)
        start = _page_start(request.query.get("page_token"))
        page = list(islice(self._active(order[start:]), limit + 1))
        items = [patient for _, patient in page[:limit]]
        following = page[limit][0] + start if len(page) > limit else None
        return json_reply(
            {
                "items": [self._patient_json(patient) for patient in items],
                "next_page_token": None if following is None else _page_token(following),
                "prev_page_token": _page_token(max(start - limit, 0)) if start else None,
                "total": total,
            }
        )

    async def patient(self, request: web.Request) -> Reply:
        """One patient by ID."""
        patient = self._population.find_patient(request.match_info["id"])
        if patient is None:
            return _no_such("patient", request.match_info["id"])
        return json_reply(self._patient_json(patient))

    async def coverages(self, request: web.Request) -> Reply:
        """The coverages of a patient, or of all."""
        wanted = request.query.get("patient_id")
        if wanted is None:
            patients: Iterator[PatientRecord] = self._population.patients_since(0)
        else:
            patient = self._population.find_patient(wanted)
            patients = iter(() if patient is None else (patient,))
        return json_reply([self._coverage_json(c) for c in self._coverages_of(patients)])

    async def coverages_scan(self, request: web.Request) -> Reply:
        """Coverages in order of their last update."""
        found = islice(self._population.coverages_since(_since(request)), _COVERAGES_PER_SCAN)
        return json_reply([self._coverage_json(coverage) for coverage in found])

    async def coverage(self, request: web.Request) -> Reply:
        """One coverage by ID."""
        coverage = self._population.find_coverage(request.match_info["id"])
        if coverage is None:
            return _no_such("coverage", request.match_info["id"])
        return json_reply(self._coverage_json(coverage))

    async def answer(self, handler: Callable[[web.Request], Any], request: web.Request) -> Reply:
        """What `handler` answers, with what it raises turned into the API's errors."""
        try:
            reply: Reply = await handler(request)
        except _BadRequest as error:
            return api_error(400, str(error))
        except LookupError as error:
            return _no_such("image", str(error.args[0]))
        except VersionConflict as conflict:
            return api_error(409, str(conflict), latest_version=conflict.latest_version)
        return reply

    def image_json(self, image: ImageRecord) -> JsonObject:
        """An image as it is sent."""
        return {**self.unsigned_image_json(image), "signed_url": self._sign(image)} | (
            self._catalog.patches.get(image.id, {})
        )

    def unsigned_image_json(self, image: ImageRecord) -> JsonObject:
        """An image as it is sent, but for its `signed_url`."""
        content = image_json(image, self._config.organization_id)
        if self._config.extra_fields:
            content["capture_device"] = {"kind": "SIMULATED", "dpi": 300}
        patch = self._catalog.patches.get(image.id, {})
        return content | {key: value for key, value in patch.items() if key != "signed_url"}

    def _image_from(self, content: JsonObject, image_id: str) -> ImageRecord:
        coverage, patient = content.get("coverage") or {}, content.get("patient") or {}
        latest = self._catalog.image(image_id)
        try:
            return ImageRecord(
                id=image_id,
                version=0,
                updated_ms=0,
                deactivated=latest is not None and latest.deactivated,
                updating_user_id=self._population.user_id,
                display_name=str(content["display_name"]),
                file_name=str(content["file_name"]),
                file_type=str(content["file_type"]),
                status=str(content["status"]),
                patient_id=patient.get("id"),
                patient_notes=patient.get("notes"),
                coverage_id=coverage.get("id"),
                coverage_side=coverage.get("side"),
            )
        except KeyError as missing:
            raise _BadRequest(f"{missing} is missing") from None

    def _active(self, order: range) -> Iterator[tuple[int, PatientRecord]]:
        for place, index in enumerate(order):
            patient = self._population.patient(index)
            if not patient.deactivated:
                yield place, patient

    def _coverages_of(self, patients: Iterator[PatientRecord]) -> Iterator[CoverageRecord]:
        return (coverage for p in patients for coverage in self._population.coverages(p))

    def _patient_json(self, patient: PatientRecord) -> JsonObject:
        return patient_json(patient, self._population, self._config.organization_id)

    def _coverage_json(self, coverage: CoverageRecord) -> JsonObject:
        return coverage_json(coverage, self._population, self._config.organization_id)


def _no_such(kind: str, entity_id: str) -> Reply:
    return api_error(404, f"no {kind} has the ID {entity_id!r}")


def _json_object(text: str) -> JsonObject:
    try:
        content = json.loads(text)
    except ValueError:
        raise _BadRequest("the body is not JSON") from None
    if not isinstance(content, dict):
        raise _BadRequest("the body is not a JSON object")
    return content


def _version(request: web.Request) -> int:
    text = request.match_info["version"]
    if not text.isascii() or not text.isdigit():
        raise _BadRequest(f"{text!r} is no version")
    return int(text)


def _since(request: web.Request) -> int:
    try:
        return milliseconds(request.query["since"])
    except KeyError:
        raise _BadRequest("since is missing") from None
    except ValueError:
        raise _BadRequest("since is not an ISO 8601 time") from None


def _bounded(request: web.Request, name: str, usual: int, most: int) -> int:
    text = request.query.get(name, str(usual))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= most:
        raise _BadRequest(f"{name} must be from 1 to {most}")
    return int(text)


def _page_token(place: int) -> str:
    return base64.urlsafe_b64encode(f"place:{place}".encode()).decode("ascii")


def _page_start(token: str | None) -> int:
    if token is None:
        return 0
    try:
        return int(base64.urlsafe_b64decode(token).decode("ascii").removeprefix("place:"))
    except ValueError:
        raise _BadRequest("page_token is not one that was given") from None
