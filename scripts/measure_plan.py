"""Time Scheduler.plan with 64 running sequences, a growing number of waiting ones, and swapped ones among them.

    .venv/bin/python scripts/measure_plan.py

Prints, for each load, the median and the 99th percentile of plan() over 400 steps, in microseconds. The requests belong to 16
tenants and both classes; every step has 64 decodes and prompts waiting for slots. The target for 1,000 waiting and 50 swapped
is 500 microseconds.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable

from poise.scheduler.planning.plan import BatchResult, StepPlan, StepResult
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.scheduler import Scheduler

INTERACTIVE, BACKGROUND = RequestClass.INTERACTIVE, RequestClass.BACKGROUND
STEPS = 400
SLOTS = 64
STEP_NS = 50_000_000
TARGET_US = 500


class Load:
    """A scheduler with `n_swapped` background sequences in the host store and `n_waiting` new requests of both classes."""

    def __init__(self, n_waiting: int, n_swapped: int) -> None:
        slots_max = SLOTS if n_swapped else SLOTS // 2
        policy = SchedulerPolicy(
            pools={SHORT_POOL: PoolPolicy(SLOTS, 4096, 100), LONG_POOL: PoolPolicy(2, 8192, 100)},
            classes={
                INTERACTIVE: ClassPolicy(100_000, 400_000, 0.0, SLOTS if n_swapped else 48, 1024, 2),
                BACKGROUND: ClassPolicy(100_000, 400_000, 0.2, slots_max, 1024, 1),
            },
            turn_us=10**12 if n_swapped else 2_000_000,
        )
        self.scheduler = Scheduler(policy)
        self.now_ns = 10**9
        self._n_requests = 0
        if n_swapped:
            self._add(SLOTS, lambda i: BACKGROUND)
            self._run_until(lambda: self._running() == SLOTS)
            self._add(n_swapped, lambda i: INTERACTIVE)
            self._run_until(lambda: self.n_swapped == n_swapped)
            self._add(n_waiting, lambda i: BACKGROUND if i % 4 == 0 else INTERACTIVE)
        else:
            self._add(SLOTS + n_waiting, lambda i: BACKGROUND if i % 4 == 0 else INTERACTIVE)

    @property
    def n_swapped(self) -> int:
        return sum(c.swapped for c in self.scheduler.snapshot().classes.values())

    def step(self) -> float:
        """One step; returns what plan() took, in microseconds."""
        began = time.perf_counter_ns()
        plan = self.scheduler.plan(self.now_ns)
        took = time.perf_counter_ns() - began
        self._complete(plan)
        return took / 1000

    def measure(self) -> tuple[float, float]:
        for _ in range(200):
            self.step()
        times = [self.step() for _ in range(STEPS)]
        return statistics.median(times), statistics.quantiles(times, n=100)[98]

    def report(self) -> str:
        waiting = sum(c.queued for c in self.scheduler.snapshot().classes.values())
        median, p99 = self.measure()
        return f"{waiting:7}  {self._running():7}  {self.n_swapped:7}  {median:9.0f}  {p99:6.0f}"

    def _running(self) -> int:
        return sum(c.running for c in self.scheduler.snapshot().classes.values())

    def _add(self, n: int, request_class: Callable[[int], RequestClass]) -> None:
        for i in range(n):
            number = self._n_requests
            self._n_requests += 1
            request = Request(number, f"tenant-{number % 16}", request_class(i), 16 + number % 50, 3000)
            self.scheduler.add(request, self.now_ns)

    def _run_until(self, condition: Callable[[], bool]) -> None:
        for _ in range(2000):
            if condition():
                return
            self.step()
        raise AssertionError("the load did not come about")

    def _complete(self, plan: StepPlan) -> None:
        self.now_ns += STEP_NS
        if not plan.is_empty:
            cost_us = [3000 + sum(400 * c.n_tokens for c in b.chunks) for b in plan.batches]
            self.scheduler.complete(plan, StepResult(tuple(BatchResult(c) for c in cost_us)), self.now_ns)


def main() -> None:
    print("waiting  running  swapped  median_us  p99_us")
    for n_waiting, n_swapped in ((0, 0), (10, 0), (100, 0), (1000, 0), (10_000, 0), (1000, 50)):
        print(Load(n_waiting, n_swapped).report(), flush=True)
    print(f"target for the last line: {TARGET_US}")


if __name__ == "__main__":
    sys.exit(main())
