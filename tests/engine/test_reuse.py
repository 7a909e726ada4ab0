"""Reused prefixes, templates and what must never be shared, through the whole loop and as the wire tells it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.engine.blocks import BlockChain
from poise.scheduler.memory.store import Purpose
from poise.scheduler.planning.plan import CopySlot, DropEntry, KvOperation, LoadSlot, MoveSlot, StoreSlot, TrimSlot
from poise.scheduler.policy import CostPrior, StorePolicy
from poise.scheduler.request import BLOCK_TOKENS
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise_lab.sim.replay import replay
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench
from tests.engine.reference import CountingRunner, answer
from tests.sim.exact_runner import CELL_BYTES, Fault

HOUSE = [300 + k for k in range(50)]
GARDEN = [500 + k for k in range(61)]


class Recorder(CountingRunner):
    """Remembers the operations it was asked for."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.operations: list[KvOperation] = []

    def apply(self, operation: KvOperation) -> int:
        self.operations.append(operation)
        return super().apply(operation)

    def applied(self, kind: type) -> int:
        return sum(isinstance(operation, kind) for operation in self.operations)


def bench(slots: int = 8, fault: Fault = lambda what, subject: False, **changes: Any) -> tuple[Bench, Recorder]:
    clock = VirtualClock()
    pools = [PoolInfo("short", slots, 512, True, 0, CELL_BYTES), PoolInfo("long", 2, 2048, False, 0, CELL_BYTES)]
    runner = Recorder(pools, clock=clock, cost=CostPrior(), fault=fault)
    return Bench(slots=slots, runner=runner, clock=clock, **changes), runner


def words(text: int, n: int) -> list[int]:
    return [(text * 131 + k * 17) % 280 + 1 for k in range(n)]


def ask(b: Bench, request_id: int, prompt: list[int], n: int = 12, **more: Any) -> int:
    """Run one request to its end; its answer must be its own. Returns what the wire says was cached."""
    b.submit(request_id, prompt, n, **more)
    b.run()
    assert b.tokens(request_id) == answer(prompt, n)
    assert b.finish(request_id).n_cached == b.start(request_id).n_cached
    return b.start(request_id).n_cached


def test_turns_of_a_conversation_reuse_all_whole_blocks() -> None:
    """Also where the answer is part of the prefix, and wherever the cells are by then: warm, or in the store."""
    b, runner = bench(slots=1)
    prompt = words(1, 101)
    assert ask(b, 1, prompt) == 0
    for turn in range(2, 7):
        if turn % 2:
            ask(b, 100 + turn, words(turn, 90))  # it takes the warm slot
        known = len(prompt) + 12 - 1
        prompt = prompt + b.tokens(turn - 1) + words(40 + turn, 13)
        assert ask(b, turn, prompt) == known // BLOCK_TOKENS * BLOCK_TOKENS
    assert runner.applied(LoadSlot) > 0
    assert runner.applied(TrimSlot) > 0


def test_an_equal_prompt_computes_its_last_token_only() -> None:
    """Whole blocks or not: the first output token needs the logits of the last prompt token."""
    b, runner = bench()
    ask(b, 1, words(1, 96))
    assert ask(b, 2, words(1, 96)) == 95
    assert runner.computed[2] == 1 + 12 - 1


def test_after_a_forget_nothing_is_cached_and_every_token_is_right() -> None:
    """Warm and stored prefixes of the tenant are gone, and the answer says how many; another tenant's serve on."""
    b, runner = bench()
    for i in (1, 2):
        ask(b, i, words(i, 120), tenant="a")
    ask(b, 3, words(3, 120), tenant="b")
    b.send(to_engine.Forget(77, "a"))
    b.run()
    (forgotten,) = [m for m in b.mail.sent if isinstance(m, wire.Forgotten)]
    assert forgotten == wire.Forgotten(77, 2, 2 * 131)
    assert runner.stored_bytes == b.scheduler.snapshot().store.bytes_by_purpose[Purpose.PREFIX]
    assert ask(b, 4, words(1, 140), tenant="a") == 0
    assert ask(b, 5, words(3, 140), tenant="b") == 120


def test_a_forget_leaves_live_requests_alone() -> None:
    """Running and swapped ones go on; what they leave behind afterwards is new."""
    b, _ = bench(slots=2, turn_us=20_000)
    for i in range(1, 6):
        b.submit(i, words(i, 40), 60, tenant="a", request_class="background")
    b.step(40)
    assert any(b.changes(i) for i in range(1, 6))
    b.send(to_engine.Forget(1, "a"))
    b.run()
    for i in range(1, 6):
        assert b.tokens(i) == answer(words(i, 40), 60)


