"""Prefix reuse and templates: what is computed once, for whom, and for how long it stays."""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.memory.store import Purpose
from poise.scheduler.planning.plan import CopySlot, LoadSlot, StoreSlot, TrimSlot
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, StorePolicy
from poise.scheduler.request import Hold, Queued, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, CELL_BYTES, Driver, blocks, policy


def driver(**changes: Any) -> Driver:
    return Driver(Scheduler(policy(**changes)))


def said(d: Driver, text: str, n_prompt: int, tenant: str = "a", max_output: int = 8, **more: Any) -> int:
    """A request whose prompt says `text`, run to its end."""
    request_id = d.add(n_prompt, max_output, tenant, blocks=blocks(text, n_prompt), **more)
    d.run()
    return request_id


def cached(d: Driver, request_id: int) -> int:
    (event,) = d.events_of(request_id, Started)
    return int(event.n_cached)


def prompt_tokens(d: Driver, request_id: int) -> int:
    """Prompt tokens that were really computed."""
    return sum(c.n_tokens for p in d.plans for b in p.batches for c in b.chunks if c.request_id == request_id and c.is_prompt)


def test_the_second_turn_computes_only_what_is_new() -> None:
    """The first turn's cells are warm in its slot; whole blocks of them are used in place."""
    d = driver()
    first = said(d, "a", 1000)
    second = said(d, "a", 1040)
    assert cached(d, first) == 0
    # The first turn has computed 1,007 tokens: 125 whole blocks.
    assert cached(d, second) == 1000
    assert prompt_tokens(d, second) == 40
    assert not [o for p in d.plans for o in p.operations if isinstance(o, CopySlot | LoadSlot)]


def test_another_tenant_computes_all_of_the_same_text() -> None:
    """Invariant 12, even where keys are equal (they never are: the engine salts them with the tenant)."""
    d = driver()
    said(d, "a", 1000, "a")
    other = said(d, "a", 1000, "b")
    assert cached(d, other) == 0
    assert prompt_tokens(d, other) == 1000


def test_the_last_prompt_token_is_always_computed() -> None:
    """Its logits give the first output token."""
    d = driver()
    said(d, "a", 160)
    again = said(d, "a", 160)
    assert cached(d, again) == 159
    assert prompt_tokens(d, again) == 1


def test_a_warm_slot_that_is_needed_is_carried_to_the_store_and_used_from_there() -> None:
    """There is no other; its cells move to the host store."""
    d = driver(slots=1)
    said(d, "one", 200)
    said(d, "two", 200)
    assert d.scheduler.snapshot().store.bytes_by_purpose[Purpose.PREFIX] == 207 * CELL_BYTES
    third = said(d, "one", 240)
    assert cached(d, third) == 200
    assert [o.n_cells for p in d.plans for o in p.operations if isinstance(o, LoadSlot)] == [200]


def test_a_running_neighbour_does_not_hide_a_warm_slot() -> None:
    """The prefix is warm in slot 1, slot 0 is free and lower: it is copied there, and stays."""
    d = driver()
    short = d.add(40, 4)
    warm = d.add(200, 40, blocks=blocks("one", 200))
    d.run()
    assert d.finished(short)
    next_turn = said(d, "one", 240)
    assert cached(d, next_turn) == 200
    assert warm


def test_a_shared_beginning_is_used_by_many_at_once() -> None:
    """A system prompt shared by a tenant's chats is computed once, whatever comes after it."""
    d = driver()
    head = blocks("system", 80)
    for i in range(6):
        d.add(160, 5, blocks=head + blocks(f"chat {i}", 160)[10:])
        d.run()
    started = [e for e in d.events if isinstance(e, Started)]
    assert [e.n_cached for e in started] == [0, 80, 80, 80, 80, 80]


def test_a_common_beginning_shorter_than_the_minimum_is_computed_again() -> None:
    """Carrying it is not worth an operation."""
    d = driver(store=StorePolicy(prefix_min_cells=64))
    said(d, "a", 160)
    head = blocks("a", 40)
    other = d.add(160, 5, blocks=head + blocks("b", 160)[5:])
    d.run()
    assert cached(d, other) == 0


