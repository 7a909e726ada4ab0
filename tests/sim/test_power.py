"""Duty and limits over whole runs of the simulator: the share of the time, fairness and the order of classes."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.config import Settings
from poise.scheduler.power import FULL_PPM, PowerLimits
from poise.scheduler.scheduler import Scheduler
from poise.wire.to_engine import Power
from poise_lab.scenarios.parser import load_scenario, parse_scenario
from poise_lab.sim.simulate import Options, Simulation, simulate
from tests.sim.checking.faults import Fault
from tests.sim.checking.simulate import simulate as checked

TWO = """
name = "two"
description = "Two tenants that always want more, a chat, and a job."
duration_s = 60.0
drain_s = 30.0
warmup_requests = 0
"""
CLIENT = """
[[clients]]
name = "{0}"
tenant = "{0}"
class = "{1}"
count = {2}
arrival = {{ kind = "closed", think_s = {3} }}
prompt_tokens = 60
output_tokens = 100
"""
CLIENTS = (("one", "interactive", 1, 0.0), ("two", "interactive", 1, 0.0), ("job", "background", 1, 0.0))


def run(power: Power) -> tuple[Simulation, float]:
    """And the share of a minute in which steps were computed."""
    began_ns, busy_ns = [0], [0]

    def observe(_: Scheduler, now_ns: int, kind: str, __: tuple[object, ...]) -> None:
        if kind == "plan":
            began_ns[0] = now_ns
        elif kind == "result" and now_ns <= 60 * 10**9:
            busy_ns[0] += now_ns - began_ns[0]

    scenario = parse_scenario(TWO + "".join(CLIENT.format(*client) for client in CLIENTS), "two.toml")
    done = simulate(scenario, Settings(), 5, Options(power=power, observers=(observe,)))
    return done, busy_ns[0] / 60e9


@pytest.mark.parametrize("duty_ppm", [300_000, 500_000, 800_000])
def test_a_duty_over_a_minute(duty_ppm: int) -> None:
    """Computed time is within a twentieth of it, tokens are fairly shared, and chats keep their pace, the pauses included."""
    done, share = run(Power(PowerLimits(duty_ppm)))
    assert share == pytest.approx(duty_ppm / FULL_PPM, rel=0.05)
    tokens = {name: sum(r.tokens_within(60 * 10**9) for r in done.records if r.client == name) for name in ("one", "two", "job")}
    assert tokens["one"] == pytest.approx(tokens["two"], rel=0.15)
    assert tokens["job"] > 0
    gaps = sorted(gap for r in done.records if r.client in ("one", "two") for gap in r.gaps_ns)
    target_ns = Settings().classes.interactive.itl_target_ms * 10**6
    assert gaps[len(gaps) // 2] <= target_ns
    if duty_ppm >= 500_000:  # below it, the least chunk of a prompt takes longer
        assert gaps[int(0.95 * len(gaps))] <= 2 * target_ns
    assert all(r.outcome == "length" for r in done.records)


def test_half_the_duty_gives_half_the_tokens() -> None:
    """Nothing is lost beside the pauses."""
    whole, half = (sum(len(r.tokens) for r in run(Power(PowerLimits(ppm)))[0].records
                       if r.client != "job" and r.finished_ns and r.finished_ns <= 60 * 10**9)
                   for ppm in (FULL_PPM, FULL_PPM // 2))  # fmt: skip
    assert 0.35 * whole < half < 0.65 * whole


@pytest.mark.parametrize("seed", range(6))
def test_limits_that_come_and_go_lose_nothing(seed: int) -> None:
    """With everything else that can go wrong beside them: every invariant after every step, inside simulate."""
    storm = load_scenario(Path(__file__).parents[2] / "scenarios" / "storm.toml")
    chosen = (Fault.POWER, Fault.CANCEL, Fault.OPERATOR, Fault.STALL, Fault.ENGINE_CRASH, Fault.SHAPE)
    done = checked(storm, Settings(), seed, Options(n_steps=400), chosen)
    assert all(r.outcome != "unfinished" for r in done.records)
