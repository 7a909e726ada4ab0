"""What of the host store outlives an engine: copies that are made in advance, at whose cost, and what the next one takes over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.scheduler.memory.store import Purpose
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning.plan import DropEntry, LoadSlot, StepPlan, StoreSlot
from poise.scheduler.policy import SHORT_POOL, StorePolicy
from poise.scheduler.power import PowerLimits
from poise.scheduler.request import Hold
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.books import check_scheduler
from tests.scheduler.driver import BACKGROUND, CELL_BYTES, Driver, blocks, policy
from tests.scheduler.test_prefix import cached, said

ENTRY = 207 * CELL_BYTES + 64
"""What is foreseen for the cells of a prompt of 200 tokens and an answer of 8."""


def driver(budget: int = 512 << 20, tenant_share: float = 0.5, **changes: Any) -> Driver:
    store = StorePolicy(budget_bytes=budget, tenant_share=tenant_share, write_through=True)
    return Driver(Scheduler(policy(store=store, **changes)))


def copies(plans: Sequence[StepPlan]) -> list[int]:
    """The cells of each copy, in order."""
    return [o.n_cells for p in plans for o in p.operations if isinstance(o, StoreSlot)]


def inherited(d: Driver, **changes: Any) -> Driver:
    """A new engine with what the old one's books leave it."""
    placement = d.scheduler.placement
    left = [found for entry in placement.store if (found := placement.describe(entry.number)) is not None]
    new = driver(**changes)
    new.scheduler.placement.inherit(left, 0)
    new.entries = {number: entry for number, entry in d.entries.items() if number in {found.number for found in left}}
    check_scheduler(new.scheduler)
    return new


def test_warm_slots_are_written_through_one_a_step_and_once() -> None:
    """When nothing else is to be done. They stay warm, and the next turn needs no entry."""
    d = driver(hole_steps=1000)
    for text in ("one", "two", "three"):
        d.add(200, 80, blocks=blocks(text, 200))
    d.run()
    steps = [len([o for o in p.operations if isinstance(o, StoreSlot)]) for p in d.plans]
    assert max(steps) == 1
    assert sum(steps) == 3
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_warm == 3
    assert d.scheduler.snapshot().store.entries_by_purpose[Purpose.PREFIX] == 3
    assert d.step().is_empty
    assert cached(d, said(d, "two", 240)) == 200
    assert not [o for p in d.plans for o in p.operations if isinstance(o, LoadSlot)]


def test_the_next_engine_finds_what_was_warm() -> None:
    """All of it but what the last turn added behind a whole block; and nobody else's."""
    d = driver()
    for text, tenant in (("one", "a"), ("two", "b")):
        said(d, text, 200, tenant)
    new = inherited(d)
    assert new.scheduler.snapshot().totals.inherited_entries == 2
    assert cached(new, said(new, "one", 240, "b")) == 0
    assert cached(new, said(new, "one", 240, "a")) == 200
    assert cached(new, said(new, "two", 240, "b")) == 200


def test_a_copy_waits_for_a_step_that_has_room_for_it() -> None:
    """Beside a stream the copy is part of the step's budget; where the step has none left, it is not made."""
    for target_us, n_copies in ((100_000, 1), (9_000, 0)):
        d = driver(itl_us=target_us)
        d.scheduler._placement.carry_us = 3.0
        stream = d.add(20, 400)
        while not d.scheduler._life.sequences[stream].is_decoding:
            d.step()
        short = d.add(200, 1, blocks=blocks("one", 200))
        while short in d.live:
            d.step()
        d.plans.clear()
        for _ in range(20):
            d.step()
        assert len(copies(d.plans)) == n_copies, target_us
        assert stream in d.live
        d.run()
        assert copies(d.plans)[:1] == [200], "at the latest when there is nothing else to do"


def test_a_copy_never_lengthens_a_step_beyond_its_budget() -> None:
    """What it is foreseen to take fits into what batches have left."""
    d = driver()
    d.scheduler._placement.carry_us = 300.0  # 62 ms for the 207 cells, where a step with three streams has some 80 left
    for i in range(3):
        d.add(20, 300, tenant=f"t{i}")
    d.add(200, 8, blocks=blocks("one", 200))
    d.run()
    for plan in d.plans:
        spent = sum(batch.predicted_us for batch in plan.batches)
        if copies([plan]) and plan.batches:
            assert spent + 207 * 300 <= 100_000


