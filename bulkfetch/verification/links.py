"""The journals as chains: whether each line follows from the one before, and each run from all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pydantic import BaseModel, TypeAdapter, ValidationError

from bulkfetch import chain
from bulkfetch.verification.findings import Checked, Kind


class _Started(BaseModel):
    heads: Mapping[str, Mapping[str, str]] = {}


class _Finished(BaseModel):
    heads: Mapping[str, str] = {}


_STARTED = TypeAdapter(_Started)
_FINISHED = TypeAdapter(_Finished)


class _Named(NamedTuple):
    """A line that is to be there: in which journal, by its path below the runs, and who says so."""

    journal: str
    by: str


class Links:
    """What the journals of all runs name of each other, and what was found of it.

    `heads` are digests that somebody kept elsewhere.
    """

    def __init__(self, runs: Path, heads: Collection[str]) -> None:
        self._runs = runs
        self._named = {head: _Named("", "--head") for head in heads}
        for run in sorted(runs.glob("*")):
            for head, named in _named_by(run):
                self._named.setdefault(head, named)

    def follow(self, path: Path, checked: Checked) -> Iterator[bytes]:
        """Yield a journal's whole lines, and note where one does not follow from the last.

        A last line without an end is yielded, too: it was cut.

        Raises:
            OSError: the journal cannot be read.
        """
        previous = _first(path.with_name(chain.FIRST)) if path.name != chain.FIRST else None
        is_sound = True
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if is_sound and line.endswith(b"\n") and _previous(line) != previous:
                    is_sound = False
                    name = f"{self._name(path)}:{number}"
                    checked.find(Kind.chain, name, "it does not follow from the line before")
                previous = chain.digest(line)
                self._named.pop(previous, None)
                yield line

    def missing(self, checked: Checked) -> None:
        """Note what is named and was not found, once all journals were followed."""
        for head, (journal, by) in self._named.items():
            if not journal:
                checked.find(Kind.chain, self._name(self._runs), f"no line has the digest {head}")
            elif not (self._runs / journal).exists():
                checked.find(Kind.chain, self._name(self._runs / journal), f"{by} names it")
            else:
                what = f"it has no longer the line that {by} names: it was cut or written anew"
                checked.find(Kind.chain, self._name(self._runs / journal), what)

    def _name(self, path: Path) -> str:
        return str(path.relative_to(self._runs.parent.parent))


def _named_by(run: Path) -> Iterator[tuple[str, _Named]]:
    try:
        with (run / chain.FIRST).open("rb") as file:
            started = _STARTED.validate_json(file.readline())
        finished = _FINISHED.validate_json(chain.last_line(run / chain.FIRST))
    except (OSError, ValidationError):
        return
    by = f"run {run.name}"
    for other, heads in started.heads.items():
        for journal, head in heads.items():
            yield head, _Named(f"{other}/{journal}", by)
    for journal, head in finished.heads.items():
        yield head, _Named(f"{run.name}/{journal}", by)


def _first(path: Path) -> str | None:
    try:
        with path.open("rb") as file:
            return chain.digest(file.readline())
    except OSError:
        return None


class _Line(BaseModel):
    previous: str | None = None


_LINE = TypeAdapter(_Line)


def _previous(line: bytes) -> str | None:
    try:
        return _LINE.validate_json(line).previous
    except ValidationError:
        return None