def test_reuse_can_be_switched_off() -> None:
    """Then slots are emptied when a sequence ends."""
    d = driver(store=StorePolicy(prefix_reuse=False))
    said(d, "a", 200)
    assert not d.cells
    assert cached(d, said(d, "a", 200)) == 0


def test_a_tenants_prefixes_stay_within_its_quota() -> None:
    """Its own oldest go first; another tenant's stay."""
    budget = 1000 * CELL_BYTES
    d = driver(slots=2, store=StorePolicy(budget_bytes=budget, tenant_share=0.5))
    said(d, "mine", 200, "quiet")
    for i in range(10):
        said(d, f"text {i}", 200, "loud")
    prefixes = [e for e in d.scheduler._placement.store if e.purpose.value == "prefix"]
    assert sum(e.n_bytes for e in prefixes if e.tenant == "loud") <= budget // 2
    assert cached(d, said(d, "mine", 240, "quiet")) == 200


def test_forgetting_a_tenant_drops_what_is_kept_and_nothing_else() -> None:
    """Warm slots and stored prefixes; another tenant's still serve."""
    d = driver()
    said(d, "x", 200, "a")
    said(d, "y", 200, "a")
    said(d, "z", 200, "b")
    n, cells = d.scheduler.forget("a")
    assert (n, cells) == (2, 2 * 207)
    assert cached(d, said(d, "x", 240, "a")) == 0
    assert cached(d, said(d, "z", 240, "b")) == 200


def test_a_failed_sequence_leaves_nothing_warm() -> None:
    """Its slot was emptied by the runner."""
    d = driver()
    d.add(100, 5, blocks=blocks("a", 100))
    d.step(fail=lambda batch: "broken")
    d.run()
    assert not d.cells
    assert not d.scheduler._placement.pools[SHORT_POOL].warm


@pytest.mark.parametrize("n_prompt", [160, 1500])
def test_who_leaves_while_its_prompt_is_computed_leaves_that_for_the_retry(n_prompt: int) -> None:
    """Whole blocks of what was computed by then, in either pool."""
    d = driver()
    left = d.add(n_prompt, 8, blocks=blocks("a", n_prompt))
    d.step()
    (batch,) = d.plans[-1].batches
    n_computed = batch.chunks[0].n_tokens
    assert n_computed < n_prompt
    d.abort(left)
    again = said(d, "a", n_prompt)
    assert cached(d, again) == n_computed // 8 * 8
    assert d.finished(again).n_output == 8


def swapped(d: Driver, text: str, tenant: str = "a") -> int:
    """A request that has computed some of its prompt, and whose cells are in the host store."""
    request = d.add(400, 8, tenant, blocks=blocks(text, 400))
    d.step()
    d.hold(request, Hold.SWAP)
    d.step()
    assert [e.purpose for e in d.scheduler._placement.store][-1] is Purpose.SWAP
    return request


def test_who_leaves_while_it_is_swapped_out_leaves_its_cells_in_the_host_store() -> None:
    """The entry is a prefix from then on, its tenant's, and nobody carries it anywhere for that."""
    d = driver()
    d.abort(swapped(d, "a"))
    (entry,) = d.scheduler._placement.store
    assert (entry.purpose, entry.tenant) == (Purpose.PREFIX, "a")
    assert cached(d, said(d, "a", 400, "b")) == 0
    assert cached(d, said(d, "a", 400)) == entry.n_cells // 8 * 8 > 0
    d.scheduler.forget("a")
    d.step()
    assert all(e.tenant == "b" for e in d.scheduler._placement.store)


def test_what_is_left_behind_stays_within_the_quota_and_is_none_of_an_erased_tenant() -> None:
    """A tenant whose quota is full of its own keeps the newest."""
    d = driver(store=StorePolicy(budget_bytes=60 * CELL_BYTES * 4, tenant_share=0.4))
    for text in "abcdef":
        d.abort(swapped(d, text))
        d.step()
    books = d.scheduler.snapshot().store
    assert 0 < books.bytes_by_purpose[Purpose.PREFIX] <= 96 * CELL_BYTES
    assert books.entries_by_purpose[Purpose.PREFIX] < 6
    request = swapped(d, "g", "z")
    d.scheduler.erase("z")
    d.abort(request)
    assert not [e for e in d.scheduler._placement.store if e.tenant == "z"]


