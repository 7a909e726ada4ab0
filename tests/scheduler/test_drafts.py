"""Rule R10: when a lone stream drafts, how much, and what is learnt of it. What it costs is as in the driver's machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.scheduler.acceptance import FAILURES_MAX, FIRST_PPM, LATER_PPM, PASSED_MAX, PPM, Acceptance
from poise.scheduler.planning.budget import BatchShape, CostModel, StepBudget
from poise.scheduler.planning.drafting import Drafts
from poise.scheduler.policy import CostPrior, DraftPolicy
from poise.scheduler.power import PowerLimits
from poise.scheduler.request import Control, RequestClass
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, policy

ALL, NONE = 1 << 20, 0


def driver(n_true: int = ALL, n_guesses: int = 8, n_matched: int = 20, streams: int = 2, itl_us: int = 100_000) -> Driver:
    """A server in which every token can be guessed, and so many guesses come true."""
    d = Driver(Scheduler(policy(drafts=DraftPolicy(streams, 8), itl_us=itl_us)))
    d.guess = lambda request_id, end: (n_guesses, n_matched, n_true)
    return d


def steps_with(n_true: int, streams: int = 2) -> int:
    d = driver(n_true, streams=streams)
    d.add(50, 120)
    return d.run()


def test_r10_a_lone_stream_drafts_where_nobody_else_has_use_for_the_step() -> None:
    """And with none that come true it is hardly slower than without drafts."""
    plain = steps_with(ALL, streams=0)
    assert plain >= 120
    assert steps_with(ALL) < plain / 3
    d = driver(NONE)
    d.add(50, 120)
    assert d.run() == plain
    assert 0 < len(d.drafted) <= FAILURES_MAX * (1 + plain // PASSED_MAX)


@pytest.mark.parametrize(
    "others",
    [[(20, 60, INTERACTIVE)] * 2, [(900, 1, INTERACTIVE)], [(3000, 5, INTERACTIVE)] * 4, [(20, 60, BACKGROUND)] * 9],
    ids=["streams", "prompt", "heavy", "queue"],
)
def test_r10_many_streams_prompts_and_queues_have_the_step_for_themselves(others: list[tuple[int, int, RequestClass]]) -> None:
    """Until they are gone."""
    d = driver()
    first = d.add(50, 4000)
    while not d.drafted:
        d.step()
    for n_prompt, max_output, request_class in others:
        d.add(n_prompt, max_output, request_class=request_class)
    d.drafted.clear()
    n_shared = 0
    while d.live != {first}:
        n_drafted = len(d.drafted)
        plan = d.step()
        planned = [chunk for batch in plan.batches for chunk in batch.chunks]
        if len(d.drafted) > n_drafted:
            assert len(planned) <= 2
            assert not any(chunk.is_prompt for chunk in planned)
            classes = d.scheduler.snapshot().classes.values()
            assert not any(c.queued + c.swapped for c in classes)
        else:
            n_shared += len(planned) > 1
    assert n_shared
    d.drafted.clear()
    d.step()
    d.step()
    assert d.drafted


def test_r10_a_suspect_and_short_steps_draft_nothing() -> None:
    d = driver()
    d.add(50, 60, n_output=5, readmitted=True, suspect=True)
    for _ in range(7):
        d.step()
    assert not d.drafted
    d.run()
    assert d.drafted
    short = driver()
    short.scheduler.limit(PowerLimits(step_us=50_000))
    short.add(50, 60)
    short.run()
    assert not short.drafted


def test_r10_drafts_end_with_the_output_and_the_slot() -> None:
    """The last guess that may be computed leaves room for the token that is drawn after it."""
    d = Driver(Scheduler(policy(slot_cells=64, drafts=DraftPolicy(2, 8))))
    d.guess = lambda request_id, end: (8, 20, ALL)
    first, second = d.add(20, 30), d.add(20, 4000)
    d.run()
    assert (d.finished(first).n_output, d.finished(second).n_output) == (30, 2 * 64 + 1 - 20)
    assert max(chunk.start + chunk.n_computed for chunk in d.drafted) <= 2 * 64


@pytest.mark.parametrize("itl_us", [9_000, 20_000, 30_000, 100_000])
def test_r10_a_step_with_drafts_is_within_its_budget(itl_us: int) -> None:
    """And beside another stream at most half as long again."""
    d = driver(itl_us=itl_us)
    d.add(50, 100)
    d.add(50, 100)
    while d.live:
        plan = d.step()
        drafting = [chunk for batch in plan.batches for chunk in batch.chunks if chunk.n_drafted]
        if drafting:
            predicted_us = sum(batch.predicted_us for batch in plan.batches)
            assert predicted_us <= itl_us
            if sum(len(batch.chunks) for batch in plan.batches) > 1:
                n_plain = sum(len(batch.chunks) for batch in plan.batches)
                assert sum(chunk.n_drafted for chunk in drafting) <= n_plain


def test_r10_rejected_guesses_are_charged_to_who_made_them() -> None:
    """Two alike but for their guesses: whose come to nothing pays more for the same output."""
    served = []
    for n_true in (ALL, 1):
        d = driver(n_true)
        request_id = d.add(50, 200)
        d.run()
        served.append(d.finished(request_id).served_us)
        assert d.finished(request_id).served_us == pytest.approx(d.now_ns / 1000, rel=0.02)
    assert served[0] < served[1]


def test_r10_a_held_stream_goes_on_with_what_could_be_guessed() -> None:
    """Nothing of it changed meanwhile."""
    d = driver()
    request_id = d.add(50, 60)
    while not d.drafted:
        d.step()
    d.control(request_id, Control.PAUSE)
    d.step()
    d.control(request_id, Control.RESUME)
    d.drafted.clear()
    d.step()
    assert d.drafted


@given(
    history=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 8), st.integers(0, 8)), max_size=40),
    prior=st.tuples(*(st.integers(0, 20_000) for _ in range(3)), st.floats(0, 5)),
    left_us=st.integers(-10_000, 100_000),
    n_tokens=st.integers(1, 3),
    most=st.integers(-3, 12),
    n_matched=st.integers(0, 20),
)
def test_a_draft_is_within_every_bound_and_always_the_same(
    history: list[tuple[int, int, int]],
    prior: tuple[int, int, int, float],
    left_us: int,
    n_tokens: int,
    most: int,
    n_matched: int,
) -> None:
    """Never more than there are guesses, than may be computed, than the step has time for; shares stay shares."""
    model = CostModel(CostPrior(*prior))
    step_us = int(model.predict_us(BatchShape(n_tokens, 0, n_tokens * 400)))

    def draft() -> tuple[int, float]:
        acceptance = Acceptance()
        for matched, n_drafted, n_accepted in history:
            acceptance.learn(matched, n_drafted, min(n_drafted, n_accepted))
            assert all(0 <= share <= PPM for share in (*acceptance.first, acceptance.later))
        budget = StepBudget({"short": model}, 0, 512)
        budget.spend_decodes("short", n_tokens, n_tokens * 400, 0.0)
        budget.left_us = left_us
        drafts = Drafts(budget, step_us, n_tokens, 8)
        n = drafts.add(acceptance, n_matched, most, "short", 400, model, 90)
        return n, budget.left_us

    n, left = draft()
    assert (n, left) == draft()
    assert 0 <= n <= max(0, min(most, 8))
    assert left >= min(left_us, 0) - 1
    if n_tokens > 1:
        assert left_us - left <= step_us / 2 + 1


def test_after_failures_there_are_none_for_a_while() -> None:
    """Three drafts of which nothing came true; after sixteen guesses that were passed over it is tried again."""
    acceptance, model = Acceptance(), CostModel(CostPrior(8000, 1000, 1000, 0.0))

    def draft() -> int:
        return Drafts(StepBudget({"short": model}, 100_000, 512), 9000, 1, 8).add(acceptance, 20, 8, "short", 400, model, 90)

    for _ in range(FAILURES_MAX):
        assert draft() > 0
        acceptance.learn(20, 8, 0)
    assert [draft() for _ in range(PASSED_MAX)] == [0] * PASSED_MAX
    assert draft() > 0
    assert acceptance.first == list(FIRST_PPM)
    assert acceptance.later == LATER_PPM


def test_length_follows_what_comes_true_and_what_rows_cost() -> None:
    """Long where most comes true and rows are cheap; none where a row costs as much as a pass."""

    def length(n_accepted: int, row_us: int) -> int:
        acceptance, model = Acceptance(), CostModel(CostPrior(8000, row_us, 1000, 0.0))
        for _ in range(20):
            acceptance.learn(20, 8, n_accepted)
        budget = StepBudget({"short": model}, 100_000, 512)
        return Drafts(budget, 8000 + row_us, 1, 8).add(acceptance, 20, 8, "short", 400, model, 90)

    assert length(8, 500) == 8
    assert length(8, 500) >= length(2, 2000) >= length(1, 4000)
    assert length(0, 500) == 0
    assert length(1, 400_000) == 0


def test_what_seems_too_dear_is_tried_with_one_guess_now_and_then() -> None:
    """Else a first guess of costs that is wrong would stand for ever."""
    acceptance, model = Acceptance(), CostModel(CostPrior(0, 8000, 1000, 0.0))

    def draft() -> int:
        return Drafts(StepBudget({"short": model}, 100_000, 512), 8000, 1, 8).add(acceptance, 20, 8, "short", 400, model, 90)

    assert [draft() for _ in range(PASSED_MAX + 1)] == [*[0] * PASSED_MAX, 1]
    for _ in range(30):
        acceptance.learn(20, 1, 1)
        model.observe(BatchShape(2, 0, 0), 9000)
        model.observe(BatchShape(1, 0, 0), 8000)
    assert draft() > 1
