"""Names from strangers as paths, and what is decided about an image: pure functions."""

from __future__ import annotations

import itertools
import re
import unicodedata
from datetime import UTC, datetime
from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from bulkfetch.models import (
    FileInfo,
    ImageRecord,
    ManifestRow,
    Requested,
    Sidecar,
    SidecarOutcome,
)
from bulkfetch.paths import LONGEST_NAME, TEMPLATE_FIELDS, parse_template, safe_name
from bulkfetch.plan import Action, Held, Place, is_wanted, place_of, plan
from bulkfetch.settings import Settings

HARMLESS = re.compile(
    r"(?!coverage-|(?:con|prn|aux|nul|com\d|lpt\d)(?:\.|$))[a-z0-9_](?:[a-z0-9._-]{0,98}[a-z0-9_-])?",
    re.ASCII,
)
DEVICES = ["con", "prn", "aux", "nul", "com1", "lpt9", "CON", "nul.txt", "Com0.a.b", "conin$"]
AWKWARD = [
    "", ".", "..", "...", ".bulkfetch", "-rf", "--", "a.", "a..", "/", "\\", "/etc/passwd",
    "../../x", "a/b", "a\\b", "a:b", "a\0b", "a\nb", " ", " a", "a ", "~", "a~0123456789abcdef",
    "coverage-", "coverage-1", "COVERAGE-1", "Coverage-1", ".coverage-1", "-coverage-1",
    "p-1", "P-1", "straße", "STRASSE", "é", "e\u0301", "\u212b", "\u00c5", "\u0130", "\u0131",
    "\ufb01", "\ud800", "\udfff", "\U0001f600", "\u202egnp", "\ufeff", "a" * 100, "a" * 101,
    "A" * 100, "é" * 5000, "x.json", "x.part", "desktop.ini", *DEVICES,
]  # fmt: skip

anything = (
    st.text(st.characters(codec=None))
    | st.text("aAbB.-_~/\\ é\u0301\ud800:c", max_size=12)
    | st.sampled_from(AWKWARD)
    | st.text("abcxyz019._-", min_size=1, max_size=120)
    | st.sampled_from(AWKWARD).map(str.upper)
)


def folded(name: str) -> set[str]:
    """What file systems that fold case or normalise make of a name."""
    return {unicodedata.normalize(form, name.casefold()) for form in ("NFC", "NFD", "NFKC", "NFKD")}


def check_name(name: str) -> None:
    assert 1 <= len(name) <= LONGEST_NAME
    assert len(name.encode()) <= LONGEST_NAME
    assert name not in (".", "..", ".bulkfetch")
    assert not name.startswith((".", "-", "coverage-"))
    assert not name.endswith((".", " "))
    assert PurePosixPath(name).parts == PureWindowsPath(name).parts == (name,)
    assert re.fullmatch(r"[a-z0-9._~-]+", name, re.ASCII)
    assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", name)
    assert folded(name) == {name}


@given(anything)
@example("a~0123456789abcdef")
def test_any_text_becomes_one_harmless_path_component(identity: str) -> None:
    check_name(safe_name(identity))
    assert safe_name(identity) == safe_name(identity)


@pytest.mark.parametrize("identity", AWKWARD, ids=ascii)
def test_what_is_awkward_becomes_harmless(identity: str) -> None:
    check_name(safe_name(identity))


@given(anything, anything)
@example("p-1", "P-1")
@example("é", "e\u0301")
@example("a" * 101, "a" * 102)
def test_ids_that_differ_never_meet(one: str, other: str) -> None:
    assume(one != other)
    assert folded(safe_name(one)).isdisjoint(folded(safe_name(other)))


def test_all_awkward_ids_are_apart_from_each_other_and_their_foldings() -> None:
    texts = set(AWKWARD)
    for text in AWKWARD:
        for form in ("NFC", "NFD", "NFKC", "NFKD"):
            texts |= {unicodedata.normalize(form, cased) for cased in (text, text.upper())}
            texts.add(safe_name(text))
    names = [safe_name(text) for text in texts]
    assert len(set(names)) == len(texts)


@given(st.from_regex(HARMLESS, fullmatch=True))
@example("a" * 100)
@example("6f9619ff-8b86-d011-b42d-00c04fc964ff")
@example("console")
@example("com10")
@example("coverage")
def test_a_harmless_id_is_used_as_it_is(identity: str) -> None:
    assert safe_name(identity) == identity


@given(anything)
def test_only_the_harmless_are_used_as_they_are(identity: str) -> None:
    assert (safe_name(identity) == identity) == bool(HARMLESS.fullmatch(identity))


@given(anything)
def test_every_other_is_what_is_harmless_in_it_and_a_digest(identity: str) -> None:
    name = safe_name(identity)
    if name != identity:
        assert re.fullmatch(r"[a-z0-9._-]{0,40}~[0-9a-f]{16}", name, re.ASCII)


