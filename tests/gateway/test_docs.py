"""docs/http-api.md and docs/metrics.md name everything that is there, and nothing that is not."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from poise.config import Settings
from poise.gateway.api.openai.parser import RequestParser
from poise.metrics.egress import BackendFigures, BudgetLeft
from tests.gateway.fakes import OPERATOR, FakeEngine, ask, chat_body, make_app, says

ROOT = Path(__file__).parents[2]
API = (ROOT / "docs" / "http-api.md").read_text()
METRICS = (ROOT / "docs" / "metrics.md").read_text()


def test_every_parameter_is_documented() -> None:
    """In the first column of a table."""
    listed = set(re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", API, re.MULTILINE))))
    parser = RequestParser(Settings())
    for schema in (parser.chat_schema(), parser.completion_schema()):
        assert set(schema["properties"]) <= listed


def test_every_error_code_is_documented_with_its_status() -> None:
    """The codes in the source are the codes in the table, each with the status it is raised with."""
    documented = set(re.findall(r"^\| (\d{3}) \| `(\w+)` \|", API, re.MULTILINE))
    raised = set()
    for path in (ROOT / "src" / "poise").rglob("*.py"):
        text = path.read_text()
        raised |= set(re.findall(r'(?:ApiError|TextRefused|Refused|later|_full)\(\s*(\d{3}),\s*"(\w+)"', text))
        raised |= {("401", code) for code in re.findall(r'_unauthorized\(\s*"(\w+)"', text)}
        raised |= {("429", code) for code in re.findall(r'\bcode = "(\w+)"', text)}
    assert raised == documented


async def test_every_endpoint_is_documented() -> None:
    """As a line of the first table."""
    paths = (await ask(make_app(FakeEngine()), "GET", "/openapi.json")).json()["paths"]
    for path, methods in paths.items():
        for method in methods:
            assert f"`{method.upper()} {path}`" in API, path


def test_the_tables_of_metrics_are_up_to_date() -> None:
    """As `scripts/document_metrics.py` writes them, from the metrics themselves."""
    script = ROOT / "scripts" / "document_metrics.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


async def test_every_metric_that_is_served_is_documented() -> None:
    """With its type and its labels, and nothing else is."""
    app = make_app(FakeEngine(says("x.")))
    await ask(app, "POST", "/v1/chat/completions", chat_body())
    await ask(app, "POST", "/v1/chat/completions", {})
    egress = app.metrics.egress
    egress.sent("cloud", "public")
    egress.ended("cloud", "public", "done", 1, 1)
    egress.watch_backend("cloud", lambda: BackendFigures(1, 0, {"interactive": 0}, True))
    egress.watch_budgets(lambda: [BudgetLeft("backend", "cloud", "day", 1, 1)])
    async with app.running():
        exposition = (await ask(app, "GET", "/metrics", headers=OPERATOR)).body.decode()
    served = {}
    for family in text_string_to_metric_families(exposition):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = {label for sample in family.samples for label in sample.labels} - {"le"}
        if not name.endswith("_created"):
            served[name] = (family.type, labels)
    rows = re.findall(r"^\| `((?:poise|gen_ai)_\w+)` \| (\w+) \| ([\w, ]*?) ?\|", METRICS, re.MULTILINE)
    documented = {name: (kind, {label for label in labels.split(", ") if label}) for name, kind, labels in rows}
    assert served == documented
