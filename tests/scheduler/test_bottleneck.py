"""Which resource limited each step: one test for each, and all time is accounted for."""

from __future__ import annotations

from dataclasses import replace

from poise.scheduler.bottleneck import Bottleneck, Limit
from poise.scheduler.policy import StorePolicy, TenantPolicy
from poise.scheduler.request import Control, Hold, RequestClass
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import Driver, policy

BACKGROUND = RequestClass.BACKGROUND


def limit(d: Driver) -> Limit:
    """Of the last plan."""
    return d.scheduler.snapshot().limit


def limits(d: Driver, n_steps: int) -> set[Limit]:
    found = set()
    for _ in range(n_steps):
        d.step()
        found.add(limit(d))
    return found


def test_nobody_waits_while_a_few_chats_decode() -> None:
    """It computes, and more of anything would help nobody; afterwards it is idle."""
    d = Driver(Scheduler(policy()))
    d.add(10, 30)
    d.step()
    assert limits(d, 10) == {Limit.NONE}
    d.run()
    assert limit(d) is Limit.IDLE


def test_a_prompt_that_does_not_fit_into_a_step_waits_for_compute() -> None:
    """It has a slot, and would use more of the step than there is."""
    d = Driver(Scheduler(policy()))
    d.add(900, 5)
    assert limits(d, 5) == {Limit.COMPUTE}


def test_a_queue_behind_full_steps_waits_for_compute() -> None:
    """All slots are taken, but a slot more would not have been computed either."""
    d = Driver(Scheduler(policy(slots=20, itl_us=100_000)))
    for _ in range(30):
        d.add(10, 200)
    d.step()
    assert limits(d, 60) == {Limit.COMPUTE}
    assert d.scheduler.snapshot().pools["short"].slots_held == 20


def test_a_queue_behind_short_steps_waits_for_a_slot() -> None:
    """Two slots decode in a fraction of the step's time, and the third request waits."""
    d = Driver(Scheduler(policy(slots=2)))
    for _ in range(3):
        d.add(10, 200)
    limits(d, 3)
    assert limits(d, 20) == {Limit.KV_CELLS}


def test_a_class_that_has_all_its_slots_waits_for_a_slot() -> None:
    """Free ones that it may not have do not count."""
    d = Driver(Scheduler(policy(slots=8, background_slots=1)))
    for _ in range(2):
        d.add(10, 200, request_class=BACKGROUND)
    limits(d, 3)
    assert limits(d, 10) == {Limit.KV_CELLS}


def test_a_tenant_at_its_limit_waits_for_itself() -> None:
    """There are slots and there is time; as soon as somebody else waits for a slot, that is the limit."""
    d = Driver(Scheduler(policy(slots=3, tenants={"a": TenantPolicy(running_max=1)})))
    for _ in range(2):
        d.add(10, 200, "a")
    limits(d, 2)
    assert limits(d, 10) == {Limit.TENANT_LIMITS}
    for _ in range(3):
        d.add(10, 200, "b")
    limits(d, 4)
    assert limits(d, 10) == {Limit.KV_CELLS}


def test_computing_again_what_the_store_had_no_room_for_is_short_of_host_memory() -> None:
    """With a store, the same load never is."""
    found: dict[int, set[Limit]] = {}
    for budget in (0, 1 << 20):
        store = replace(StorePolicy(), budget_bytes=budget, prefix_reuse=False)
        d = Driver(Scheduler(policy(slots=1, background_slots=1, store=store)))
        d.add(200, 50, request_class=BACKGROUND)
        for _ in range(10):
            d.step()
        d.add(20, 5)
        found[budget] = set()
        while d.live:
            found[budget] |= limits(d, 1)
        snapshot = d.scheduler.snapshot()
        assert snapshot.totals.unstored == (budget == 0)
    assert Limit.HOST_MEMORY in found[0]
    assert Limit.HOST_MEMORY not in found[1 << 20]


def test_what_an_operator_paused_limits_nothing() -> None:
    """It is idle, whatever stands still."""
    d = Driver(Scheduler(policy()))
    paused = d.add(10, 30)
    d.step()
    d.control(paused, Control.PAUSE)
    d.step()
    assert limit(d) is Limit.IDLE


def test_all_time_is_accounted_for() -> None:
    """From the first plan to the last, rests included, and nothing twice."""
    d = Driver(Scheduler(policy(slots=2)))
    d.now_ns = 7_000
    for _ in range(4):
        d.add(30, 20)
    d.run()
    d.now_ns += 5_000_000_000
    d.add(30, 20)
    d.run()
    snapshot = d.scheduler.snapshot()
    assert sum(snapshot.limited_ns.values()) == d.now_ns - 7_000
    assert snapshot.limit_since_ns == d.now_ns
    assert snapshot.limited_ns[Limit.IDLE] == 5_000_000_000


def test_a_clock_that_jumps_back_takes_nothing_away() -> None:
    """The time of a step is never less than none."""
    bottleneck = Bottleneck()
    for now_ns in (10, 5, 9):
        bottleneck.note(Limit.COMPUTE, now_ns)
    assert bottleneck.limited_ns[Limit.COMPUTE] == 4


def test_requests_that_only_their_readers_hold_up_wait_for_readers() -> None:
    """Where nobody waits for anything else; an operator's pause beside it makes it the operator's."""
    d = Driver(Scheduler(policy()))
    held = d.add(10, 30)
    d.step()
    d.events += d.scheduler.hold(held, Hold.PAUSE, d.now_ns)
    d.step()
    assert limit(d) is Limit.READERS
    d.control(held, Control.PAUSE)
    d.step()
    assert limit(d) is Limit.IDLE
    d.control(held, Control.RESUME)
    d.add(900, 5)
    d.step()
    assert limit(d) is Limit.COMPUTE
    d.events += d.scheduler.hold(held, Hold.RUN, d.now_ns)
    d.run()
    d.assert_all_ended()
