"""Whether an object store will take the images."""

from __future__ import annotations

import secrets
from contextlib import suppress

from yarl import URL

from bulkfetch.archive import Identity, files, tree_at
from bulkfetch.archive.identity import claimed, identity_for, identity_of
from bulkfetch.doctor.checks import Checks, ProblemError, SkippedError, aside
from bulkfetch.paths import PRIVATE
from bulkfetch.settings import Settings
from bulkfetch.stores import READ_RETRIES, open_store


class Bucket:
    """The checks of a URL that is, or is to be, an archive; they leave nothing behind."""

    def __init__(self, out: str, settings: Settings) -> None:
        self._out = out
        self._settings = settings
        self._wanted = Identity(
            api_host=URL(settings.api_base_url).host or "", path_template=settings.path_template
        )

    async def check(
        self, checks: Checks, *, tells_where: bool, organization_id: str | None
    ) -> None:
        """Do all of them; whose archive it is, only where the settings tell whose it should be."""
        here = ["destination"]
        await checks("destination", lambda: aside(self._bucket))
        await checks(
            "archive",
            lambda: aside(lambda: self._archive(organization_id)),
            needs=here if tells_where else [*here, "settings"],
        )
        await checks("writing", lambda: aside(self._writing), needs=here)

    def _bucket(self) -> str:
        store = open_store(self._out, retries=READ_RETRIES)
        with files.named(self._out):
            identity_of(tree_at(self._out))
            below, objects = store.level(PRIVATE)
        there = "an archive is there" if below or objects else "no archive is there yet"
        return f"{self._out} can be listed and read; {there}"

    def _archive(self, organization_id: str | None) -> str:
        tree = tree_at(self._out)
        with files.named(self._out):
            found = identity_for(tree, self._wanted)
            if found is None:
                raise SkippedError("none yet: the first run makes it one")
            if organization_id:
                claimed(tree, found, organization_id)
            # Shards may run side by side.
            if self._settings.shard is None and tree.at_work():
                raise ProblemError("a run is at work in it", "wait for it to end")
        return (
            f"of {found.api_host}, organization {found.organization_id or 'not known yet'}, "
            f"template {found.path_template}"
        )

    def _writing(self) -> str:
        store = open_store(self._out, retries=READ_RETRIES)
        path = f"{PRIVATE}/.{secrets.token_hex(16)}.part"
        with files.named(self._out):
            store.create(path, b"probe\n")
            try:
                with suppress(FileExistsError):
                    store.put(path, b"another\n")
                    raise ProblemError(
                        "the store overwrites what is only to be put where there is nothing",
                        "use one that heeds If-None-Match, as S3 does",
                    )
            finally:
                store.delete(path)
        return "an object can be put where there is none, is not overwritten, and can be removed"
