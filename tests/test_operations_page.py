"""docs/operations.md tells of every event and metric, and of no other; the dashboard uses those."""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml
from prometheus_client import Metric

from bulkfetch.logs import Event
from bulkfetch.metrics import WRITE_EVERY_S, Metrics
from bulkfetch.progress import PLAIN_EVERY_S, RATE_OVER_S
from bulkfetch.tally import Tally

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
DASHBOARD = json.loads((ROOT / "docs/operations/grafana-dashboard.json").read_bytes())
ALERTS = yaml.safe_load((ROOT / "docs/operations/alerts.yml").read_bytes())
LEVELS = ("debug", "info", "warning", "error")
# What a scrape adds.
SCRAPED = {"job", "instance"}


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table that begins with a heading."""
    table = PAGE.partition(f"| {heading} |")[2].partition("\n\n")[0]
    for line in table.splitlines()[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]


def words(cell: str) -> set[str]:
    return set(re.findall(r"`(\w+)`", cell))


class Calls(ast.NodeVisitor):
    """What the log calls of a module tell: by event, their levels and fields."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.events: dict[str, set[tuple[str, str]]] = defaultdict(set)
        self.levels: dict[str, set[str]] = defaultdict(set)
        self.seen: set[ast.AST] = set()

    def visit_Call(self, node: ast.Call) -> None:
        function = node.func
        if is_logging(function):
            assert isinstance(function, ast.Attribute)
            self.seen.add(function)
            (extra,) = [keyword.value for keyword in node.keywords if keyword.arg == "extra"]
            where = f"{self.path}:{node.lineno}"
            assert isinstance(extra, ast.Call), where
            assert ast.unparse(extra.func) in ("about", "logs.about"), where
            event = ast.unparse(extra.args[0]).removeprefix("Event.")
            self.levels[event].add(function.attr)
            names = {str(keyword.arg) for keyword in extra.keywords}
            assert "None" not in names, f"{where}: name the fields"
            self.events[event] |= {(event, name) for name in names}
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        # One that is handed on would be called without an event.
        assert not is_logging(node) or node in self.seen, f"{self.path}:{node.lineno}"
        self.generic_visit(node)


def is_logging(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Attribute)
        and node.attr in (*LEVELS, "exception", "critical", "log", "warn")
        and ast.unparse(node.value) == "log"
    )


def logged() -> dict[str, tuple[str, set[str]]]:
    """By the events in the code, their level and fields."""
    levels: dict[str, set[str]] = defaultdict(set)
    fields: dict[str, set[str]] = defaultdict(set)
    for path in (ROOT / "bulkfetch").rglob("*.py"):
        calls = Calls(path)
        calls.visit(ast.parse(path.read_bytes()))
        for event, found in calls.levels.items():
            levels[event] |= found
            fields[event] |= {name for _, name in calls.events[event]}
    assert all(len(found) == 1 for found in levels.values()), levels
    return {event: (*found, fields[event]) for event, found in levels.items()}  # type: ignore[misc]


def test_every_log_line_has_an_event_and_the_page_tells_its_level_and_fields() -> None:
    told = {name.strip("`"): (level, words(fields)) for name, level, fields, _ in rows("event")}
    found = logged()
    assert set(found) == {event.value for event in Event}
    assert told == found


def test_no_field_has_the_name_of_what_every_line_has() -> None:
    for _, fields in logged().values():
        assert not fields & {"at", "level", "logger", "event", "message"}


def test_loggers_have_the_one_name_by_which_these_tests_know_them() -> None:
    for path in (ROOT / "bulkfetch").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        uses = re.findall(r".*getLogger\(.*\)", text)
        others = [use for use in uses if not re.match(r"log = ", use)]
        # Levels are set, and what another process said is repeated.
        allowed = ("setLevel", "getEffectiveLevel", "getLogger(self.logger)")
        assert all(any(word in use for word in allowed) for use in others), (path, others)


def ended() -> list[Metric]:
    """The metrics of a run that has ended, with something in each."""
    metrics = Metrics(None, None, None)
    tally = Tally(1)
    tally.kinds["status"] += 1
    tally.measures.retries["timeout"] += 1
    with metrics:
        metrics.show(tally)
    return list(metrics.collect())


def samples() -> dict[str, set[str]]:
    """The labels of each series, by its name."""
    return {sample.name: set(sample.labels) for metric in ended() for sample in metric.samples}


def test_the_page_tells_of_every_metric_with_its_type_and_labels() -> None:
    found = {}
    for metric in ended():
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        labels = set().union(*(sample.labels for sample in metric.samples)) - {"export", "le"}
        found[name] = (metric.type, labels)
        assert metric.documentation
    assert {n.strip("`"): (kind, words(labels)) for n, kind, labels, _ in rows("metric")} == found


def expressions() -> list[str]:
    targets = [target for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [rule for group in ALERTS["groups"] for rule in group["rules"]]
    return [item["expr"] for item in (*targets, *rules)]


@pytest.mark.parametrize("expression", expressions())
def test_the_dashboard_and_the_alerts_ask_for_what_there_is(expression: str) -> None:
    series = samples()
    known = set().union(*series.values()) | SCRAPED
    asked: list[str] = []

    def look(node: Any) -> None:
        if isinstance(node, promql_parser.VectorSelector):
            assert node.name in series, node.name
            asked.append(node.name)
            for matcher in node.matchers.matchers:
                assert matcher.name in series[node.name] | SCRAPED
        if isinstance(node, promql_parser.AggregateExpr) and node.modifier:
            assert set(node.modifier.labels) <= known

    text = expression.replace("$__rate_interval", "5m")
    promql_parser.walk(promql_parser.parse(text), pre_visit=look)
    assert asked


def test_every_metric_is_on_the_dashboard_or_in_an_alert() -> None:
    asked = " ".join([*expressions(), DASHBOARD["templating"]["list"][1]["definition"]])
    for metric in ended():
        assert metric.name in asked, metric.name


def test_the_dashboard_can_be_imported() -> None:
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 36
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        assert panel["title"]
        assert panel["description"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        for item in (panel, *panel["targets"]):
            assert item["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    used = set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(panels)))
    assert used == variables


def test_the_numbers_on_the_page_are_those_of_the_code() -> None:
    assert f"of the last {RATE_OVER_S} seconds" in PAGE
    assert f"a line every {PLAIN_EVERY_S:.0f} seconds" in PAGE
    assert f"every {WRITE_EVERY_S:.0f} seconds and at the end" in PAGE
