"""`poise tune` and `poise capacity` as a user meets them: arguments, plan, check, interruption; measures are replaced."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from poise.cli import app
from poise_lab.tune import capacity_command, command, tunedfile
from poise_lab.tune.evidence import Evidence, read_evidence
from tests.bench.test_command import TEXT
from tests.tune.fakes import Clock, FakeMeasures, live, passes
from tests.tune.test_tunedfile import ORIGIN, evidence

FILL = "[scheduler]\nfill_share = 0.4\n"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder with one scenario, and a model that need not be read."""
    monkeypatch.chdir(tmp_path)
    for name in ("CONFIG", "CACHE", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name.lower()))
    (tmp_path / "scenarios").mkdir()
    (tmp_path / "scenarios" / "mixed.toml").write_text(TEXT)
    monkeypatch.setattr(command, "describe", lambda _: ORIGIN)


def run(*arguments: str, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, list(arguments), prog_name="poise")
    assert result.exit_code == exit_code, result.output
    return result


def measured_by(monkeypatch: pytest.MonkeyPatch, **answers: Any) -> FakeMeasures:
    clock = Clock()
    fake = FakeMeasures(clock, **answers)

    @contextmanager
    def measures(*_: object) -> Iterator[FakeMeasures]:
        yield fake

    monkeypatch.setattr(command, "host_measures", measures)
    monkeypatch.setattr(command, "plan_text", lambda *_: "plan")
    return fake


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stage", "some"], "--stage some: expected engine, policy or all"),
        (["--rounds", "4"], "--rounds 4: expected 5 to 100"),
        (["--minutes", "0"], "--minutes 0.0: expected 0.1 to 10000"),
        (["--round-s", "0.5"], "--round-s 0.5: expected 1 to 3600"),
        (["--seed", "-1"], "--seed -1: expected 0 to"),
        (["--knob", "engine.speed"], "--knob engine.speed: nothing to try; there are model.weights"),
        (["--target", "speed"], "--target 'speed': expected GROUP.FIGURE"),
        (["--guard", "gap<2"], "guard 'gap<2': expected"),
        (["--scenario", "none"], "no scenario 'none': neither a file nor in ./scenarios, where there are: mixed"),
        (["--set", "engine.thread=2"], "--set engine.thread: unknown key; did you mean engine.threads?"),
        (["missing/poise.tuned.toml"], "FILE missing/poise.tuned.toml: cannot be written"),
        (["--check"], "poise.tuned.toml: cannot be read: No such file or directory"),
    ],
)
def test_what_cannot_be_used_is_a_line(arguments: list[str], said: str) -> None:
    """Status 2, one line on stderr, nothing started."""
    result = run("tune", *arguments, exit_code=2)
    assert result.stdout == ""
    assert said in result.stderr
    assert result.stderr.count("\n") == 1


def test_the_plan_measures_nothing() -> None:
    """What would be tried in which order, with its time; nothing is written."""
    lines = run("tune", "--plan", "--knob", "scheduler.turn_ms", "--knob", "engine.batch_tokens").stdout.splitlines()
    tried = [line.split("  (")[0] for line in lines if line.lstrip()[:1].isdigit()]
    assert [" ".join(line.split()[1:]) for line in tried] == [
        "passes engine.batch_tokens 512 -> 256",
        "passes engine.batch_tokens 512 -> 1024",
        "simulator scheduler.turn_ms 2000 -> 1000",
        "simulator scheduler.turn_ms 2000 -> 4000",
    ]
    assert "Budget 45 min" in lines[-1]
    assert not list(Path().glob("poise.tuned*"))


def test_a_run_writes_what_it_verified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A line for each trial, the two files, and how to serve with them."""
    measured_by(monkeypatch, foretold={0.4: 0.8}, judged={0.4: live(ttft=0.8)}, verified=live(ttft=0.8))
    out = run("tune", "--stage", "policy", "--knob", "scheduler.fill_share").stdout
    assert "live       scheduler.fill_share 0.6 -> 0.4: kept: interactive.ttft_ms_p95 x0.8" in out
    assert out.endswith("serve with: poise serve --config poise.tuned.toml\n")
    assert tunedfile.read_values(Path("poise.tuned.toml")) == {"scheduler.fill_share": 0.4}
    assert read_evidence(Path("poise.tuned.json")).setup["guards"]
    assert "fill_share = 0.4 # file" in " ".join(run("config", "--config", "poise.tuned.toml").stdout.split())


def test_a_run_that_finds_nothing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And succeeds: it did what it was asked."""
    measured_by(monkeypatch)
    assert "Nothing was found to be better beyond noise" in run("tune").stdout
    assert tunedfile.read_values(Path("poise.tuned.toml")) == {}


