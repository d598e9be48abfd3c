"""One directory of images: every sidecar against its file, and whatever else lies there."""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from functools import partial

from pydantic import ValidationError

from bulkfetch.archive import Identity, files
from bulkfetch.archive.look import parse_sidecar
from bulkfetch.errors import ArchiveMismatchError, PathRefusedError
from bulkfetch.models import ImageRecord, ManifestRow, Sidecar, UnlistedSidecar
from bulkfetch.paths import safe_name
from bulkfetch.plan import Place, place_of
from bulkfetch.verification.findings import Checked, Kind, Sample, Taken, key_of
from bulkfetch.verification.source import ALGORITHMS, FoundError, Source, Take
from bulkfetch.words import counted

_SIDECAR = re.compile(r"(?P<stem>.+\.v[0-9]+)(?:\.r(?P<revision>[0-9]+))?\.json", re.DOTALL)
_PART = re.compile(r"\..+\.part", re.DOTALL)


def check_leaf(
    root: int, path: str, identity: Identity, sample: Sample | None, take: Take | None = None
) -> Checked:
    """Check a directory, given a descriptor of the archive's root; nothing is written.

    `take` is handed each sidecar and file, as it is read for the check.
    """
    checked = Checked()
    try:
        directory = files.open_directory(path, root)
    except (OSError, PathRefusedError) as error:
        checked.find(Kind.unreadable, path, _reason(error))
        return checked
    try:
        _Leaf(directory, path, identity, sample, checked, take=take).check()
    except OSError as error:
        checked.find(Kind.unreadable, path, _reason(error))
    finally:
        os.close(directory)
    return checked


class _Leaf:
    def __init__(
        self,
        directory: int,
        path: str,
        identity: Identity,
        sample: Sample | None,
        checked: Checked,
        *,
        take: Take | None,
    ) -> None:
        self._directory = directory
        self._path = path
        self._identity = identity
        self._sample = sample
        self._take = take
        self._checked = checked

    def check(self) -> None:
        revisions: defaultdict[str, list[int]] = defaultdict(list)
        images: set[str] = set()
        with os.scandir(self._directory) as entries:
            for entry in entries:
                if entry.is_symlink():
                    self._find(Kind.link, entry.name, "a symbolic link")
                elif not entry.is_file(follow_symlinks=False):
                    self._find(Kind.stray, entry.name, "no file")
                elif found := _SIDECAR.fullmatch(entry.name):
                    revisions[found["stem"]].append(int(found["revision"] or 1))
                elif _PART.fullmatch(entry.name):
                    self._find(Kind.part, entry.name, "left half-made")
                else:
                    images.add(entry.name)
        for stem, numbers in revisions.items():
            images.discard(self._check_image(stem, sorted(numbers), images) or "")
        for name in sorted(images):
            self._find(Kind.stray, name, "no sidecar names it")

    def _check_image(self, stem: str, revisions: Sequence[int], images: set[str]) -> str | None:
        """Check an image's sidecars and its file; return the file's name."""
        self._checked.sidecars += len(revisions)
        if list(revisions) != list(range(1, revisions[-1] + 1)):
            shown = ", ".join(map(str, revisions))
            self._find(Kind.missing, f"{stem}.json", f"of its sidecars there are only {shown}")
        states = [state for number in revisions if (state := self._read(stem, number)) is not None]
        held = [state.file for state in states if state.file]
        if not held:
            return None
        file = held[-1]
        if any(other != file for other in held):
            self._find(Kind.inconsistent, f"{stem}.json", "its sidecars name different files")
        if file.path.rpartition(".")[0] != stem or "/" in file.path:
            self._find(Kind.inconsistent, f"{stem}.json", "it names a file that is not its own")
            return None
        if file.path not in images:
            self._find(Kind.missing, file.path, "its file is missing")
            return None
        self._checked.files += 1
        try:
            self._check_file(file.path, file.size, file.sha256)
        except FoundError as error:
            self._find(error.kind, file.path, str(error))
        except OSError as error:
            self._find(Kind.unreadable, file.path, _reason(error))
        return file.path

    def _read(self, stem: str, revision: int) -> Sidecar | None:
        here = Place(self._path, stem)
        name = here.sidecar(revision)
        try:
            with files.opened(name, self._directory) as descriptor:
                raw = files.read_to_end(descriptor)
                state = parse_sidecar(raw)
                record = ImageRecord.model_validate(state.record)
                digest = hashlib.sha256(raw).digest()
                self._checked.digests.append((key_of(f"{self._path}/{name}"), digest))
                if self._take:
                    source = Source(os.fstat(descriptor), io.BytesIO(raw).read)
                    self._hand_on(name, source, state.patient_id)
        except FoundError as error:
            self._find(error.kind, name, str(error))
            return None
        except ArchiveMismatchError as error:
            self._find(Kind.schema, name, str(error))
            return None
        except OSError as error:
            self._find(Kind.unreadable, name, _reason(error))
            return None
        except (ValidationError, ValueError, RecursionError):
            self._find(Kind.torn, name, "it is no sidecar, or not a whole one")
            return None
        asked = state.requested
        row = ManifestRow(line=0, patient_id=asked.patient_id, coverage_id=asked.coverage_id)
        place = place_of(record, row, self._identity.path_template)
        if isinstance(state, UnlistedSidecar):
            # Its record is that of today; the image's own sidecar says where both belong.
            ours = f"{safe_name(state.image_id)}.v{state.version}" == stem
            same = ours and state.image_id == record.id
        else:
            if place != here:
                self._find(Kind.misplaced, name, f"it belongs to {place.directory}/{place.stem}")
            same = (state.image_id, state.version) == (record.id, record.version)
        if not same:
            self._find(Kind.inconsistent, name, "its record is of another image or version")
        owner = self._identity.organization_id
        if owner and record.organization_id and record.organization_id != owner:
            self._find(Kind.foreign, name, "it is of another organization")
        return state

    def _check_file(self, name: str, size: int, sha256: str) -> None:
        with files.opened(name, self._directory) as descriptor:
            state = os.fstat(descriptor)
            if state.st_size != size:
                self._find(
                    Kind.changed, name, f"it has {counted(state.st_size, 'byte')}, not {size:,}"
                )
                return
            if self._sample is not None and not is_in(self._sample, f"{self._path}/{name}"):
                return
            algorithms = ALGORITHMS if self._take else ALGORITHMS[:1]
            source = Source(state, partial(os.read, descriptor), algorithms)
            self._hand_on(name, source)
        self._checked.hashed += 1
        self._checked.bytes += size
        if source.digests()[0].hex() != sha256:
            self._find(Kind.changed, name, "its SHA-256 is another")

    def _hand_on(self, name: str, source: Source, patient_id: str | None = None) -> None:
        """Have it read to its end: by whoever takes it, or for its SHA-256 alone."""
        if self._take is None:
            source.drain()
            return
        path = f"{self._path}/{name}"
        self._take(self._directory, path, source)
        taken = Taken(path, source.state.st_size, source.digests(), patient_id)
        self._checked.taken.append(taken)

    def _find(self, kind: Kind, name: str, detail: str) -> None:
        self._checked.find(kind, f"{self._path}/{name}", detail)


def is_in(sample: Sample, path: str) -> bool:
    """Tell whether a file is in a sample."""
    digest = hashlib.sha256(f"{sample.seed}/{path}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") < sample.percent / 100 * 2**64


def _reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
