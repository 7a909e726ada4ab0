"""A request that was cut at any token and goes on in another engine gives what it would have given undisturbed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engine.blackbox import BoxReading, Phase, read_words
from poise.engine.ports import Row, RunnerError, Sampled
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import SamplingParams
from tests.engine.harness import GREEDY, Bench
from tests.engine.reference import answer
from tests.sim.exact_runner import ExactRunner

PROMPT = [3 + k for k in range(30)]
SEEDED = SamplingParams(temperature=0.9, seed=11, ignore_eos=True)


@settings(max_examples=60)
@given(
    n_prompt=st.integers(1, 120),
    n_output=st.integers(1, 60),
    cut=st.floats(0.0, 1.0, exclude_max=True),
    seed=st.integers(-(2**63), 2**63 - 1),
    greedy=st.booleans(),
    suspect=st.booleans(),
)
def test_output_is_the_same_wherever_it_was_cut(
    n_prompt: int, n_output: int, cut: float, seed: int, greedy: bool, suspect: bool
) -> None:
    """Greedy and seeded, at every token; only the new tokens are sent, and the end counts all of them."""
    prompt = [(k * 37 + n_prompt) % 900 + 1 for k in range(n_prompt)]
    sampling = GREEDY if greedy else SamplingParams(temperature=0.8, seed=seed, ignore_eos=True)
    whole = answer(prompt, n_output, sampling)
    n_known = int(cut * n_output)
    b = Bench()
    b.submit(1, prompt, n_output, sampling, output=whole[:n_known], suspect=suspect)
    b.submit(2, PROMPT, 40)
    b.run()
    assert b.tokens(1) == whole[n_known:]
    assert (b.finish(1).n_prompt, b.finish(1).n_output, b.finish(1).reason) == (n_prompt, n_output, "length")
    assert b.tokens(2) == answer(PROMPT, 40)


@pytest.mark.parametrize("n_known", [1, 10, 30])
def test_an_answer_may_end_where_it_would_have_ended(n_known: int) -> None:
    """`min_output` counts what was given before the cut."""
    sampling = SamplingParams(temperature=0.7, seed=5, min_output=40)
    whole = Bench(end_rate=20)
    whole.submit(1, PROMPT, 400, sampling)
    whole.run()
    assert whole.finish(1).reason == "stop"
    b = Bench(end_rate=20)
    b.submit(1, PROMPT, 400, sampling, output=whole.tokens(1)[:n_known])
    b.run()
    assert b.tokens(1) == whole.tokens(1)[n_known:]
    assert (b.finish(1).reason, b.finish(1).n_output) == ("stop", len(whole.tokens(1)))


def test_a_full_queue_does_not_turn_back_who_was_here_before() -> None:
    """Sixteen at once on four slots with room for two to wait; all are taken, in order, and end."""
    b = Bench(slots=4)
    b.send(to_engine.Adjust(1e-9, 1.0))
    for i in range(1, 17):
        prompt = [*PROMPT, i]
        b.submit(i, prompt, 20, output=answer(prompt, 5), queue_timeout_ms=1)
    b.submit(99, PROMPT, 20)
    b.run()
    assert [m.request_id for m in b.mail.sent if isinstance(m, wire.Refused)] == [99]
    for i in range(1, 17):
        assert b.tokens(i) == answer([*PROMPT, i], 20)[5:]


def test_a_prefix_is_found_behind_the_prompt_too() -> None:
    """Keys of blocks go over all that is known: two that were cut from one computation share it again."""
    b, whole = Bench(), answer(PROMPT, 60)
    b.submit(1, PROMPT, 50, output=whole[:40])
    b.run()
    b.submit(2, PROMPT, 60, output=whole[:40])
    b.run()
    assert b.start(2).n_cached == 64, "30 of the prompt, 40 of the output, in whole blocks of 8"
    assert b.tokens(2) == whole[40:]


class _Watched(ExactRunner):
    """Notes what the box says whenever something is computed, and fails for one request if that is wanted."""

    def __init__(self, bench: Bench, poison: int = 0) -> None:
        pools = [PoolInfo("short", 10, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
        super().__init__(pools, clock=bench.clock)
        self.bench, self.poison = bench, poison
        self.seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        reading = read_words(self.bench.engine.box.words)
        assert reading.phase is Phase.COMPUTING
        self.seen.append((reading.request_ids, tuple(row.request_id for row in rows)))
        if self.poison and any(row.request_id == self.poison for row in rows):
            raise RunnerError("poison")
        return super().execute(pool, rows)


def watched(**more: Any) -> tuple[Bench, _Watched]:
    b = Bench()
    runner = _Watched(b, **more)
    b.runner = b.engine.runner = b.engine.execution._runner = runner
    return b, runner


def test_the_box_names_exactly_who_is_being_computed() -> None:
    """In every pass; a suspect's pass names the suspect alone. Resting, it names nobody."""
    b, runner = watched()
    drain, resting = b.mail.drain, list[BoxReading]()

    def watched_drain(wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        if block:
            resting.append(read_words(b.engine.box.words))
        return drain(wait_until_ns, block=block)

    b.mail.drain = watched_drain  # type: ignore[method-assign]
    for i in range(1, 4):
        b.submit(i, [*PROMPT, i], 30)
    b.step(3)
    b.submit(4, PROMPT, 40, output=answer(PROMPT, 10), suspect=True)
    b.run()
    assert all(noted == computed for noted, computed in runner.seen)
    assert ((4,), (4,)) in runner.seen
    assert any(len(computed) == 4 for _, computed in runner.seen), "it was cleared"
    assert b.tokens(4) == answer(PROMPT, 40)[10:]
    assert [(r.phase, r.request_ids) for r in resting] == [(Phase.RESTING, ())]
    assert 0 < resting[0].drained_ns <= resting[0].at_ns == b.clock.now_ns()


def test_a_suspect_that_breaks_a_pass_breaks_its_own() -> None:
    """The others of the step are computed and go on."""
    b, _ = watched(poison=4)
    for i in range(1, 4):
        b.submit(i, [*PROMPT, i], 30)
    b.step(3)
    b.submit(4, PROMPT, 40, output=answer(PROMPT, 10), suspect=True)
    b.run()
    assert (b.finish(4).reason, b.finish(4).n_output) == ("failed", 10)
    for i in range(1, 4):
        assert b.tokens(i) == answer([*PROMPT, i], 30)


def test_seeded_output_does_not_depend_on_who_samples_beside_it() -> None:
    """A draw is a matter of seed and position: with and without others, in any batch."""
    b = Bench()
    for i in range(1, 6):
        b.submit(i, PROMPT, 20 + i, SEEDED)
    b.run()
    for i in range(1, 6):
        assert b.tokens(i) == answer(PROMPT, 20 + i, SEEDED)
