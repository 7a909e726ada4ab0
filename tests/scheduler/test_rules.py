"""The rules of a step (R1 to R5, R8), each shown by the smallest load that needs it."""

from __future__ import annotations

import pytest

from poise.scheduler.planning.plan import MoveSlot
from poise.scheduler.policy import LONG_POOL, SHORT_POOL
from poise.scheduler.request import FinishReason, Rejected, RejectReason
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, COST, INTERACTIVE, Driver, chunks, policy


def driver(**changes: int | float) -> Driver:
    return Driver(Scheduler(policy(**changes)))  # type: ignore[arg-type]


def decoding(d: Driver, n: int, tenant: str = "a", max_output: int = 500) -> list[int]:
    """n interactive requests that have all begun to decode."""
    ids = [d.add(n_prompt=16, max_output=max_output, tenant=tenant) for _ in range(n)]
    while len({r for p in d.plans[-1:] for r, k in chunks(p).items() if k == 1} & set(ids)) < n:
        d.step()
    return ids


def test_r1_every_running_interactive_sequence_decodes_in_every_step() -> None:
    """A long prompt in prefill does not take a decode's turn."""
    d = driver()
    ids = decoding(d, 5)
    d.add(n_prompt=900, max_output=5, tenant="b")
    for _ in range(10):
        planned = chunks(d.step())
        assert all(planned.get(i) == 1 for i in ids)


def test_r2_a_step_keeps_the_time_budget() -> None:
    """Prompt tokens are cut so that decodes plus prompt stay within the target, plus at most one quantum."""
    d = driver(itl_us=100_000)
    decoding(d, 4)
    d.add(n_prompt=900, max_output=5, tenant="b")
    quantum_us = 16 * COST.prompt_us
    for _ in range(12):
        plan = d.step()
        assert sum(b.predicted_us for b in plan.batches) <= 100_000 + quantum_us * 1.3


def test_r2_a_prompt_gets_a_quantum_when_decodes_use_the_whole_budget() -> None:
    """Nothing stalls on slow hardware."""
    d = driver(itl_us=20_000)
    decoding(d, 8)
    late = d.add(n_prompt=64, max_output=5, tenant="b")
    assert chunks(d.step())[late] == 16


def test_r2_attended_cells_shrink_chunks_late_in_a_long_prompt() -> None:
    """With equal budget, fewer tokens fit at position 3,000 than at 0."""
    d = driver(itl_us=300_000)
    request = d.add(n_prompt=3500, max_output=5)
    sizes = []
    while (planned := chunks(d.step()).get(request)) is not None and planned > 1:
        sizes.append(planned)
    assert sizes[0] > 1.2 * sizes[-2]


def test_r3_class_comes_before_everything() -> None:
    """An interactive prompt that arrives after a background one starts first."""
    d = driver()
    background = d.add(n_prompt=200, request_class=BACKGROUND)
    interactive = d.add(n_prompt=200)
    planned = chunks(d.step())
    assert planned.get(interactive, 0) > planned.get(background, 0)


def test_r3_the_least_served_tenant_goes_first() -> None:
    """A polite tenant's prompt overtakes the queue of a tenant that was served a lot."""
    d = driver(slots=4)
    running = decoding(d, 4, tenant="flood")
    flood = [d.add(n_prompt=60, tenant="flood") for _ in range(5)]
    polite = d.add(n_prompt=60, tenant="polite")
    for _ in range(30):
        d.step()
    d.abort(running[0])
    while polite not in d.started_order():
        d.step()
    assert not set(flood) & set(d.started_order())


def test_r3_prompts_of_equally_served_tenants_do_not_take_turns() -> None:
    """Eight tenants with equal prompts at once: the first has its first token long before the last (not all at the end)."""
    d = driver()
    ids = [d.add(n_prompt=85, max_output=2, tenant=f"t{i}") for i in range(8)]
    first_token: dict[int, int] = {}
    while not (plan := d.step()).is_empty:
        for chunk in (c for b in plan.batches for c in b.chunks if c.sample):
            first_token.setdefault(chunk.request_id, d.now_ns)
    times = sorted(first_token[i] for i in ids)
    assert times[0] < 0.25 * times[-1]
    assert times[3] < 0.65 * times[-1]


def test_r3_shortest_prompt_first_within_a_tenant() -> None:
    """Of two waiting prompts of one tenant the shorter one starts first."""
    d = driver()
    long, short = d.add(n_prompt=900), d.add(n_prompt=20)
    d.step()
    assert d.started_order()[0] == short
    assert long in d.accepted


