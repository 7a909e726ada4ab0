"""What accounts owe outlives an engine: a scheduler goes on with the accounts of the one before it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import permutations

import pytest

from poise.scheduler.fairness.accounts import ACCOUNTS_MAX, Account
from poise.scheduler.fairness.tenants import MINUTE_NS
from poise.scheduler.policy import TenantPolicy
from poise.scheduler.request import Rejected, RejectReason
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.books import check_scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, policy

LIMITED = {"a": TenantPolicy(tokens_per_minute=600)}


def started(before: Driver | None = None, known: Sequence[Account] | None = None, **changes: object) -> Driver:
    """A scheduler, after the one of `before` or with these accounts."""
    d = Driver(Scheduler(policy(grain_us=1, preemptions_max=0, **changes)))  # type: ignore[arg-type]
    if before is not None:
        d.now_ns, known = before.now_ns, before.scheduler.accounts(before.now_ns)
    d.scheduler.restore(known or [], d.now_ns)
    return d


def above(d: Driver) -> dict[str, int]:
    return {a.name: a.above_us[INTERACTIVE] for a in d.scheduler.accounts(d.now_ns) if INTERACTIVE in a.above_us}


def test_one_far_ahead_ranks_behind_in_the_next_one_too() -> None:
    """It was served while another waited, and has left. Both come back: who was served less goes first, though it came last."""
    d = started(slots=1, background_slots=1)
    d.add(900, 60, "a")
    d.step()
    d.add(40, 200, "b")
    while len(d.scheduler.sequences) == 2:
        d.step()
    owed = above(d)
    assert owed["a"] > 1_000_000 > 0 > owed["b"]
    d = started(d, slots=1, background_slots=1)
    assert above(d)["a"] == owed["a"]
    d.add(20, 5, "c")  # has the slot; the two others wait
    d.step()
    first, second = d.add(30, 5, "a"), d.add(30, 5, "b")
    d.run()
    order = d.started_order()
    assert order.index(second) < order.index(first)


@pytest.mark.parametrize("order", list(permutations("abc")))
def test_who_waited_comes_back_where_it_was_in_any_order(order: Sequence[str]) -> None:
    """Above the floor or below it: nobody's return moves another's."""
    known = [Account(name, {INTERACTIVE: us}) for name, us in (("a", 3_000_000), ("b", -5_000_000), ("c", 40))]
    d = started(known=known)
    for name in order:
        d.add(40, 50, name, n_output=3, readmitted=True)
    counters = d.scheduler.served[INTERACTIVE].tenants
    assert {name: counters[name] - counters["c"] for name in "ab"} == {"a": 2_999_960, "b": -5_000_040}


def test_who_did_not_wait_has_saved_nothing_up() -> None:
    """A new request of one that was owed starts at the floor, as ever."""
    d = started(known=[Account("b", {INTERACTIVE: -5_000_000})])
    d.add(40, 5, "b")
    assert above(d) == {"b": -1}


def test_who_is_over_its_tokens_is_refused_in_the_next_one() -> None:
    """Until as much time has gone by as without an engine's death, the time without an engine counted."""
    d = started(tenants=LIMITED)
    d.add(900, 5)
    d.run()
    (account,) = d.scheduler.accounts(d.now_ns)
    assert account.tokens is not None
    assert -305 < account.tokens < -200
    d = started(d, tenants=LIMITED)
    refused = d.offer(1, 1)
    assert isinstance(refused, Rejected)
    assert refused.reason is RejectReason.TENANT_RATE
    assert refused.retry_after_us == pytest.approx((1 - account.tokens) / 600 * 60e6, rel=1e-6)
    again = started(tenants=LIMITED)
    again.now_ns = d.now_ns + MINUTE_NS
    again.scheduler.restore([account], d.now_ns)
    again.add(1, 1)
    assert again.scheduler.accounts(again.now_ns)[0].tokens == pytest.approx(account.tokens + 600 - 1, abs=1)


def test_used_tokens_are_used_in_the_next_one() -> None:
    """Also where some are left: an engine's death gives nobody a full account."""
    d = started(tenants=LIMITED)
    d.add(500, 5)
    d.run()
    before = d.scheduler.accounts(d.now_ns)[0].tokens
    assert before is not None
    assert 0 < before < 200
    assert started(d, tenants=LIMITED).scheduler.accounts(d.now_ns)[0].tokens == before


def test_the_list_is_bounded_and_who_owes_most_stays_on_it() -> None:
    """Overdrawn ones, then who is alive, then the most served."""
    crowd = [Account(f"t{i:04}", {BACKGROUND: 1000 + i}) for i in range(900)]
    owing = [Account("a", {}, -50.0), Account("b", {INTERACTIVE: 5}), Account("small", {INTERACTIVE: 1})]
    d = started(known=[*crowd, *owing], tenants=LIMITED)
    d.add(40, 5, "b")
    names = [a.name for a in d.scheduler.accounts(d.now_ns)]
    assert len(names) == ACCOUNTS_MAX
    assert names[:3] == ["a", "b", "t0899"]
    assert "small" not in names
    check_scheduler(d.scheduler)


def test_accounts_that_are_not_known_here_do_no_harm() -> None:
    """Of nobody that the policy names, with a limit that is not there any more, or with more than a limit gives."""
    known = [Account("gone", {BACKGROUND: 70}, -1e9), Account("a", {}, 1e9)]
    d = started(known=known, tenants=LIMITED)
    d.add(40, 5, "gone")
    d.add(40, 5)
    d.run()
    assert {a.name: a.tokens is None for a in d.scheduler.accounts(d.now_ns)} == {"gone": True, "a": False}


def test_asking_changes_nothing() -> None:
    """The same plans, however often somebody asks."""

    def plans(n_asked: int) -> list[object]:
        d = started(tenants=LIMITED)
        for i in range(12):
            d.offer(30 + 7 * i, 9, "abc"[i % 3])
        for _ in range(40):
            for _ in range(n_asked):
                d.scheduler.accounts(d.now_ns + 12_345)
            d.step()
        return [*d.plans, d.scheduler.accounts(d.now_ns)]

    assert plans(0) == plans(3)


def test_nothing_is_told_of_an_erased_tenant() -> None:
    """At once where nothing of it is live; else also not while it is, and not when it has ended."""
    d = started(tenants=LIMITED)
    d.add(900, 5, "a")
    d.add(900, 5, "b")
    d.run()
    d.add(900, 5, "b")
    d.step()
    for tenant in "ab":
        d.scheduler.erase(tenant)
    assert d.scheduler.accounts(d.now_ns) == []
    d.run()
    assert d.scheduler.accounts(d.now_ns) == []
    check_scheduler(d.scheduler)
