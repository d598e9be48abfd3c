"""The journals as chains: whether each line follows from the one before, and each run from all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

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

    def __init__(self, tree: Tree, runs: Sequence[str], heads: Collection[str]) -> None:
        self._tree = tree
        # By run, then by journal and digest; a head kept elsewhere may be in any journal.
        self._named: defaultdict[str, dict[tuple[str, str], str]] = defaultdict(dict)
        self._heads = set(heads)
        self._ends: dict[str, str] = {}
        for run in runs:
            for other, journal, head, by in self._named_by(run):
                self._named[other].setdefault((journal, head), by)

    def follow(
        self, path: str, begin: str | None, checked: Checked, *, may_be_cut: bool
    ) -> Iterator[tuple[bytes, Event]]:
        """Yield a journal's lines and their events; the first that is out of order is a finding.

        `begin` is the digest that its first line follows, None of a run's first journal. A last
        line without an end is left out: it was cut, which `may_be_cut` of a killed run.

        Raises:
            OSError: the journal cannot be read.
        """
        run, _, journal = path.removeprefix(f"{chain.RUNS}/").partition("/")
        named, end = self._named[run], self._ends.get(path)
        previous = begin
        is_sound, has_ended = True, False
        with self._tree.open(path) as file:
            for number, line in enumerate(file, 1):
                event = event_of(line)
                is_whole = line.endswith(b"\n")
                if is_sound and (is_whole or not may_be_cut):
                    kind, what = Kind.chain, ""
                    if event is None:
                        kind, what = Kind.journal, "it is no event"
                    elif has_ended:
                        what = "it comes after the end"
                    elif event.previous != previous:
                        what = "it does not follow from the last"
                    if what:
                        is_sound = False
                        checked.find(kind, f"{path}:{number}", what)
                if is_whole:
                    previous = chain.digest(line)
                    named.pop((journal, previous), None)
                    self._heads.discard(previous)
                    has_ended = line.startswith(chain.FINISHED) or previous == end
                if event is not None:
                    yield line, event

    def missing(self, run: str) -> Iterator[tuple[str, str]]:
        """Yield what is named of a run and was not found, once its journals were followed.

        That is a journal, once, and what is wrong with it.
        """
        lacking = {journal: by for (journal, _), by in self._named.pop(run, {}).items()}
        for journal, by in lacking.items():
            path = f"{chain.RUNS}/{run}/{journal}"
            what = f"it has no longer the line that {by} names: it was cut or written anew"
            yield path, what if is_there(self._tree, path) else f"{by} names it"

    def missing_elsewhere(self) -> Iterator[tuple[str, str]]:
        """Yield the same of runs that are not there, and of heads that were kept elsewhere."""
        for run in list(self._named):
            yield from self.missing(run)
        for head in sorted(self._heads):
            yield chain.RUNS, f"no line has the digest {head}"

    def _named_by(self, run: str) -> Iterator[tuple[str, str, str, str]]:
        """Yield what a run names: in which run and journal, a line's digest; and who names it."""
        path = f"{chain.RUNS}/{run}/{chain.FIRST}"
        try:
            with self._tree.open(path) as file:
                started = _STARTED.validate_json(file.readline())
            finished = _FINISHED.validate_json(chain.last_line(self._tree, path))
        except (OSError, ValidationError):
            return
        by = f"run {run}"
        for other, heads in started.heads.items():
            for journal, head in heads.items():
                yield other, journal, head, by
        for journal, head in finished.heads.items():
            self._ends[f"{chain.RUNS}/{run}/{journal}"] = head
            yield run, journal, head, by


def begin_of(tree: Tree, run_id: str) -> str | None:
    """Return the digest of a run's first line, which its other journals follow."""
    try:
        with tree.open(f"{chain.RUNS}/{run_id}/{chain.FIRST}") as file:
            return chain.digest(file.readline())
    except OSError:
        return None