def test_r3_ageing_bounds_the_wait_of_a_long_prompt() -> None:
    """A stream of short prompts cannot keep a longer one of the same tenant waiting for ever."""
    d = driver(slots=1, ageing=1.0, queue_max=1000)
    for _ in range(4):
        d.add(n_prompt=16, max_output=1)
    old = d.add(n_prompt=800, max_output=1)
    for _ in range(200):
        d.add(n_prompt=16, max_output=1)
        d.step()
    assert old in d.started_order()


def test_r4_background_gets_its_share_under_interactive_pressure() -> None:
    """With interactive prompts that would fill every step, background is still served its share, and not much more."""
    d = driver(min_share=0.2, queue_max=2000, slots=10)
    for _ in range(3):
        d.add(n_prompt=16, max_output=3000, request_class=BACKGROUND, tenant="batch")
    served = {INTERACTIVE: 0, BACKGROUND: 0}
    for n in range(400):
        if n % 2 == 0:
            d.add(n_prompt=200, max_output=2, tenant=f"t{n % 7}")
        d.step()
    for request in d.accepted.values():
        sequence = d.scheduler._life.sequences.get(request.request_id)
        spent = sequence.served_us if sequence else d.finished(request.request_id).served_us
        served[request.request_class] += spent
    share = served[BACKGROUND] / sum(served.values())
    assert 0.17 <= share <= 0.30


def test_r4_background_prompts_and_decodes_share_by_served_cost() -> None:
    """A reader of long prompts beside writers that decode all the time: what interactive work leaves is divided between them."""
    d = driver(heavy_tokens=4000, slots=6, background_slots=5, grain_us=100_000)
    d.add(n_prompt=20, max_output=3000, tenant="person")
    for _ in range(3):
        d.add(n_prompt=20, max_output=2000, tenant="writer", request_class=BACKGROUND)
    for _ in range(40):
        d.step()
    reader = d.add(n_prompt=1500, max_output=5, tenant="reader", request_class=BACKGROUND)
    for _ in range(300):
        d.step()
    served = d.scheduler.served[BACKGROUND].tenants
    assert reader in d.started_order()
    assert "reader" not in served or served["reader"] > 0.7 * served["writer"]


def test_r4_background_alone_is_work_conserving() -> None:
    """Without interactive work, background fills the step."""
    d = driver()
    ids = [d.add(n_prompt=100, request_class=BACKGROUND, tenant=f"t{i}") for i in range(3)]
    for _ in range(10):
        d.step()
    assert set(ids) <= set(d.started_order())


def test_r4_background_fills_a_step_that_chats_wait_for_only_in_part() -> None:
    """With chats decoding, a background prompt takes what is left of a share of the budget, not all of it."""
    d = driver()
    decoding(d, 2)
    d.add(n_prompt=900, max_output=5, tenant="b", request_class=BACKGROUND)
    lengths = []
    for _ in range(10):
        owed = d.scheduler._books.background_credit_us > 0
        plan = d.step()
        if not owed:
            lengths.append(sum(b.predicted_us for b in plan.batches))
    # Where a step leaves less than a quantum costs, it is saved for the next one: the mean keeps to the share.
    assert sum(lengths) / len(lengths) <= 0.6 * 100_000 * 1.1
    assert max(lengths) <= 100_000 * 1.1


def test_r4_background_progresses_where_a_quantum_exceeds_the_budget() -> None:
    """On a slow host a lone background prompt still advances (a plan that stays empty would hang it for ever)."""
    d = driver(itl_us=5_000)
    d.add(n_prompt=100, max_output=3, request_class=BACKGROUND)
    d.run(100)
    d.assert_all_ended()


def test_r5_heavy_prompts_run_in_the_long_pool_and_are_limited() -> None:
    """At most heavy_max heavy jobs of a class run at once; the others wait."""
    d = driver(heavy_max=1, long_slots=2)
    ids = [d.add(n_prompt=2000, max_output=3, request_class=BACKGROUND, tenant=f"t{i}") for i in range(3)]
    while not d.step().is_empty:
        assert d.scheduler.snapshot().pools[LONG_POOL].slots_held <= 1
        assert d.scheduler.snapshot().pools[SHORT_POOL].slots_held == 0
    assert sorted(d.started_order()) == ids
    d.assert_all_ended()


@pytest.mark.parametrize("chunk", [0, 64])
def test_r5_a_heavy_prompt_finishes_with_and_without_saving(chunk: int) -> None:
    """Saving up for a cheaper chunk never stops a heavy prompt, alone or beside a decode."""
    d = driver(chunk_tokens=chunk)
    d.add(n_prompt=5000, max_output=3)
    decoding(d, 2, tenant="b", max_output=2000)
    d.run()
    d.assert_all_ended()


