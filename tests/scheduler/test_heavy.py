"""Rule R5: heavy is what must be computed, not what is held. The driver asserts the bound after every step."""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.policy import LONG_POOL, SHORT_POOL
from poise.scheduler.request import Control, Hold, PreemptionReason, Resumed, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, Driver, blocks, policy

HEAVY, NEW = 3000, 40


def driver(**changes: Any) -> Driver:
    """A class may compute one heavy prompt at a time; there are slots for four."""
    return Driver(Scheduler(policy(**{"heavy_max": 1, "interactive_heavy_max": 1, "long_slots": 4} | changes)))


def says(d: Driver, text: str, n_prompt: int = HEAVY, max_output: int = 8, tenant: str = "a", **more: Any) -> int:
    return d.add(n_prompt, max_output, tenant, blocks=blocks(text, n_prompt), **more)


def is_heavy(d: Driver, request_id: int) -> bool:
    return d.scheduler._books.is_heavy(d.scheduler.sequences[request_id])


def has_slot(d: Driver, request_id: int) -> bool:
    return d.scheduler.sequences[request_id].slot >= 0


def computing(d: Driver, **more: Any) -> int:
    """A heavy prompt that has its slot and takes its class's one place."""
    request_id = says(d, "whatever", HEAVY, **more)
    while not has_slot(d, request_id):
        d.step()
    assert is_heavy(d, request_id)
    return request_id


def test_r5_the_place_is_free_when_the_rest_is_not_heavy() -> None:
    """The next prompt begins before the first one has ended, and not while more than `heavy_tokens` of that are left."""
    d = driver(heavy_tokens=1024)
    first, second = computing(d, max_output=400), says(d, "other")
    while not has_slot(d, second):
        left = HEAVY - d.scheduler.sequences[first].n_computed
        d.step()
    assert left <= 1024
    assert d.scheduler.snapshot().pools[LONG_POOL].slots_held == 2
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_held == 0
    d.run()
    d.assert_all_ended()


def test_r3_a_short_turn_comes_before_the_last_seconds_of_a_heavy_prompt() -> None:
    """Of the same tenant, however long the heavy one has waited; which ends all the same while short ones keep coming."""
    d = driver()
    heavy = says(d, "context")
    while d.scheduler.sequences[heavy].n_computed < HEAVY - 600:
        d.step()
    d.now_ns += 100_000_000_000
    short = d.add(40, 200, "a")
    d.step()
    assert d.scheduler.sequences[short].is_decoding
    for i in range(200):
        if i % 8 == 0:
            d.add(40, 2, "a")
        d.step()
        if d.scheduler.sequences[heavy].is_decoding:
            break
    assert d.scheduler.sequences[heavy].is_decoding


@pytest.mark.parametrize("tenant", ["a", "b"])
def test_r5_a_warm_prompt_passes_the_heavy_ones(tenant: str) -> None:
    """It has a slot in the next step, whoever's heavy prompts compute and wait."""
    d = driver()
    said = says(d, "context", tenant=tenant)
    d.run()
    computing(d)
    waiting = says(d, "other")
    again = says(d, "context", HEAVY + NEW, tenant=tenant)
    d.step()
    assert d.events_of(said, Started)[0].pool == d.events_of(again, Started)[0].pool == LONG_POOL
    assert d.events_of(again, Started)[0].n_cached >= HEAVY
    assert not has_slot(d, waiting)
    d.run()
    d.assert_all_ended()


def test_r5_what_a_running_neighbour_has_computed_makes_no_prompt_heavy() -> None:
    """It waits for no place, nor behind its tenant's heavy prompt, and starts from a copy."""
    d = driver(slots=2)
    said = says(d, "context", max_output=300)
    while not d.scheduler.sequences[said].is_decoding:
        d.step()
    computing(d)
    other, again = says(d, "other", HEAVY - 100), says(d, "context", HEAVY + NEW)
    d.step()
    assert has_slot(d, again)
    assert d.events_of(again, Started)[0].n_cached >= HEAVY
    assert not has_slot(d, other)
    d.run()
    d.assert_all_ended()


def test_r5_a_prompt_that_gets_cold_while_it_waits_waits_for_a_place() -> None:
    """What it could have gone on from is forgotten while it waits for a slot."""
    d = driver(long_slots=2)
    says(d, "context")
    d.run()
    busy = [says(d, "other", max_output=300), computing(d)]
    again = says(d, "context", HEAVY + NEW)
    d.step()
    assert d.scheduler.sequences[again].heavy is False
    d.scheduler.forget("a")
    assert d.scheduler.sequences[again].heavy is True
    d.abort(busy[0])
    d.step()
    assert is_heavy(d, busy[1])
    assert not has_slot(d, again)
    d.run()
    d.assert_all_ended()


@pytest.mark.parametrize("wait", ["operator", "reader"])
def test_r5_who_stood_still_queues_if_the_place_is_taken(wait: str) -> None:
    """It counted nowhere while it stood still; another one has begun."""
    d = driver()
    first = computing(d)
    if wait == "operator":
        d.control(first, Control.PAUSE)
    else:
        d.hold(first, Hold.PAUSE)
    second = says(d, "other", tenant="b")
    d.step()
    assert is_heavy(d, second)
    if wait == "operator":
        d.control(first, Control.RESUME)
    else:
        d.hold(first, Hold.RUN)
    assert not has_slot(d, first)
    assert PreemptionReason.LIMIT in [getattr(e, "why", None) for e in d.events if e.request_id == first]
    d.run()
    assert d.events_of(first, Resumed)
    d.assert_all_ended()


def test_r5_the_place_goes_round_like_a_slot() -> None:
    """Background's heavy prompts take turns, though slots are free; a chat's own is not touched."""
    d = driver(turn_us=200_000, grain_us=100_000)
    first = computing(d, request_class=BACKGROUND, max_output=3)
    second = says(d, "other", tenant="b", request_class=BACKGROUND)
    while not has_slot(d, second):
        assert is_heavy(d, first)
        d.step()
    assert not has_slot(d, first)
    (event,) = [e for e in d.events if getattr(e, "why", None) is PreemptionReason.TURN]
    assert event.request_id == first
    d.run()
    d.assert_all_ended()


def test_r5_a_newcomer_takes_a_place_from_who_has_several() -> None:
    """Interactive work: as for a slot, and no sooner than it ranks before."""
    d = driver(grain_us=100_000)
    first = says(d, "one", 1100, max_output=300)
    second = computing(d)
    while d.scheduler.sequences[second].n_computed < 1300:
        d.step()
    late = says(d, "other", tenant="b")
    d.step()
    assert has_slot(d, first), "it is not what stands in the way"
    assert not has_slot(d, second)
    assert has_slot(d, late)
    d.run()
    d.assert_all_ended()
