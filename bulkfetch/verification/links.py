"""The journals as chains: whether each line follows from the one before, and each run from all."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from pydantic import BaseModel, TypeAdapter, ValidationError

from bulkfetch import chain
from bulkfetch.archive import Tree
from bulkfetch.archive.tree import is_there
from bulkfetch.verification.events import Event, event_of
from bulkfetch.verification.findings import Checked, Kind


class _Started(BaseModel):
    heads: Mapping[str, Mapping[str, str]] = {}


class _Finished(BaseModel):
    heads: Mapping[str, str] = {}


_STARTED = TypeAdapter(_Started)
_FINISHED = TypeAdapter(_Finished)


class Links:
    """What the journals of all runs name of each other, and what was found of it.

    `heads` are digests that somebody kept elsewhere.
    """

    def __init__(self, tree: Tree, heads: Collection[str]) -> None:
        self._tree = tree
        # By journal and digest; a head that was kept elsewhere may be any journal's.
        self._named = {("", head): "--head" for head in heads}
        self._ends: dict[str, str] = {}
        for run_id in chain.runs_of(tree):
            for journal, head, by in self._named_by(run_id):
                self._named.setdefault((journal, head), by)

    def follow(
        self, path: str, begin: str | None, checked: Checked
    ) -> Iterator[tuple[bytes, Event | None]]:
        """Yield a journal's lines and their events, and note where one does not follow the last.

        `begin` is the digest that its first line follows, None of a run's first journal. A last
        line without an end is yielded, too: it was cut, and is no event.

        Raises:
            OSError: the journal cannot be read.
        """
        journal = path.removeprefix(f"{chain.RUNS}/")
        previous = begin
        is_sound, has_ended = True, False
        with self._tree.open(path) as file:
            for number, line in enumerate(file, 1):
                event = event_of(line)
                is_whole = line.endswith(b"\n")
                told = event.previous if event else _previous(line)
                if is_sound and is_whole and (has_ended or told != previous):
                    is_sound = False
                    name = f"{path}:{number}"
                    does = "comes after the end" if has_ended else "does not follow from the last"
                    checked.find(Kind.chain, name, f"it {does}")
                if is_whole:
                    previous = chain.digest(line)
                    self._named.pop((journal, previous), None)
                    self._named.pop(("", previous), None)
                    has_ended = line.startswith(chain.FINISHED) or (
                        previous == self._ends.get(journal)
                    )
                yield line, event

    def missing(self, checked: Checked) -> None:
        """Note what is named and was not found, once all journals were followed."""
        for (journal, head), by in self._named.items():
            if not journal:
                checked.find(Kind.chain, chain.RUNS, f"no line has the digest {head}")
                continue
            path = f"{chain.RUNS}/{journal}"
            if is_there(self._tree, path):
                what = f"it has no longer the line that {by} names: it was cut or written anew"
                checked.find(Kind.chain, path, what)
            else:
                checked.find(Kind.chain, path, f"{by} names it")

    def _named_by(self, run_id: str) -> Iterator[tuple[str, str, str]]:
        """Yield what a run names: in which journal, by its path below the runs, a line's digest."""
        path = f"{chain.RUNS}/{run_id}/{chain.FIRST}"
        try:
            with self._tree.open(path) as file:
                started = _STARTED.validate_json(file.readline())
            finished = _FINISHED.validate_json(chain.last_line(self._tree, path))
        except (OSError, ValidationError):
            return
        by = f"run {run_id}"
        for other, heads in started.heads.items():
            for journal, head in heads.items():
                yield f"{other}/{journal}", head, by
        for journal, head in finished.heads.items():
            self._ends[f"{run_id}/{journal}"] = head
            yield f"{run_id}/{journal}", head, by


def begin_of(tree: Tree, run_id: str) -> str | None:
    """Return the digest of a run's first line, which its other journals follow."""
    try:
        with tree.open(f"{chain.RUNS}/{run_id}/{chain.FIRST}") as file:
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
