"""The stored objects: made from the pool of faces when asked for, or uploaded."""

from __future__ import annotations

import base64
import gzip
import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cached_property

from bulkfetch.simulator.catalog import Catalog
from bulkfetch.simulator.config import SimulatorConfig
from bulkfetch.simulator.crc32c import crc32c
from bulkfetch.simulator.faces import Part, face, stamped
from bulkfetch.simulator.population import Population

__all__ = ["ObjectStore", "StoredObject"]

_CACHE_BYTES = 64 * 1024 * 1024
_FIRST_GENERATION = 1_700_000_000_000_000
"""Generations are microseconds since 1970."""


@dataclass(frozen=True)
class StoredObject:
    """The bytes of an object with what storage says of them in headers."""

    part: Part
    media_type: str
    generation: int

    @property
    def data(self) -> bytes:
        """The bytes as they were before any encoding."""
        return self.part.data

    @cached_property
    def md5(self) -> str:
        """MD5 of the stored bytes, in base64."""
        return _md5(self.data)

    @cached_property
    def crc32c(self) -> str:
        """CRC32C of the stored bytes, in base64."""
        return base64.b64encode(self.part.crc.to_bytes(4, "big")).decode("ascii")

    @cached_property
    def gzipped(self) -> StoredObject:
        """The object as it would be if it had been stored with gzip encoding."""
        data = gzip.compress(self.data, compresslevel=1, mtime=0)
        return StoredObject(Part(data, crc32c(data)), self.media_type, self.generation)


class ObjectStore:
    """All objects, by image ID and version; a bounded number of bytes is kept at hand."""

    def __init__(self, config: SimulatorConfig, population: Population, catalog: Catalog) -> None:
        self._population = population
        self._catalog = catalog
        self._fixed_bytes = config.fixed_bytes
        self._uploads: dict[str, list[tuple[int, StoredObject]]] = {}
        self._cache: OrderedDict[tuple[str, int], StoredObject] = OrderedDict()
        self._cached_bytes = 0

    def get(self, image_id: str, version: int) -> StoredObject | None:
        """The object of an image at a version, or None where nothing was uploaded."""
        image = self._catalog.image(image_id)
        if image is None or not 1 <= version <= image.version:
            return None
        uploads = self._uploads.get(image_id, ())
        uploaded = [stored for since, stored in uploads if since <= version]
        if uploaded:
            return uploaded[-1]
        seeded = self._population.find_image(image_id)
        if seeded is None or image.status != "UPLOADED":
            return None
        return self._drawn(image_id, version)

    def put(self, image_id: str, version: int, data: bytes, media_type: str) -> StoredObject:
        """Stores uploaded bytes; they are the image's from this version on."""
        uploads = self._uploads.setdefault(image_id, [])
        generation = _generation(image_id, version) + len(uploads) + 1
        stored = StoredObject(Part(data, crc32c(data)), media_type, generation)
        uploads.append((version, stored))
        return stored

    def _drawn(self, image_id: str, version: int) -> StoredObject:
        key = (image_id, version)
        stored = self._cache.get(key)
        if stored is not None:
            self._cache.move_to_end(key)
            return stored
        media, side, member = self._population.picture(image_id)
        base = face(media, side, member, self._fixed_bytes)
        part = stamped(base, f"synthetic {image_id} v{version}")
        stored = StoredObject(part, media.value, _generation(image_id, version))
        self._cache[key] = stored
        self._cached_bytes += len(part.data)
        while self._cached_bytes > _CACHE_BYTES and len(self._cache) > 1:
            _, oldest = self._cache.popitem(last=False)
            self._cached_bytes -= len(oldest.data)
        return stored


def _md5(data: bytes) -> str:
    digest = hashlib.md5(data, usedforsecurity=False).digest()
    return base64.b64encode(digest).decode("ascii")


def _generation(image_id: str, version: int) -> int:
    digest = hashlib.blake2b(f"{image_id}/{version}".encode(), digest_size=6).digest()
    return _FIRST_GENERATION + int.from_bytes(digest, "big")
