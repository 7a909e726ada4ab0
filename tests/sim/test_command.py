"""`poise sim` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from poise.scheduler.scheduler import Scheduler
from poise.sim.command import sim

SCENARIOS = Path(__file__).parents[2] / "scenarios"

app = typer.Typer()
app.command()(sim)


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_a_scenario_is_run_and_repeated_by_its_seed() -> None:
    """The same seed gives the same digest, another one another."""
    path = str(SCENARIOS / "mixed.toml")
    digests = []
    for seed in ("1", "1", "2"):
        code, output = run(path, "--seed", seed, "--json")
        assert code == 0
        figures = json.loads(output)
        assert figures["clients"]["chat"]["outcomes"] == {"length": figures["clients"]["chat"]["requests"]}
        digests.append(figures["digest"])
    assert digests[0] == digests[1] != digests[2]


def test_the_table_names_clients_and_outcomes() -> None:
    """What a person sees."""
    code, output = run(str(SCENARIOS / "cancel.toml"))
    assert code == 0
    assert "steady" in output
    assert "aborted" in output


def test_a_bad_scenario_is_one_line(tmp_path: Path) -> None:
    """The file, the key and what is allowed; exit code 2."""
    path = tmp_path / "bad.toml"
    path.write_text("name = 5")
    code, output = run(str(path))
    assert code == 2
    assert "bad.toml" in output
    assert "Traceback" not in output


def test_a_broken_invariant_names_the_run_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is a scenario and a seed."""

    def broken(self: Scheduler) -> None:
        raise AssertionError("books do not balance")

    monkeypatch.setattr(Scheduler, "check", broken)
    path = str(SCENARIOS / "single.toml")
    code, output = run(path, "--seed", "7")
    assert code == 1
    assert "books do not balance" in output
    assert f"poise sim {path} --seed 7" in output