def record(**fields: Any) -> ImageRecord:
    return ImageRecord(**{"id": "i-1", "version": 1, "status": "UPLOADED", **fields})


def row(**fields: Any) -> ManifestRow:
    return ManifestRow(**{"line": 1, "patient_id": "p-1", **fields})


@given(anything.filter(bool), anything.filter(bool), st.integers(0, 10**6), st.booleans())
def test_a_place_is_one_directory_below_the_archive_and_its_names_lie_in_it(
    patient_id: str, image_id: str, version: int, of_a_coverage: bool
) -> None:
    links = {"coverage": {"id": patient_id}} if of_a_coverage else {"patient": {"id": patient_id}}
    try:
        image = record(id=image_id, version=version, **links)
    except ValueError:
        assume(False)  # lone surrogates are no text for the API's records
    place = place_of(image, row(patient_id=None, coverage_id="c"))
    assert place.directory.startswith("coverage-") == of_a_coverage
    check_name(place.directory.removeprefix("coverage-"))
    for name in (place.sidecar(1), place.sidecar(12), place.file("jpg")):
        assert PurePosixPath(name).parts == PureWindowsPath(name).parts == (name,)
        assert not name.startswith(".")
        assert len(f".{name}.part") < 200


def test_names_of_images_and_versions_that_look_alike_never_meet() -> None:
    ids = ["a", "a.v1", "a.v1.r2", "a.v1.json", "a.json", "A", "a.v11"]
    names: list[str] = []
    for image_id, version in itertools.product(ids, (1, 2, 11)):
        place = place_of(record(id=image_id, version=version), row())
        names += [place.sidecar(1), place.sidecar(2), place.file("bin")]
    assert len({name.casefold() for name in names}) == len(names)


@pytest.mark.parametrize(
    ("links", "asked", "directory"),
    [
        ({"patient": {"id": "p-2"}}, {"patient_id": "p-1"}, "p-2"),
        ({}, {"patient_id": "p-1"}, "p-1"),
        ({"coverage": {"id": "c-2"}}, {"patient_id": "p-1"}, "p-1"),
        ({"coverage": {"id": "c-2"}}, {"patient_id": None, "coverage_id": "c-1"}, "coverage-c-2"),
        ({}, {"patient_id": None, "coverage_id": "c-1"}, "coverage-c-1"),
        ({"patient": {"id": "p-2"}}, {"patient_id": None, "coverage_id": "c-1"}, "p-2"),
    ],
)
def test_an_image_lies_with_its_own_patient_then_the_one_asked_for_then_its_coverage(
    links: dict[str, Any], asked: dict[str, Any], directory: str
) -> None:
    assert place_of(record(**links), row(**asked)) == Place(directory, "i-1.v1")


FILE = "{image_id}.v{version}"


@pytest.mark.parametrize(
    ("template", "directory"),
    [
        ("{patient_id}", "p-1"),
        ("cards/{patient_id}", "cards/p-1"),
        ("{patient_hash}/{patient_id}", "1d/p-1"),
        ("patient={patient_id}/side={side}", "patient=p-1/side=front"),
        ("{organization_id}/{coverage_id}", "o-1/c-1"),
        ("everything", "everything"),
        ("{patient_id}/{image_id}", "p-1/i-1"),
        ("type={file_type}/{patient_id}", "type=image_jpeg/p-1"),
        ("{updated_year}/{updated_month}/{patient_id}", "2025/12/p-1"),
    ],
)
def test_a_template_says_in_which_directories_an_image_lies(template: str, directory: str) -> None:
    image = record(
        coverage={"id": "c-1", "side": "FRONT"},
        organization_id="o-1",
        file_type="image/jpeg",
        updated_at="2026-01-01T00:30:00.000+01:00",
    )
    assert place_of(image, row(), f"{template}/{FILE}") == Place(directory, "i-1.v1")


def test_a_value_that_an_image_does_not_have_is_named_like_no_id() -> None:
    fields = ("organization_id", "coverage_id", "side", "file_type", "updated_year")
    template = "/".join([*(f"{{{field}}}" for field in fields), FILE])
    assert place_of(record(), row(), template).directory == "/".join(["~none"] * len(fields))


@pytest.mark.parametrize(
    ("file_type", "directory"),
    [
        ("image/jpeg", "image_jpeg"),
        (" IMAGE/JPEG ; charset=binary", "image_jpeg"),
        ("application/pdf", "application_pdf"),
        ("image/svg+xml", safe_name("image_svg+xml")),
        ("Jane Doe", "~other"),
        ("jane/doe", "~other"),
        ("image/jane doe", "~other"),
        ("image/", "~other"),
        ("../image/png", "~other"),
        ("image/../..", "~other"),
        ("", "~none"),
    ],
)
def test_a_type_is_a_directory_only_where_it_is_a_media_type(
    file_type: str, directory: str
) -> None:
    template = f"{{file_type}}/{FILE}"
    assert place_of(record(file_type=file_type), row(), template).directory == directory


