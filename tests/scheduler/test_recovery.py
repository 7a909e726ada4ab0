"""Requests that come from an engine before this one: readmitted with what it had given, and suspects among them."""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy, TenantPolicy
from poise.scheduler.request import SUSPECT_TOKENS, FinishReason, Hold, Queued, Rejected, RejectReason
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, policy


def driver(**changes: Any) -> Driver:
    return Driver(Scheduler(policy(**changes)))


def readmit(d: Driver, n_prompt: int = 40, n_output: int = 25, max_output: int = 50, **more: Any) -> int:
    return d.add(n_prompt, max_output, n_output=n_output, readmitted=True, **more)


@pytest.mark.parametrize("n_output", [0, 1, 25, 49])
def test_a_readmitted_request_goes_on_after_its_output(n_output: int) -> None:
    """Everything known is computed, then as many tokens come as were still allowed."""
    d = driver()
    request = readmit(d, 40, n_output)
    d.run()
    finished = d.finished(request)
    assert (finished.n_prompt, finished.n_output, finished.reason) == (40, 50, FinishReason.LENGTH)
    done = [c for plan in d.plans for batch in plan.batches for c in batch.chunks]
    assert sum(c.n_tokens for c in done) == 40 + 50 - 1
    assert sum(c.sample for c in done) == 50 - n_output
    assert next(c for c in done if c.sample).start + next(c for c in done if c.sample).n_tokens == 40 + n_output
    assert finished.n_recomputed == 0


def test_no_limit_refuses_what_was_accepted_before() -> None:
    """Its class's queue, its tenant's, its tenant's tokens per minute, its own timeout; new requests are refused as before."""
    limits = {"a": TenantPolicy(queue_max=1, tokens_per_minute=100)}
    d = driver(slots=1, background_slots=1, queue_max=2, tenants=limits)
    d.add(200, 5)
    d.step()
    ids = [readmit(d, queue_timeout_us=1) for _ in range(5)]
    refused = d.offer(10, 5)
    assert isinstance(refused, Rejected)
    assert refused.reason is RejectReason.TENANT_QUEUE_FULL
    other = d.offer(10, 5, "b")
    assert isinstance(other, Rejected)
    assert other.reason is RejectReason.QUEUE_FULL
    d.run()
    assert all(d.finished(i).n_output == 50 for i in ids)


def test_what_can_never_fit_is_refused_all_the_same() -> None:
    """What it comes with must fit a slot, and what was given already is part of that."""
    d = driver(slot_cells=256)
    answer = d.offer(423, 100, n_output=90, readmitted=True)
    assert isinstance(answer, Rejected)
    assert (answer.reason, answer.value, answer.limit) == (RejectReason.TOO_LONG, 513, 512)
    assert isinstance(d.offer(422, 100, n_output=90, readmitted=True), Queued)


def test_a_prompt_is_charged_once() -> None:
    """The engine before has charged it; what is generated here is charged here."""
    d = driver(tenants={"a": TenantPolicy(tokens_per_minute=1000)})
    readmit(d, 400, 10, 20)
    d.run()
    assert d.scheduler._books.tenants._tenants["a"].balance == pytest.approx(990, abs=5)


def test_output_makes_no_job_heavy() -> None:
    """Streams go on where they were, side by side, and not one after the other in the long pool."""
    d = driver(heavy_tokens=100)
    ids = [readmit(d, 40, 300, 400) for _ in range(4)]
    d.step()
    assert {d.scheduler._life.sequences[i].pool for i in ids} == {SHORT_POOL}
    heavy = readmit(d, 120, 1)
    assert d.scheduler._life.sequences[heavy].pool == LONG_POOL


def test_a_prompt_that_was_short_by_its_prefix_is_not_too_heavy_for_the_only_pool() -> None:
    """What made it fit the engine before, cells that were kept there, is not known here."""
    whole = policy()
    limits = {c: ClassPolicy(64, 100_000, 0.0, 4, 100, 1) for c in whole.classes}
    d = Driver(Scheduler(SchedulerPolicy({SHORT_POOL: PoolPolicy(4, 1024)}, limits, priors=whole.priors)))
    assert isinstance(d.offer(300, 10), Rejected)
    request = readmit(d, 300, 2, 10)
    d.run()
    assert d.finished(request).n_output == 10


def test_readmitted_requests_come_first_and_in_their_order() -> None:
    """Before new prompts of their tenant, short ones too, in both classes."""
    for request_class in (INTERACTIVE, BACKGROUND):
        d = driver(slots=1, background_slots=1)
        ids = [readmit(d, n, 10, 15, request_class=request_class) for n in (300, 20, 100)]
        new = d.add(4, 5, request_class=request_class)
        d.run()
        assert d.started_order() == [*ids, new]


def test_a_readmitted_request_can_be_held() -> None:
    """Its reader was behind before the crash and is still."""
    d = driver()
    request = readmit(d)
    d.hold(request, Hold.PAUSE)
    assert d.step().is_empty
    d.hold(request, Hold.RUN)
    d.run()
    assert d.finished(request).n_output == 50


def test_a_suspect_is_alone_in_its_batch_until_it_has_proved_itself() -> None:
    """Prompt, output and eight tokens more; then it shares a batch with the others. They lose no token by it."""
    d = driver()
    others = [d.add(30, 60, f"t{i}") for i in range(3)]
    for _ in range(3):
        d.step()
    suspects = [readmit(d, tenant=f"s{i}", suspect=True) for i in range(2)]
    alone = 0
    while suspects[0] in d.live:
        for batch in d.step().batches:
            ids = [c.request_id for c in batch.chunks]
            for suspect in suspects:
                sequence = d.scheduler._life.sequences.get(suspect)
                if sequence is not None and suspect in ids and sequence.n_output <= 25 + SUSPECT_TOKENS:
                    assert ids == [suspect]
                    alone += 1
    assert alone >= 2 * SUSPECT_TOKENS
    last = d.plans[-2].batches
    assert len(last) == 1, "in the end they share"
    d.run()
    assert all(d.finished(i).n_output == 60 for i in others)
    assert all(d.finished(i).n_output == 50 for i in suspects)


def test_a_suspect_that_fails_takes_nobody_with_it() -> None:
    """Its batch is its own."""
    d = driver()
    other = d.add(30, 60, "other")
    for _ in range(3):
        d.step()
    suspect = readmit(d, suspect=True)
    d.step(fail=lambda batch: "broken" * any(c.request_id == suspect for c in batch.chunks))
    assert d.finished(suspect).reason is FinishReason.FAILED
    d.run()
    assert d.finished(other).n_output == 60


def test_a_batch_of_its_own_is_paid_for() -> None:
    """Costs are predicted, charged and learnt for each call: the plan foresees what the step takes."""
    d = driver()
    ids = [d.add(30, 60, f"t{i}") for i in range(3)]
    for _ in range(9):
        d.step()
    ids.append(readmit(d, suspect=True))
    while not all(d.scheduler._life.sequences[i].is_decoding for i in ids):
        d.step()
    for _ in range(5):
        before_ns, served = d.now_ns, sum(d.scheduler._life.sequences[i].served_us for i in ids)
        plan = d.step()
        assert len(plan.batches) == 2
        took_us = (d.now_ns - before_ns) // 1000
        assert sum(d.scheduler._life.sequences[i].served_us for i in ids) - served == took_us
        assert sum(b.predicted_us for b in plan.batches) == pytest.approx(took_us, rel=0.05)
