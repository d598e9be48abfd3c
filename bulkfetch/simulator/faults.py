"""Faults on demand: which requests are to go wrong, and how.

A rule is written `TARGET:KIND[=VALUE][@RATE%][xCOUNT]`. Some examples::

    storage:503x1               the first request for each object fails, then it is well
    images:429=5@10%            a tenth of the searches are told to wait five seconds
    storage:drop=1000           the connection is reset after 1,000 bytes of body
    image:token-deathx1         the bearer token is revoked
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from hashlib import blake2b

__all__ = ["KINDS", "TARGETS", "Fault", "FaultPlan", "parse_fault"]

_API = frozenset({"images", "image", "patients", "coverages"})
TARGETS = ("token", *sorted(_API), "api", "storage")
"""`api` stands for all of the API but the token endpoint."""

_FORM = re.compile(
    r"(?P<target>[a-z]+):(?P<kind>[a-z0-9-]+?)(?:=(?P<value>.+?))?"
    r"(?:@(?P<rate>\d+(?:\.\d+)?)%)?(?:x(?P<count>\d+))?"
)


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a kind of fault can be asked of, and how its value is read."""

    help: str
    targets: frozenset[str]
    value: Callable[[str], object] | None = None
    """Raises ValueError for a value that cannot be; None for a kind that takes no value."""
    needs_value: bool = False


def _not_negative(text: str) -> float:
    number = float(text)
    if not 0 <= number < float("inf"):
        raise ValueError(text)
    return number


def _positive(text: str) -> float:
    number = _not_negative(text)
    if number == 0:
        raise ValueError(text)
    return number


def _byte_count(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise ValueError(text)
    return int(text)


def _retry_after(text: str) -> object:
    return text if text == "date" else _not_negative(text)


_ANY = frozenset({"token", "api", "storage"}) | _API
_API_ONLY = _API | {"api"}
_JSON_ONLY = _API_ONLY | {"token"}
_STORAGE_ONLY = frozenset({"storage"})

KINDS: dict[str, _Kind] = {
    "latency": _Kind("answers so many seconds late", _ANY, _not_negative, needs_value=True),
    "drop": _Kind("resets the connection after so many body bytes, or at once", _ANY, _byte_count),
    "stall": _Kind(
        "stops for so many seconds in the middle", _ANY, _not_negative, needs_value=True
    ),
    "drip": _Kind("sends so many bytes a second", _ANY, _positive, needs_value=True),
    "short": _Kind("closes after half of the bytes that Content-Length promised", _ANY),
    "wrong-length": _Kind("sends half of the body, with that half's Content-Length", _ANY),
    "empty": _Kind("answers 200 with no body", _ANY),
    "html": _Kind("answers 200 with a login page", _ANY),
    "xml": _Kind("answers 200 with an XML error", _ANY),
    "redirect": _Kind("sends the client to another URL", _ANY, str, needs_value=True),
    "chunked": _Kind("sends no Content-Length", _ANY),
    "corrupt": _Kind("flips a bit in the middle of the body", _ANY),
    "bad-json": _Kind("answers 200 with what is no JSON", _JSON_ONLY),
    "truncated-json": _Kind("answers 200 with the first half of the JSON", _JSON_ONLY),
    "wrong-shape": _Kind("answers 200 with JSON of another shape", _JSON_ONLY),
    "token-death": _Kind("revokes the bearer token that was sent", _API_ONLY),
    "gzip": _Kind("has the object stored with gzip encoding", _STORAGE_ONLY),
    "no-hash": _Kind("leaves out x-goog-hash", _STORAGE_ONLY),
    "no-md5": _Kind("leaves the MD5 out of x-goog-hash, as for a composed object", _STORAGE_ONLY),
    "range-ignored": _Kind("answers 200 to a ranged GET", _STORAGE_ONLY),
    "range-wrong": _Kind("answers a ranged GET from another start", _STORAGE_ONLY),
    "etag-changes": _Kind("has a new generation at each request", _STORAGE_ONLY),
    "expired": _Kind("finds the signed URL expired", _STORAGE_ONLY),
}
"""All kinds but the HTTP statuses 400 to 599, which take a Retry-After in seconds, or `date`."""

_STATUS = _Kind("answers with this status", _ANY, _retry_after)


@dataclass(frozen=True, slots=True)
class Fault:
    """One rule.

    `rate` is a share from 0 to 1; `count` limits it to the first so many requests for each
    resource, and None means all of them.

    Raises ValueError for what cannot be.
    """

    target: str
    kind: str
    value: str | None = None
    rate: float = 1.0
    count: int | None = None

    def __post_init__(self) -> None:
        if self.target not in TARGETS:
            raise ValueError(f"unknown target {self.target!r}: one of {', '.join(TARGETS)}")
        status = _status(self.kind)
        kind = _STATUS if status is not None else KINDS.get(self.kind)
        if kind is None:
            raise ValueError(
                f"unknown kind {self.kind!r}: "
                f"a status from 400 to 599, or one of {', '.join(KINDS)}"
            )
        if self.target not in kind.targets:
            raise ValueError(
                f"{self.kind!r} cannot be asked of {self.target!r}: "
                f"only of {', '.join(t for t in TARGETS if t in kind.targets)}"
            )
        if self.value is None and kind.needs_value:
            raise ValueError(f"{self.kind!r} needs a value: {self.kind}=VALUE {kind.help}")
        if self.value is not None:
            _check_value(self.kind, kind, self.value)
        if not 0 <= self.rate <= 1:
            raise ValueError(f"a rate is from 0 to 100 %, but is {self.rate:.6g} of all requests")
        if self.count is not None and self.count < 1:
            raise ValueError(f"a count is at least 1, but is {self.count}")

    @property
    def status(self) -> int | None:
        """The HTTP status, for a kind that is one."""
        return _status(self.kind)

    @property
    def number(self) -> float:
        """The value as a number; 0 without one."""
        return float(self.value or 0)

    def covers(self, target: str) -> bool:
        """Whether the rule is about requests to `target`, which is never `api` itself."""
        return self.target == target or (self.target == "api" and target in _API)

    def __str__(self) -> str:
        value = "" if self.value is None else f"={self.value}"
        rate = "" if self.rate == 1 else f"@{self.rate * 100:.10g}%"
        count = "" if self.count is None else f"x{self.count}"
        return f"{self.target}:{self.kind}{value}{rate}{count}"


def parse_fault(text: str) -> Fault:
    """The rule that `text` asks for; ValueError says what is wrong with it.

    A value that ends like a rate or a count (`redirect=http://host.invalid/x3`) is taken for one.
    """
    match = _FORM.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"fault {text!r} is not of the form TARGET:KIND[=VALUE][@RATE%][xCOUNT]")
    rate, count = match["rate"], match["count"]
    try:
        return Fault(
            target=match["target"],
            kind=match["kind"],
            value=match["value"],
            rate=1.0 if rate is None else float(rate) / 100,
            count=None if count is None else int(count),
        )
    except ValueError as error:
        raise ValueError(f"fault {text!r}: {error}") from None


