"""The images of an archive, each as its last sidecar tells it: one listing, and no request more."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple, cast

from bulkfetch.ahead import in_order, threads_of
from bulkfetch.archive import Identity, Tree, files
from bulkfetch.archive.look import Folder, held_at, local_folder
from bulkfetch.archive.tree import LocalTree
from bulkfetch.errors import BulkfetchError
from bulkfetch.models import ImageRecord, Sidecar, SidecarOutcome, UnlistedSidecar, json_text
from bulkfetch.paths import parse_template
from bulkfetch.plan import Place
from bulkfetch.verification import walk
from bulkfetch.verification.findings import Checked

_SIDECAR = re.compile(r"(?P<stem>.+\.v(?P<version>[0-9]+))(?:\.r[0-9]+)?\.json", re.DOTALL)
# Of an object store, so many answers are waited for side by side; and so many directories ahead.
_THREADS = 32
_AHEAD = 256

# What a record says that is nobody's name, note or file name.
_HARMLESS = {
    "id", "version", "status", "deactivated", "updated_at", "organization_id", "file_type",
}  # fmt: skip
_HARMLESS_LINKS = {"coverage": {"id", "side"}, "patient": {"id"}}


class ImageState(StrEnum):
    """What is known of an image by now; each version of an image is in exactly one.

    `unlisted` is in the archive, and the API does not list it any more; `damaged` has a sidecar
    that cannot be read, or whose file is not there or of another size; `missing` was archived, as a
    journal says, and has no sidecar. The others are as in `ImageOutcome`.
    """

    archived = "archived"
    unlisted = "unlisted"
    not_uploaded = "not_uploaded"
    filtered = "filtered"
    failed = "failed"
    not_reached = "not_reached"
    damaged = "damaged"
    missing = "missing"


class Image(NamedTuple):
    """One version of an image; `path` is its sidecar's without the ending.

    `became` is why it is unlisted; `kind` and `problem` say why it failed or what is damaged; `at`
    and `run_id` when and by which run it was last written; `seconds` how long its download took.
    `type` is what the file's bytes are, `file` its name, `size` their number. `sidecar` is JSON.
    """

    path: str
    image_id: str
    patient_id: str | None = None
    coverage_id: str | None = None
    version: int = 0
    status: str | None = None
    side: str | None = None
    type: str | None = None
    state: str = ImageState.damaged
    became: str | None = None
    kind: str | None = None
    problem: str | None = None
    size: int | None = None
    at: str | None = None
    seconds: float | None = None
    run_id: str | None = None
    name: str | None = None
    file: str | None = None
    sidecar: str | None = None

    @property
    def directory(self) -> str:
        """The path of the directory in which it lies."""
        return self.path.rpartition("/")[0]


def images_of(
    tree: Tree, identity: Identity, elsewhere: Checked, *, show_names: bool
) -> Iterator[list[Image]]:
    """Yield the images of each directory; what is no image's is noted in `elsewhere`.

    Without `show_names` nothing is told of a sidecar that may be a name, a note or a manifest's
    own column.

    Raises:
        OSError, DestinationError: the archive cannot be read.
    """
    depth = len(parse_template(identity.path_template))
    read = partial(_images_in, show_names=show_names)
    if isinstance(tree, LocalTree):
        with files.descriptor(tree.root) as root:
            for path in walk.leaves_of(root, "", depth, elsewhere):
                yield read(path, partial(local_folder, tree.root, path))
        return
    from bulkfetch.archive.store_folder import StoreFolder  # noqa: PLC0415  an extra
    from bulkfetch.archive.store_tree import Leaf, StoreTree, leaves_of  # noqa: PLC0415
    from bulkfetch.verification.bucket import check_elsewhere  # noqa: PLC0415

    store = cast("StoreTree", tree).store

    def read_leaf(leaf: Leaf) -> list[Image]:
        path, found = leaf
        return read(path, lambda: nullcontext(StoreFolder(store, path, found)))

    with threads_of(_THREADS, "report") as pool:
        leaves = leaves_of(store, depth, partial(check_elsewhere, elsewhere))
        yield from in_order(pool, read_leaf, leaves, _AHEAD)


def _images_in(
    directory: str,
    folder_at: Callable[[], AbstractContextManager[Folder]],
    *,
    show_names: bool,
) -> list[Image]:
    try:
        with folder_at() as folder:
            matches = filter(None, map(_SIDECAR.fullmatch, sorted(folder.names)))
            stems = {match["stem"]: int(match["version"]) for match in matches}
            return [
                _image(Place(directory, stem), version, folder, show_names=show_names)
                for stem, version in stems.items()
            ]
    except (OSError, BulkfetchError) as error:
        return [Image(f"{directory}/", "", problem=_words(error))]


def _image(place: Place, version: int, folder: Folder, *, show_names: bool) -> Image:
    path = f"{place.directory}/{place.stem}"
    problem: str | None
    try:
        held = held_at(place, folder, rehash=False)
        if held.state is not None:
            return _image_of(path, held.state, held.damage, show_names=show_names)
        problem = held.damage
    except (OSError, BulkfetchError) as error:
        problem = _words(error)
    except (ValueError, RecursionError):
        problem = "its sidecar cannot be read"
    return Image(path, place.stem.rpartition(".v")[0], version=version, problem=problem)


def _image_of(path: str, state: Sidecar, damage: str | None, *, show_names: bool) -> Image:
    """Return an image as its sidecar tells it.

    Raises:
        ValueError: its record is none, or lies deeper than can be told.
    """
    record = ImageRecord.model_validate(state.record)
    return Image(
        path=path,
        image_id=state.image_id,
        patient_id=state.patient_id,
        coverage_id=state.coverage_id,
        version=state.version,
        status=state.status,
        side=record.coverage.side if record.coverage else None,
        type=state.file.media_type if state.file else None,
        state=ImageState.damaged if damage else _state_of(state),
        became=state.unlisted if isinstance(state, UnlistedSidecar) else None,
        problem=damage,
        size=state.file.size if state.file else None,
        at=state.fetched_at.isoformat(timespec="seconds"),
        run_id=state.run_id,
        name=record.display_name if show_names else None,
        file=state.file.path if state.file and not damage else None,
        sidecar=json_text(_told(state, show_names=show_names)),
    )


def _state_of(state: Sidecar) -> ImageState:
    if isinstance(state, UnlistedSidecar):
        return ImageState.unlisted
    if state.outcome is SidecarOutcome.downloaded:
        return ImageState.archived
    return ImageState.not_uploaded


def _told(state: Sidecar, *, show_names: bool) -> dict[str, Any]:
    told = state.model_dump(mode="json")
    if not show_names:
        record = told["record"]
        told["record"] = {
            key: _told_of_link(value, _HARMLESS_LINKS[key]) if key in _HARMLESS_LINKS else value
            for key, value in record.items()
            if key in _HARMLESS or key in _HARMLESS_LINKS
        }
        del told["manifest"]
    return told


def _told_of_link(link: object, harmless: set[str]) -> object:
    if not isinstance(link, dict):
        return None
    return {key: value for key, value in link.items() if key in harmless}


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