def test_the_same_moment_is_the_same_month_however_it_is_written() -> None:
    template = f"{{updated_year}}/{FILE}"
    moments = ("2025-12-31T23:30:00Z", "2026-01-01T00:30:00+01:00", "2025-12-31T23:30:00")
    places = {place_of(record(updated_at=m), row(), template).directory for m in moments}
    assert places == {"2025"}
    first = record(updated_at="0001-01-01T00:00:00+23:59")
    assert place_of(first, row(), template).directory == "~none"


def test_no_template_has_what_people_wrote_or_what_changes_at_the_same_version() -> None:
    for field in ("status", "deactivated", "display_name", "file_name", "notes", "signed_url"):
        with pytest.raises(ValueError, match="has no field"):
            parse_template(f"{{{field}}}/{FILE}")


@pytest.mark.parametrize(
    "template",
    [
        "", "archive", FILE, f"/{FILE}", f"/{{patient_id}}/{FILE}", f"../{FILE}", f"./{FILE}",
        f"{{patient_id}}//{FILE}", f".bulkfetch/{FILE}", f"{{patient_id}}/../{FILE}", f"con/{FILE}",
        f"con={{side}}/aux/{FILE}", f"co{{side}}/{FILE}", f"{{side}}{{side}}/{FILE}",
        f"{{side}}-x/{FILE}", f"{{version}}/{FILE}", f"{{status}}/{FILE}", f"{{}}/{FILE}",
        f"A/{FILE}", f"a b/{FILE}", f"a\\b/{FILE}", f"é/{FILE}", f"{'a' * 51}/{FILE}",
        "{patient_id}/{image_id}", "{patient_id}/{version}", f"{'a/' * 9}{FILE}", f"a\0/{FILE}",
        f"{{patient_id}}/{FILE}/", f"{{patient_id!r}}/{FILE}", f"{{patient_id.__class__}}/{FILE}",
    ],
    ids=ascii,
)  # fmt: skip
def test_a_template_that_is_unsafe_or_keeps_no_name_unique_is_refused(template: str) -> None:
    with pytest.raises(ValueError, match=r"must|has"):
        parse_template(template)


@given(
    st.lists(
        st.tuples(st.from_regex("([a-z0-9]{1,20}[_=-])?", fullmatch=True),
                  st.sampled_from(TEMPLATE_FIELDS)),
        min_size=1, max_size=8,
    ),
    anything.filter(bool), anything.filter(bool),
    st.none() | st.datetimes(timezones=st.timezones() | st.none()),
)  # fmt: skip
def test_a_template_never_leads_out_whatever_the_values_are(
    directories: list[tuple[str, str]], one: str, other: str, updated: datetime | None
) -> None:
    template = "/".join([*(f"{text}{{{field}}}" for text, field in directories), FILE])
    try:
        image = record(
            id=one, coverage={"id": one, "side": other}, patient={"id": other},
            organization_id=one, file_type=other, updated_at=updated and updated.isoformat(),
        )  # fmt: skip
    except ValueError:
        assume(False)  # lone surrogates are no text for the API's records
    parts = place_of(image, row(), template).directory.split("/")
    assert len(parts) == len(directories)
    for part in parts:
        assert re.fullmatch(r"[a-z0-9~][a-z0-9._~=-]*|_[a-z0-9._~=-]*", part, re.ASCII)
        assert PurePosixPath(part).parts == PureWindowsPath(part).parts == (part,)
        assert not part.endswith((".", " "))
        assert not re.match(r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)", part)
        assert len(part) < 200


def sidecar(status: str, outcome: str, *, deactivated: bool = False) -> Sidecar:
    file = None
    if outcome == "downloaded":
        file = FileInfo(
            path="i-1.v1.jpg", size=1, sha256="0" * 64, media_type="image/jpeg", declared_type=None
        )
    return Sidecar(
        schema_version=1, image_id="i-1", patient_id="p-1", coverage_id=None, version=1,
        status=status, deactivated=deactivated, outcome=SidecarOutcome(outcome), file=file,
        source=None, record={}, requested=Requested(patient_id="p-1", coverage_id=None),
        manifest=None, fetched_at=datetime(2026, 1, 1, tzinfo=UTC), run_id="r",
        bulkfetch_version="0",
    )  # fmt: skip


