"""An export into a bucket, and what lies there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bulkfetch.simulator import Simulator
from bulkfetch.stores import open_store
from tests.conftest import Result, download
from tests.stores import SECRET, Bucket


def run(simulator: Simulator, manifest: str | Path, bucket: Bucket, *options: str) -> Result:
    result = download(simulator, manifest, f"{bucket.url}/export", *options)
    assert SECRET not in result.out + result.err
    return result


def put(bucket: Bucket, path: str, data: bytes, *, overwrite: bool = False) -> None:
    open_store(bucket.url).put(path, data, "overwrite" if overwrite else "create")


def remove(bucket: Bucket, path: str) -> None:
    open_store(bucket.url).delete(path)


def images(contents: dict[str, bytes]) -> Iterator[tuple[str, dict[str, Any], bytes | None]]:
    """The sidecars, each with its file."""
    for path, data in contents.items():
        if path.endswith(".json") and "/.bulkfetch/" not in path:
            sidecar = json.loads(data)
            file = sidecar["file"]
            held = contents[f"{path.rpartition('/')[0]}/{file['path']}"] if file else None
            yield path, sidecar, held
