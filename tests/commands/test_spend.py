"""`poise spend` as an operator meets it."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from poise.cli import app
from poise.config import load
from poise.config.paths import ledger_file
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.money.prices import Tokens

CONFIG = """
[backends.cloud]
url = "https://api.example.com/v1"
price_input = "1000"
price_output = "3000"
budget_day = "5"
[tenant_defaults]
budget_month = "2"
"""


@pytest.fixture(autouse=True)
def ledger_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    Path("poise.toml").write_text(CONFIG)
    return tmp_path / "state" / "poise" / "spend.sqlite"


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["spend", *arguments], prog_name="poise")
    assert result.exit_code == exit_code, result.output
    return result


async def some(ledger: Ledger) -> None:
    """Of alice something known, of bob something unknown, and something under way."""
    await ledger.settle(await ledger.reserve("alice", "cloud", "r1", 1000, 100), Tokens(1000, 10, 50))
    await ledger.settle(await ledger.reserve("bob", "cloud", "r2", 200, 0), None)
    await ledger.reserve("alice", "cloud", "r3", 100, 0)
    await asyncio.wrap_future(ledger._books._put(lambda _: None))


def test_beside_a_running_server_all_is_shown(ledger_path: Path) -> None:
    """By tenant, with what is reserved and what is left; twice the same, since it only reads."""
    settings = load(None, {}, {}).settings
    assert ledger_file(settings.egress) == ledger_path
    ledger = Ledger(settings, ledger_path)
    asyncio.run(some(ledger))
    today = f"{datetime.now(UTC):%Y-%m}-01"
    shown = run().stdout
    assert shown == run("--by", "tenant", "--since", today).stdout
    rows = [line.split() for line in shown.splitlines()]
    assert rows[:4] == [
        ["by", "tenant", "requests", "prompt", "cached", "output", "cost", "unknown"],
        ["alice", "1", "1,000", "10", "50", "1.15", "0.00"],
        ["bob", "1", "0", "0", "0", "0.20", "0.20"],
        ["all", "2", "1,000", "10", "50", "1.35", "0.20"],
    ]
    assert "reserved for requests under way: 0.10" in shown
    assert ["tenant", "alice", "month", "2.00", "1.15", "0.10", "0.75"] in rows
    assert ["tenant", "bob", "month", "2.00", "0.20", "0.00", "1.80"] in rows
    assert ["backend", "cloud", "day", "5.00", "1.35", "0.10", "3.55"] in rows
    ledger.close()


def test_for_programs_and_by_other_things(ledger_path: Path) -> None:
    """Whole numbers of billionths; of days before the first one nothing is told."""
    ledger = Ledger(load(None, {}, {}).settings, ledger_path)
    asyncio.run(some(ledger))
    ledger.close()
    told = json.loads(run("--by", "backend", "--json").stdout)
    assert told["spent"] == [
        {"backend": "cloud", "requests": 2, "prompt": 1000, "cached": 10, "output": 50}
        | {"nano": 1_350_000_000, "unknown": 1, "unknown_nano": 200_000_000}
    ]
    assert [(one["request"], one["nano"]) for one in told["reserved"]] == [("r3", 100_000_000)]
    assert {"scope": "backend", "name": "cloud", "period": "day"}.items() <= told["budgets"][-1].items()
    days = json.loads(run("--by", "day", "--json").stdout)["spent"]
    assert [one["nano"] for one in days] == [1_350_000_000]
    later = f"{datetime.now(UTC) + timedelta(days=2):%Y-%m-%d}"
    assert json.loads(run("--since", later, "--json").stdout)["spent"] == []


def test_before_anything_was_sent_it_says_so(ledger_path: Path) -> None:
    """Without making a file."""
    assert run().stdout == f"nothing was sent to other servers: {ledger_path} does not exist\n"
    assert not ledger_path.exists()
    assert json.loads(run("--json").stdout)["spent"] == []


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--by", "week"), "--by week: must be tenant, backend or day"),
        (("--since", "yesterday"), "--since yesterday: must be a date as in 2026-11-01"),
    ],
)
def test_what_it_cannot_do_it_says(arguments: tuple[str, ...], problem: str) -> None:
    """In a line."""
    assert run(*arguments, exit_code=2).stderr == f"poise: {problem}\n"


def test_a_file_that_is_no_ledger_is_told(ledger_path: Path) -> None:
    """And left as it is."""
    ledger_path.parent.mkdir(parents=True)
    ledger_path.write_text("no database " * 100)
    assert run(exit_code=2).stderr == f"poise: the ledger {ledger_path} cannot be read: file is not a database\n"
