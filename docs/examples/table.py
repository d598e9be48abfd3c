# %% [markdown]
# # An archive as a table
#
# A line an image, as it is now: who it is of, what it is, how large, and where its file lies. What
# the API's records say of people (names, notes) is left out; add it from `image.sidecar.record`
# where the table is kept as safe as the archive.
#
# `pip install . pandas` in a clone, then `python table.py ARCHIVE`, or cell by cell in an editor.

# %%
import asyncio
import sys

import pandas as pd

from bulkfetch import Archive, ArchivedImage

OUT = sys.argv[1] if len(sys.argv) > 1 else "bulkfetch-demo/archive"


# %%
def row(image: ArchivedImage) -> dict[str, object]:
    """Return what the table has of an image."""
    sidecar = image.sidecar
    coverage = sidecar.record.get("coverage") or {}
    return {
        "patient_id": sidecar.patient_id,
        "image_id": sidecar.image_id,
        "version": sidecar.version,
        "is_latest": image.is_latest,
        "status": sidecar.status,
        "side": coverage.get("side"),
        "media_type": sidecar.file.media_type if sidecar.file else None,
        "bytes": sidecar.file.size if sidecar.file else 0,
        "fetched_at": sidecar.fetched_at,
        "path": image.path,
    }


async def rows(out: str) -> list[dict[str, object]]:
    """Return a row for each image of an archive: a directory, or a URL such as s3://bucket/x."""
    async with Archive(out) as archive:
        return [row(image) async for image in archive.images()]


# %%
# In a notebook: `pd.DataFrame(await rows(OUT))`.
images = pd.DataFrame(asyncio.run(rows(OUT))).sort_values(["patient_id", "image_id", "version"])
print(f"{len(images):,} images of {images.patient_id.nunique():,} patients")

# %%
latest = images[images.is_latest]
told = latest.fillna({"side": "not told", "media_type": "no file"})
print(pd.crosstab(told.media_type, told.side, margins=True, margins_name="all"))

# %%
# Patients of whom only one side of a card is there; of some no image says which side it is.
uploaded = latest[latest.status == "UPLOADED"]
sides = uploaded.groupby("patient_id").side.nunique()
print(f"{(sides == 1).sum():,} patients with one side alone")
print(f"{(sides == 0).sum():,} patients of whom no side is told")
