"""Bearer tokens: of the shape of a JWT (RFC 7519), good for a while, and revocable."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable
from hashlib import blake2b, sha256

from bulkfetch.simulator.config import SimulatorConfig

__all__ = ["Tokens"]


class Tokens:
    """Issues and checks the tokens of one simulator.

    A check needs no list of what was issued: the token says until when it is good, and is signed.
    """

    def __init__(self, config: SimulatorConfig, clock: Callable[[], float]) -> None:
        self._config = config
        self._clock = clock
        self._key = blake2b(f"{config.seed}/token".encode(), digest_size=32).digest()
        self._issued = 0
        self._revoked: set[str] = set()

    def accepts(self, client_id: str, client_secret: str) -> bool:
        """Whether this is the pair that opens the door."""
        config = self._config
        known = f"{config.client_id}\0{config.client_secret}".encode()
        return hmac.compare_digest(known, f"{client_id}\0{client_secret}".encode())

    def issue(self) -> str:
        """A new token."""
        self._issued += 1
        now = self._clock()
        claims = {
            "iss": "https://auth.simulator.invalid/",
            "sub": f"{self._config.client_id}@clients",
            "iat": int(now),
            "exp": now + self._config.token_lifetime_s,
            "jti": f"{self._issued:08d}",
        }
        signed = f"{_encoded({'alg': 'HS256', 'typ': 'JWT'})}.{_encoded(claims)}"
        return f"{signed}.{self._signature(signed)}"

    def revoke(self, token: str) -> None:
        """Makes a token worthless from now on."""
        self._revoked.add(token)

    def is_valid(self, authorization: str) -> bool:
        """Whether an Authorization header's value opens the API."""
        scheme, _, token = authorization.partition(" ")
        if scheme.casefold() != "bearer" or token in self._revoked:
            return False
        static = self._config.static_token
        if static is not None and hmac.compare_digest(token.encode(), static.encode()):
            return True
        signed, _, signature = token.rpartition(".")
        if not hmac.compare_digest(signature.encode(), self._signature(signed).encode()):
            return False
        claims = json.loads(_decoded(signed.partition(".")[2]))
        return bool(self._clock() < claims["exp"])

    def _signature(self, signed: str) -> str:
        return _base64(hmac.digest(self._key, signed.encode(), sha256))


def _encoded(content: dict[str, object]) -> str:
    return _base64(json.dumps(content).encode())


def _base64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _decoded(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
