"""One directory of images: every sidecar against its file, and whatever else lies there."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from io import BytesIO

from pydantic import ValidationError

from bulkfetch.archive import Identity, files
from bulkfetch.archive.look import parse_sidecar
from bulkfetch.errors import ArchiveMismatchError, PathRefusedError
from bulkfetch.models import FileInfo, ImageRecord, ManifestRow, Sidecar, UnlistedSidecar
from bulkfetch.paths import SIDECAR_NAME, safe_name
from bulkfetch.plan import Place, place_of
from bulkfetch.verification.directory import Directory, LocalDirectory
from bulkfetch.verification.findings import Checked, Kind, Sample, Taken, key_of
from bulkfetch.verification.source import ALGORITHMS, FoundError, Source, Take
from bulkfetch.words import counted

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
        check_directory(LocalDirectory(directory), path, identity, sample, checked, take=take)
    finally:
        os.close(directory)
    return checked


def check_directory(
    directory: Directory,
    path: str,
    identity: Identity,
    sample: Sample | None,
    checked: Checked,
    *,
    take: Take | None = None,
) -> None:
    """Check a directory, by its path below the archive, wherever it lies."""
    try:
        _Leaf(directory, path, identity, sample, checked, take=take).check()
    except OSError as error:
        checked.find(Kind.unreadable, path, _reason(error))


class _Leaf:
    def __init__(
        self,
        directory: Directory,
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
        # Names of what is no file; and images of which not every sidecar can be used, by stem.
        self._odd: set[str] = set()
        self._unclear: set[str] = set()

    def check(self) -> None:
        revisions: defaultdict[str, set[int]] = defaultdict(set)
        images: set[str] = set()
        for name, odd in self._directory.entries():
            found = SIDECAR_NAME.fullmatch(name)
            if odd:
                self._odd.add(name)
                self._find(odd[0], name, odd[1])
            elif _PART.fullmatch(name):
                self._find(Kind.part, name, "left half-made")
            elif not found:
                images.add(name)
            if found:
                revisions[found["stem"]].add(int(found["revision"] or 1))
        for stem, numbers in revisions.items():
            images.discard(self._check_image(Place(self._path, stem), numbers, images) or "")
        unclear = [Place(self._path, stem) for stem in self._unclear]
        for name in sorted(images):
            if not any(place.owns(name) for place in unclear):
                self._find(Kind.stray, name, "no sidecar names it")

    def _check_image(self, here: Place, revisions: set[int], images: set[str]) -> str | None:
        """Check an image's sidecars and its file; return the file's name."""
        readable = sorted(n for n in revisions if here.sidecar(n) not in self._odd)
        read = {n: both for n in readable if (both := self._read(here.sidecar(n)))}
        if len(read) < len(revisions):
            self._unclear.add(here.stem)
        if not readable:
            return None
        self._checked.images += 1
        self._checked.sidecars += len(readable)
        if len([n for n in revisions if n <= readable[-1]]) < readable[-1]:
            shown = ", ".join(map(str, readable))
            self._find(Kind.missing, here.sidecar(1), f"of its sidecars there are only {shown}")
        are_its_own = self._check_states(here, read)
        states = [state for state, _ in read.values()]
        if states and isinstance(states[-1], UnlistedSidecar):
            self._checked.unlisted += 1
        file = self._file_of(here, states, is_told=not are_its_own)
        return self._check_file(file, images) if file else None

    def _file_of(self, here: Place, states: Sequence[Sidecar], *, is_told: bool) -> FileInfo | None:
        """Return the file that sidecars name; where they do not agree is a finding, unless told."""
        held = [state.file for state in states if state.file]
        if not held:
            return None
        problem = None
        if not here.owns(held[-1].path):
            problem = "it names a file that is not its own"
        elif any(other != held[-1] for other in held):
            problem = "its sidecars name different files"
        if problem is None:
            return held[-1]
        self._unclear.add(here.stem)
        if not is_told:
            self._find(Kind.inconsistent, here.sidecar(1), problem)
        return None

    def _check_file(self, file: FileInfo, images: set[str]) -> str | None:
        """Check a file, and return its name if it is there."""
        if file.path not in images:
            if file.path not in self._odd:
                self._find(Kind.missing, file.path, "its file is missing")
            return None
        self._checked.files += 1
        try:
            self._check_bytes(file.path, file.size, file.sha256)
        except FoundError as error:
            self._find(error.kind, file.path, str(error))
        except OSError as error:
            self._find(Kind.unreadable, file.path, _reason(error))
        return file.path

    def _read(self, name: str) -> tuple[Sidecar, ImageRecord] | None:
        try:
            with self._directory.opened(name, ()) as source:
                raw = source.rest()
                state = parse_sidecar(raw)
                record = ImageRecord.model_validate(state.record)
                digest = hashlib.sha256(raw).digest()
                self._checked.digests.append((key_of(f"{self._path}/{name}"), digest))
                if self._take:
                    self._hand_on(name, Source(source.state, BytesIO(raw).read), state.patient_id)
        except FoundError as error:
            self._find(error.kind, name, str(error))
        except ArchiveMismatchError as error:
            self._find(Kind.schema, name, str(error))
        except OSError as error:
            self._find(Kind.unreadable, name, _reason(error))
        except (ValidationError, ValueError, RecursionError):
            self._find(Kind.torn, name, "it is no sidecar, or not a whole one")
        else:
            return state, record
        return None

    def _check_states(self, here: Place, read: Mapping[int, tuple[Sidecar, ImageRecord]]) -> bool:
        """Tell whether an image's sidecars are of it; the first that is not is a finding."""
        for number, (state, record) in read.items():
            if wrong := self._contradiction(here, state, record):
                self._find(wrong[0], here.sidecar(number), wrong[1])
                return False
        return True

    def _contradiction(
        self, here: Place, state: Sidecar, record: ImageRecord
    ) -> tuple[Kind, str] | None:
        owner = self._identity.organization_id
        if owner and record.organization_id and record.organization_id != owner:
            return Kind.foreign, "it is of another organization"
        if isinstance(state, UnlistedSidecar):
            # Its record is that of today; the image's own sidecar says where both belong.
            ours = f"{safe_name(state.image_id)}.v{state.version}" == here.stem
            same = ours and state.image_id == record.id
        else:
            same = (state.image_id, state.version) == (record.id, record.version)
        if not same:
            return Kind.inconsistent, "its record is of another image or version"
        if not isinstance(state, UnlistedSidecar):
            asked = state.requested
            row = ManifestRow(line=0, patient_id=asked.patient_id, coverage_id=asked.coverage_id)
            place = place_of(record, row, self._identity.path_template)
            if place != here:
                image = f"{place.directory}/{place.stem}"
                self._checked.displaced.append(image)
                return Kind.misplaced, f"it belongs to {image}"
        return None

    def _check_bytes(self, name: str, size: int, sha256: str) -> None:
        algorithms = ALGORITHMS if self._take else ALGORITHMS[:1]
        with self._directory.opened(name, algorithms) as source:
            found = source.state.st_size
            if found != size:
                self._find(Kind.changed, name, f"it has {counted(found, 'byte')}, not {size:,}")
                return
            if self._sample is not None and not is_in(self._sample, f"{self._path}/{name}"):
                return
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
        self._take(self._directory.descriptor, path, source)
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
