"""The output allowance is a ceiling: where a request runs follows from what is likely, and who outgrows its slot moves."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.scheduler.lengths import OutputLengths
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, LengthPolicy, StorePolicy
from poise.scheduler.request import (
    Control,
    FinishReason,
    Hold,
    Preempted,
    PreemptionKind,
    PreemptionReason,
    Request,
    Resumed,
    Started,
)
from poise.scheduler.scheduler import Scheduler
from poise.scheduler.sequence import Sequence
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, blocks, chunks, policy


def driver(first_tokens: int = 30, **changes: Any) -> Driver:
    return Driver(Scheduler(replace(policy(slot_cells=128, **changes), lengths=LengthPolicy(first_tokens))))


def pool_of(d: Driver, request_id: int) -> str:
    """Where it started."""
    (event,) = d.events_of(request_id, Started)
    return str(event.pool)


def moves(d: Driver, request_id: int) -> list[Preempted]:
    return [e for e in d.events_of(request_id, Preempted) if e.why is PreemptionReason.OUTGROWN]


def until_full(d: Driver, request_id: int) -> None:
    """Step until the request has filled its slot, and no further."""
    sequence = d.scheduler._life.sequences[request_id]
    while sequence.n_tokens <= 128:
        d.step()


def test_a_ceiling_does_not_decide_where_a_request_runs() -> None:
    """Prompt and likely output fit a short slot; prompt and ceiling do not."""
    d = driver()
    ids = [d.add(60, max_output) for max_output in (60, 180, 5000)]
    d.run()
    assert [pool_of(d, i) for i in ids] == [SHORT_POOL] * 3
    late = d.add(110, 5000)
    d.run()
    assert pool_of(d, late) == LONG_POOL


def test_who_outgrows_its_slot_goes_on_in_a_longer_one() -> None:
    """With every token, computed again there, and once."""
    d = driver()
    request = d.add(60, 180)
    d.run()
    assert pool_of(d, request) == SHORT_POOL
    assert [e.kind for e in moves(d, request)] == [PreemptionKind.DROP]
    ended = d.finished(request)
    assert (ended.reason, ended.n_output, ended.n_recomputed, ended.n_preempted) == (FinishReason.LENGTH, 180, 128, 0)
    assert len(d.events_of(request, Resumed)) == 1
    d.assert_all_ended()


def test_an_answer_that_fills_its_slot_exactly_does_not_move() -> None:
    """The last generated token needs no cell."""
    d = driver()
    request = d.add(60, 69)
    d.run()
    assert (d.finished(request).n_output, moves(d, request)) == (69, [])


def test_where_there_is_no_longer_slot_it_ends_with_length() -> None:
    """A ceiling beyond every slot is no reason to refuse; the longest slot has 256 cells."""
    d = driver()
    request = d.add(60, 5000)
    d.run()
    ended = d.finished(request)
    assert (ended.reason, ended.n_output) == (FinishReason.LENGTH, 256 + 1 - 60)
    assert len(moves(d, request)) == 1


def test_it_waits_for_a_longer_slot_like_others_and_comes_first_of_its_tenant() -> None:
    """The long pool has one slot, which is taken; a newer heavy prompt of its tenant comes after it."""
    d = driver(long_slots=1, heavy_tokens=100)
    holder = d.add(120, 100, tenant="b")
    d.step()
    request = d.add(60, 190)
    until_full(d, request)
    newer = d.add(120, 5)
    d.run()
    assert all(d.finished(i).reason is FinishReason.LENGTH for i in (holder, request, newer))
    long = [c for p in d.plans for b in p.batches if b.pool == LONG_POOL for c in b.chunks]
    order = list(dict.fromkeys(c.request_id for c in long))
    assert order == [holder, request, newer]


@pytest.mark.parametrize("level", [Hold.PAUSE, Hold.SWAP])
def test_a_reader_that_is_behind_just_then_changes_nothing(level: Hold) -> None:
    """It is moved while it stands still, and goes on in the longer slot."""
    d = driver()
    request = d.add(60, 180)
    until_full(d, request)
    d.hold(request, level)
    d.step()
    assert request not in chunks(d.step())
    d.hold(request, Hold.RUN)
    d.run()
    assert (d.finished(request).n_output, len(moves(d, request))) == (180, 1)


def test_between_two_steps_anything_may_happen_to_it() -> None:
    """Paused, resumed and queued again, downgraded, or aborted, after it has filled its slot and before it is moved."""
    d = driver()
    ids = [d.add(60, 180) for _ in range(3)]
    until_full(d, ids[0])
    for request in ids:
        d.hold(request, Hold.SWAP)
        d.hold(request, Hold.RUN)
    d.control(ids[0], Control.DOWNGRADE)
    d.abort(ids[1])
    d.run()
    assert [d.finished(i).reason for i in ids] == [FinishReason.LENGTH, FinishReason.ABORTED, FinishReason.LENGTH]
    d.assert_all_ended()


def test_a_downgrade_and_a_full_slot_in_one_step() -> None:
    """Its allowance of interactive output ends with its slot: it goes on in a long slot of background's."""
    d = driver(downgrade_output_tokens=69)
    request = d.add(60, 180)
    d.run()
    assert (d.finished(request).n_output, len(moves(d, request))) == (180, 1)