def test_r8_a_sequence_takes_the_lowest_free_slot() -> None:
    """A released slot in the middle is the next one given out."""
    d = driver()
    ids = decoding(d, 4)
    d.abort(ids[1])
    late = d.add(n_prompt=20, tenant="b")
    plan = d.step()
    assert [c.slot for b in plan.batches for c in b.chunks if c.request_id == late] == [1]


def test_r8_a_hole_that_persists_is_closed_by_the_highest_sequence() -> None:
    """After hole_steps plans with a hole, the highest sequence moves into it."""
    d = driver(hole_steps=2)
    ids = decoding(d, 4)
    d.abort(ids[1])
    moves = [op for _ in range(4) for op in d.step().operations if isinstance(op, MoveSlot)]
    assert [(m.source, m.target, m.request_id) for m in moves] == [(3, 1, ids[3])]
    d.run()
    d.assert_all_ended()


def test_background_leaves_slots_for_interactive_arrivals() -> None:
    """Background holds at most slots_max, however much of it waits."""
    d = driver(background_slots=3)
    for i in range(8):
        d.add(n_prompt=16, max_output=200, request_class=BACKGROUND, tenant=f"t{i}")
    for _ in range(20):
        d.step()
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_held == 3


def test_what_can_never_fit_is_rejected_on_arrival() -> None:
    """vLLM issue 39734: an accepted request larger than the cache blocks its queue for ever."""
    d = driver(slot_cells=1024)
    answer = d.offer(n_prompt=2049, max_output=100)
    assert isinstance(answer, Rejected)
    assert (answer.reason, answer.value, answer.limit) == (RejectReason.TOO_LONG, 2049, 2048)
    assert d.scheduler.plan(0).is_empty


def test_what_fits_exactly_is_accepted_and_ends() -> None:
    """The last generated token needs no cell."""
    d = driver(slot_cells=1024)
    request = d.add(n_prompt=2000, max_output=49)
    d.run()
    assert d.finished(request).reason is FinishReason.LENGTH


def test_a_full_queue_rejects_with_an_estimate() -> None:
    """The bound of the class's queue is answered at once, with when to come back."""
    d = driver(queue_max=3)
    for tenant in "abc":
        d.add(n_prompt=500, tenant=tenant)
    answer = d.offer()
    assert isinstance(answer, Rejected)
    assert (answer.reason, answer.value, answer.limit) == (RejectReason.QUEUE_FULL, 3, 3)
    assert answer.retry_after_us > 0
    d.add(request_class=BACKGROUND)  # the other class has a queue of its own


def test_an_empty_plan_is_legal() -> None:
    """nano-vllm issue 274: an assertion that something was scheduled killed the engine."""
    d = driver()
    assert d.step().is_empty
    d.add()
    d.run()
    assert d.step().is_empty


@pytest.mark.parametrize("steps_before", [0, 1, 2, 5])
def test_abort_in_every_state_frees_everything(steps_before: int) -> None:
    """Waiting, in prefill, decoding: one terminal event, slot free for the next plan, nothing runs afterwards."""
    d = driver()
    request = d.add(n_prompt=100, max_output=50)
    for _ in range(steps_before):
        d.step()
    (event,) = d.abort(request)
    assert event.request_id == request
    assert d.abort(request) == []
    while not (plan := d.step()).is_empty:
        assert not plan.batches
    assert d.finished(request).reason is FinishReason.ABORTED
    d.assert_all_ended()


def test_a_failed_batch_ends_its_sequences_and_no_others() -> None:
    """A runner failure in the long pool leaves the short pool's requests alone."""
    d = driver()
    heavy, chat = d.add(n_prompt=3000), d.add(n_prompt=20, max_output=5, tenant="b")
    while heavy not in d.started_order():
        d.step(fail=lambda batch: "broken" if batch.pool == LONG_POOL else "")
    d.run()
    assert (d.finished(heavy).reason, d.finished(heavy).detail) == (FinishReason.FAILED, "broken")
    assert d.finished(chat).reason is FinishReason.LENGTH
    d.assert_all_ended()


def test_the_model_may_end_an_answer() -> None:
    """An end-of-generation token finishes the request without counting as output."""
    d = driver()
    request = d.add(n_prompt=10, max_output=50)
    d.step()
    d.step(ended=[request])
    assert (d.finished(request).reason, d.finished(request).n_output) == (FinishReason.STOP, 1)