PLACE = Place("p-1", "i-1.v1")
WANTS = Settings(out="unused")
FETCHED = sidecar("UPLOADED", "downloaded")
ALL_HELD = {
    "nothing": None,
    "fetched": Held(FETCHED, 1),
    "fetched, now pending": Held(sidecar("PENDING", "downloaded"), 2),
    "fetched, now deactivated": Held(sidecar("UPLOADED", "downloaded", deactivated=True), 3),
    "pending": Held(sidecar("PENDING", "not_uploaded"), 1),
    "failed": Held(sidecar("FAILED", "not_uploaded"), 2),
    "damaged file": Held(FETCHED, 2, "its file is missing"),
    "damaged sidecar": Held(None, 2, "its sidecar cannot be read"),
}
STATUSES = ("UPLOADED", "PENDING", "FAILED", "ARCHIVED")
TABLE = {
    # held: what to do about an image that is UPLOADED, PENDING, FAILED, and of an unknown status
    "nothing": ("fetch", "note", "note", "note"),
    "fetched": ("keep", "note", "note", "note"),
    "fetched, now pending": ("note", "keep", "note", "note"),
    "fetched, now deactivated": ("note", "note", "note", "note"),
    "pending": ("fetch", "keep", "note", "note"),
    "failed": ("fetch", "note", "keep", "note"),
    "damaged file": ("fetch", "note", "note", "note"),
    "damaged sidecar": ("fetch", "note", "note", "note"),
}
CASES = [
    (held, status, action)
    for held, actions in TABLE.items()
    for status, action in zip(STATUSES, actions, strict=True)
]


@pytest.mark.parametrize(("name", "status", "action"), CASES)
def test_what_is_held_and_what_is_listed_decide(name: str, status: str, action: str) -> None:
    held = ALL_HELD[name]
    item = plan(record(status=status), row(), PLACE, held, WANTS)
    assert item.action is Action[action]
    if held is None or held.damage:
        assert (item.revision, item.held) == (1, None)
        assert item.damage == (held.damage if held else None)
    else:
        assert (item.revision, item.held) == (held.revision + 1, held.state)
        assert item.damage is None


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("status", STATUSES)
def test_what_is_filtered_out_is_left_alone_whatever_is_held(name: str, status: str) -> None:
    unwanted = WANTS.model_copy(update={"side": ("FRONT",)})
    item = plan(record(status=status), row(), PLACE, ALL_HELD[name], unwanted)
    assert item.action is Action.leave_out
    assert item.damage is None


def test_a_deactivated_record_is_noted_once() -> None:
    gone = record(deactivated=True)
    assert plan(gone, row(), PLACE, Held(FETCHED, 1), WANTS).action is Action.note
    noted = sidecar("UPLOADED", "downloaded", deactivated=True)
    assert plan(gone, row(), PLACE, Held(noted, 2), WANTS).action is Action.keep


NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("filters", "fields", "wanted"),
    [
        ({}, {}, True),
        ({"side": ("FRONT",)}, {"coverage": {"id": "c", "side": "FRONT"}}, True),
        ({"side": ("front",)}, {"coverage": {"id": "c", "side": "FRONT"}}, True),
        ({"side": ("FRONT", "BACK")}, {"coverage": {"id": "c", "side": "BACK"}}, True),
        ({"side": ("FRONT",)}, {"coverage": {"id": "c", "side": "SPINE"}}, False),
        ({"side": ("FRONT",)}, {"coverage": {"id": "c"}}, False),
        ({"side": ("FRONT",)}, {}, False),
        ({"status": ("uploaded",)}, {}, True),
        ({"status": ("PENDING",)}, {}, False),
        ({"status": ("ARCHIVED",)}, {"status": "Archived"}, True),
        ({"file_type": ("image/*",)}, {"file_type": "IMAGE/JPEG"}, True),
        ({"file_type": ("image/jpeg",)}, {"file_type": "image/jpeg"}, True),
        ({"file_type": ("image/*",)}, {"file_type": "application/pdf"}, False),
        ({"file_type": ("image/*",)}, {}, False),
        ({"file_type": ("*",)}, {}, True),
        ({"updated_since": NEW_YEAR}, {"updated_at": "2026-01-01T00:00:00.000Z"}, True),
        ({"updated_since": NEW_YEAR}, {"updated_at": "2026-01-01T00:00:00"}, True),
        ({"updated_since": NEW_YEAR}, {"updated_at": "2025-12-31T23:59:59.999Z"}, False),
        ({"updated_since": NEW_YEAR}, {"updated_at": "2026-01-01T00:30:00+01:00"}, False),
        ({"updated_since": NEW_YEAR}, {"updated_at": "0001-01-01T00:00:00+23:59"}, False),
        ({"updated_since": NEW_YEAR}, {}, True),
        ({"status": ("UPLOADED",), "side": ("BACK",)}, {}, False),
    ],
    ids=str,
)
def test_filters(filters: dict[str, Any], fields: dict[str, Any], wanted: bool) -> None:
    assert is_wanted(record(**fields), WANTS.model_copy(update=filters)) is wanted