def test_a_longer_copy_takes_the_place_of_the_shorter() -> None:
    """While the next turn runs the shorter one is a prefix like any; in the end there is one entry for each conversation."""
    d = driver()
    said(d, "one", 200)
    assert copies(d.plans) == [207]
    turn = d.add(240, 8, blocks=blocks("one", 240))
    d.step()
    assert [e.is_spare for e in d.scheduler.placement.store] == [False]
    d.run()
    assert d.finished(turn)
    assert copies(d.plans) == [207, 247]
    assert [(e.n_cells, e.is_spare) for e in d.scheduler.placement.store] == [(247, True)]


def test_where_only_one_of_them_has_room_the_shorter_goes_first() -> None:
    """Its bytes are the longer one's."""
    d = driver(budget=int(1.5 * ENTRY), tenant_share=1.0)
    said(d, "one", 200)
    said(d, "one", 240)
    assert [e.n_cells for e in d.scheduler.placement.store] == [247]
    (last,) = [p.operations for p in d.plans if copies([p]) == [247]]
    assert [type(o) for o in last] == [DropEntry, StoreSlot]


@pytest.mark.parametrize(("budget", "tenant_share", "n_copies"), [(9, 0.2, 3), (4, 1.0, 2)])
def test_a_copy_takes_only_room_that_nobody_uses(budget: int, tenant_share: float, n_copies: int) -> None:
    """Neither another prefix nor another copy goes for it, whether its tenant's part is full or the store is."""
    d = driver(budget=budget * ENTRY, tenant_share=tenant_share, hole_steps=1000, slots=4)
    said(d, "old", 200, "a")
    for tenant in "abcd":
        d.add(200, 40, tenant, blocks=blocks(f"{len(d.accepted)}", 200))
    d.run()
    store = d.scheduler.placement.store
    assert [(e.n_cells, e.is_spare) for e in store if e.tenant == "a"] == [(207, False)]
    assert len(list(store)) == 1 + n_copies
    assert d.scheduler.snapshot().totals.evicted_entries == 0
    assert not [o for p in d.plans for o in p.operations if isinstance(o, DropEntry)]


def test_a_copy_is_the_first_to_go() -> None:
    """Before a prefix that was not used for longer: its cells are in their slot all the same."""
    d = driver(budget=3 * ENTRY, tenant_share=1.0, slots=2, long_slots=1)
    said(d, "old", 200, "a")
    for tenant in ("b", "c"):
        d.add(200, 8, tenant, blocks=blocks("new", 200))
    d.run()
    spare = {e.tenant: e.is_spare for e in d.scheduler.placement.store}
    assert spare == {"a": False, "b": True, "c": True}
    running = d.add(200, 400, "d", blocks=blocks("d", 200))
    d.step()
    (gone,) = [e.tenant for e in d.scheduler.placement.store if e.is_spare]
    d.hold(running, Hold.SWAP)
    d.run()
    assert {e.tenant for e in d.scheduler.placement.store} == {"a", "b", "c", "d"} - {gone}
    assert d.scheduler.snapshot().store.entries_by_purpose[Purpose.SWAP] == 1


def test_what_was_evicted_is_not_copied_again() -> None:
    """Or two slots would push each other out for ever, and the engine would never rest."""
    d = driver(budget=ENTRY, tenant_share=1.0)
    said(d, "one", 200, "a")
    said(d, "two", 200, "b")
    d.scheduler.limit(PowerLimits(store_ppm=10))
    d.run()
    assert not list(d.scheduler.placement.store)
    d.scheduler.limit(PowerLimits())
    assert d.run() < 5
    assert d.scheduler.snapshot().store.entries_by_purpose[Purpose.PREFIX] <= 1


def test_a_copy_that_fails_is_not_tried_again() -> None:
    """A store without memory does not keep the engine from its rest."""
    d = driver()
    first = d.add(200, 8, blocks=blocks("one", 200))
    while first in d.live:
        d.step()
    d.step(break_carrying=True)
    assert d.step().is_empty
    assert not list(d.scheduler.placement.store)
    assert cached(d, said(d, "one", 240)) == 200


def test_nothing_is_copied_that_is_stored_already_or_may_not_be() -> None:
    """Nor with reuse or write-through off, nor in the pauses of a duty."""
    for store in (StorePolicy(write_through=False), StorePolicy(prefix_reuse=False, write_through=True)):
        d = Driver(Scheduler(policy(store=store)))
        said(d, "one", 200)
        assert copies(d.plans) == []
    d = driver()
    said(d, "one", 200)
    said(d, "one", 200)
    assert copies(d.plans) == [207]


