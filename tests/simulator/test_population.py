from __future__ import annotations

import tracemalloc
from collections import Counter
from uuid import UUID

import pytest

from bulkfetch.simulator import Simulator, SimulatorConfig


def expected(config: SimulatorConfig) -> list[dict[str, object]]:
    simulator = Simulator(config)
    return [image for p in simulator.patient_ids() for image in simulator.expected_images(p)]


def test_equal_seeds_make_equal_populations_and_other_seeds_others() -> None:
    first = expected(SimulatorConfig(patients=30, seed=5))
    assert first == expected(SimulatorConfig(patients=30, seed=5))
    other_ids = {image["id"] for image in expected(SimulatorConfig(patients=30, seed=6))}
    assert first
    assert not other_ids & {image["id"] for image in first}


def test_a_million_patients_cost_no_memory() -> None:
    tracemalloc.start()
    simulator = Simulator(SimulatorConfig(patients=1_000_000))
    for index in range(0, 1_000_000, 20_000):
        simulator.expected_images(simulator._population.patient_id(index))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8_000_000


def test_identifiers_are_uuids_and_a_changed_one_is_unknown() -> None:
    simulator = Simulator(SimulatorConfig(patients=40))
    patient_id = next(p for p in simulator.patient_ids() if simulator.expected_images(p))
    assert str(UUID(patient_id)) == patient_id
    altered = ("0" if patient_id[0] != "0" else "1") + patient_id[1:]
    assert simulator.expected_images(altered) == []
    assert simulator.expected_images(patient_id.upper()) == []
    assert simulator.expected_images("no such patient") == []
    assert all(str(UUID(c)) == c for c in simulator.coverage_ids())


@pytest.mark.parametrize("mean", [0, 1, 3, 8])
def test_the_mean_number_of_images_is_what_was_asked_for(mean: int) -> None:
    simulator = Simulator(SimulatorConfig(patients=1500, images_per_patient=mean))
    counts = [len(simulator.expected_images(p)) for p in simulator.patient_ids()]
    assert sum(counts) / len(counts) == pytest.approx(mean, abs=0.15)
    assert max(counts) <= 8
    if mean == 3:
        assert 0.03 < counts.count(0) / len(counts) < 0.15


def test_the_population_has_every_kind_of_image() -> None:
    config = SimulatorConfig(patients=400)
    images = expected(config)
    statuses = Counter(image["status"] for image in images)
    assert statuses["UPLOADED"] > 0.8 * len(images)
    assert statuses.keys() == {"UPLOADED", "PENDING", "FAILED"}
    assert {image["version"] for image in images} == {1, 2, 3, 4}
    assert "" in {image["display_name"] for image in images}
    assert any("/" in str(image["file_name"]) for image in images)
    assert any("\n" in str(image["file_name"]) for image in images)
    assert any("💳" in str(image["file_name"]) for image in images)


def test_some_images_are_found_by_coverage_alone() -> None:
    simulator = Simulator(SimulatorConfig(patients=60))
    by_coverage = [
        image
        for coverage in simulator.coverage_ids()
        for image in simulator.expected_images(coverage_id=coverage)
    ]
    alone = [image for image in by_coverage if image["patient"] is None]
    assert alone
    assert {image["coverage"]["side"] for image in alone} == {"FRONT", "BACK"}
    by_patient = {i["id"] for p in simulator.patient_ids() for i in simulator.expected_images(p)}
    assert not by_patient & {image["id"] for image in alone}


def test_objects_of_all_images_and_versions_differ() -> None:
    simulator = Simulator(SimulatorConfig(patients=40))
    seen = set()
    count = 0
    for patient in simulator.patient_ids():
        for image in simulator.expected_images(patient):
            if image["status"] == "UPLOADED":
                for version in range(1, image["version"] + 1):
                    seen.add(simulator.stored_bytes(image["id"], version))
                    count += 1
    assert len(seen) == count > 100


def test_an_image_that_is_not_uploaded_has_no_object() -> None:
    simulator = Simulator(SimulatorConfig(patients=60))
    missing = next(
        image
        for p in simulator.patient_ids()
        for image in simulator.expected_images(p)
        if image["status"] != "UPLOADED"
    )
    with pytest.raises(LookupError, match="has no object"):
        simulator.stored_bytes(missing["id"], missing["version"])


def test_a_coverage_has_at_most_one_image_of_each_side() -> None:
    simulator = Simulator(SimulatorConfig(patients=150))
    for coverage in simulator.coverage_ids():
        sides = Counter(
            i["coverage"]["side"] for i in simulator.expected_images(coverage_id=coverage)
        )
        assert set(sides.values()) <= {1}, sides


@pytest.mark.parametrize(
    "options",
    [
        {"patients": -1},
        {"images_per_patient": 9},
        {"rate_limit": 0},
        {"patients_per_instant": 0},
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        SimulatorConfig(**options)  # type: ignore[arg-type]  # one option at a time, by name


def test_urls_cannot_be_had_before_serving() -> None:
    with pytest.raises(RuntimeError, match="async with"):
        _ = Simulator().api_url
