"""What deploy/ brings: every metric that a dashboard or a rule asks for exists, and every alert has its entry in the runbook.

tests/e2e/test_prometheus.py has Prometheus itself read all of it.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RULES = (ROOT / "deploy" / "prometheus" / "poise-rules.yml").read_text()
SHOWN = (ROOT / "deploy" / "prometheus" / "poise-rules.test.yml").read_text()
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text()
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "poise.json").read_text())
ALERTS = re.findall(r"- alert: (\w+)", RULES)


def metrics() -> dict[str, str]:
    """Name to type, as docs/metrics.md has them; other tests compare that with what is served."""
    rows = re.findall(r"^\| `((?:poise|gen_ai)_\w+)` \| (\w+) \|", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE)
    return dict(rows)


def series() -> set[str]:
    """Names that expressions may use: histograms and summaries by their parts."""
    parts = {"histogram": ("_bucket", "_sum", "_count"), "summary": ("_sum", "_count")}
    return {name + part for name, kind in metrics().items() for part in parts.get(kind, ("",))}


def asked(text: str) -> set[str]:
    return set(re.findall(r"\b(?:poise|gen_ai)_\w+", text))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_rules_ask_for_metrics_that_exist() -> None:
    """And alerts for recorded names that are recorded."""
    assert asked(RULES) <= series()
    assert asked(SHOWN) <= series()
    recorded = set(re.findall(r"- record: (\S+)", RULES))
    used = set(re.findall(r"\bpoise:[a-z_]+:\w+", RULES))
    assert used == recorded
    assert set(re.findall(r"\[(poise:\S+)\]", (ROOT / "docs" / "metrics.md").read_text())) <= recorded


def test_the_dashboard_asks_for_metrics_that_exist_and_shows_them_all() -> None:
    """A metric that no panel shows would be looked for in vain when it is needed."""
    found = set()
    for panel in panels():
        for target in panel["targets"]:
            assert asked(target["expr"]) <= series(), panel["title"]
            found |= asked(target["expr"])
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in metrics() else name for name in found}
    assert shown == set(metrics())


def test_the_dashboard_is_laid_out() -> None:
    """Ids are unique, panels have titles and units and do not overlap, and nothing names one installation's data source."""
    ids = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(ids)) == len(ids)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert not taken & cells, panel["title"]
        assert all(x < 24 for x, _ in cells), panel["title"]
        taken |= cells
    for panel in panels():
        assert panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


@pytest.mark.parametrize("alert", ALERTS)
def test_every_alert_is_shown_to_fire_and_is_in_the_runbook(alert: str) -> None:
    """With what the user feels, how to confirm it, what to do, and tests that exist."""
    assert f"alertname: {alert}\n        exp_alerts:" in SHOWN
    assert f"docs/runbook.md#{alert.lower()}" in RULES
    found = re.search(rf"^### {alert}\n(.*?)(?=^##|\Z)", RUNBOOK, re.DOTALL | re.MULTILINE)
    assert found, "no entry"
    parts = re.findall(r"^- \*\*(\w+)\*\*: ", found[1], re.MULTILINE)
    assert parts == ["Felt", "Confirm", "Do", "Shown"]
    tests = re.findall(r"`(tests/\S+\.py)::(\w+)`", found[1])
    assert tests, "no test is named"
    for path, name in tests:
        assert f"def {name}(" in (ROOT / path).read_text(), f"{path}::{name}"


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    """Its entries are the alerts, in their order."""
    assert re.findall(r"^### (Poise\w+)$", RUNBOOK, re.MULTILINE) == ALERTS
