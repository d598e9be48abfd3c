"""What this machine has for an archive: a directory, a disk, and open files."""

from __future__ import annotations

import asyncio
import os
import re
import resource
import secrets
import socket
from importlib.util import find_spec
from pathlib import Path

from pydantic import ValidationError
from yarl import URL

from bulkfetch.archive import Identity, files
from bulkfetch.archive.identity import identity_of
from bulkfetch.archive.local import LocalArchive
from bulkfetch.archive.lock import at_work
from bulkfetch.archive.tree import LocalTree
from bulkfetch.doctor.checks import Checks, ProblemError, SkippedError, aside
from bulkfetch.errors import DestinationError
from bulkfetch.limits import files_needed
from bulkfetch.models import Summary
from bulkfetch.paths import PRIVATE
from bulkfetch.progress import size_text
from bulkfetch.settings import Address, Settings
from bulkfetch.words import counted

# Locks, and what has reached the disk, are another machine's affair there. Any that is not named
# is taken for local, since there is no list of all.
_REMOTE = re.compile(
    r"9p|afs|beegfs|ceph|cifs|gfs2|gpfs|lustre|ncpfs|nfs4?|ocfs2|smb3|smbfs|"
    r"fuse\.(?:blobfuse2?|ceph.*|curlftpfs|gcsfuse|gluster.*|goofys|juicefs|mount-s3|rclone|s3fs|"
    r"sshfs)"
)
# An image is two files, and a patient a directory.
_FEWEST_FILES_LEFT = 1_000
_FILES_PER_IMAGE = 2
_SIDECAR_BYTES = 4096
_SUMMARIES_READ_AT_MOST = 20
_ENDS_WITHIN_S = 5.0


