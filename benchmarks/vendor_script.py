"""What users write today: the vendor's asynchronous client, httpx, a semaphore and a sidecar.

python -m benchmarks.vendor_script MANIFEST DIRECTORY API_URL
"""

from __future__ import annotations

import asyncio
import csv
import hashlib
import json
import sys
import warnings
from pathlib import Path

import httpx

with warnings.catch_warnings():
    # The client declares its models in a way that pydantic 2 warns of.
    warnings.simplefilter("ignore")
    from candid.client import AsyncCandidApiClient
    from candid.environment import CandidApiClientEnvironment
    from candid.resources.pre_encounter.resources.images.resources.v_1 import Image

AT_ONCE = 32


async def main(manifest: Path, directory: Path, url: str) -> None:
    """Fetch all that the manifest's patients have."""
    limits = httpx.Limits(max_connections=None)
    turn = asyncio.Semaphore(AT_ONCE)
    async with httpx.AsyncClient(timeout=60, limits=limits) as http:
        client = AsyncCandidApiClient(
            token=lambda: "benchmark",
            environment=CandidApiClientEnvironment(candid_api=url, pre_encounter=url),
            httpx_client=http,
        )

        async def fetch(image: Image) -> None:
            async with turn:
                answer = await http.get(image.signed_url)
            answer.raise_for_status()
            folder = directory / (image.patient.id if image.patient else "none")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{image.id}.img").write_bytes(answer.content)
            sidecar = {
                "id": image.id,
                "version": image.version,
                "status": image.status,
                "sha256": hashlib.sha256(answer.content).hexdigest(),
            }
            (folder / f"{image.id}.json").write_text(json.dumps(sidecar), encoding="utf-8")

        async def patient(patient_id: str) -> None:
            async with turn:
                images = await client.pre_encounter.images.v_1.get_multi(patient_id=patient_id)
            await asyncio.gather(*map(fetch, images))

        with manifest.open(encoding="utf-8") as rows:
            await asyncio.gather(*(patient(row["patient_id"]) for row in csv.DictReader(rows)))


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    asyncio.run(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]))
