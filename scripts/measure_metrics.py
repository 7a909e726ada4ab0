"""What metrics and journal cost a step of the engine, in microseconds: alternating runs of the real loop with and without them.

    PYTHONPATH=src python scripts/measure_metrics.py [ROUNDS]

The loop, the scheduler and the messages are the real ones; the runner answers at once, on virtual time, so that everything
that is measured is the loop's own. Sixteen streams decode and none ends. "Without" has objects in their places that do nothing.
"""

from __future__ import annotations

import sys
import time
from typing import Any

from poise.config import Settings
from poise.config.settings import PoolSettings, PoolsSettings
from poise.engine.core import Engine
from poise.engine.figures import StepTallies
from poise.engine.journal import Journal
from poise.scheduler import scheduler
from poise.scheduler.bottleneck import Limit
from poise.scheduler.fairness import fairness
from poise.scheduler.fairness.equity import RecentService
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.framing import encode_frame
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import SamplingParams
from poise_lab.sim.costs import Costs
from poise_lab.sim.runner import SimRunner, VirtualClock
from poise_lab.sim.simulate import sim_policy

N_STREAMS = 16
STEPS = 500
STEP_MS = 40
PARTS = ("journal", "tallies", "bottleneck", "fairness window")


class _Ports:
    """Inbox and Outbox. Messages are encoded, as they are on the way to a socket."""

    def __init__(self, messages: list[to_engine.ToEngine]) -> None:
        self._messages = messages

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        messages, self._messages = self._messages, []
        return messages

    def send(self, message: wire.ToGateway) -> None:
        encode_frame(message)


class _NoJournal(Journal):
    def record(self, now_ns: int, kind: str, *values: object) -> None:
        pass


class _NoTallies(StepTallies):
    def add(self, *_: Any) -> None:
        pass


class _NoService(RecentService):
    def charge(self, tenant: str, cost_us: int) -> None:
        pass

    def roll(self, now_ns: int) -> bool:
        return False


def step_us(without: frozenset[str]) -> float:
    """Time of a step, in the mean over STEPS."""
    slots = PoolsSettings(short=PoolSettings(slots=N_STREAMS, slot_tokens=8192))
    policy = sim_policy(Settings(pools=slots))
    pools = [PoolInfo(name, p.n_slots, p.slot_cells, True, 0, p.cell_bytes) for name, p in policy.pools.items()]
    clock = VirtualClock()
    prompts = [list(range(1, 30)) for _ in range(N_STREAMS)]
    sampling = SamplingParams(temperature=0.0, ignore_eos=True)
    submits = [to_engine.Submit(i, f"t{i % 4}", "interactive", p, 8000, sampling) for i, p in enumerate(prompts, start=1)]
    ports = _Ports(list(submits))
    fairness.RecentService = _NoService if "fairness window" in without else RecentService  # type: ignore[misc]
    limit_of = scheduler.limit_of
    if "bottleneck" in without:
        scheduler.limit_of = lambda *_, **__: Limit.NONE  # type: ignore[assignment]
    try:
        engine = Engine(
            Scheduler(policy),
            SimRunner(pools, clock, Costs(), Costs().pace(0)),
            clock,
            ports,
            ports,
            journal=_NoJournal() if "journal" in without else Journal(),
            tallies=_NoTallies() if "tallies" in without else StepTallies(),
        )
        for _ in range(200):
            engine.step()
        began_ns = time.process_time_ns()
        for _ in range(STEPS):
            engine.step()
        return (time.process_time_ns() - began_ns) / STEPS / 1000
    finally:
        scheduler.limit_of, fairness.RecentService = limit_of, RecentService  # type: ignore[misc]


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    cases = {"everything": frozenset(PARTS), **{part: frozenset({part}) for part in PARTS}}
    without_us: dict[str, list[float]] = {name: [] for name in cases}
    with_us = []
    for _ in range(rounds):
        for name, without in cases.items():
            with_us.append(step_us(frozenset()))
            without_us[name].append(step_us(without))
    # The best run of each: whatever else the machine does can only make one slower.
    best_us = min(with_us)
    print(f"a step of {N_STREAMS} streams: {best_us:.1f} µs of the loop and the simulated runner")
    for name, runs in without_us.items():
        cost_us = best_us - min(runs)
        print(f"{name:<16} {cost_us:6.1f} µs, {cost_us / (STEP_MS * 1000):.3%} of {STEP_MS} ms")


if __name__ == "__main__":
    main()
