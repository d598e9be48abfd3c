from __future__ import annotations

import pytest

from bulkfetch.simulator import KINDS, TARGETS, Fault, FaultPlan, parse_fault


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("storage:503", Fault("storage", "503")),
        ("images:429=5@10%x2", Fault("images", "429", "5", 0.1, 2)),
        ("api:429=date", Fault("api", "429", "date")),
        ("storage:drop", Fault("storage", "drop")),
        ("storage:drop=1000x1", Fault("storage", "drop", "1000", count=1)),
        ("token:latency=0.5", Fault("token", "latency", "0.5")),
        ("storage:corrupt@0.5%", Fault("storage", "corrupt", rate=0.005)),
        (
            "storage:redirect=http://host.invalid/a@b?c=d@50%x3",
            Fault("storage", "redirect", "http://host.invalid/a@b?c=d", 0.5, 3),
        ),
        (" image:token-deathx1 ", Fault("image", "token-death", count=1)),
    ],
)
def test_a_rule_is_read_and_written_back(text: str, fault: Fault) -> None:
    assert parse_fault(text) == fault
    assert parse_fault(str(fault)) == fault


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not of the form"),
        ("storage", "not of the form"),
        ("storage:", "not of the form"),
        ("moon:503", "unknown target 'moon'"),
        ("storage:299", "unknown kind '299'"),
        ("storage:explode", "unknown kind 'explode'"),
        ("storage:stall", "needs a value"),
        ("storage:stall=soon", "cannot have the value 'soon'"),
        ("storage:stall=inf", "cannot have the value 'inf'"),
        ("storage:stall=-1", "cannot have the value '-1'"),
        ("storage:drip=0", "cannot have the value '0'"),
        ("storage:drop=1.5", "cannot have the value '1.5'"),
        ("storage:corrupt=1", "takes no value"),
        ("storage:503@200%", "from 0 to 100 %"),
        ("storage:503x0", "at least 1"),
        ("storage:bad-json", "cannot be asked of 'storage'"),
        ("images:gzip", "cannot be asked of 'images'"),
        ("token:token-death", "cannot be asked of 'token'"),
    ],
)
def test_a_wrong_rule_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_fault(text)


def test_api_stands_for_all_targets_but_token_and_storage() -> None:
    plan = FaultPlan(1, [parse_fault("api:500")])
    struck = {target for target in TARGETS if target != "api" and plan.strike(target, "/")}
    assert struck == {"images", "image", "patients", "coverages"}


def test_a_count_is_for_each_resource() -> None:
    plan = FaultPlan(1, [parse_fault("storage:503x2")])
    struck = [(r, bool(plan.strike("storage", r))) for r in ("a", "b", "a", "a", "b", "b")]
    assert struck == [
        ("a", True),
        ("b", True),
        ("a", True),
        ("a", False),
        ("b", True),
        ("b", False),
    ]
    assert plan.hits["storage:503x2"] == 4


def test_a_rate_is_a_share_and_the_same_each_time() -> None:
    def struck(seed: int) -> list[bool]:
        plan = FaultPlan(seed, [parse_fault("images:503@20%")])
        return [bool(plan.strike("images", "/")) for _ in range(2000)]

    assert struck(1) == struck(1) != struck(2)
    assert sum(struck(1)) == pytest.approx(400, abs=60)


def test_a_plan_takes_all_rules_or_none() -> None:
    plan = FaultPlan(1)
    with pytest.raises(ValueError, match="explode"):
        plan.add("storage:503", "storage:explode")
    assert list(plan.rules) == []
    plan.add("storage:503", Fault("token", "429", "2"))
    assert [str(rule) for rule in plan.rules] == ["storage:503", "token:429=2"]
    plan.clear()
    assert plan.strike("storage", "/") == []


def test_every_kind_says_what_it_does() -> None:
    assert all(kind.help and kind.targets for kind in KINDS.values())
