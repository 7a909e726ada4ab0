"""Readers that are behind: what they keep from running, what that costs others, and how they come back."""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.planning.plan import StoreSlot
from poise.scheduler.policy import SHORT_POOL, StorePolicy, TenantPolicy
from poise.scheduler.request import Control, FinishReason, Hold, Preempted, PreemptionKind, RequestClass, Resumed, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, chunks, policy

STALL, SWAP, DROP, PAUSE = PreemptionKind.STALL, PreemptionKind.SWAP, PreemptionKind.DROP, PreemptionKind.PAUSE


def driver(**changes: Any) -> Driver:
    return Driver(Scheduler(policy(**changes)))


def decoding(d: Driver, n_output: int = 50, **more: Any) -> int:
    """A request that has given a few tokens."""
    request_id = d.add(20, n_output, **more)
    while d.scheduler._life.sequences[request_id].n_output < 3:
        d.step()
    return request_id


def kinds(d: Driver, request_id: int) -> list[PreemptionKind]:
    return [e.kind for e in d.events_of(request_id, Preempted)]


def test_a_held_sequence_stands_still_in_its_slot_and_goes_on_there() -> None:
    """Nothing is computed for it, nothing is carried, and each word of it is told once."""
    d = driver()
    chat = decoding(d)
    n_output = d.scheduler._life.sequences[chat].n_output
    assert [type(e) for e in d.hold(chat, Hold.PAUSE)] == [Preempted]
    assert d.hold(chat, Hold.PAUSE) == []
    assert d.step().is_empty, "only held requests: it rests"
    assert d.scheduler._life.sequences[chat].n_output == n_output
    assert [type(e) for e in d.hold(chat, Hold.RUN)] == [Resumed]
    assert d.hold(chat, Hold.RUN) == []
    d.run()
    assert kinds(d, chat) == [STALL]
    assert d.finished(chat).n_output == 50
    assert (d.finished(chat).n_preempted, d.finished(chat).n_recomputed) == (0, 0)
    assert not [o for plan in d.plans for o in plan.operations if isinstance(o, StoreSlot)]


@pytest.mark.parametrize(("store", "kind"), [(StorePolicy(), SWAP), (StorePolicy(budget_bytes=0), DROP)])
def test_swap_frees_the_slot_at_once_and_the_sequence_comes_back_whole(store: StorePolicy, kind: PreemptionKind) -> None:
    """Into the host store, or dropped where that has no room; back when its reader has caught up, not before."""
    d = driver(slots=1, background_slots=1, store=store)
    chat = decoding(d)
    d.hold(chat, Hold.PAUSE)
    d.hold(chat, Hold.SWAP)
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_held == 0
    d.hold(chat, Hold.PAUSE)
    d.run()
    assert kinds(d, chat) == [STALL, kind]
    d.hold(chat, Hold.RUN)
    d.run()
    assert len(d.events_of(chat, Resumed)) == 1
    assert d.finished(chat).n_output == 50
    assert d.finished(chat).n_preempted == 0, "it was its reader's doing"
    assert (d.finished(chat).n_recomputed > 0) == (kind is DROP)
    d.assert_all_ended()


@pytest.mark.parametrize("level", [Hold.PAUSE, Hold.SWAP])
def test_a_reader_and_an_operator_hold_independently(level: Hold) -> None:
    """It runs when neither keeps it from it, whoever was first and whoever lets go first."""
    for operator_first in (True, False):
        for operator_last in (True, False):
            d = driver()
            chat = decoding(d)
            if operator_first:
                d.control(chat, Control.PAUSE)
            d.hold(chat, level)
            if not operator_first:
                assert d.control(chat, Control.PAUSE) == "", "it is held, but no operator has paused it"
            assert set(kinds(d, chat)) >= {STALL, PAUSE}
            if operator_last:
                d.hold(chat, Hold.RUN)
            else:
                assert d.control(chat, Control.RESUME) == ""
            d.run()
            assert not d.events_of(chat, Resumed)
            assert chat in d.live
            if operator_last:
                d.control(chat, Control.RESUME)
            else:
                d.hold(chat, Hold.RUN)
            d.run()
            assert len(d.events_of(chat, Resumed)) == 1
            assert d.finished(chat).n_output == 50


