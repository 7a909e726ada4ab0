"""A prefix that is being computed is computed once: who begins alike waits for it and starts from a copy."""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.planning.plan import CopySlot
from poise.scheduler.policy import LONG_POOL, SHORT_POOL
from poise.scheduler.request import Control, Hold, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, blocks, policy

SHARED, WHOLE = 1400, 1440


def driver(**changes: Any) -> Driver:
    return Driver(Scheduler(policy(**changes)))


def asks(d: Driver, i: int, tenant: str = "a", shared: int = SHARED, n_prompt: int = WHOLE, **more: Any) -> int:
    """One of several that begin with the same `shared` tokens."""
    return d.add(
        n_prompt, 6, tenant, blocks=blocks("instructions", shared) + blocks(f"task {i}", n_prompt)[shared // 8 :], **more
    )


def computed(d: Driver) -> int:
    return sum(c.n_tokens for p in d.plans for b in p.batches for c in b.chunks if c.is_prompt)


@pytest.mark.parametrize("long_slots", [2, 8])
def test_eight_at_once_compute_a_new_prefix_once(long_slots: int) -> None:
    d = driver(long_slots=long_slots)
    ids = [asks(d, i) for i in range(8)]
    d.run()
    assert computed(d) == SHARED + 8 * (WHOLE - SHARED)
    assert [d.events_of(i, Started)[0].n_cached for i in ids] == [0] + 7 * [SHARED]
    assert {d.events_of(i, Started)[0].pool for i in ids} == {LONG_POOL}
    d.assert_all_ended()


def test_short_prompts_too_and_in_the_pool_of_the_one_that_computes() -> None:
    d = driver()
    ids = [asks(d, i, shared=400, n_prompt=420) for i in range(5)]
    d.run()
    assert computed(d) == 400 + 5 * 20
    assert len([o for p in d.plans for o in p.operations if isinstance(o, CopySlot)]) == 4
    assert len({d.events_of(i, Started)[0].pool for i in ids}) == 1


def test_another_tenant_waits_for_nobody() -> None:
    """Invariant 12: how long it takes must not say what another one asks."""
    d = driver()
    asks(d, 0, "a")
    other = asks(d, 1, "b")
    d.run()
    assert d.events_of(other, Started)[0].n_cached == 0
    assert computed(d) == 2 * WHOLE


def test_nobody_waits_behind_one_that_waits_for_a_prefix() -> None:
    """The same tenant's next request is the first that gets a slot."""
    d = driver()
    asks(d, 0, shared=800, n_prompt=820)
    follower = asks(d, 1, shared=800, n_prompt=820)
    behind = d.add(900, 4, "a", blocks=blocks("of its own", 900))
    d.step()
    first = d.scheduler._books.first_waiting(INTERACTIVE, SHORT_POOL, heavy=False)
    assert first is not None
    assert first.request.request_id == behind
    assert d.scheduler.sequences[follower].is_queued
    assert d.scheduler.snapshot().classes[INTERACTIVE].queued == 2
    d.run()
    d.assert_all_ended()


@pytest.mark.parametrize("end", ["abort", "pause", "hold", "erase"])
def test_who_waited_computes_it_when_nobody_does_any_more(end: str) -> None:
    """The one that computes is aborted, paused, not read, or its tenant erased: the others go on at once, one of them first."""
    d = driver()
    first = asks(d, 0)
    others = [asks(d, i) for i in (1, 2)]
    for _ in range(3):
        d.step()
    assert not any(d.events_of(i, Started) for i in others)
    if end == "abort":
        d.abort(first)
    elif end == "pause":
        d.scheduler.control(first, Control.PAUSE, d.now_ns)
    elif end == "hold":
        d.scheduler.hold(first, Hold.PAUSE, d.now_ns)
    else:
        d.scheduler.erase("a")
    while any(not d.events_of(i, Started) for i in others):
        d.step()
    assert computed(d) < 2 * WHOLE + 2 * (WHOLE - SHARED)


def test_chats_do_not_wait_for_background_work() -> None:
    d = driver()
    slow = asks(d, 0, request_class=BACKGROUND, shared=400, n_prompt=420)
    d.step()
    chat = asks(d, 1, request_class=INTERACTIVE, shared=400, n_prompt=420)
    d.step()
    assert d.events_of(slow, Started)
    assert d.events_of(chat, Started)
