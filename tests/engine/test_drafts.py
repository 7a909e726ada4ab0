"""Drafts in the loop: tokens come sooner, and which tokens come does not change, whatever happens to the request meanwhile."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engine.ports import Row, Sampled
from poise.scheduler.policy import CostPrior, DraftPolicy
from poise.scheduler.request import SUSPECT_TOKENS
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import Grammar, SamplingParams, Thinking
from poise_lab.sim.replay import replay
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench
from tests.sim.exact_runner import ExactRunner

DRAFTS = DraftPolicy(max_streams=2, max_tokens=8)
CHEAP = CostPrior(fixed_us=8000.0, decode_us=1500.0, prompt_us=1000.0, attended_us=0.1)
"""Passes whose further rows cost little: so many guesses need to come true for a draft to pay."""
POOLS = [PoolInfo("short", 10, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
PROMPT = [3 + k % 5 for k in range(30)]
GREEDY = SamplingParams(temperature=0.0)
SAMPLINGS = {
    "greedy": GREEDY,
    "seeded": SamplingParams(temperature=0.8, seed=11),
    "least": SamplingParams(temperature=0.0, min_output=30),
    "endless": SamplingParams(temperature=1.0, seed=3, ignore_eos=True),
    "thinking": SamplingParams(temperature=0.0, thinking=Thinking(9, (5, 6, 7))),
    "logprobs": SamplingParams(temperature=0.0, n_logprobs=2, ignore_eos=True),
}


class Noting(ExactRunner):
    """Notes how many guesses there were of whom, and in each pass."""

    def __init__(self, clock: VirtualClock, end_rate: int = 0, echo: int = 9, n_vocab: int = 6) -> None:
        super().__init__(POOLS, n_vocab=n_vocab, clock=clock, cost=CHEAP, end_rate=end_rate, echo=echo)
        self.drafted: list[tuple[int, int, int]] = []
        self.sizes: list[int] = []

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        sampled = super().execute(pool, rows)
        accepted = {draw.token.request_id: draw.n_accepted for draw in sampled}
        self.drafted += [(row.request_id, row.n_guessed, accepted[row.request_id]) for row in rows if row.n_guessed]
        self.sizes.append(sum(row.n_guessed for row in rows))
        return sampled


def bench(
    drafts: DraftPolicy = DRAFTS, end_rate: int = 0, echo: int = 9, n_vocab: int = 6, slots: int = 10
) -> tuple[Bench, Noting]:
    clock = VirtualClock()
    runner = Noting(clock, end_rate, echo, n_vocab)
    return Bench(runner=runner, clock=clock, drafts=drafts, priors={"short": CHEAP, "long": CHEAP}, slots=slots), runner


Asked = tuple[list[int], int, SamplingParams, Grammar | None]


def answers(drafts: DraftPolicy, end_rate: int, *asked: Asked) -> list[object]:
    """What comes of each request: its tokens, what is told of them, and its end."""
    b, _ = bench(drafts, end_rate)
    for i, (prompt, most, sampling, grammar) in enumerate(asked, start=1):
        b.submit(i, prompt, most, sampling, grammar=grammar)
    b.run()
    told = [[t for s in b.steps for t in s.tokens if t.request_id == i] for i in range(1, 1 + len(asked))]
    ends = [(b.finish(i).reason, b.finish(i).n_output, b.finish(i).n_prompt) for i in range(1, 1 + len(asked))]
    return [told, ends]


@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS.keys())
@pytest.mark.parametrize("end_rate", [0, 40])
def test_drafts_change_nothing_but_when_tokens_come(sampling: SamplingParams, end_rate: int) -> None:
    asked = (PROMPT, 150, sampling, None)
    assert answers(DRAFTS, end_rate, asked) == answers(DraftPolicy(), end_rate, asked)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([1, 1, 2, 3]), min_size=1, max_size=60),
    most=st.integers(1, 70),
    name=st.sampled_from(sorted(SAMPLINGS)),
    beside=st.booleans(),
)
def test_nor_under_grammars_and_beside_another_stream(sizes: list[int], most: int, name: str, beside: bool) -> None:
    """Forced runs are what was guessed, or are not; an output may end within a draft."""
    places = [[3 + (i + k) % 4 for k in range(n)] for i, n in enumerate(sizes)]
    asked: list[Asked] = [(PROMPT, most, SAMPLINGS[name], Grammar(json.dumps(places)))]
    if beside:
        asked.append((PROMPT[:17], most, SAMPLINGS[name], None))
    assert answers(DRAFTS, 40, *asked) == answers(DraftPolicy(), 40, *asked)


def test_a_lone_stream_that_repeats_itself_takes_fewer_steps_and_less_time() -> None:
    """And the engine says how many guesses there were, and how many of them came true."""
    with_drafts, runner = bench()
    without, _ = bench(DraftPolicy())
    for b in (with_drafts, without):
        b.submit(1, PROMPT, 200, SAMPLINGS["endless"])
        b.run()
    assert with_drafts.tokens(1) == without.tokens(1)
    assert len(with_drafts.steps) < 0.6 * len(without.steps)
    assert with_drafts.clock.now_ns() < 0.8 * without.clock.now_ns()
    told = [(d.request_id, d.n_drafted, d.n_accepted) for s in with_drafts.steps for d in s.drafts]
    assert told == runner.drafted
    n_drafted, n_accepted = (sum(one[i] for one in told) for i in (1, 2))
    totals = with_drafts.scheduler.snapshot().totals.draft_tokens
    assert {k.value: n for k, n in totals.items()} == {"accepted": n_accepted, "rejected": n_drafted - n_accepted}
    assert n_accepted == 200 - sum(bool(s.tokens) for s in with_drafts.steps)


def test_whoever_drafts_pays_for_what_was_guessed_wrong() -> None:
    """The measured cost of its passes, all of it."""
    b, runner = bench(echo=3)
    b.submit(1, PROMPT, 200, SAMPLINGS["endless"])
    b.run()
    assert sum(n - accepted for _, n, accepted in runner.drafted) > 0, "nothing was rejected: the test shows nothing"
    assert b.finish(1).served_us == pytest.approx(b.clock.now_ns() / 1000, rel=0.01)


def test_nobody_drafts_while_others_wait_or_many_run() -> None:
    """Not beside a prompt or a queue, not as the third stream, and no more than may be drafted in a step."""
    b, runner = bench(slots=3)
    for i in range(1, 7):
        b.submit(i, PROMPT[: 10 + i], 30 * i, SAMPLINGS["endless"], tenant=f"t{i}")
    b.run()
    assert max(n for _, n, _ in runner.drafted) <= DRAFTS.max_tokens
    waiting, n_drafting = 6, 0
    for entry in map(json.loads, b.journal()):
        if entry["kind"] != "plan":
            continue
        chunks = [chunk for batch in entry["values"][0]["batches"] for chunk in batch["chunks"]]
        waiting -= sum(chunk["start"] == 0 for chunk in chunks)
        if sum(chunk["n_drafted"] for chunk in chunks):
            n_drafting += 1
            assert waiting == 0
            assert len(chunks) <= DRAFTS.max_streams
            assert not any(chunk["is_prompt"] for chunk in chunks)
    assert n_drafting


def test_a_prediction_is_guessed_from_the_first_token_on() -> None:
    """Given what will come, nearly all of it is accepted; given something else, the same comes."""
    plain, _ = bench(echo=1, n_vocab=1000)
    plain.submit(1, PROMPT, 100, GREEDY)
    plain.run()
    expected = plain.tokens(1)
    for prediction, least in ((expected, 65), ([*expected[:50], 9, 9, *expected[50:]], 60), ([7] * 40, 0)):
        b, runner = bench(echo=1, n_vocab=1000)
        b.submit(1, PROMPT, 100, GREEDY, prediction=prediction)
        b.run()
        assert b.tokens(1) == expected
        assert sum(n for _, _, n in runner.drafted) >= least


@settings(max_examples=40, deadline=None)
@given(n_steps=st.integers(3, 60), name=st.sampled_from(sorted(SAMPLINGS)))
def test_the_next_engine_goes_on_where_one_died_in_a_draft(n_steps: int, name: str) -> None:
    """It has the output as far as it was sent, and makes its index of that. As a suspect it does not draft."""
    whole, _ = bench()
    whole.submit(1, PROMPT, 120, SAMPLINGS[name])
    whole.run()
    for suspect in (False, True):
        first, _ = bench()
        first.submit(1, PROMPT, 120, SAMPLINGS[name])
        first.step(n_steps)
        known = first.tokens(1)
        if first.finishes(1):
            return
        second, runner = bench()
        second.submit(1, PROMPT, 120, SAMPLINGS[name], output=known, suspect=suspect)
        second.run()
        assert known + second.tokens(1) == whole.tokens(1)
        assert second.finish(1).n_output == whole.finish(1).n_output
        if suspect:
            assert not any(runner.sizes[1:SUSPECT_TOKENS])  # but for what it came with


def test_the_journal_replays_with_drafts() -> None:
    b, runner = bench()
    b.submit(1, PROMPT, 120, SAMPLINGS["seeded"])
    b.submit(2, PROMPT[:20], 80, GREEDY)
    b.run()
    assert runner.drafted
    assert replay(b.journal()).difference == ""


def test_drafts_end_where_the_output_and_the_slot_do() -> None:
    """A slot of 512 cells is filled to the last one, as without drafts."""
    for most in (1, 2, 3, 9, 40, 5000):
        ends = []
        for drafts in (DRAFTS, DraftPolicy()):
            b, _ = bench(drafts)
            b.submit(1, PROMPT, most, SAMPLINGS["endless"])
            b.run()
            ends.append((b.tokens(1), b.finish(1).reason, b.finish(1).n_output))
        assert ends[0] == ends[1]
