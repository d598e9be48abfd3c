"""What lies between here and an image: names, certificates, clocks, the API and the storage."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from http import HTTPStatus
from typing import Any

from tqdm import tqdm
from yarl import URL

from bulkfetch.api import API, Tokens
from bulkfetch.body import hashes_of
from bulkfetch.doctor.checks import Checks, ProblemError, SkippedError, aside
from bulkfetch.models import UPLOADED, ImageRecord
from bulkfetch.retry import http_date
from bulkfetch.settings import ClientCredentials, Settings, StaticToken
from bulkfetch.transport import Answer, Transport, connect, proxy_for, trust
from bulkfetch.words import counted

# Signed URLs and tokens live for minutes and more; a machine that keeps time is off by less.
MOST_SKEW_S = 30.0
FEWEST_DAYS_LEFT = 14
# One of so many patients surely has an image.
_PATIENTS_ASKED_AT_MOST = 20
_DAY_S = 24 * 3600


class Network:
    """The checks that need a network, in order; none is sent what it should not see.

    Attributes:
        organization_id: whose records the API gave; None where it gave none.
    """

    def __init__(
        self,
        settings: Settings,
        credentials: StaticToken | ClientCredentials | None,
        patient: str | None,
        clock: Callable[[], float],
    ) -> None:
        self.organization_id: str | None = None
        self._settings = settings
        self._credentials = credentials
        self._patient = patient
        self._clock = clock
        self._api_url = URL(settings.api_base_url)
        self._auth_url = URL(settings.auth_base_url)
        self._stack = AsyncExitStack()
        self._transport: Transport
        self._api: API
        self._answer: Answer
        self._answered_at = self._took_s = 0.0
        self._uploaded: ImageRecord | None = None

    async def check(self, checks: Checks, *, tells_where: bool) -> None:
        """Do all of them, or skip them where the settings do not tell which API is meant."""
        sure = [] if tells_where else ["settings"]
        asked = [self._api_url]
        if not isinstance(self._credentials, StaticToken):
            asked.append(self._auth_url)
        urls = {_name(url): url for url in asked}
        for host, url in urls.items():
            await checks("DNS", partial(self._dns, url), of=host, needs=sure)
        async with self._stack:
            await checks("trust", self._trust, needs=sure)
            for host, url in urls.items():
                needs = [f"DNS {host}", "trust"]
                await checks("TLS", partial(self._tls, url), of=host, needs=needs)
            await checks("API", self._knock, needs=_way_to(self._api_url))
            await checks("clock", self._skew, needs=["API"])
            needs = ["credentials", *_way_to(self._auth_url)]
            if len(urls) == 1:
                needs.append("API")
            await checks("token", self._token, needs=needs)
            await checks("query", self._query, needs=["API", "token"])
            await checks("storage", self._byte, needs=["query"])

    async def _dns(self, url: URL) -> str:
        host, port = url.host or "", url.port
        _refuse_proxy(url)
        try:
            found = await aside(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or "it is no name for DNS"
            raise ProblemError(
                f"{host}: {reason}",
                "check --environment, --api-url and --auth-url, and this machine's resolver",
            ) from None
        number = len({address[0] for *_, address in found})
        return f"{host} -> {counted(number, 'address')}"

    async def _trust(self) -> str:
        # To open a session is to read whom it trusts.
        self._transport = await self._stack.enter_async_context(connect(self._settings))
        return f"the authorities of {self._settings.ca_file or 'the system'}"

    async def _tls(self, url: URL) -> str:
        host, port = url.host or "", url.port
        if url.scheme == "http":
            raise SkippedError(f"{_name(url)}: loopback over http")
        _refuse_proxy(url)
        try:
            _, writer = await asyncio.open_connection(host, port, ssl=trust(self._settings))
        except ssl.SSLCertVerificationError as error:
            raise ProblemError(
                f"{host} showed a certificate that cannot be trusted: {error.verify_message}",
                "name the authority that vouches for it with --ca-file; a proxy that looks into "
                "TLS has one of its own",
            ) from None
        except ssl.SSLError:
            raise ProblemError(
                f"{host} could not agree on TLS", "see what answers there, and --api-url"
            ) from None
        except OSError as error:
            raise ProblemError(
                f"{_name(url)}: {error.strerror or 'no address of it answers'}",
                "check the network, its firewall and proxy, --environment and --api-url",
            ) from None
        try:
            tls: ssl.SSLObject = writer.get_extra_info("ssl_object")
            version = tls.version()
            certificate: dict[str, Any] = tls.getpeercert() or {}
        finally:
            writer.transport.abort()
        left_s = ssl.cert_time_to_seconds(certificate["notAfter"]) - self._clock()
        what = (
            f"{host}: {version}, certificate of {_common_name(certificate['subject'])} by "
            f"{_common_name(certificate['issuer'])}, {counted(int(left_s // _DAY_S), 'day')} left"
        )
        if left_s < FEWEST_DAYS_LEFT * _DAY_S:
            raise ProblemError(what, "tell whoever runs that host to renew its certificate")
        return what

    async def _knock(self) -> str:
        began = time.monotonic()
        answer = self._answer = await self._transport.knock(self._settings.api_base_url)
        answer.close()
        self._took_s = time.monotonic() - began
        self._answered_at = self._clock()
        return f"{answer.host} answered in {_ms(began)} (HTTP {answer.status} without a token)"

    async def _skew(self) -> str:
        headers = self._answer.headers
        told_at = http_date(headers.get("Date", ""))
        if told_at is None:
            raise SkippedError(f"{self._answer.host} told no date")
        # What a cache answered was told that long ago (RFC 9111, section 5.1).
        if (age := headers.get("Age", "")).isdecimal():
            told_at += float(age)
        # A date has whole seconds, and was written at some time between question and answer.
        leeway_s = (self._took_s + 1) / 2
        skew_s = (self._answered_at - self._took_s / 2) - (told_at + 0.5)
        if abs(skew_s) - leeway_s > MOST_SKEW_S:
            side = "ahead of" if skew_s > 0 else "behind"
            raise ProblemError(
                f"this machine is {abs(skew_s):,.0f} s {side} {self._answer.host}",
                "set the clock, and keep it by NTP (timedatectl set-ntp true): tokens and signed "
                "URLs end by it",
            )
        return f"within {abs(skew_s) + leeway_s:.0f} s of {self._answer.host}"

    async def _token(self) -> str:
        if self._credentials is None:
            raise SkippedError("there are no credentials")
        tokens = Tokens(self._transport, self._settings.auth_base_url, self._credentials)
        self._api = API(self._transport, self._settings.api_base_url, tokens)
        if isinstance(self._credentials, StaticToken):
            return "somebody else renews it; the query shows whether the API takes it"
        began = time.monotonic()
        token = await tokens.lend()
        lasts = tqdm.format_interval(token.renew_at - began)
        return f"{self._auth_url.host} gave one in {_ms(began)}, to be renewed after {lasts}"

    async def _query(self) -> str:
        patients = [self._patient] if self._patient else []
        if not patients:
            page = await self._api.patients(limit=_PATIENTS_ASKED_AT_MOST)
            patients = [patient.id for patient in page.items]
        told = "the API lists no patient"
        for patient_id in patients:
            began = time.monotonic()
            records = await self._api.images(patient_id=patient_id)
            images = counted(len(records), "image")
            told = f"patient {patient_id} has {images} (HTTP 200 in {_ms(began)})"
            for record in records:
                self.organization_id = self.organization_id or record.organization_id
                if record.status == UPLOADED and record.signed_url:
                    self._uploaded = record
                    return told
        return told

    async def _byte(self) -> str:
        if self._uploaded is None or self._uploaded.signed_url is None:
            raise SkippedError("no image was found: name a patient who has one with --patient")
        url = self._uploaded.signed_url.get_secret_value()
        began = time.monotonic()
        answer = await self._transport.open_signed(url, headers={"Range": "bytes=0-0"})
        answer.close()
        ranges = "" if answer.status == HTTPStatus.PARTIAL_CONTENT else ", without ranges"
        digests = " and ".join(sorted(hashes_of(answer.headers))) or "no digest"
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise ProblemError(
                f"{answer.host} answered HTTP {answer.status} with a page, and not with an image",
                "see what stands in between: a login page, a proxy",
            )
        return (
            f"{answer.host} answered HTTP {answer.status}{ranges} in {_ms(began)}, "
            f"and told {digests}"
        )


def _refuse_proxy(url: URL) -> None:
    if proxy_for(url.scheme, url.raw_host or ""):
        raise SkippedError(f"{url.host}: by way of the proxy that the environment names")


def _way_to(url: URL) -> list[str]:
    return ["trust", f"DNS {_name(url)}", f"TLS {_name(url)}"]


def _name(url: URL) -> str:
    """Host and port, this without the usual one."""
    return url.host_port_subcomponent or ""


def _common_name(name: Sequence[Sequence[tuple[str, str]]]) -> str:
    parts = dict(pair for group in name for pair in group)
    return parts.get("commonName") or parts.get("organizationName") or "no name"


def _ms(began: float) -> str:
    return f"{1000 * (time.monotonic() - began):.0f} ms"
