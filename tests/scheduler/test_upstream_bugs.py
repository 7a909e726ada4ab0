"""Failures of other servers' schedulers, each shown not to be ours.

One test for each failure that a scheduler like this one can have. What is shown elsewhere, or concerns what poise has not:

    vLLM 39734, nano-vllm PR 277 (never fits)        test_rules: what_can_never_fit_is_rejected_on_arrival
    nano-vllm 274 (empty plan kills the engine)      test_rules: an_empty_plan_is_legal
    nano-vllm 144, PR 199 (whole prompt is cached)   test_prefix: the_last_prompt_token_is_always_computed
    vLLM 54644, unsloth PR 184 (which victim)        test_preemption: the_victim_is_of_the_most_served_tenant...
    SGLang PR 13361 (preempts more than needed)      test_preemption: nobody_is_preempted_for_a_prompt_while_another...
    llama-swap 612 (thrashing)                       test_preemption: a_turn_lasts_at_least_the_quantum
    oMLX 3047 (cron jobs ahead of the user)          test_rules: r3_class_comes_before_everything
    Ollama 1863, 4545 (stops after some minutes)     test_preemption: a_tenant_whose_one_request_is_swapped_out...
    llama-cpp-python (a failing batch fails all)     test_rules: a_failed_batch_ends_its_sequences_and_no_others
    llama.cpp 26676 (restoring a slot does nothing)  tests/contract: a_stored_state_goes_on_exactly_in_another_slot
    llama.cpp 11414, 13262 (cancelled, yet computed) tests/engine/test_core: an_abort_stops_the_sequence_within_one_step
    vLLM 4451 (preemption must not show)             tests/engine/test_preemption
    mini-sglang, trio (order of a set)               test_properties: equal_inputs_give_equal_plans
    vLLM 52693 (an empty turn kills the engine)      tests/gateway/test_malformed: the gateway refuses it
    llama.cpp 15232, Ollama 11889 (disconnects)      tests/gateway/test_disconnect; here: what an abort then does
    ik_llama.cpp 1210 (health is dead meanwhile)     tests/gateway/test_health: another process answers
    llama.cpp 4185 and 29090 (n_batch is halved)     there is no such ladder: a plan fits (scheduler.books, the driver's mirror)
    vLLM 50265, 28281 (engine faults)                tests/gateway/test_supervisor
"""

from __future__ import annotations

from typing import Any

import pytest

from poise.scheduler.planning.plan import CopySlot, LoadSlot, TrimSlot
from poise.scheduler.policy import SHORT_POOL, StorePolicy, TenantPolicy
from poise.scheduler.request import Control, FinishReason, Preempted, PreemptionKind, Rejected, RejectReason, Resumed, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, INTERACTIVE, Driver, blocks, chunks, policy

NOTHING_STORED = StorePolicy(budget_bytes=0)


def driver(**changes: Any) -> Driver:
    return Driver(Scheduler(policy(**changes)))


def decoding(d: Driver, n: int, **more: Any) -> list[int]:
    """n more requests, all of which decode."""
    ids = [d.add(16, 2000, **more) for _ in range(n)]
    while not all(d.scheduler._life.sequences[i].is_decoding for i in ids):
        d.step()
    return ids


def steps_to_first_token(d: Driver, request_id: int, steps_max: int = 100) -> int:
    for n in range(1, steps_max + 1):
        if any(c.request_id == request_id and c.sample for b in d.step().batches for c in b.chunks):
            return n
    raise AssertionError(f"request {request_id} has no token after {steps_max} steps")


def test_no_sequence_is_lost_when_a_step_is_full_or_somebody_is_preempted() -> None:
    """MinivLLM 51: a sequence that was taken off the queue when the batch was full, or for which another was preempted, was
    in no queue afterwards. Here: queued + running + paused + swapped + ended = accepted, after every step."""
    d = driver(slots=3, background_slots=3, itl_us=20_000, turn_us=50_000, store=StorePolicy(budget_bytes=20_000))
    for i in range(30):
        d.add(30 + 9 * i, 20, f"t{i % 4}", BACKGROUND if i % 3 else INTERACTIVE)
    while not d.step().is_empty:
        levels = d.scheduler.snapshot().classes.values()
        here = sum(c.queued + c.running + c.paused + c.swapped for c in levels)
        assert here == len(d.live)
    d.assert_all_ended()