def test_a_declared_template_is_computed_once_and_pinned() -> None:
    """In each pool; requests that name it use it whoever they are, and eviction leaves it alone."""
    d = driver(slots=2, store=StorePolicy(budget_bytes=1200 * CELL_BYTES))
    for pool in (SHORT_POOL, LONG_POOL):
        d.add(100, 1, "", BACKGROUND, pins="house", pool=pool)
    d.run()
    d.step()
    assert d.scheduler.snapshot().store.bytes_by_purpose[Purpose.TEMPLATE] == 200 * CELL_BYTES
    for tenant in ("a", "b"):
        for i in range(6):
            said(d, f"filler {i}", 300, tenant)
        asked = said(d, "question", 160, tenant, template="house", template_cells=100)
        assert cached(d, asked) == 100
        assert prompt_tokens(d, asked) == 60
    other = said(d, "other", 160, "b")
    assert cached(d, other) == 0


def test_a_continued_chat_is_no_heavy_job() -> None:
    """Routing looks at what must be computed: past `heavy_tokens`, the second turn stays where its cells are."""
    d = driver(heavy_tokens=1024)
    said(d, "a", 1010)
    second = said(d, "a", 1050)
    assert d.events_of(second, Started)[0].pool == SHORT_POOL
    fresh = said(d, "b", 1050)
    assert d.events_of(fresh, Started)[0].pool == LONG_POOL
    again = said(d, "b", 900)
    assert d.events_of(again, Started)[0].pool == LONG_POOL
    assert cached(d, again) == 896


def test_taking_a_warm_slot_over_trims_what_does_not_belong() -> None:
    """A request that shares the first half of what is warm, and there is no other slot: the rest goes to the store first."""
    d = driver(slots=1)
    said(d, "a", 400)
    half = blocks("a", 200)
    other = d.add(300, 5, blocks=half + blocks("b", 300)[25:])
    d.run()
    assert cached(d, other) == 200
    operations = [o for p in d.plans for o in p.operations]
    assert [o.n_cells for o in operations if isinstance(o, TrimSlot)] == [200]
    assert [o.n_cells for o in operations if isinstance(o, StoreSlot)] == [407]


def test_of_several_that_share_a_beginning_each_is_gone_on_from_where_it_lies() -> None:
    """Four slots are warm with the same 400 tokens and a few of their own: nothing is carried for four more."""
    d = driver(slots=4)
    for wave in range(2):
        for i in range(4):
            d.add(408, 3, blocks=blocks("shared", 400) + blocks(f"{wave} {i}", 408)[50:])
        d.run()
        operations = [o for p in d.plans for o in p.operations]
        assert len([o for o in operations if isinstance(o, CopySlot)]) == 3, "of the first wave"
        assert not [o for o in operations if isinstance(o, StoreSlot | LoadSlot)]


def test_a_beginning_is_copied_where_what_is_warm_would_lose_more() -> None:
    """The conversation that it shares its beginning with stays where it is."""
    d = driver()
    said(d, "a", 400)
    d.add(300, 5, blocks=blocks("a", 200) + blocks("b", 300)[25:])
    d.run()
    operations = [o for p in d.plans for o in p.operations if not isinstance(o, TrimSlot | StoreSlot)]
    assert [(o.source, o.target, o.n_cells) for o in operations if isinstance(o, CopySlot)] == [(0, 1, 200)]
    assert cached(d, said(d, "a", 440)) == 400


def test_what_is_told_of_a_prompt_leaves_out_what_is_cached() -> None:
    """A router that weighs the prompt's compute must not send a warm conversation away for it."""
    d = driver()
    said(d, "one", 200)
    warm, cold = d.offer(240, 8, blocks=blocks("one", 240)), d.offer(240, 8, blocks=blocks("two", 240))
    assert isinstance(warm, Queued)
    assert isinstance(cold, Queued)
    assert 0 < warm.prompt_us < cold.prompt_us / 2
