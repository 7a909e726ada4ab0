"""Costs are found again: a journal of a machine whose true costs are known."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from poise.config import Settings
from poise.engine.journal import JournalError
from poise.scheduler.planning.budget import BatchShape
from poise.scheduler.policy import CostPrior
from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.calibrate import PARTS, _fit_pool, calibrate, robust_fit
from poise_lab.sim.costs import Costs, load_costs
from poise_lab.sim.simulate import Options, simulate

SCENARIOS = Path(__file__).parents[2] / "scenarios"
SHORT = CostPrior(fixed_us=2500, decode_us=6100, prompt_us=2900, attended_us=1.4)
LONG = CostPrior(fixed_us=3500, decode_us=9000, prompt_us=3300, attended_us=2.2)
NOISE = (0.9, 0.95, 1.0, 1.05, 1.1)


@pytest.fixture(scope="module")
def recorded() -> list[str]:
    """The mixed load on a machine with noise and a loop that takes time."""
    noise = {"short": NOISE, "long": NOISE}
    costs = Costs({"short": SHORT, "long": LONG}, noise, step_us=400, row_us=30, carry_us_per_cell=7.0)
    options = Options(costs=costs, keep_journal=True)
    return list(simulate(load_scenario(SCENARIOS / "mixed.toml"), Settings(), 1, options).journal.lines())


def test_the_true_costs_are_found(recorded: list[str]) -> None:
    """What most of a step's time goes to within a few per cent, the rest within what the noise leaves open."""
    found = calibrate(recorded)
    short = dict(zip(PARTS, found.pools["short"].weights, strict=True))
    assert short["decode_us"] == pytest.approx(SHORT.decode_us, rel=0.06)
    assert short["prompt_us"] == pytest.approx(SHORT.prompt_us, rel=0.06)
    assert short["fixed_us"] == pytest.approx(SHORT.fixed_us, rel=0.5)
    long = dict(zip(PARTS, found.pools["long"].weights, strict=True))
    assert long["prompt_us"] == pytest.approx(LONG.prompt_us, rel=0.1)
    assert long["attended_us"] == pytest.approx(LONG.attended_us, rel=0.1)
    assert found.step_us == pytest.approx(400, rel=0.1)
    assert found.row_us == pytest.approx(30, rel=0.2)
    assert found.pools["short"].error_p95 < 0.12
    assert found.pools["short"].noise[0] == pytest.approx(0.9, abs=0.03)
    assert found.pools["short"].noise[-1] == pytest.approx(1.1, abs=0.03)


@pytest.mark.parametrize("n_dropped", [0, 500])
def test_what_came_before_does_not_count(recorded: list[str], n_dropped: int) -> None:
    """Another load, of batches that cost twice as much, is still in the journal, or a part of it."""
    header, policy, *entries = recorded
    before = [_at_twice_the_cost(entry) for entry in entries]
    n_recorded = len(before) + len(entries)
    header = json.dumps(json.loads(header) | {"recorded": n_recorded, "dropped": n_dropped})
    both = [header, policy, *before[n_dropped:], *entries]
    assert calibrate(both, n_before=len(before)) == calibrate(recorded)
    assert calibrate(both) != calibrate(recorded)


def _at_twice_the_cost(text: str) -> str:
    entry = json.loads(text)
    if entry["kind"] == "result":
        for batch in entry["values"][0]["batches"]:
            batch["cost_us"] *= 2
    return json.dumps(entry)


def test_a_busy_host_does_not_spoil_the_fit() -> None:
    """One step in ten took five times as long: it hardly counts."""
    rng = np.random.default_rng(1)
    features = np.column_stack(
        [np.ones(400), rng.integers(0, 9, 400), rng.integers(0, 120, 400), rng.integers(0, 90_000, 400)]
    ).astype(np.float64)
    true = np.array([2000.0, 5000.0, 3000.0, 0.8])
    measured = features @ true * rng.uniform(0.97, 1.03, 400)
    measured[::10] *= 5
    weights = robust_fit(features, measured)
    assert features @ weights == pytest.approx(features @ true, rel=0.02)
    assert weights[1:] == pytest.approx(true[1:], rel=0.05)


def test_a_few_very_slow_passes_are_drawn_as_rarely_as_they_came() -> None:
    """One pass in a hundred took ten times as long. Between it and the others there is nothing, so nothing is drawn from there:
    the mean of what is drawn is the mean of what was measured."""
    shapes = [BatchShape(decode_tokens=1 + i % 8) for i in range(1000)]
    batches = [(s, 5000 * s.decode_tokens * (10 if i % 100 == 0 else 1)) for i, s in enumerate(shapes)]
    fit = _fit_pool(batches)
    assert sum(fit.noise) / len(fit.noise) == pytest.approx(1.09, rel=0.01)
    pace = Costs({"short": CostPrior(*fit.weights)}, {"short": fit.noise}).pace(1)
    drawn = [pace("short", 1000.0) / 1e6 for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1.09, rel=0.03)
    assert not [factor for factor in drawn if 2 < factor < 9]


def test_no_cost_is_negative() -> None:
    """Where noise would make one so, it is left out."""
    features = np.array([[1.0, n, 0.0, 0.0] for n in range(1, 60)])
    weights = robust_fit(features, 1000.0 * features[:, 1] - 300.0)
    assert weights.min() == 0.0
    assert weights[1] == pytest.approx(990, rel=0.02)


def test_a_cost_file_is_what_was_fitted(recorded: list[str], tmp_path: Path) -> None:
    """Written, read, and simulated with."""
    found, path = calibrate(recorded), tmp_path / "cost.toml"
    path.write_text(found.toml())
    costs = load_costs(path)
    assert costs.pools["short"].decode_us == pytest.approx(found.pools["short"].weights[1])
    assert costs.noise["long"] == pytest.approx(found.pools["long"].noise, abs=1e-4)
    assert costs.row_us == pytest.approx(found.row_us, abs=0.01)
    done = simulate(load_scenario(SCENARIOS / "single.toml"), Settings(), 1, Options(costs=costs, priors=costs.pools))
    assert {r.outcome for r in done.records} == {"length"}


def test_too_short_a_journal_is_refused(recorded: list[str]) -> None:
    """With how much there is and how much is needed."""
    with pytest.raises(JournalError, match=r"holds \d+ measured batches.*20 are needed"):
        calibrate(recorded[:12])


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("pools = 3", "not a cost file"),
        ("[pools", "not valid TOML"),
        ("[pools.short]\nfixed_us = 1", "not a cost file: KeyError"),
        ("[pools.short]\nfixed_us = -1\ndecode_us = 1\nprompt_us = 1\nattended_us = 1", "negative"),
    ],
)
def test_a_bad_cost_file_is_one_line(text: str, complaint: str, tmp_path: Path) -> None:
    """The file and what is wrong."""
    path = tmp_path / "cost.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        load_costs(path)