def test_a_dropped_sequence_that_finds_a_prefix_is_planned_for_what_is_missing() -> None:
    """nano-vllm PR 211 and 233: the tokens to compute were counted before the cache was asked, so a preempted sequence that
    found its own old blocks was given more tokens than it had left, and the runner died of it."""
    d = driver(slots=2, background_slots=2, store=NOTHING_STORED, turn_us=1_000_000_000)
    twins = [d.add(200, 60, "a", BACKGROUND, blocks=blocks("one", 200)) for _ in range(2)]
    for _ in range(12):
        d.step()
    chats = [d.add(20, 200, "chat")]
    d.step()
    (dropped,) = [i for i in twins if d.events_of(i, Preempted)]
    assert d.events_of(dropped, Preempted)[0].kind is PreemptionKind.DROP
    while not d.events_of(dropped, Resumed):
        d.step()
    resumed = next(p for p in reversed(d.plans) if dropped in chunks(p))
    (chunk,) = [c for b in resumed.batches for c in b.chunks if c.request_id == dropped]
    assert chunk.start >= 200, "the other twin's cells are used again"
    d.run()
    assert d.finished(dropped).n_output == 60
    assert d.finished(dropped).n_recomputed < 60
    assert d.finished(chats[0]).reason is FinishReason.LENGTH


def test_a_preempted_prompt_does_not_begin_again_for_ever() -> None:
    """nano-vllm PR 277: preempted, computed from the start, preempted at the same wall, and so on. Here: cells are dropped at
    most k times, with at least one chunk in between, and the request ends."""
    d = driver(slots=1, background_slots=1, store=NOTHING_STORED, preemptions_max=3, queue_max=1000, min_share=0.0)
    job = d.add(900, 20, "job", BACKGROUND)
    for n in range(400):
        if n % 5 == 0:
            d.add(16, 2, f"chat{n % 7}")
        d.step()
    d.run()
    done = d.finished(job)
    assert (done.n_preempted, done.n_output) == (3, 20)
    assert done.n_recomputed <= 3 * 920
    d.assert_all_ended()


@pytest.mark.parametrize("store", [StorePolicy(), NOTHING_STORED])
def test_parked_requests_that_hold_every_slot_do_not_block_the_queue(store: StorePolicy) -> None:
    """vLLM 45387, 45388 and PR 40968: requests that could not run held the blocks that the head of the queue needed, and the
    scan stopped at the head: Running 0, Waiting N, for ever. Here: whoever stands still gives way, store or no store."""
    d = driver(slots=3, background_slots=3, store=store)
    parked = decoding(d, 3)
    for i in parked:
        d.control(i, Control.PAUSE)
    chats = [d.add(20, 5, "late") for _ in range(2)] + [d.add(20, 5, "late", BACKGROUND) for _ in range(2)]
    d.run()
    assert all(d.finished(i).n_output == 5 for i in chats)
    for i in parked:
        d.control(i, Control.RESUME)
    d.run()
    assert all(d.finished(i).n_output == 2000 for i in parked)


def test_one_tenants_limit_does_not_block_the_head_of_the_queue() -> None:
    """vLLM 45414: an empty machine with a waiting queue, because the first in it could not be admitted. Here: a tenant that
    has as many running as it may is passed over."""
    d = driver(tenants={"limited": TenantPolicy(running_max=1)})
    decoding(d, 1, tenant="limited")
    held_up = d.add(16, 5, "limited")
    other = d.add(300, 5, "other")
    while other in d.live:
        d.step()
    assert d.finished(other).n_output == 5
    assert held_up not in d.started_order()
    d.run()
    assert d.finished(held_up).n_output == 5


def test_requests_that_are_away_do_not_count_against_what_may_run() -> None:
    """vLLM 53130: deferred requests counted against max_num_seqs, so that nothing was admitted any more. Here: with forty
    swapped out, two paused and never started, an arrival starts in the next step."""
    d = driver(slots=4, background_slots=4, turn_us=20_000, preemptions_max=100)
    for i in range(44):
        d.add(20, 400, f"t{i % 5}", BACKGROUND)
    while d.scheduler.snapshot().classes[BACKGROUND].queued:
        d.step()
    for _ in range(2):
        d.control(d.add(20, 5, "paused"), Control.PAUSE)
    assert d.scheduler.snapshot().classes[BACKGROUND].swapped >= 40
    assert steps_to_first_token(d, d.add(20, 5, "chat")) == 1