def test_another_tenants_equal_prompt_is_computed_in_full_and_its_blocks_have_other_keys() -> None:
    """Invariant 12: no timing, no n_cached and no key tells one tenant what another has asked."""
    b, runner = bench()
    prompt = words(1, 200)
    assert ask(b, 1, prompt, tenant="a") == 0
    assert ask(b, 2, prompt, tenant="b") == 0
    assert runner.computed[2] == len(prompt) + 11
    mine, other = (set(r["blocks"]) for r in added(b))
    assert len(mine) == len(other) == 25
    assert not mine & other


def test_the_journal_says_nothing_about_a_prompt() -> None:
    """No token ids, and no keys that could be checked against a guess: the same prompt has other keys in each engine."""
    prompt = [777_000_001 + k for k in range(64)]
    keys = []
    for secret in (b"one", b"two"):
        b, _ = bench(slots=2, secret=secret, turn_us=20_000)
        b.send(to_engine.Template("house", HOUSE))
        for i in range(1, 5):
            b.submit(i, prompt + words(i, 9), 40, tenant="a", request_class="background")
        b.run()
        ask(b, 9, prompt + prompt, tenant="a")
        requests = added(b)
        text = "".join(b.journal())
        assert not any(str(token) in text for token in prompt)
        assert not any(str(answer(prompt + words(i, 9), 40)[:3])[1:-1] in text for i in range(1, 5))
        keys.append({key for request in requests for key in request["blocks"]})
        guess = set(BlockChain(b"", "a").extend(prompt)) | set(BlockChain(b"poise", "a").extend(prompt))
        assert not keys[-1] & guess
    assert keys[0]
    assert not keys[0] & keys[1]


def test_a_template_is_used_by_every_tenant_that_names_it() -> None:
    """Computed once for each pool; who does not name it, or does not begin with it, computes everything."""
    b, runner = bench()
    b.send(to_engine.Template("house", HOUSE))
    b.run()
    assert b.scheduler.snapshot().store.entries_by_purpose[Purpose.TEMPLATE] == 2
    assert ask(b, 1, HOUSE + words(1, 30), tenant="a", template="house") == 50
    assert ask(b, 2, HOUSE + words(2, 30), tenant="b", template="house") == 50
    assert ask(b, 3, HOUSE + words(3, 30), tenant="c") == 0
    assert ask(b, 4, words(4, 80), tenant="d", template="house") == 0
    assert ask(b, 5, HOUSE[:40] + words(5, 40), tenant="e", template="house") == 0
    assert ask(b, 6, HOUSE + words(6, 1500), tenant="f", template="house") == 50
    assert not [m for m in b.steps for t in m.tokens if t.request_id < 0]
    assert runner.computed[1] == 30 + 11


@pytest.mark.parametrize("steps", [0, 1, 2, 60])
def test_a_template_declared_anew_never_lends_the_cells_of_its_old_text(steps: int) -> None:
    """Not to requests of the new text before it is computed, nor the new text's to requests that were queued for the old."""
    b, runner = bench(slots=2)
    b.send(to_engine.Template("house", HOUSE))
    b.run()
    for i in range(1, 7):
        b.submit(i, HOUSE + words(i, 30), 20, template="house")
    b.step(steps)
    b.send(to_engine.Template("house", GARDEN))
    for i in range(7, 12):
        b.submit(i, GARDEN + words(i, 30), 20, template="house")
    b.run()
    for i in range(1, 12):
        assert b.tokens(i) == answer((HOUSE if i < 7 else GARDEN) + words(i, 30), 20), f"request {i}"
    assert b.scheduler.snapshot().store.entries_by_purpose[Purpose.TEMPLATE] == 2
    assert ask(b, 20, GARDEN + words(20, 30), template="house", tenant="new") == 61
    assert runner.stored_bytes == sum(b.scheduler.snapshot().store.bytes_by_purpose.values())


def test_a_template_that_was_declared_twice_at_once_is_the_second_one() -> None:
    """The first is given up before it was computed, and leaves nothing."""
    b, runner = bench()
    b.send(to_engine.Template("house", HOUSE), to_engine.Template("house", GARDEN))
    b.run()
    assert sum(runner.computed.values()) == 2 * len(GARDEN)
    assert ask(b, 1, HOUSE + words(1, 20), template="house") == 0
    assert ask(b, 2, GARDEN + words(2, 20), template="house") == 61
    assert runner.stored_bytes == sum(b.scheduler.snapshot().store.bytes_by_purpose.values())