def test_an_interrupted_run_writes_what_it_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the status of an interrupt."""
    measured_by(monkeypatch, foretold={0.4: 0.8, 1000: 0.7}, judged={0.4: KeyboardInterrupt(), 1000: live(ttft=0.8)})
    run("tune", "--stage", "policy", exit_code=130)
    assert "# turn_ms = 1000" in Path("poise.tuned.toml").read_text()
    assert read_evidence(Path("poise.tuned.json")).ended == "interrupted"


@pytest.mark.parametrize(
    ("answers", "exit_code", "said"),
    [
        ({"judged": {0.4: live(ttft=0.8)}, "passed": {"as-is": passes(0.8, decode_1_us=0.8)}}, 0, "2 of 2 values"),
        ({"judged": {0.4: live(ttft=1.0)}, "passed": {"as-is": passes(0.8, decode_1_us=0.8)}}, 1, "1 of 2 values"),
        ({"judged": {0.4: KeyboardInterrupt()}, "passed": {}}, 130, "model.weights = as-is: no longer"),
    ],
)
def test_check(monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], exit_code: int, said: str) -> None:
    """Each value is left out in turn, judged as it was, with requests that it was not chosen by."""
    fake = measured_by(monkeypatch, **answers)
    Path("poise.tuned.toml").write_text('[model]\nweights = "as-is"\n' + FILL)
    result = run("tune", "--check", exit_code=exit_code)
    assert said in result.stdout
    values = {"model.weights": "as-is", "scheduler.fill_share": 0.4}
    assert fake.asked == [("passes", {"scheduler.fill_share": 0.4}, values), ("live", {"model.weights": "as-is"}, values)]
    assert min(fake.seeds) > 100_000


def test_check_uses_what_it_was_tuned_by(monkeypatch: pytest.MonkeyPatch) -> None:
    """Target, guardrails and scenario come from the evidence; what has changed since is told."""
    found = evidence()
    found = Evidence(
        ORIGIN | {"model": {"path": "b", "sha256": "1" * 64}},
        found.setup | {"target": "all.output_tokens_per_s", "guards": []},
        1, "complete", found.trials, found.accepted, found.verification,
    )  # fmt: skip
    tunedfile.write(Path("poise.tuned.toml"), found)
    Path("poise.tuned.toml").write_text(FILL)
    measured_by(monkeypatch, judged={0.4: live(ttft=5.0, all_tokens=1.5)})
    out = run("tune", "--check").stdout
    assert "changed since: model: measured with 111" in out
    assert "scheduler.fill_share = 0.4: holds: all.output_tokens_per_s x1.5" in out


def test_check_of_what_is_not_tuned() -> None:
    """A setting that no measurement decides is named; an empty file has nothing to check."""
    Path("poise.tuned.toml").write_text("[server]\nport = 9000\n")
    assert "server.port is no setting that is tuned" in run("tune", "--check", exit_code=2).stderr
    Path("poise.tuned.toml").write_text("")
    assert "there is nothing to check" in run("tune", "--check").stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--minutes", "0"], "--minutes 0.0: expected"),
        (["--target", "interactive.speed=3"], "--target 'interactive.speed=3': expected CLASS.MEASURE=NUMBER"),
        (["--model", "missing.gguf"], "missing.gguf"),
        (["--set", "a"], "--set a: must be KEY=VALUE"),
    ],
)
def test_capacity_refuses_in_a_line(arguments: list[str], said: str) -> None:
    """Status 2, before anything is started."""
    assert said in run("capacity", *arguments, exit_code=2).stderr


def test_capacity_show_without_a_record(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says what would make one."""
    Path("m.gguf").write_bytes(b"x")
    monkeypatch.setattr(capacity_command, "model_path", lambda _: Path("m.gguf"))
    assert "nothing was measured on this host" in run("capacity", "show").stdout