def test_an_arrival_that_outranks_running_work_takes_a_slot_at_once() -> None:
    """vLLM 40004 and 24365: at max_num_seqs a waiting request of high priority did not preempt; 30 background requests doubled
    its latency. Here: its first token comes in the first step, and then one in each step."""
    d = driver(slots=8, background_slots=8, min_share=0.0)
    for i in range(30):
        d.add(40, 300, f"t{i % 3}", BACKGROUND)
    for _ in range(40):
        d.step()
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_held == 8
    chat = d.add(16, 20, "person")
    for _ in range(20):
        assert chat in chunks(d.step())
    assert d.finished(chat).n_output == 20


def test_a_preempted_request_keeps_its_place() -> None:
    """vLLM 41951, PR 51574 and 56843: a preempted request lost its place, went behind newer ones and was preempted again. Here:
    it goes on before its tenant's own newer prompts."""
    d = driver(slots=4, grain_us=1000)
    hog = [d.add(20, 150, "hog") for _ in range(4)]
    for _ in range(40):
        d.step()
    newer = [d.add(20, 10, "hog") for _ in range(4)]
    polite = d.add(20, 60, "polite")
    while polite not in d.started_order():
        d.step()
    (victim,) = [i for i in hog if d.events_of(i, Preempted)]
    d.run()
    order = [e.request_id for e in d.events if isinstance(e, Started | Resumed)]
    assert order.index(victim, order.index(polite)) < min(order.index(i) for i in newer)
    assert d.finished(victim).n_preempted == 1


def test_long_prompts_do_not_stop_the_tokens_of_others() -> None:
    """vLLM 7537, SGLang 34058 (32549), LM Studio 1709, llama.cpp 4216 and 10718, ds4 601: decoding stood still for seconds to
    minutes while prompts were computed. Here: every step brings every reader's next token, and a step keeps its time."""
    d = driver(itl_us=100_000, long_slots=2)
    readers = decoding(d, 5)
    for i in range(3):
        d.add(3000, 5, f"long{i}")
        d.add(3000, 5, f"batch{i}", BACKGROUND)
        d.add(900, 5, f"mid{i}")
    for _ in range(150):
        before = d.now_ns
        planned = chunks(d.step())
        assert all(planned.get(i) == 1 for i in readers)
        assert d.now_ns - before <= 250_000_000


def test_a_short_prompt_does_not_wait_for_long_ones() -> None:
    """llama.cpp 6607 (the first prompting slot filled every batch), SGLang 10063, oMLX 3726 (50 s until admitted). Here: behind
    three long prompts of others that are being computed, a chat's first token comes within a few steps."""
    d = driver()
    for i in range(3):
        d.add(900, 5, f"long{i}")
        d.add(3500, 5, f"heavy{i}")
    for _ in range(6):
        d.step()
    assert steps_to_first_token(d, d.add(40, 5, "chat")) <= 6


def test_a_full_pool_fails_nobody() -> None:
    """llama.cpp 23652, LM Studio 2201, unsloth 10301: when cells ran out, every running generation was ended with an error.
    Here: slots filled to the last cell, and more requests than slots; each one ends at its own length."""
    d = driver(slots=4, slot_cells=256, heavy_tokens=255, background_slots=4, turn_us=100_000)
    ids = [d.add(100, 157, f"t{i % 3}", BACKGROUND if i % 2 else INTERACTIVE) for i in range(12)]
    most = 0
    while not d.step().is_empty:
        most = max(most, d.scheduler.snapshot().pools[SHORT_POOL].cells_used)
    assert most > 600
    assert all(d.finished(i).reason is FinishReason.LENGTH and d.finished(i).n_output == 157 for i in ids)


def test_idle_slots_do_not_hold_what_arrivals_need() -> None:
    """llama.cpp 27361: the caches of idle slots filled the pool, and new requests failed. Here: every slot is warm from a
    finished chat, and as many arrivals as there are slots start at once."""
    d = driver(slots=4, store=NOTHING_STORED)
    old = [d.add(40, 900, f"old{i}", blocks=blocks(f"old{i}", 40)) for i in range(4)]
    while not all(s.is_decoding for s in d.scheduler._life.sequences.values()):
        d.step()
    d.step(ended=old)
    assert d.scheduler.snapshot().pools[SHORT_POOL].slots_warm == 4
    ids = [d.add(8, 5, f"new{i}") for i in range(4)]
    d.step()
    assert sorted(i for i in d.started_order() if i in ids) == ids


