"""What the engine tells of its steps adds up to what it did."""

from __future__ import annotations

import pytest

from poise.engine.figures import PARTS
from poise.wire import messages as wire
from poise.wire.figures import Distribution
from tests.engine.harness import Bench


def told(bench: Bench) -> wire.Status:
    return [m for m in bench.mail.sent if isinstance(m, wire.Status)][-1]


def n(distribution: Distribution) -> int:
    return sum(distribution.counts)


def test_a_run_adds_up() -> None:
    """Each step once, each prompt token and each output token once; time is what the clock says."""
    bench = Bench(end_rate=0)
    for i in range(1, 4):
        bench.submit(i, list(range(1, 101)), 20)
    bench.run()
    status = told(bench)
    steps = status.steps
    assert list(steps.parts_us) == list(PARTS)
    n_steps = bench.engine.counters.steps
    assert n_steps == n(steps.seconds) == n(steps.decode_tokens) == n(steps.prompt_tokens) == n(steps.sequences)
    assert steps.prompt_tokens.total == steps.chunk_tokens.total == 300 == status.prompt_tokens
    assert steps.decode_tokens.total == 3 * 19  # the first token of each comes with its prompt
    assert steps.seconds.total == pytest.approx(bench.clock.now_ns() / 1e9)
    assert sum(steps.parts_us.values()) == pytest.approx(bench.clock.now_ns() / 1000, abs=len(PARTS))
    assert n(steps.cost_ratio) == n_steps
    assert status.equity["interactive"].served_us == pytest.approx(steps.parts_us["forward"], abs=n_steps)


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