def lengths(**changes: Any) -> OutputLengths:
    return OutputLengths(LengthPolicy(**changes))


def ended(n_output: int, account: str = "a", max_output: int = 4000, known: OutputLengths | None = None) -> Sequence:
    request = Request(1, account, INTERACTIVE, 10, max_output)
    sequence = Sequence(request, SHORT_POOL, 0, 0.0, n_likely=known.likely(request) if known else max_output)
    sequence.n_tokens += n_output
    return sequence


def likely(known: OutputLengths, account: str = "a", max_output: int = 4000) -> int:
    return known.likely(Request(1, account, INTERACTIVE, 10, max_output))


def test_what_is_likely_is_a_high_quantile_of_what_was() -> None:
    """Nine answers in ten are no longer, whatever their lengths are spread over."""
    known, rng = lengths(), random.Random(3)
    drawn = [int(rng.expovariate(1 / 200)) + 1 for _ in range(2000)]
    below = 0
    for n_output in drawn:
        below += n_output <= likely(known)
        known.learn(ended(n_output, known=known), is_whole=True)
    assert 0.86 < below / len(drawn) < 0.94


def test_accounts_and_classes_are_learnt_apart_and_new_ones_begin_where_their_class_is() -> None:
    known = lengths()
    for _ in range(40):
        known.learn(ended(3000, "long"), is_whole=True)
    assert likely(known, "long") > 2500
    assert likely(known, "new") > 2500
    assert known.likely(Request(1, "long", BACKGROUND, 10, 4000)) == 512
    for _ in range(400):
        known.learn(ended(5, "new"), is_whole=True)
    assert likely(known, "new") < 10
    assert likely(known, "long") > 2500
    known.forget("long")
    assert likely(known, "long") < 10  # where the class is by now


def test_an_answer_that_was_cut_short_says_only_that_it_would_have_been_longer() -> None:
    """Short allowances do not make answers look short."""
    known = lengths()
    for _ in range(100):
        known.learn(ended(10, max_output=10, known=known), is_whole=False)
    assert likely(known) == 512
    known.learn(ended(600, max_output=600, known=known), is_whole=False)
    assert likely(known) > 512
    assert likely(known, max_output=20) == 20


def test_memory_is_bounded_by_who_learnt_last() -> None:
    known = lengths(accounts_max=3)
    for account in "abcad":
        known.learn(ended(3000, account), is_whole=True)
    assert [account for _, account in known._accounts] == ["c", "a", "d"]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(1, 250), st.sampled_from([1, 5, 70, 130, 9000]), st.sampled_from("ab"), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.integers(1, 3),
    st.sampled_from([0, 100_000]),
    st.sampled_from([1, 30, 512]),
)
def test_everything_ends_whatever_was_thought_likely(
    asked: list[tuple[int, int, str, bool]], slots: int, store_bytes: int, first_tokens: int
) -> None:
    """As many tokens as were allowed, or as the longest slot holds; and nobody moves more than once between two pools."""
    d = driver(first_tokens, slots=slots, background_slots=1, store=StorePolicy(budget_bytes=store_bytes), turn_us=1)
    ids = {}
    for n_prompt, max_output, tenant, is_background in asked:
        request_class = BACKGROUND if is_background else INTERACTIVE
        request = d.add(n_prompt, max_output, tenant, request_class, blocks=blocks(tenant, n_prompt))
        ids[request] = min(max_output, 257 - n_prompt)
        d.step()
    d.run()
    d.assert_all_ended()
    assert {i: d.finished(i).n_output for i in ids} == ids
    assert all(len(moves(d, i)) <= 1 for i in ids)