class Directory:
    """The checks of a directory that is, or is to be, an archive; they leave nothing behind."""

    def __init__(self, out: str, settings: Settings) -> None:
        self._out = out
        self._root = Path(out)
        self._settings = settings
        self._wanted = Identity(
            api_host=URL(settings.api_base_url).host or "", path_template=settings.path_template
        )

    async def check(
        self, checks: Checks, *, tells_where: bool, organization_id: str | None
    ) -> None:
        """Do all of them; whose archive it is, only where the settings tell whose it should be."""
        here = ["destination"]
        await checks("destination", lambda: aside(self._directory))
        await checks(
            "archive",
            lambda: self._archive(organization_id),
            needs=here if tells_where else [*here, "settings"],
        )
        await checks("file system", lambda: aside(self._file_system), needs=here)
        await checks("writing", self._writing, needs=here)
        await checks("disk", lambda: aside(self._disk), needs=here)

    def _directory(self) -> str:
        with files.named(self._out):
            LocalArchive.check(self._out, identity_of(LocalTree(self._root)) or self._wanted)
            if self._root.exists():
                return f"{self._root.resolve()} is a directory"
            return f"{self._root.absolute()} is not there yet: {files.nearest(self._root)} is"

    async def _archive(self, organization_id: str | None) -> str:
        found = await aside(lambda: identity_of(LocalTree(self._root)))
        if found is None:
            raise SkippedError("none yet: the first run makes it one")
        if organization_id:
            with LocalArchive.read_only(self._out, self._wanted) as archive:
                await archive.claim(organization_id)
        # Shards may run side by side.
        if self._settings.shard is None and at_work(self._root / PRIVATE):
            raise ProblemError("a run is at work in it", "wait for it to end")
        return (
            f"of {found.api_host}, organization {found.organization_id or 'not known yet'}, "
            f"template {found.path_template}"
        )

    def _file_system(self) -> str:
        kind = _file_system_of(files.nearest(self._root))
        if kind is None:
            raise SkippedError("this system does not tell what kind it is")
        if _REMOTE.fullmatch(kind):
            raise ProblemError(
                f"{kind}, which is another machine's",
                "use a local disk: locks and fsync cannot be relied on there; copy the archive "
                "when it is done",
            )
        return f"{kind}, local"

    async def _writing(self) -> str:
        place = files.nearest(self._root).absolute()
        trying = asyncio.ensure_future(aside(lambda: _try_to_write(place)))
        try:
            await asyncio.shield(trying)
        except asyncio.CancelledError:
            # The file is gone before the program is; but a dead disk is not waited for.
            await asyncio.wait([trying], timeout=_ENDS_WITHIN_S)
            raise
        return f"a file can be made in {place}, renamed, brought to the disk and removed"

    def _disk(self) -> str:
        nearest = files.nearest(self._root)
        with files.named(self._out):
            files.Room(nearest).look()
            found = os.statvfs(nearest)
        if not found.f_blocks:
            raise SkippedError("this file system does not tell how large it is")
        free_bytes, free_files = found.f_bavail * found.f_frsize, found.f_favail
        told = f"{size_text(free_bytes)} free"
        rooms = []
        if found.f_files:  # some make inodes as they are needed
            told += f", for {counted(free_files, 'file')}"
            if free_files < _FEWEST_FILES_LEFT:
                raise ProblemError(told, "remove files from this disk, or use one with more inodes")
            rooms.append(free_files // _FILES_PER_IMAGE)
        if mean_bytes := _mean_image_bytes(self._root):
            rooms.append(int(free_bytes // (mean_bytes + _SIDECAR_BYTES)))
            images = counted(min(rooms), "image")
            told += f": room for {images} of {size_text(mean_bytes)}, as these are"
        return told


async def check_open_files(checks: Checks, settings: Settings) -> None:
    """Check how many files may be open, against what the concurrency in force needs."""

    async def limit() -> str:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        needed = files_needed(settings)
        if hard == resource.RLIM_INFINITY:
            return f"any number; a run needs {needed:,}"
        told = f"{hard:,} at most; a run needs {needed:,}"
        if needed > hard:
            raise ProblemError(
                told,
                "raise it (ulimit -Hn, LimitNOFILE= of a systemd unit), or lower "
                "--download-concurrency: a run does less at once",
            )
        return told

    await checks("open files", limit)


async def check_metrics(checks: Checks, file: Path | None, address: Address | None) -> None:
    """Check where a run's numbers are to go, if anywhere; the numbers that are there stay."""
    if file or address:
        await checks("metrics", lambda: aside(lambda: _metrics(file, address)))


def _metrics(file: Path | None, address: Address | None) -> str:
    if find_spec("prometheus_client") is None:
        raise ProblemError("prometheus-client is not installed", "pip install 'bulkfetch[metrics]'")
    told = []
    if file:
        try:
            files.check_parent(file, "--metrics-file")
        except DestinationError as error:
            raise ProblemError(str(error), "make it, or name another file") from error
        if file.is_dir():
            raise ProblemError(f"{file} is a directory", "name a file with --metrics-file")
        _try_to_write(file.parent, "--metrics-file")
        told.append(f"{file} can be written")
    if address:
        try:
            (family, *_), *_ = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)
            socket.create_server(address, family=family).close()
        except OSError as error:
            raise ProblemError(
                f"{address} cannot be listened at: {error.strerror}",
                "name another with --metrics-port",
            ) from error
        told.append(f"{address} can be listened at")
    return ", ".join(told)


def _try_to_write(place: Path, option: str = "--out") -> None:
    """Make a hidden file in a directory, and remove it: permissions alone do not tell."""
    name, renamed = (f".{secrets.token_hex(16)}.part" for _ in range(2))
    try:
        with files.descriptor(place) as directory:
            probe = files.create(name, directory)
            try:
                try:
                    files.rename(directory, name, renamed)
                    name = renamed
                finally:
                    # From here on it has no name: whatever happens, it is gone.
                    os.unlink(name, dir_fd=directory)
                files.write(probe, bytes(4096))
                os.fsync(probe)
                os.fsync(directory)
            finally:
                os.close(probe)
    except OSError as error:
        raise ProblemError(
            f"{place} takes no file: {error.strerror or type(error).__name__}",
            f"make it writable, or name another directory with {option}",
        ) from error


def _file_system_of(path: Path) -> str | None:
    """Its kind, as Linux tells it (proc(5), "mountinfo"); None elsewhere."""
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    kinds: dict[Path, str] = {}
    for line in lines.splitlines():
        fields, _, of_the_mount = line.partition(" - ")
        mounted_at = re.sub(r"\\([0-7]{3})", lambda o: chr(int(o[1], 8)), fields.split()[4])
        kinds[Path(mounted_at)] = of_the_mount.split()[0]
    real = path.resolve()
    return next((kinds[place] for place in (real, *real.parents) if place in kinds), None)


def _mean_image_bytes(root: Path) -> float:
    """The mean of what the last runs brought; 0 where they brought nothing."""
    size = images = 0
    runs = sorted(root.glob(f"{PRIVATE}/runs/*/summary.json"))
    for path in runs[-_SUMMARIES_READ_AT_MOST:]:
        try:
            summary = Summary.model_validate_json(files.read(path))
        except (OSError, ValidationError):
            continue
        size += summary.bytes
        images += summary.images.downloaded
    return size / images if images else 0.0
