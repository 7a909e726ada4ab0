"""What the engine tells of its steps adds up to what it did."""

from __future__ import annotations

import pytest

from poise.engine.figures import PARTS
from poise.scheduler.request import RequestClass
from poise.wire import status as wire_status
from poise.wire.figures import Distribution
from poise.wire.messages import PoolInfo
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench
from tests.sim.exact_runner import ExactRunner


def told(bench: Bench) -> wire_status.Status:
    return [m for m in bench.mail.sent if isinstance(m, wire_status.Status)][-1]


def n(distribution: Distribution) -> int:
    return sum(distribution.counts)


def test_a_run_adds_up() -> None:
    """Each step once, each prompt token and each output token once; time is what the clock says."""
    bench = Bench(end_rate=0)
    for i in range(1, 4):
        bench.submit(i, list(range(i, 100 + i)), 20)
    bench.run()
    status = told(bench)
    steps = status.steps
    assert list(steps.parts_us) == list(PARTS)
    n_steps = bench.engine.n_steps
    assert n_steps == n(steps.seconds) == n(steps.decode_tokens) == n(steps.prompt_tokens) == n(steps.sequences)
    assert steps.prompt_tokens.total == steps.chunk_tokens.total == 300 == status.prompt_tokens
    assert steps.decode_tokens.total == 3 * 19  # the first token of each comes with its prompt
    assert steps.seconds.total == pytest.approx(bench.clock.now_ns() / 1e9)
    assert sum(steps.parts_us.values()) == pytest.approx(bench.clock.now_ns() / 1000, abs=len(PARTS))
    assert n(steps.cost_ratio) == n_steps
    assert status.classes[RequestClass.INTERACTIVE].served_us == pytest.approx(steps.parts_us["forward"], abs=n_steps)


def test_a_model_that_is_right_is_told_so() -> None:
    """The simulated machine costs what the prior says: every ratio is about 1."""
    bench = Bench()
    bench.submit(1, list(range(1, 400)), 50)
    bench.run()
    ratio = told(bench).steps.cost_ratio
    assert ratio.total / n(ratio) == pytest.approx(1.0, abs=0.02)


def test_the_bottleneck_is_told() -> None:
    """What limits now, since when, and what did before."""
    bench = Bench()
    bench.submit(1, list(range(1, 400)), 5)
    bench.run()
    bottleneck = told(bench).bottleneck
    assert (bottleneck.limit, bottleneck.since_ns) == ("idle", bench.clock.now_ns())
    assert bottleneck.limited_us["compute"] > 0
    assert sum(bottleneck.limited_us.values()) == pytest.approx(bench.clock.now_ns() / 1000, abs=5)


def test_a_slower_machine_shows_in_the_cost_ratio() -> None:
    """Another program takes the cores: passes take three times as long as the model had learnt, until it learns that."""
    clock, slowness = VirtualClock(), [1]
    pools = [PoolInfo("short", 10, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
    runner = ExactRunner(pools, clock=clock, pace=lambda _, predicted_us: int(predicted_us * 1000) * slowness[0])
    bench = Bench(runner=runner, clock=clock)
    bench.submit(1, list(range(1, 100)), 200)
    bench.step(30)
    slowness[0] = 3
    before = bench.engine.tallies.figures().cost_ratio
    bench.step(10)
    after = bench.engine.tallies.figures().cost_ratio
    assert after.total - before.total > 15


def test_memory_that_nobody_accounts_for_is_told() -> None:
    """What the process has besides weights, KV cells and host store; it grows with a leak, and with nothing else."""
    resident = [1000]
    bench = Bench(rss_bytes=lambda: resident[0], weights_bytes=300)
    bench.submit(1, list(range(1, 10)), 5)
    bench.run()
    assert told(bench).unaccounted_bytes == 700
    resident[0] = 5000
    bench.submit(2, list(range(1, 10)), 5)
    bench.run()
    assert told(bench).unaccounted_bytes == 4700