class FaultPlan:
    """The rules in force, and the decision for each request."""

    def __init__(self, seed: int, rules: Iterable[Fault] = ()) -> None:
        self._seed = seed
        self._rules: list[_Rule] = []
        self.hits: Counter[str] = Counter()
        """How often each rule, by its text, has struck."""
        self.add(*rules)

    def add(self, *rules: Fault | str) -> None:
        """Puts rules in force, as objects or as text; ValueError for text that is no rule."""
        parsed = [parse_fault(rule) if isinstance(rule, str) else rule for rule in rules]
        self._rules += [_Rule(rule) for rule in parsed]

    def clear(self) -> None:
        """Makes everything well again."""
        self._rules.clear()

    @property
    def rules(self) -> tuple[Fault, ...]:
        """The rules in force, oldest first."""
        return tuple(rule.fault for rule in self._rules)

    def strike(self, target: str, resource: str) -> list[Fault]:
        """The faults that this request is to meet; each call counts as a request."""
        struck = []
        for rule in self._rules:
            if rule.fault.covers(target) and rule.strikes(self._seed, resource):
                self.hits[str(rule.fault)] += 1
                struck.append(rule.fault)
        return struck


class _Rule:
    """A rule with what it has to remember."""

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self._serial = 0
        self._struck: Counter[str] = Counter()

    def strikes(self, seed: int, resource: str) -> bool:
        fault = self.fault
        self._serial += 1
        if fault.rate < 1 and _share(f"{seed}/{fault}/{self._serial}") >= fault.rate:
            return False
        if fault.count is not None:
            if self._struck[resource] >= fault.count:
                return False
            self._struck[resource] += 1
        return True


def _share(text: str) -> float:
    """A number from 0 to 1 that is always the same for one text."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big") / (1 << 64)


def _status(kind: str) -> int | None:
    if len(kind) == 3 and kind.isascii() and kind.isdigit() and 400 <= int(kind) <= 599:
        return int(kind)
    return None


def _check_value(name: str, kind: _Kind, value: str) -> None:
    if kind.value is None:
        raise ValueError(f"{name!r} takes no value, but got {value!r}")
    try:
        kind.value(value)
    except ValueError:
        raise ValueError(f"{name!r} cannot have the value {value!r}: it {kind.help}") from None
