"""The breaking point: scaled loads, the search, and what is said to have given out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from poise.config import Settings
from poise.config.settings import ClassesSettings, PoolSettings, PoolsSettings
from poise.scheduler.policy import CostPrior
from poise.scheduler.request import RequestClass
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import parse_scenario
from poise_lab.sim.breaking import DEFAULT_TARGETS, Trial, explain, find_break, parse_target, scaled
from poise_lab.sim.costs import Costs
from poise_lab.sim.pressure import Pressure, Resource
from poise_lab.sim.simulate import Options, Simulation, sim_policy, simulate


def crowd(arrival: str, prompt: int, output: int, duration_s: int = 20, count: int = 1) -> Scenario:
    return parse_scenario(
        f"""
        name = "crowd"
        description = "one kind of client"
        duration_s = {duration_s}
        drain_s = 0
        [[clients]]
        name = "crowd"
        tenant = "crowd"
        class = "interactive"
        count = {count}
        arrival = {arrival}
        prompt_tokens = {prompt}
        output_tokens = {output}
        """,
        "crowd",
    )


def run(scenario: Scenario, settings: Settings, costs: Costs | None = None) -> tuple[Simulation, dict[RequestClass, Pressure]]:
    policy = sim_policy(settings)
    watched = {c: Pressure(c, policy) for c in RequestClass}
    options = Options(costs=costs or Costs(), observers=tuple(p.recorded for p in watched.values()))
    return simulate(scenario, settings, 1, options), watched


def waited(scenario: Scenario, settings: Settings, costs: Costs | None = None) -> Mapping[Resource, float]:
    return run(scenario, settings, costs)[1][RequestClass.INTERACTIVE].waited_s


def settings_with(slots: int, queue_max: int = 64) -> Settings:
    defaults = Settings().classes
    interactive = defaults.interactive.model_copy(update={"slots_max": slots, "queue_max": queue_max})
    background = defaults.background.model_copy(update={"slots_max": min(slots, 6)})
    short = PoolSettings(slots=slots, slot_tokens=4096)
    return Settings(pools=PoolsSettings(short=short), classes=ClassesSettings(interactive=interactive, background=background))


def test_targets_are_read_as_they_are_written() -> None:
    """Every default, and a complaint that says what is possible."""
    assert [str(parse_target(text)) for text in DEFAULT_TARGETS] == list(DEFAULT_TARGETS)
    with pytest.raises(ValueError, match="expected CLASS"):
        parse_target("interactive.joy_p95_ms=3")


def test_a_load_is_scaled_in_rates_and_in_numbers() -> None:
    """Open loops by rate, closed loops by clients, at least one."""
    poisson = scaled(crowd('{ kind = "poisson", rate_per_s = 2.0 }', 10, 10), 1.5)
    assert poisson.clients[0].arrival.rate_per_s == 3.0
    closed = crowd('{ kind = "closed" }', 10, 10, count=4)
    assert [scaled(closed, f).clients[0].count for f in (0.1, 0.5, 1.5, 2.0)] == [1, 2, 6, 8]


def test_the_break_is_found_between_two_factors() -> None:
    """Whatever the machine can take, the two factors lie within five per cent, and one keeps what the other misses."""
    scenario = crowd('{ kind = "poisson", rate_per_s = 1.0 }', 60, 20, duration_s=30)
    targets = [parse_target("interactive.ttft_p95_ms=1500"), parse_target("interactive.refused_pct=1")]
    tried: list[Trial] = []
    kept, broken = find_break(scenario, targets, lambda load: [run(load, Settings())], tried.append)
    assert kept is not None
    assert broken is not None
    assert not kept.missed
    assert broken.missed
    assert 1.0 < broken.factor / kept.factor <= 1.05
    assert len(tried) < 15
    assert any("gave out first" in line for line in explain(broken))


def test_a_load_that_never_breaks_says_so() -> None:
    """A single polite client does not become two by rounding below its number."""
    scenario = crowd('{ kind = "closed", think_s = 1.0 }', 10, 2, duration_s=5)
    kept, broken = find_break(
        scenario, [parse_target("interactive.gap_p50_ms=100000")], lambda load: [run(load, Settings())], lambda _: None
    )
    assert broken is None
    assert kept is not None
    assert kept.factor == 64.0


def test_the_median_run_decides() -> None:
    """One seed of three in which a target is missed does not break a load, two do; then the first of them says what gave out."""
    scenario = crowd('{ kind = "closed" }', 10, 2, duration_s=5)
    runs = [run(scenario, Settings()) for _ in range(3)]
    (target,) = targets = [parse_target("interactive.e2e_p95_ms=1000")]
    for number, (done, _) in enumerate(runs):
        for record in done.records:
            record.finished_ns = record.sent_ns + (2_000_000_000 if number else 1_000_000)
    broken = Trial.of(1.0, targets, runs)
    assert broken.measured == {target: 2000.0}
    assert broken.pressure is runs[1][1]
    kept = Trial.of(1.0, targets, [runs[0], *runs[:2]])
    assert kept.measured == {target: 1.0}
    assert not kept.missed


def test_prompts_wait_for_compute() -> None:
    """Long prompts and free slots: nothing but time is short."""
    found = waited(crowd('{ kind = "closed" }', 900, 4, count=3), Settings())
    assert found[Resource.COMPUTE] > 0.95 * sum(found.values())


def test_idle_steps_and_no_slot_is_a_lack_of_cells() -> None:
    """One slot, steps that take a hundredth of their budget, and five clients that want it."""
    fast = Costs(dict.fromkeys(("short", "long"), CostPrior(100, 500, 20, 0.001)))
    found = waited(crowd('{ kind = "closed" }', 20, 100, duration_s=1, count=5), settings_with(slots=1), fast)
    assert found[Resource.KV_CELLS] > 0.9 * sum(found.values())


def test_refusals_are_the_queues() -> None:
    """A queue of two and fifty clients."""
    done, watched = run(crowd('{ kind = "closed" }', 100, 50, count=50), settings_with(slots=2, queue_max=2))
    pressure = watched[RequestClass.INTERACTIVE]
    refused = sum(r.outcome == "queue_share" for r in done.records)
    assert pressure.waited_s[Resource.QUEUE] == refused > 100
    assert pressure.gave_out_s[Resource.QUEUE] < 5.0


def test_a_trace_is_scaled_in_time(tmp_path: Path) -> None:
    """Twice the load is the same trace in half the time."""
    (tmp_path / "t.csv").write_text("timestamp,context,generated\n0,1,1\n8,1,1\n", encoding="utf-8")
    load = parse_scenario(
        """
        name = "x"
        description = "x"
        duration_s = 20
        drain_s = 0
        [[clients]]
        name = "x"
        tenant = "x"
        class = "interactive"
        arrival = { kind = "trace", file = "t.csv" }
        prompt_tokens = 5
        output_tokens = 5
        """,
        "x",
        tmp_path,
    )
    assert [r.arrival_s for s in scaled(load, 2.0).requests(1) for r in s.requests] == [0.0, 4.0]
