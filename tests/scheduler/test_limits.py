"""A tenant's limits, the queue's answers, and what a waiting request is told."""

from __future__ import annotations

from itertools import cycle

import pytest

from poise.scheduler.policy import CostPrior, TenantPolicy
from poise.scheduler.request import FinishReason, Hold, Preempted, Rejected, RejectReason, RequestClass, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, Driver, policy


def test_a_tenant_runs_as_many_requests_as_it_may() -> None:
    """The others wait, however many slots are free; other tenants do not."""
    d = Driver(Scheduler(policy(tenants={"a": TenantPolicy(running_max=2)})))
    own = [d.add(20, 30, "a") for _ in range(5)]
    d.add(20, 30, "b")
    while len(d.live) == 6:
        d.step()
        held = d.scheduler.snapshot().pools["short"].slots_held
        assert held <= 3
    assert sum(i in d.started_order() for i in own) <= 3
    d.run()
    d.assert_all_ended()


def test_a_tenant_queues_as_many_requests_as_it_may() -> None:
    """One more is refused at once, with its own limit; another tenant's is not."""
    d = Driver(Scheduler(policy(tenants={"a": TenantPolicy(queue_max=2)})))
    for _ in range(2):
        d.add(20, 5, "a")
    answer = d.offer(20, 5, "a")
    assert isinstance(answer, Rejected)
    assert (answer.reason, answer.value, answer.limit) == (RejectReason.TENANT_QUEUE_FULL, 2, 2)
    assert answer.retry_after_us > 0
    d.add(20, 5, "b")


def test_a_tenant_spends_its_tokens_per_minute_and_gets_them_back() -> None:
    """What runs goes on over the limit; the next request is refused until the account has filled again."""
    d = Driver(Scheduler(policy(tenants={"a": TenantPolicy(tokens_per_minute=600)})))
    first = d.add(500, 150, "a")
    d.run()
    assert d.finished(first).n_output == 150
    answer = d.offer(20, 5, "a")
    assert isinstance(answer, Rejected)
    assert answer.reason is RejectReason.TENANT_RATE
    assert answer.retry_after_us > 0
    d.now_ns += answer.retry_after_us * 1000
    d.add(20, 5, "a")


@pytest.mark.parametrize("request_class", list(RequestClass))
def test_estimates_of_the_wait_come_close(request_class: RequestClass) -> None:
    """In a steady flood of three tenants they are off by less than a third in the mean, once they have been corrected."""
    d = Driver(Scheduler(policy(queue_max=1000)))
    tenants = cycle("abc")
    n_started = 0
    while n_started < 300:
        while d.scheduler.snapshot().classes[request_class].queued < 20:
            d.add(60, 40, next(tenants), request_class)
        d.step()
        n_started += sum(isinstance(e, Started) for e in d.events)
        d.events.clear()
    assert d.scheduler.snapshot().classes[request_class].wait_error < 0.3


@pytest.mark.parametrize("request_class", list(RequestClass))
def test_long_answers_keep_nobody_waiting_who_has_a_slot(request_class: RequestClass) -> None:
    """Five requests in one moment, each of thousands of output tokens: with slots for all, the next one waits for their prompts
    at most; with slots for four, for the end of an answer."""

    def wait_us(slots: int) -> int:
        d = Driver(Scheduler(policy(slots=slots, background_slots=slots)))
        for _ in range(5):
            d.add(30, 3000, request_class=request_class)
        return d.scheduler.wait_estimate_us(request_class)

    prompts_us = 5 * 30 * CostPrior().prompt_us
    assert 0 < wait_us(slots=8) <= prompts_us
    assert wait_us(slots=4) > 10 * prompts_us


def test_places_are_told_in_order() -> None:
    """Every queued request has a place of its own, and a later place never waits less."""
    d = Driver(Scheduler(policy(slots=2)))
    for i in range(8):
        d.add(100 + i, 20, f"t{i % 2}")
    d.step()
    positions = d.scheduler.positions()
    assert [p.position for p in positions] == list(range(1, len(positions) + 1))
    assert [p.eta_us for p in positions] == sorted(p.eta_us for p in positions)


def test_shares_lower_the_limits_of_classes_at_run_time() -> None:
    """Queue places and slots, at least one of each; whole again when the shares are."""
    d = Driver(Scheduler(policy(slots=8, background_slots=6, queue_max=10)))
    d.scheduler.adjust(0.29, 0.5)
    for i in range(2):
        d.add(200, 20, f"t{i}")
    refused = d.offer(20, 5)
    assert isinstance(refused, Rejected)
    assert (refused.value, refused.limit) == (2, 2)
    for _ in range(3):
        d.step()
    for i in range(4):
        d.offer(30, 50, f"u{i}")
        d.step()
    assert d.scheduler.snapshot().pools["short"].slots_held == 4
    d.scheduler.adjust(0.001, 0.001)
    assert d.scheduler._books.limits[BACKGROUND].slots_max == d.scheduler._books.limits[BACKGROUND].queue_max == 1
    d.scheduler.adjust(1.0, 1.0)
    assert d.scheduler._books.limits == dict(d.scheduler._policy.classes)
    d.run()
    d.assert_all_ended()


def test_a_lowered_share_stops_nobody_who_runs() -> None:
    """No slot is taken for a class that has more than it may: one would not be enough. Standing ones give theirs all the same."""
    d = Driver(Scheduler(policy(slots=6, background_slots=6, turn_us=1)))
    for i in range(6):
        d.add(20, 60, f"t{i}", BACKGROUND)
    for _ in range(12):
        d.step()
    d.scheduler.adjust(1.0, 0.5)
    late = d.add(20, 5, "late", BACKGROUND)
    for _ in range(20):
        d.step()
    assert not [e for e in d.events if isinstance(e, Preempted)]
    assert late not in d.started_order()
    for request_id in sorted(d.live)[:4]:
        d.hold(request_id, Hold.PAUSE)
    for _ in range(8):
        d.step()
    assert late in d.started_order()
    for request_id in sorted(d.live):
        d.hold(request_id, Hold.RUN)
    d.run()
    d.assert_all_ended()


def test_deadlines_of_ended_requests_are_not_kept() -> None:
    """A storm of cancels, each with a queue timeout of a day, leaves nothing that would be looked at tomorrow."""
    d = Driver(Scheduler(policy()))
    for _ in range(1000):
        d.abort(d.add(20, 5, queue_timeout_us=86_400_000_000))
    assert len(d.scheduler._deadlines) <= 70
    late = d.add(20, 5, queue_timeout_us=1000)
    d.now_ns += 2_000_000
    d.step()
    assert d.finished(late).reason is FinishReason.EXPIRED
