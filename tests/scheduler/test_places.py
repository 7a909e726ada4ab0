"""Queue places are divided among accounts: one alone has most of them, and there is always room for the next one."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.scheduler.admission import queue_places
from poise.scheduler.request import Queued, Rejected, RejectReason
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import INTERACTIVE, Driver, policy


def fill(d: Driver, account: str, **more: Any) -> int:
    """Queue requests of an account until one is refused; returns how many it has."""
    for n in range(10_000):
        answer = d.offer(20, 5, account, **more)
        if isinstance(answer, Rejected):
            return n
    raise AssertionError("the queue has no bound")


def test_one_alone_has_most_of_the_queue_and_the_next_ones_first_request_is_taken() -> None:
    """Four fifths of the places; whoever comes has one, and nobody's thousand keeps anybody out."""
    d = Driver(Scheduler(policy(queue_max=64)))
    assert fill(d, "first") == 51
    refused = d.offer(20, 5, "first")
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.value, refused.limit) == (RejectReason.QUEUE_SHARE, 51, 51)
    assert refused.retry_after_us > 0
    for i in range(9):
        assert isinstance(d.offer(20, 5, f"later-{i}"), Queued), f"the {i + 2}nd account's first request was refused"
    d.run()
    d.assert_all_ended()


def test_a_declared_account_has_its_first_place_in_a_full_queue() -> None:
    """One beyond the bound if need be, and no second one."""
    d = Driver(Scheduler(policy(queue_max=16)))
    others = 0
    while isinstance(d.offer(20, 5, f"undeclared-{others}"), Queued):
        others += 1
    assert others == 16
    refused = d.offer(20, 5, "undeclared")
    assert isinstance(refused, Rejected)
    assert (refused.reason, refused.value, refused.limit) == (RejectReason.QUEUE_FULL, 16, 16)
    assert isinstance(d.offer(20, 5, "alice", declared=True), Queued)
    assert isinstance(d.offer(20, 5, "alice", declared=True), Rejected)
    assert isinstance(d.offer(20, 5, "bob", declared=True), Queued)


def test_tenants_of_one_account_are_counted_as_one() -> None:
    """In the queue, among running requests and in what was served. What is kept stays the tenants'."""
    d = Driver(Scheduler(policy(queue_max=64)))
    for i in range(51):
        d.add(20, 5, f"key-{i}", account="key-shared")
    refused = d.offer(20, 5, "key-51", account="key-shared")
    assert isinstance(refused, Rejected)
    assert refused.reason is RejectReason.QUEUE_SHARE
    d.step()
    assert d.scheduler._books.served[INTERACTIVE].tenants.keys() == {"key-shared"}
    assert set(d.scheduler.snapshot().pools["short"].cells_by_tenant) <= {f"key-{i}" for i in range(51)}
    d.run()
    d.assert_all_ended()


def test_preempted_requests_take_nobodys_place() -> None:
    """Only what has never had a slot counts."""
    d = Driver(Scheduler(policy(slots=1, queue_max=8)))
    for _ in range(5):
        d.add(20, 5, "a")
    d.step()
    assert isinstance(d.offer(20, 5, "a"), Queued)


@settings(max_examples=200)
@given(limit=st.integers(1, 300), asks=st.lists(st.integers(0, 40), max_size=600), n_declared=st.integers(0, 5))
def test_places_by_any_order_of_arrivals(limit: int, asks: list[int], n_declared: int) -> None:
    """Nobody has more than its part, a queue is at most one place for each declared account too long, and as long as there is a
    place an account without one gets it."""
    held: dict[int, int] = {}
    for account in asks:
        own, waiting = held.get(account, 0), sum(held.values())
        declared = account < n_declared
        may = own < queue_places(own, waiting, limit, declared=declared)
        assert may or own > 0 or waiting >= limit
        assert may or not declared or own > 0
        if may:
            held[account] = own + 1
    assert sum(held.values()) <= limit + n_declared
    assert max(held.values(), default=0) <= max(1, 0.8 * limit)


@pytest.mark.parametrize("limit", [1, 2, 4, 8, 16, 64, 256])
def test_a_queue_of_any_length_takes_one_alone_most_of_the_way(limit: int) -> None:
    own = 0
    while own < queue_places(own, own, limit, declared=False):
        own += 1
    assert own == max(1, int(0.8 * limit))