def test_an_unrelated_conversation_is_never_restored() -> None:
    """llama.cpp 27148: the prompt cache put another, finished conversation into a fresh slot, and cached_tokens said 0. Here: a
    prompt that shares nothing gets no cells; n_cached is what was carried, and where a tenant has the same text, too."""
    d = driver(slots=2)
    for i in range(6):
        d.add(120, 8, "a", blocks=blocks(f"talk {i}", 120))
        d.run()
    n_plans = len(d.plans)
    fresh = [d.add(120, 8, "a", blocks=blocks("new", 120)), d.add(120, 8, "b", blocks=blocks("talk 3", 120))]
    d.run()
    carried = [o for p in d.plans[n_plans:] for o in p.operations if isinstance(o, LoadSlot | CopySlot | TrimSlot)]
    assert not carried
    assert [d.finished(i).n_cached for i in fresh] == [0, 0]


def test_a_short_prefix_at_hand_does_not_hide_a_longer_one() -> None:
    """llama.cpp 28276: with a restored slot, the cache was not searched for a longer state. Here: the beginning is warm in the
    very slot that is taken, the whole is in the store, and the whole is used."""
    d = driver()
    d.add(400, 8, blocks=blocks("talk", 400))
    d.run()
    d.add(48, 8, blocks=(*blocks("talk", 24), *blocks("else", 48)[3:]))
    d.run()
    turn = d.add(440, 8, blocks=blocks("talk", 440))
    d.run()
    assert d.finished(turn).n_cached == 400


@pytest.mark.parametrize("n_prompt", [900, 3500])
def test_the_next_request_does_not_pay_for_one_that_left_in_its_prompt(n_prompt: int) -> None:
    """dynamo PR 14507 (54.7 s until the next short request), ds4 333 (five abandoned prompts computed to the end), llama.cpp
    15232. Here: after the abort no more of it is computed, and a short request has its token in the next step."""
    d = driver()
    abandoned = [d.add(n_prompt, 50, "gone") for _ in range(5)]
    for _ in range(4):
        d.step()
    for i in abandoned:
        d.abort(i)
    chat = d.add(16, 5, "next")
    assert steps_to_first_token(d, chat) == 1
    d.run()
    planned = {i for p in d.plans[4:] for i in chunks(p)}
    assert planned == {chat}


def test_aborting_a_swapped_request_frees_its_stored_cells() -> None:
    """SGLang 18701, PR 9874 and 21652: cells of retracted requests stayed in host memory when their clients left. Here: the
    entry is dropped with the next plan, and the books are at zero."""
    d = driver(slots=2, background_slots=2)
    jobs = decoding(d, 2, request_class=BACKGROUND, tenant="job")
    chats = decoding(d, 2, tenant="chat")
    assert d.scheduler.snapshot().classes[BACKGROUND].swapped == 2
    assert d.entries
    for i in (*jobs, *chats):
        d.abort(i)
    d.run()
    assert not d.entries
    assert sum(d.scheduler.snapshot().store.bytes_by_purpose.values()) == 0
    d.assert_all_ended()


def test_what_an_aborted_request_leaves_is_only_what_it_had_computed() -> None:
    """SGLang PR 28374: cells of aborted requests went into the prefix cache, whether or not they were computed. Here: as many
    as were, counted in whole blocks."""
    d = driver(itl_us=100_000)
    decoding(d, 2, tenant="other")
    first = d.add(900, 5, blocks=blocks("talk", 900))
    for _ in range(5):
        d.step()
    computed = d.scheduler._life.sequences[first].n_computed
    assert 16 < computed < 900
    d.abort(first)
    again = d.add(900, 5, blocks=blocks("talk", 900))
    d.run()
    assert d.finished(again).n_cached == computed // 8 * 8


def test_the_queues_bound_holds_while_the_machine_is_busy() -> None:
    """Ollama 7758: OLLAMA_MAX_QUEUE did not count what waited for a loaded model, so the queue had no bound. Here: it has, in
    each class, busy or not; and requests that were preempted take nobody's place in it."""
    d = driver(slots=2, background_slots=2, queue_max=3, turn_us=20_000)
    decoding(d, 2, request_class=BACKGROUND, tenant="job")
    decoding(d, 2, tenant="chat")
    assert d.scheduler.snapshot().classes[BACKGROUND].swapped == 2
    for request_class in (INTERACTIVE, BACKGROUND):
        for i in range(3):
            d.add(16, 5, f"chat{i}", request_class)
        refused = d.offer(16, 5, "chat", request_class)
        assert isinstance(refused, Rejected)
        assert (refused.reason, refused.value, refused.limit) == (RejectReason.QUEUE_FULL, 3, 3)
