"""Identifiers that need no table: UUIDs in which the last twelve digits are the entity's index.

The other digits are a keyed hash of seed, kind and index, so that a made-up or altered identifier
is told from a real one without keeping any.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TypeVar

__all__ = ["Dice", "Identifiers"]

T = TypeVar("T")


class Identifiers:
    """Makes and reads the identifiers of one kind of entity for one seed."""

    def __init__(self, seed: int, kind: str) -> None:
        self._key = blake2b(f"{seed}/{kind}".encode(), digest_size=32).digest()

    def make(self, index: int) -> str:
        """The identifier of the entity at `index` (below 2**48)."""
        return _uuid(self._key, index)

    def index(self, text: str) -> int | None:
        """The index in an identifier that `make` made, else None."""
        try:
            index = int(text[-12:], 16)
        except ValueError:
            return None
        if not 0 <= index < 1 << 48:
            return None
        return index if self.make(index) == text else None


class Dice:
    """A few numbers (512 bits of them) that are always the same for one seed, kind and index."""

    __slots__ = ("_bits",)

    def __init__(self, seed: int, kind: str, index: int) -> None:
        digest = blake2b(f"{seed}/{kind}/{index}".encode(), digest_size=64).digest()
        self._bits = int.from_bytes(digest, "big")

    def below(self, bound: int) -> int:
        """A number from 0 to `bound - 1`."""
        self._bits, number = divmod(self._bits, bound)
        return number

    def chance(self, share: float) -> bool:
        """True in `share` of cases (0 to 1)."""
        return self.below(1 << 20) < share * (1 << 20)

    def choice(self, options: tuple[T, ...]) -> T:
        """One of `options`."""
        return options[self.below(len(options))]


@lru_cache(maxsize=16_384)
def _uuid(key: bytes, index: int) -> str:
    digest = blake2b(index.to_bytes(6, "big"), key=key, digest_size=10).hexdigest()
    variant = "89ab"[int(digest[15], 16) % 4]
    return f"{digest[:8]}-{digest[8:12]}-4{digest[12:15]}-{variant}{digest[16:19]}-{index:012x}"
