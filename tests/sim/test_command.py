"""`poise sim` as a user runs it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from poise.scheduler.scheduler import Scheduler
from poise_lab.sim.command import sim

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


def test_an_engine_that_breaks_off_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says where, and exit code 1."""

    def broken(self: Scheduler, now_ns: int) -> None:
        raise KeyError("no such sequence")

    monkeypatch.setattr(Scheduler, "plan", broken)
    code, output = run(str(SCENARIOS / "single.toml"), "--seed", "7")
    assert code == 1
    assert "poise sim: single, seed 7: step 0, " in output
    assert "no such sequence" in output
    assert "Traceback" not in output


def test_many_runs_are_one_line() -> None:
    """More than three are summed up."""
    code, output = run(str(SCENARIOS / "single.toml"), "--runs", "4", "--steps", "30")
    assert code == 0
    assert "single: 4 runs, " in output


def test_a_journal_is_written_replayed_and_calibrated(tmp_path: Path) -> None:
    """The way from a recording to a cost file that the next simulation takes."""
    journal, cost = str(tmp_path / "journal.jsonl"), str(tmp_path / "cost.toml")
    assert run(str(SCENARIOS / "mixed.toml"), "--journal", journal)[0] == 0
    code, output = run("--replay", journal)
    assert (code, "all as recorded" in output) == (0, True)
    code, output = run("--calibrate", journal, "--out", cost)
    assert (code, "pool short" in output) == (0, True)
    assert run(str(SCENARIOS / "single.toml"), "--cost", cost)[0] == 0


def test_a_replay_that_differs_exits_with_one(tmp_path: Path) -> None:
    """So that a script notices."""
    journal = tmp_path / "journal.jsonl"
    run(str(SCENARIOS / "single.toml"), "--journal", str(journal))
    journal.write_text(journal.read_text().replace('"start": 0', '"start": 1', 1))
    code, output = run("--replay", str(journal))
    assert code == 1
    assert "start was 1, is 0" in output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "name at least one scenario"),
        (["x.toml"], "neither a file nor in"),
        ([str(SCENARIOS / "single.toml"), "--find-break", "--target", "joy=1"], "expected CLASS.MEASURE"),
        ([str(SCENARIOS / "single.toml"), "--cost", "none.toml"], "none.toml: cannot be read"),
        (["--replay", "none.jsonl"], "none.jsonl"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], complaint: str) -> None:
    """Exit code 2, without a traceback."""
    code, output = run(*arguments)
    assert code == 2
    assert complaint in output
    assert "Traceback" not in output


def test_the_breaking_point_is_said_with_its_reason(tmp_path: Path) -> None:
    """Factors as they are tried, then between which two it breaks, and what gave out."""
    text, n = re.subn(r"duration_s = [\d.]+", "duration_s = 12.0", (SCENARIOS / "flood.toml").read_text())
    assert n == 1
    (tmp_path / "flood.toml").write_text(text)
    code, output = run(str(tmp_path / "flood.toml"), "--find-break", "--target", "interactive.ttft_p95_ms=4000")
    assert code == 0
    assert "x 1 " in output
    assert "breaks between" in output
    assert "gave out first" in output
