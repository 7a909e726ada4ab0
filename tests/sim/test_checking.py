"""What `make sim` runs, as a user runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from poise.engine.journal import read_journal
from poise.scheduler.scheduler import Scheduler
from tests.sim.checking import simulate as checking
from tests.sim.checking.__main__ import app

SCENARIOS = Path(__file__).parents[2] / "scenarios"


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(app, list(arguments))
    return done.exit_code, done.output


def test_a_broken_invariant_names_the_run_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A failure is a scenario and a seed."""

    def broken(self: Scheduler) -> None:
        raise AssertionError("books do not balance")

    monkeypatch.setattr(checking, "check_scheduler", broken)
    path = str(SCENARIOS / "single.toml")
    code, output = run(path, "--seed", "7")
    assert code == 1
    assert "books do not balance" in output
    assert f"python -m tests.sim.checking {path} --seed 7" in output


def test_a_failure_is_repeated_by_the_command_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scenario, seed, steps and faults are all in it, and the step of the failure is said."""
    n_checks = 0

    def breaks_late(self: Scheduler) -> None:
        nonlocal n_checks
        n_checks += 1
        assert n_checks < 40, "books do not balance"

    monkeypatch.setattr(checking, "check_scheduler", breaks_late)
    path = str(SCENARIOS / "storm.toml")
    arguments = [path, "--seed", "3", "--steps", "300", "--faults", "slow,burst"]
    complaints = []
    for _ in range(2):
        n_checks = 0
        code, output = run(*arguments)
        assert code == 1
        complaints.append(output)
    assert complaints[0] == complaints[1]
    assert "python -m tests.sim.checking " + " ".join(arguments) in complaints[0]
    assert "storm, seed 3: step " in complaints[0]


def test_many_runs_are_one_line() -> None:
    """What `make sim` prints."""
    code, output = run(str(SCENARIOS / "storm.toml"), "--runs", "4", "--steps", "30", "--faults", "all")
    assert code == 0
    assert "storm: 4 runs, " in output
    assert "no invariant broken" in output


def test_the_last_steps_before_a_failure_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A journal that `poise sim --replay` reads."""

    def broken(self: Scheduler) -> None:
        raise AssertionError("books do not balance")

    monkeypatch.setattr(checking, "check_scheduler", broken)
    journal = tmp_path / "journal.jsonl"
    assert run(str(SCENARIOS / "single.toml"), "--journal", str(journal))[0] == 1
    assert read_journal(journal.read_text().splitlines()).entries


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [(["x.toml"], "neither a file nor in"), ([str(SCENARIOS / "single.toml"), "--faults", "rain"], "unknown fault 'rain'")],
)
def test_bad_arguments_are_one_line(arguments: list[str], complaint: str) -> None:
    """Exit code 2, without a traceback."""
    code, output = run(*arguments)
    assert code == 2
    assert complaint in output
    assert "Traceback" not in output
