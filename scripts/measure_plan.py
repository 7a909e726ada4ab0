"""Time Scheduler.plan with 64 running sequences and a growing number of waiting ones.

    .venv/bin/python scripts/measure_plan.py

Prints, for each number of waiting requests, the median and the 99th percentile of plan() over 400 steps, in microseconds.
The requests belong to 16 tenants and both classes; every step has 64 decodes and prompts waiting for slots.
"""

from __future__ import annotations

import statistics
import sys
import time

from poise.scheduler.plan import BatchResult, StepResult
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.scheduler import Scheduler

STEPS = 400


def scheduler(n_waiting: int) -> Scheduler:
    policy = SchedulerPolicy(
        pools={SHORT_POOL: PoolPolicy(64, 4096, 0), LONG_POOL: PoolPolicy(2, 8192)},
        classes={
            RequestClass.INTERACTIVE: ClassPolicy(100_000, 400_000, 0.0, 48, 1024, 2),
            RequestClass.BACKGROUND: ClassPolicy(100_000, 400_000, 0.2, 32, 1024, 1),
        },
    )
    s = Scheduler(policy)
    for i in range(64 + n_waiting):
        request_class = RequestClass.BACKGROUND if i % 4 == 0 else RequestClass.INTERACTIVE
        s.add(Request(i, f"tenant-{i % 16}", request_class, 16 + i % 50, 3000), i)
    return s


def measure(n_waiting: int) -> tuple[float, float, int]:
    s = scheduler(n_waiting)
    times: list[float] = []
    now_ns = 10**9
    for step in range(STEPS + 200):
        began = time.perf_counter_ns()
        plan = s.plan(now_ns)
        took = time.perf_counter_ns() - began
        if step >= 200:
            times.append(took / 1000)
        now_ns += 50_000_000
        cost_us = [3000 + sum(400 * c.n_tokens for c in b.chunks) for b in plan.batches]
        s.complete(plan, StepResult(tuple(BatchResult(c) for c in cost_us)), now_ns)
    running = sum(c.n_running for c in s.snapshot().classes.values())
    return statistics.median(times), statistics.quantiles(times, n=100)[98], running


def main() -> None:
    print("waiting  running  median_us  p99_us")
    for n_waiting in (0, 10, 100, 1000, 10_000):
        median, p99, running = measure(n_waiting)
        print(f"{n_waiting:7}  {running:7}  {median:9.0f}  {p99:6.0f}")


if __name__ == "__main__":
    sys.exit(main())