def test_a_slot_and_its_copy_are_one_prefix_to_who_forgets_them() -> None:
    """Both go."""
    d = driver()
    said(d, "x", 200)
    assert d.scheduler.forget("a") == (1, 207)
    d.run()
    assert not list(d.scheduler.placement.store)
    assert not d.cells


def test_a_swapped_request_is_a_prefix_to_the_next_engine() -> None:
    """It comes again as what it is, and finds its cells in the ordinary way. An erased tenant's does not."""
    for erased in (False, True):
        d = driver()
        swapped = d.add(200, 400, blocks=blocks("one", 200))
        for _ in range(9):
            d.step()
        d.hold(swapped, Hold.SWAP)
        d.run()
        if erased:
            d.scheduler.erase("a")
        new = inherited(d)
        again = new.add(200, 400, blocks=blocks("one", 200), readmitted=True)
        new.step()
        assert cached(new, again) == (0 if erased else 199)


def test_templates_are_computed_again() -> None:
    """They are the configuration's, and each engine is told of them."""
    d = driver()
    d.add(100, 1, tenant="", request_class=BACKGROUND, pins="t@1", pool=SHORT_POOL)
    d.run()
    assert [e.purpose for e in d.scheduler.placement.store] == [Purpose.TEMPLATE]
    assert d.scheduler.placement.describe(1) is None


PREFIX = StoredPrefix(7, "a", SHORT_POOL, 207, 207 * CELL_BYTES, blocks("one", 207))
USELESS = {
    "another pool": replace(PREFIX, pool="gone"),
    "longer than a slot": replace(PREFIX, n_cells=5000),
    "too short": replace(PREFIX, n_cells=15),
    "without a block": replace(PREFIX, blocks=()),
    "more blocks than cells": replace(PREFIX, n_cells=200, blocks=blocks("one", 208)),
    "larger than the store": replace(PREFIX, n_bytes=600 << 20),
}


@pytest.mark.parametrize("what", USELESS)
def test_what_is_of_no_use_is_dropped(what: str) -> None:
    """At once, by the next plan; and entries that are made later have numbers of their own."""
    d = driver()
    d.scheduler.placement.inherit([USELESS[what]], 0)
    check_scheduler(d.scheduler)
    d.entries[7] = (SHORT_POOL, 0, 207)
    assert d.step().operations == (DropEntry(7),)
    said(d, "one", 200)
    assert [e.number for e in d.scheduler.placement.store] == [8]


def test_what_finds_no_room_goes_the_longest_unused_first() -> None:
    """As if it had been stored in this order: within each tenant's part of a store that is smaller now."""
    d = driver()
    for i in range(6):
        said(d, f"text {i}", 200, "a" if i % 2 else "b")
    new = inherited(d, budget=4 * ENTRY, tenant_share=0.5)
    kept = [new.scheduler.placement.index.of_entry(e.number) for e in new.scheduler.placement.store]
    assert sorted(p.tenant for p in kept) == ["a", "a", "b", "b"]
    new.run()
    assert cached(new, said(new, "text 0", 240, "b")) == 0
    assert cached(new, said(new, "text 5", 240, "a")) == 200


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3), st.integers(2, 40), st.integers(1, 30)), max_size=30),
    st.integers(1, 12),
    st.integers(1, 4),
)
def test_books_balance_whatever_is_copied_and_the_engine_always_rests(
    asked: list[tuple[str, int, int, int]], budget: int, slots: int
) -> None:
    """Requests of all lengths beside a store of any size: no copy ever makes another kind of entry go, and the next engine takes
    over exactly what is left."""
    d = driver(budget=budget * ENTRY, slots=slots, long_slots=1, turn_us=1)
    for tenant, text, n_blocks, n_steps in asked:
        d.add(8 * n_blocks, 8, tenant, blocks=blocks(f"text {text}", 8 * n_blocks))
        for _ in range(n_steps):
            d.step()
    d.run()
    d.assert_all_ended()
    store = d.scheduler.placement.store
    assert store.n_bytes <= store.budget_bytes
    warm = [p for p in d.scheduler.placement.index if p.slot >= 0]
    for prefix in warm:
        stored = d.scheduler.placement.index.is_stored(prefix)
        n_bytes = prefix.n_cells * CELL_BYTES + 64
        assert stored or prefix.copy >= 0 or not store.has_room(prefix.tenant, n_bytes), "there was room for a copy"
    new = inherited(d, budget=budget * ENTRY, slots=slots, long_slots=1)
    assert new.scheduler.placement.store.n_bytes == store.n_bytes