def test_a_journal_with_templates_swaps_and_a_forget_can_be_run_again() -> None:
    """Every call of the scheduler is in it, a template that is given up included: the plans are the same."""
    b, _ = bench(slots=2, turn_us=20_000)
    b.send(to_engine.Template("house", HOUSE))
    for i in range(1, 6):
        b.submit(i, HOUSE + words(i, 20), 30, template="house", request_class="background", queue_timeout_ms=400)
    b.step(30)
    b.send(
        to_engine.Template("house", GARDEN),
        to_engine.Forget(1, "a"),
        to_engine.Control(1, "pause"),
        to_engine.Control(1, "resume"),
    )
    b.submit(9, GARDEN + words(9, 20), 30, template="house")
    b.run()
    lines = b.journal()
    assert any('"kind": "retract"' in line for line in lines)
    done = replay(lines)
    assert done.difference == ""
    assert done.n_plans > 30


def test_a_template_that_cannot_be_stored_is_done_without() -> None:
    """No room, or a failing store: requests compute it themselves."""
    failing, _ = bench(fault=lambda what, subject: isinstance(subject, StoreSlot))
    full, _ = bench(store=StorePolicy(budget_bytes=10))
    for b in (failing, full):
        b.send(to_engine.Template("house", HOUSE))
        b.run()
        assert b.scheduler.snapshot().store.entries_by_purpose[Purpose.TEMPLATE] == 0
        assert ask(b, 1, HOUSE + words(1, 20), template="house") == 0


@pytest.mark.parametrize("kind", [StoreSlot, LoadSlot, CopySlot, MoveSlot])
def test_each_kind_of_failing_operation_costs_no_token(kind: type) -> None:
    """Each operation is made to happen, and to fail every time: what was to be carried is computed again, and counted so."""
    b, runner = bench(slots=4, fault=lambda what, subject: isinstance(subject, kind), turn_us=20_000)
    prompts = {i: words(i, 60) for i in range(1, 9)}
    for i in range(1, 9):
        b.submit(i, prompts[i], 30, tenant=f"t{i % 2}", request_class="background")
    b.run()
    # Of slots 0 to 2 the middle one is free first, so that the last one moves; its prompt is copied from where it runs.
    prompts |= {11: words(11, 20), 12: words(12, 20), 13: words(13, 100)}
    for i, n_output in ((11, 60), (12, 5), (13, 60)):
        b.submit(i, prompts[i], n_output, tenant="copy")
    while not b.finishes(12):
        b.step()
    b.step(6)
    prompts[14] = words(13, 120)
    b.submit(14, prompts[14], 20, tenant="copy")
    b.step(3)
    prompts[15] = words(15, 90)
    b.submit(15, prompts[15], 4, tenant="copy")
    b.run()
    assert runner.applied(kind) > 0, "the scene does not make it happen"
    for i, prompt in prompts.items():
        finish = b.finish(i)
        assert b.tokens(i) == answer(prompt, finish.n_output), f"request {i}"
        whole = finish.n_prompt + finish.n_output - 1
        assert runner.computed[i] == whole - finish.n_cached + finish.n_recomputed, f"request {i}"
    assert runner.stored_bytes == sum(b.scheduler.snapshot().store.bytes_by_purpose.values())


def test_entries_come_and_go_in_pairs() -> None:
    """What was stored for a swap is dropped when it came back, aborted or not."""
    b, runner = bench(slots=2, turn_us=20_000, store=StorePolicy(prefix_reuse=False))
    for i in range(1, 9):
        b.submit(i, words(i, 60), 60, tenant=f"t{i}", request_class="background")
    b.step(60)
    b.send(*(to_engine.Abort(i) for i in range(1, 9, 2)))
    b.run()
    assert runner.applied(StoreSlot) == runner.applied(DropEntry) > 0
    assert runner.stored_bytes == 0
    for i in range(2, 9, 2):
        assert b.tokens(i) == answer(words(i, 60), 60)


def added(b: Bench) -> list[dict[str, Any]]:
    """The requests of the journal, templates' own apart."""
    entries = [json.loads(line) for line in b.journal()]
    return [e["values"][0] for e in entries if e["kind"] == "add" and e["values"][0]["request_id"] > 0]
