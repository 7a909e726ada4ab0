"""The tuned file: what the real loader makes of it, and the evidence beside it."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from poise.config import load
from poise_lab.scenarios.files import InputError
from poise_lab.tune import tunedfile
from poise_lab.tune.evidence import Evidence, read_evidence
from poise_lab.tune.goal import DEFAULT_GUARDS, DEFAULT_TARGET, parse_goal
from poise_lab.tune.knobs import Knob
from poise_lab.tune.loop import Tuner
from tests.tune.fakes import Clock, FakeMeasures, live, passes

ORIGIN: dict[str, Any] = {
    "started_at": "2026-11-26T05:00:00+00:00",
    "host": {"cpu": 'A CPU\nwith = "odd" # signs', "n_cpus_usable": 2},
    "versions": {"poise": "0.1.0", "llama.cpp": "b1"},
    "commit": None,
    "model": {"path": "/m/a.gguf", "sha256": "0" * 64},
}
SETUP = {
    "scenario": "mixed",
    "scenario_path": "scenarios/mixed.toml",
    "round_s": 20.0,
    "rounds": 5,
    "target": "interactive.ttft_ms_p95",
    "guards": list(DEFAULT_GUARDS),
}
KNOBS = [
    Knob("model.weights", "engine", "auto", ("as-is",), ("short",)),
    Knob("pools.long.flash_attention", "engine", "auto", ("off",), ("long",)),
    Knob("scheduler.fill_share", "policy", 0.6, (0.4,)),
    Knob("scheduler.turn_ms", "policy", 2000, (1000,)),
]


def evidence(verified: float = 0.6, **answers: Any) -> Evidence:
    """Of a run in which everything was better, and the verification had this ratio."""
    clock = Clock()
    better: dict[str, Any] = {
        "passed": {"as-is": passes(0.8, decode_1_us=0.8), "off": passes(0.9, decode_1_us=0.9)},
        "foretold": {0.4: 0.8, 1000: 0.9},
        "judged": {0.4: live(ttft=0.8), 1000: live(ttft=0.9)},
        "verified": live(ttft=verified),
    }
    goal = parse_goal(DEFAULT_TARGET, DEFAULT_GUARDS)
    tuner = Tuner(FakeMeasures(clock, **(better | answers)), goal, clock, 1e6, 1, lambda _: None)
    tuner.run(KNOBS)
    return Evidence(ORIGIN, SETUP, 1, tuner.ended, tuner.trials, tuner.accepted, tuner.verification)


def test_the_loader_takes_it_as_it_is(tmp_path: Path) -> None:
    """Every accepted value, each with its origin; and over another file when that one is named first."""
    path = tmp_path / "poise.tuned.toml"
    tunedfile.write(path, evidence())
    loaded = load(path, {}, {})
    settings = loaded.settings
    assert (settings.scheduler.fill_share, settings.scheduler.turn_ms) == (0.4, 1000)
    assert loaded.origins["scheduler.turn_ms"] == f"file {path}"
    own = tmp_path / "poise.toml"
    own.write_text("[scheduler]\nturn_ms = 500\nageing = 0.5\n")
    both = load([own, path], {}, {})
    assert (both.settings.scheduler.turn_ms, both.settings.scheduler.ageing) == (1000, 0.5)
    assert load([path, own], {}, {}).settings.scheduler.turn_ms == 500


def test_each_value_has_its_evidence(tmp_path: Path) -> None:
    """Ratio, interval, rounds, seeds and guardrails stand above it; host, model and versions at the head."""
    path = tmp_path / "poise.tuned.toml"
    tunedfile.write(path, evidence())
    lines = path.read_text().splitlines()
    place = lines.index("fill_share = 0.4")
    above = " ".join(line.removeprefix("# ") for line in lines[:place][lines[:place].index("[scheduler]") :])
    for text in ("0.6 -> 0.4", "live servers in 5 alternating rounds", "seeds 1 to 5", "x0.8 [", "gap_p99<=1.10: kept"):
        assert text in above, text
    head = "\n".join(lines[:12])
    for text in ("0" * 64, "llama.cpp b1", "scenario mixed", "2026-11-26", "poise 0.1.0"):
        assert text in head, text
    assert all(line.startswith(("#", "[")) or not line or "=" in line for line in lines)
    assert tunedfile.read_values(path) == {
        "model.weights": "as-is", "pools.long.flash_attention": "off", "scheduler.fill_share": 0.4,
        "scheduler.turn_ms": 1000,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (evidence(verified=1.0), "did not confirm it"),
        (evidence(verified=1.0, judged={0.4: KeyboardInterrupt()}), "Interrupted before it could be verified"),
    ],
)
def test_what_is_not_confirmed_sets_nothing(tmp_path: Path, found: Evidence, said: str) -> None:
    """It stands there as a comment, with its evidence."""
    path = tmp_path / "poise.tuned.toml"
    tunedfile.write(path, found)
    assert tomllib.loads(path.read_text()) == {}
    assert load(path, {}, {}).settings == load(path, {}, {"profile": None}).settings
    assert '# weights = "as-is"' in path.read_text()
    assert said in path.read_text()


def test_nothing_was_found(tmp_path: Path) -> None:
    """The file says so, and loads."""
    path = tmp_path / "poise.tuned.toml"
    tunedfile.write(path, evidence(passed={}, foretold={}))
    assert tunedfile.read_values(path) == {}
    assert "Nothing was found to be better beyond noise" in path.read_text()


def test_the_evidence_holds_every_trial(tmp_path: Path) -> None:
    """Also the refused ones; it reads back as it was written, and the file before is kept."""
    path = tmp_path / "poise.tuned.toml"
    found = evidence(foretold={0.4: 0.8})
    tunedfile.write(path, found)
    again = read_evidence(path.with_suffix(".json"))
    assert again == found
    assert {trial.result for trial in again.trials} == {"kept", "promising", "refused"}
    tunedfile.write(path, evidence())
    assert read_evidence(path.with_name("poise.tuned.json.bak")) == found
    assert path.with_name("poise.tuned.toml.bak").exists()


def test_files_that_are_none(tmp_path: Path) -> None:
    """One line each."""
    path = tmp_path / "x.toml"
    with pytest.raises(InputError, match="cannot be read: No such file"):
        tunedfile.read_values(path)
    path.write_text("a = ")
    with pytest.raises(InputError, match="not valid TOML"):
        tunedfile.read_values(path)
    with pytest.raises(InputError, match="not the evidence of a poise tune"):
        read_evidence(path)