def test_a_queued_request_keeps_its_place_while_it_is_held() -> None:
    """Its turn passes it by; when its reader is there again, it comes before all that came after it."""
    d = driver(slots=1, background_slots=1)
    first = decoding(d, 30)
    second, third = d.add(20, 5), d.add(20, 5)
    fourth = d.add(20, 5)
    assert d.hold(second, Hold.SWAP) == [Preempted(second, STALL)]
    while third not in d.started_order():
        d.step()
    assert second not in d.started_order()
    d.hold(second, Hold.RUN)
    d.run()
    assert d.started_order() == [first, third, second, fourth]


def test_time_stands_still_for_a_held_request_in_the_queue() -> None:
    """Its queue timeout counts what it waited, not what its reader did."""
    d = driver(slots=1, background_slots=1)
    first = decoding(d, 400)
    late = d.add(20, 5, queue_timeout_us=1_000_000)
    d.hold(late, Hold.PAUSE)
    d.hold(first, Hold.PAUSE)
    d.now_ns += 60_000_000_000
    d.step()
    assert late in d.live
    d.hold(first, Hold.RUN)
    d.hold(late, Hold.RUN)
    d.step()
    assert late in d.live, "it has waited no second yet"
    d.run()
    assert d.finished(late).reason is FinishReason.EXPIRED
    assert d.finished(late).served_us == 0


def test_a_held_prompt_goes_on_where_it_stopped() -> None:
    """Running, in the middle of its prompt."""
    d = driver(itl_us=50_000)
    other = decoding(d, 300)
    reader = d.add(800, 5, "b")
    for _ in range(4):
        d.step()
    n_computed = d.scheduler._life.sequences[reader].n_computed
    assert 0 < n_computed < 800
    d.hold(reader, Hold.SWAP)
    assert reader not in chunks(d.step())
    d.hold(reader, Hold.RUN)
    d.run()
    assert d.finished(reader).n_recomputed == 0
    assert d.finished(reader).n_output == 5
    assert d.finished(other).n_output == 300


def test_a_preempted_sequence_can_be_held_where_it_is() -> None:
    """Swapped out for somebody else, then held: it is not fetched back before its reader is there."""
    d = driver(slots=1, background_slots=1)
    job = decoding(d, 60, request_class=BACKGROUND)
    d.add(20, 30)
    d.step()
    assert kinds(d, job) == [SWAP]
    d.hold(job, Hold.SWAP)
    d.run()
    assert job in d.live
    d.hold(job, Hold.RUN)
    d.run()
    assert kinds(d, job) == [SWAP, STALL]
    assert (d.finished(job).n_output, d.finished(job).n_recomputed) == (60, 0)


@pytest.mark.parametrize("request_class", [INTERACTIVE, BACKGROUND])
def test_held_sequences_in_every_slot_block_nobody(request_class: RequestClass) -> None:
    """Their slots go to whoever needs them, one a step."""
    d = driver(slots=3, background_slots=3)
    stuck = [decoding(d, tenant=f"t{i}") for i in range(3)]
    for request_id in stuck:
        d.hold(request_id, Hold.PAUSE)
    others = [d.add(20, 5, "late", request_class) for _ in range(4)]
    d.run()
    assert all(d.finished(i).n_output == 5 for i in others)
    for request_id in stuck:
        d.hold(request_id, Hold.RUN)
    d.run()
    assert [d.finished(i).n_output for i in stuck] == [50] * 3
    d.assert_all_ended()


