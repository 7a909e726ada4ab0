"""Writes the tables of docs/metrics.md from the metrics themselves: name, type, labels, meaning. `--check` only compares.

    PYTHONPATH=src python scripts/document_metrics.py

The registries of a gateway are read after one request, beside an engine that has run a few simulated steps, so that every
metric has a value and therefore its labels.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from prometheus_client.core import Metric

from poise.config import Settings
from poise.metrics.early import TaskMetrics
from poise.metrics.egress import BackendFigures, BudgetLeft
from poise.metrics.engine import EngineCollector, EngineReading
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.story import ChoiceStory, RequestStory
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.simulate import Options, simulate

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "metrics.md"
HEAD = "| metric | type | labels | meaning |\n|---|---|---|---|\n"


def main() -> int:
    text = DOCUMENT.read_text()
    wanted = text
    for section, families in collected().items():
        pattern = rf"(<!-- generated: {section} -->\n).*?(<!-- end -->)"
        table = HEAD + "".join(map(row, families))
        wanted, n = re.subn(pattern, lambda found, table=table: found[1] + table + found[2], wanted, flags=re.DOTALL)
        if n != 1:
            print(f"{DOCUMENT}: needs one place for the section {section}, has {n}")
            return 2
    if "--check" in sys.argv[1:]:
        if wanted != text:
            print(f"{DOCUMENT} differs from the metrics: run scripts/document_metrics.py")
        return int(wanted != text)
    DOCUMENT.write_text(wanted)
    return 0


def collected() -> dict[str, list[Metric]]:
    """Every metric, by the section that it belongs to."""
    tasks = TaskMetrics()
    tasks.known("levels")
    metrics = GatewayMetrics(lambda: EngineReading(False, 0, None), tasks=tasks)
    choice = ChoiceStory("stop", 3, 2, wait_s=1.0, first_s=2.0, last_s=3.0, ended_s=3.0)
    metrics.ended(RequestStory("", "", "local", "interactive", "chat", "", 0.0, 5, [choice], []))
    metrics.streams.watch_records(lambda: (0, 0), lambda: 0)
    metrics.rejected("interactive", "queue_full", "local")
    metrics.egress.sent("cloud", "public")
    metrics.egress.ended("cloud", "public", "done", 1, 1)
    metrics.egress.watch_backend("cloud", lambda: BackendFigures(1, 0, {"interactive": 0}, True))
    metrics.egress.watch_budgets(lambda: [BudgetLeft("backend", "cloud", "day", 1, 1)])
    engine = list(EngineCollector(lambda: EngineReading(True, 0, a_status())).collect())
    names = {family.name for family in engine}
    return {
        "gateway": [family for family in metrics.registry.collect() if family.name not in names],
        "engine": engine,
        "tenants": list(metrics.tenant_registry.collect()),
    }


def a_status() -> wire_status.Status:
    """What an engine tells after some simulated steps."""
    told: list[wire_status.Status] = []

    def hear(message: wire.ToGateway) -> None:
        if isinstance(message, wire_status.Status):
            told.append(message)

    simulate(load_scenario(ROOT / "scenarios" / "mixed.toml"), Settings(), 1, Options(n_steps=200, listeners=(hear,)))
    return told[-1]


def row(family: Metric) -> str:
    name = f"{family.name}_total" if family.type == "counter" else family.name
    meaning = family.documentation.replace("|", "\\|")
    return f"| `{name}` | {family.type} | {', '.join(labels(family))} | {meaning} |\n"


def labels(family: Metric) -> Iterable[str]:
    """In the order in which they are declared."""
    found = dict.fromkeys(label for sample in family.samples for label in sample.labels)
    return [label for label in found if label not in ("le", "quantile")]


if __name__ == "__main__":
    sys.exit(main())
