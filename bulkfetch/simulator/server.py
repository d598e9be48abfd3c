"""The simulator as a whole: two listeners on one population."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from email.utils import formatdate
from functools import partial
from types import TracebackType
from typing import Self

from aiohttp import web

from bulkfetch.simulator.api import Api
from bulkfetch.simulator.catalog import Catalog, ImageFilter
from bulkfetch.simulator.config import SimulatorConfig
from bulkfetch.simulator.control import Control
from bulkfetch.simulator.documents import JsonObject
from bulkfetch.simulator.faults import FaultPlan
from bulkfetch.simulator.gateway import Gateway
from bulkfetch.simulator.objects import ObjectStore
from bulkfetch.simulator.population import ImageRecord, Population
from bulkfetch.simulator.signing import UrlSigner
from bulkfetch.simulator.storage import Storage
from bulkfetch.simulator.tokens import Tokens
from bulkfetch.simulator.traffic import RequestRecord, Traffic

__all__ = ["LEAKED_TOKENS", "Simulator"]

LEAKED_TOKENS = "storage_with_authorization"
"""Name in `Simulator.requests` of storage requests that carried an Authorization header."""

_LARGEST_UPLOAD_BYTES = 256 * 1024 * 1024
_SHUTDOWN_S = 0.1
"""Patience with answers in progress when stopping: a stalled one would take for ever."""


class Simulator:
    """The API and its storage on loopback, for as long as `async with` lasts.

    What is true of the population (`patient_ids`, `expected_images`, `stored_bytes`) can be asked
    without serving, and is the same in any process for the same config. `clock` gives seconds since
    1970: it is the `Date` of every answer, and decides when tokens and signed URLs expire. Changes
    made while serving are kept until the object goes.
    """

    def __init__(
        self,
        config: SimulatorConfig | None = None,
        *,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = config or SimulatorConfig()
        self._clock = clock
        self.faults = FaultPlan(self.config.seed, self.config.faults)
        self._clock = clock
        self._traffic = Traffic()
        self._population = Population(self.config)
        self._catalog = Catalog(self._population, self.config.seed, clock)
        self._objects = ObjectStore(self.config, self._population, self._catalog)
        self._tokens = Tokens(self.config, clock)
        self._signer = UrlSigner(
            self.config.seed,
            self.config.organization_id,
            clock,
            lifetime_s=self.config.url_lifetime_s,
            style=self.config.url_style,
        )
        self._api = Api(
            self.config, self._population, self._catalog, self._tokens, self._signed_url
        )
        self._storage = Storage(
            self._signer, self._objects, self._catalog, self._count_leaked_token
        )
        self._gateway = Gateway(self.config, self._tokens, self.faults, self._traffic, clock)
        self._runners: list[web.AppRunner] = []
        self._api_port = 0
        self._storage_port = 0

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begins to serve. Raises OSError when a port cannot be had."""
        port = self.config.port
        try:
            self._api_port = await self._listen(self._api_application(), port)
            storage_port = port + 1 if port else 0
            self._storage_port = await self._listen(self._storage_application(), storage_port)
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Ends all connections; answers in progress get a tenth of a second."""
        # asyncio takes so many turns over a connection that was made before this, and loses one
        # that it is at when the listening socket closes.
        for _ in range(3):
            await asyncio.sleep(0)
        while self._runners:
            await self._runners.pop().cleanup()

    @property
    def api_url(self) -> str:
        """Where the pre-encounter API is."""
        return self._url(self._api_port)

    @property
    def auth_url(self) -> str:
        """Where the token endpoint is: the same listener as the API."""
        return self.api_url

    @property
    def storage_url(self) -> str:
        """Where signed URLs lead."""
        return self._url(self._storage_port)

    @property
    def storage_host(self) -> str:
        """Host and port of the storage."""
        return self.storage_url.partition("://")[2]

    @property
    def requests(self) -> Counter[str]:
        """Requests so far by endpoint: token, images, image, patients_scan, storage, ..."""
        return self._traffic.requests

    @property
    def peak_in_flight(self) -> Counter[str]:
        """The most requests that were being answered at once, by endpoint."""
        return self._traffic.peak_in_flight

    @property
    def log(self) -> list[RequestRecord]:
        """Every request so far, if `config.record_requests`."""
        return self._traffic.log

    def patient_ids(self) -> Iterator[str]:
        """The IDs of all patients, deactivated ones too, in order of `updated_at` when seeded."""
        return map(self._population.patient_id, range(self._population.size))

    def coverage_ids(self, patient_id: str | None = None) -> Iterator[str]:
        """The IDs of all coverages, or of one patient's."""
        patients = self._population.patients_since(0)
        if patient_id is not None:
            found = self._population.find_patient(patient_id)
            patients = iter(() if found is None else (found,))
        return (c.id for patient in patients for c in self._population.coverages(patient))

    def expected_images(
        self, patient_id: str | None = None, *, coverage_id: str | None = None
    ) -> list[JsonObject]:
        """What a search by these IDs answers now, newest first, but for the signed URLs."""
        wanted = ImageFilter(patient_id=patient_id, coverage_id=coverage_id)
        return [self._api.unsigned_image_json(image) for image in self._catalog.search(wanted)]

    def stored_bytes(self, image_id: str, version: int) -> bytes:
        """The bytes of an object, decoded. Raises LookupError where there is none."""
        stored = self._objects.get(image_id, version)
        if stored is None:
            raise LookupError(f"image {image_id} version {version} has no object")
        return stored.data

    def patch_image(self, image_id: str, **fields: object) -> None:
        """Lays fields over an image's JSON in every answer, so that any oddity can be sent.

        Searches still find the image by what it was. Without fields, the image is as before.
        """
        if fields:
            self._catalog.patches[image_id] = dict(fields)
        else:
            self._catalog.patches.pop(image_id, None)

    def remove_image(self, image_id: str) -> None:
        """Deletes an image for good: no search finds it, and asked for by its ID it is unknown."""
        self._catalog.removed.add(image_id)

    def merge_patient(self, patient_id: str, into: str) -> None:
        """Makes a search for one patient answer with another's images, as after a merge."""
        self._catalog.merges[patient_id] = into

    def touch_patient(self, patient_id: str, *, at: float | None = None) -> None:
        """Makes a new version of a patient, updated at a time (seconds since 1970), or now.

        Raises LookupError for an ID that is not known.
        """
        patient = self._population.find_patient(patient_id)
        if patient is None:
            raise LookupError(f"no patient has the ID {patient_id}")
        self._population.touch_patient(patient, self._milliseconds(at))

    def touch_coverage(self, coverage_id: str, *, at: float | None = None) -> None:
        """Does the same with a coverage, and leaves its patient as it is."""
        coverage = self._population.find_coverage(coverage_id)
        if coverage is None:
            raise LookupError(f"no coverage has the ID {coverage_id}")
        self._population.touch_coverage(coverage, self._milliseconds(at))

    def add_patient(self, *, at: float | None = None) -> str:
        """Adds a patient, with coverages and images, and returns the ID."""
        return self._population.add_patient(self._milliseconds(at)).id

    def issue_token(self) -> str:
        """A bearer token, as the token endpoint would give it."""
        return self._tokens.issue()

    def revoke_token(self, token: str) -> None:
        """Makes a bearer token worthless."""
        self._tokens.revoke(token)

    def _milliseconds(self, at: float | None) -> int:
        return int((self._clock() if at is None else at) * 1000)

    def _url(self, port: int) -> str:
        if not self._runners:
            raise RuntimeError("the simulator is not serving: use `async with`")
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        return f"http://{host}:{port}"

    def _signed_url(self, image: ImageRecord) -> str:
        return self._signer.sign(self.storage_url, image.id, image.version)

    def _count_leaked_token(self) -> None:
        self._traffic.requests[LEAKED_TOKENS] += 1

    def _api_application(self) -> web.Application:
        api, gateway = self._api, self._gateway
        application = web.Application()
        application.router.add_post("/api/auth/v2/token", partial(gateway.serve_token, api))
        for method, path, handler, target in (
            ("GET", "/images/v1", api.images, "images"),
            ("POST", "/images/v1", api.image_create, "image"),
            ("GET", "/images/v1/{id}", api.image, "image"),
            ("PUT", "/images/v1/{id}/{version}", api.image_update, "image"),
            ("DELETE", "/images/v1/{id}/{version}", api.image_deactivate, "image"),
            ("GET", "/patients/v1/updates/scan", api.patients_scan, "patients"),
            ("GET", "/patients/v1/get_multi", api.patients, "patients"),
            ("GET", "/patients/v1/{id}", api.patient, "patients"),
            ("GET", "/coverages/v1", api.coverages, "coverages"),
            ("GET", "/coverages/v1/updates/scan", api.coverages_scan, "coverages"),
            ("GET", "/coverages/v1/{id}", api.coverage, "coverages"),
        ):
            serve = partial(gateway.serve_api, api, handler, handler.__name__, target)
            application.router.add_route(method, path, serve)
        application.add_routes(Control(self.faults, self._traffic, self._catalog).routes())
        return application

    def _storage_application(self) -> web.Application:
        application = web.Application(client_max_size=_LARGEST_UPLOAD_BYTES)
        serve = partial(self._gateway.serve_storage, self._storage)
        application.router.add_route("*", "/{object:.*}", serve)
        return application

    async def _listen(self, application: web.Application, port: int) -> int:
        application.on_response_prepare.append(self._set_date)
        runner = web.AppRunner(
            application, access_log=None, handle_signals=False, shutdown_timeout=_SHUTDOWN_S
        )
        self._runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, self.config.host, port).start()
        bound: int = runner.addresses[0][1]
        return bound

    async def _set_date(self, request: web.Request, response: web.StreamResponse) -> None:  # noqa: ARG002  aiohttp passes both
        response.headers["Date"] = formatdate(self._clock(), usegmt=True)