def test_held_sequences_count_among_those_that_run() -> None:
    """Not to read is no way to have more than `running_max`: the next one waits until the reader has caught up, or has gone."""
    d = driver(tenants={"a": TenantPolicy(running_max=1)})
    stuck = decoding(d, 20)
    d.hold(stuck, Hold.PAUSE)
    other = d.add(20, 10)
    for _ in range(20):
        d.step()
    assert other not in d.started_order()
    d.hold(stuck, Hold.RUN)
    assert kinds(d, stuck) == [STALL]
    d.run()
    assert d.started_order() == [stuck, other]
    stuck = decoding(d, 20)
    d.hold(stuck, Hold.SWAP)
    other = d.add(20, 10)
    d.step()
    assert other not in d.started_order()
    d.abort(stuck)
    d.run()
    assert d.finished(other).n_output == 10


def test_swaps_of_held_streams_leave_room_for_the_next_ones() -> None:
    """One that reads nothing fills its part of the host store and no more; what does not fit there is computed again."""
    store = StorePolicy(budget_bytes=40_000, tenant_share=0.5)
    d = driver(slots=8, store=store)
    stuck = [decoding(d, 100, tenant="stuck") for _ in range(6)]
    while d.scheduler._life.sequences[stuck[-1]].n_computed < 60:
        d.step()
    for request_id in stuck:
        d.hold(request_id, Hold.SWAP)
    d.step()
    assert d.scheduler._placement.store.n_bytes <= 20_000
    other = decoding(d, 100, tenant="other")
    d.hold(other, Hold.SWAP)
    assert kinds(d, other) == [STALL, SWAP]
    for request_id in [*stuck, other]:
        d.hold(request_id, Hold.RUN)
    d.run()
    d.assert_all_ended()


def test_a_tenant_that_was_held_has_saved_up_a_grain_at_most() -> None:
    """Standing still is like being away: what the others got meanwhile is not owed to it."""
    d = driver(slots=2, grain_us=1000)
    held, other = decoding(d, 400, tenant="held"), decoding(d, 400, tenant="other")
    d.hold(held, Hold.PAUSE)
    for _ in range(100):
        d.step()
    served = d.scheduler._books.served[INTERACTIVE]
    assert "held" not in served.tenants
    d.hold(held, Hold.RUN)
    assert served["other"] - served["held"] <= 1000
    assert other in d.live


def test_a_held_chat_sets_no_pace() -> None:
    """It does not decode, so a prompt may have the long steps of an engine where nobody does."""
    d = driver()
    chat = decoding(d, 400)
    d.add(900, 5, "b")
    limited = chunks(d.step())
    d.hold(chat, Hold.PAUSE)
    free = chunks(d.step())
    assert max(free.values()) > 1.5 * max(limited.values())


def test_an_abort_of_a_held_request_leaves_nothing() -> None:
    """Queued, in its slot, swapped out."""
    d = driver(slots=2, background_slots=2)
    in_slot, swapped = decoding(d, tenant="x"), decoding(d, tenant="y")
    queued = d.add(20, 5)
    d.hold(queued, Hold.SWAP)
    d.hold(in_slot, Hold.PAUSE)
    d.hold(swapped, Hold.SWAP)
    for request_id in (queued, in_slot, swapped):
        d.abort(request_id)
    assert d.hold(swapped, Hold.RUN) == []
    d.run()
    assert all(d.finished(i).reason is FinishReason.ABORTED for i in (queued, in_slot, swapped))
    assert not d.entries
    d.assert_all_ended()


def test_a_downgrade_while_held_counts_when_it_goes_on() -> None:
    """In its new class from then on."""
    d = driver()
    chat = decoding(d)
    d.hold(chat, Hold.PAUSE)
    d.control(chat, Control.DOWNGRADE)
    d.hold(chat, Hold.RUN)
    assert d.scheduler.snapshot().classes[BACKGROUND].running == 1
    d.run()
    assert d.finished(chat).n_output == 50
    assert next(type(e) for e in d.events if e.request_id == chat) is Started
