"""The engine's loop over simulated ports: tokens, order of messages, aborts, failures, journal."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from poise.config import Settings, to_policy
from poise.engine.blackbox import BoxWriter
from poise.engine.execution import Execution
from poise.engine.inheritance import Inheritance
from poise.engine.journal import Journal, read_journal
from poise.engine.ports import Row, RunnerError, Sampled
from poise.scheduler.planning.plan import DropEntry, MoveSlot, StepPlan, StepResult, StoreSlot
from poise.scheduler.policy import CostPrior, DraftPolicy
from poise.scheduler.request import Event, RequestClass
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import SamplingParams
from poise_lab.sim.runner import VirtualClock
from tests.engine.harness import Bench
from tests.engine.reference import answer
from tests.sim.exact_runner import ExactRunner


def prompt(seed: int, n: int) -> list[int]:
    return [(seed * 31 + k * 7) % 900 + 1 for k in range(n)]


def test_greedy_output_is_the_same_alone_and_among_seven_others() -> None:
    """Invariant 10's simpler half: chunks, slots and neighbours do not show in the tokens."""
    alone = Bench()
    alone.submit(1, prompt(1, 70), 40)
    alone.run()
    crowd = Bench()
    for i in range(2, 9):
        request_class = "background" if i % 3 == 0 else "interactive"
        crowd.submit(i, prompt(i, 20 * i), 15 + i, tenant=f"t{i % 3}", request_class=request_class)
    for _ in range(9):
        crowd.engine.step()
    crowd.submit(1, prompt(1, 70), 40)
    crowd.run()
    assert len(alone.tokens(1)) == 40
    assert crowd.tokens(1) == alone.tokens(1)
    assert all(len(crowd.tokens(i)) == 15 + i for i in range(2, 9))


def test_output_survives_moves_between_slots() -> None:
    """Sequences that were moved to close holes give the tokens they would have given."""
    crowd = Bench()
    for i in range(1, 9):
        crowd.submit(i, prompt(i, 20), 60)
    for _ in range(30):
        crowd.engine.step()
    crowd.mail.incoming += [to_engine.Abort(2), to_engine.Abort(3)]
    crowd.run()
    assert crowd.scheduler.snapshot().n_moves >= 1
    for i in (1, 4, 8):
        alone = Bench()
        alone.submit(i, prompt(i, 20), 60)
        alone.run()
        assert crowd.tokens(i) == alone.tokens(i)


@pytest.mark.parametrize("steps_before", [1, 2, 6])
def test_an_abort_stops_the_sequence_within_one_step(steps_before: int) -> None:
    """After the step that drains the abort, the request appears in no batch, and it ends exactly once."""
    bench = Bench()
    bench.submit(1, prompt(1, 60), 50)
    bench.submit(2, prompt(2, 10), 30)
    for _ in range(steps_before):
        bench.engine.step()
    received = len(bench.tokens(1))
    bench.mail.incoming.append(to_engine.Abort(1))
    bench.run()
    assert len(bench.tokens(1)) == received
    assert [f.reason for f in bench.finishes(1)] == ["aborted"]
    assert len(bench.tokens(2)) == 30


def test_a_queued_request_that_is_aborted_never_runs() -> None:
    """Work that was queued when its client left costs nothing."""
    bench = Bench(slots=3)
    for i in range(1, 6):
        bench.submit(i, prompt(i, 10), 30)
    bench.engine.step()
    bench.mail.incoming.append(to_engine.Abort(5))
    bench.run()
    assert (bench.tokens(5), bench.finishes(5)[0].served_us) == ([], 0)


def test_a_refused_request_is_answered_at_once() -> None:
    """What can never fit gets its reason and leaves nothing behind."""
    bench = Bench()
    bench.submit(1, prompt(1, 3000), 10)
    bench.run()
    refused = [m for m in bench.mail.sent if isinstance(m, wire.Refused)]
    assert [(r.request_id, r.reason, r.value, r.limit) for r in refused] == [(1, "too_long", 3000, 2048)]


def test_end_of_generation_is_not_sent_as_a_token() -> None:
    """The token that ends an answer is not part of it; ignore_eos and min_output keep it from being drawn."""
    bench = Bench(end_rate=5)
    bench.submit(1, prompt(1, 10), 400, SamplingParams(temperature=0.0))
    bench.submit(2, prompt(1, 10), 60, SamplingParams(temperature=0.0, ignore_eos=True))
    bench.submit(3, prompt(1, 10), 400, SamplingParams(temperature=0.0, min_output=50))
    bench.run()
    assert bench.finishes(1)[0].reason == "stop"
    assert len(bench.tokens(1)) == bench.finishes(1)[0].n_output < 400
    assert 0 not in bench.tokens(1)
    assert (len(bench.tokens(2)), bench.finishes(2)[0].reason) == (60, "length")
    assert 50 <= len(bench.tokens(3)) < 400


class _Breaking(ExactRunner):
    """Fails every batch of the long pool."""

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        if pool == "long":
            raise RunnerError("the long pool is broken")
        return super().execute(pool, rows)


def test_a_row_that_fails_ends_its_own_request_only() -> None:
    """A draw that is impossible, and tokens that the model does not have: each ends one request, with the reason."""
    bench = Bench(slots=4)
    bench.submit(1, prompt(1, 20), 10)
    bench.submit(2, prompt(2, 20), 10, SamplingParams(logit_bias=((3, float("nan")),)))
    bench.submit(3, [5, 1 << 30], 10)
    bench.submit(4, prompt(4, 20), 10)
    bench.run()
    ends = {i: (bench.finish(i).reason, bench.finish(i).detail) for i in (1, 2, 3, 4)}
    assert ends == {
        1: ("length", ""),
        2: ("failed", "the model's logits are not numbers"),
        3: ("failed", "the request has a token that the model has not: ids go from 0 to 1073741823"),
        4: ("length", ""),
    }
    assert [len(bench.tokens(i)) for i in (1, 2, 3, 4)] == [10, 0, 0, 10]
    assert [bench.tokens(i) for i in (1, 4)] == [answer(prompt(i, 20), 10) for i in (1, 4)]
    warm = sum(pool.slots_warm for pool in bench.scheduler.snapshot().pools.values())
    assert warm == 2, "the cells of a request that failed are kept"


def test_a_runner_failure_ends_only_the_requests_of_its_batch() -> None:
    """The error reaches the caller, the others go on, and the books are clean."""
    pools = [PoolInfo("short", 10, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
    bench = Bench(runner=_Breaking(pools, clock=VirtualClock(), cost=CostPrior()))
    bench.submit(1, prompt(1, 1500), 10)
    bench.submit(2, prompt(2, 20), 10)
    bench.run()
    assert [(f.reason, f.detail) for f in bench.finishes(1)] == [("failed", "the long pool is broken")]
    assert len(bench.tokens(2)) == 10


def test_messages_of_a_request_come_in_order() -> None:
    """Accepted, then Start, then tokens, then exactly one Finish."""
    bench = Bench()
    bench.submit(1, prompt(1, 40), 3)
    bench.run()
    kinds: list[str] = []
    for message in bench.mail.sent:
        if isinstance(message, wire.Accepted):
            kinds.append("accepted")
        if isinstance(message, wire.Step):
            kinds += ["start"] * len(message.starts) + ["prefill"] * len(message.prefills)
            kinds += ["token"] * len(message.tokens) + ["finish"] * len(message.finishes)
    assert kinds == ["accepted", "start", "prefill", "token", "token", "token", "finish"]


def test_the_chunks_of_a_prompt_are_told() -> None:
    """Those that were computed, each with its pass and who was in it; a step that only decodes tells none."""
    bench = Bench()
    bench.submit(1, prompt(1, 20), 40)
    bench.step(2)
    bench.submit(2, prompt(2, 400), 3)
    bench.run()
    told = [(p, step) for step in bench.steps for p in step.prefills]
    assert sum(p.n_tokens for p, _ in told if p.request_id == 1) == 20
    chunks = [p for p, _ in told if p.request_id == 2]
    assert len(chunks) > 1
    assert sum(p.n_tokens for p in chunks) == 400
    assert chunks[0].n_beside == 1, "the other's next token"
    assert all(p.pass_us > 0 for p in chunks)
    assert sum(not step.prefills for step in bench.steps) > 15
    assert bench.engine.execution.prompt_tokens == 420


def test_an_idle_engine_reports_and_then_waits() -> None:
    """The last Status says that nothing runs; an idle engine sends nothing more."""
    bench = Bench()
    bench.submit(1, prompt(1, 40), 3)
    bench.run()
    last = [m for m in bench.mail.sent if isinstance(m, wire_status.Status)][-1]
    stands = last.classes[RequestClass.INTERACTIVE]
    assert (stands.queued, stands.running, stands.wait_estimate_us, stands.paused, stands.swapped) == (0, 0, 0, 0, 0)
    assert all(p.slots_held == p.cells_used == 0 for p in last.pools)
    assert (last.prompt_tokens, last.output_tokens) == (40, 3)
    sent = len(bench.mail.sent)
    bench.run()
    assert len(bench.mail.sent) == sent


def test_the_journal_tells_what_was_planned_and_holds_no_prompt() -> None:
    """A dump is JSON lines with adds, plans, results; token ids are nowhere in it."""
    bench = Bench()
    bench.submit(1, [777777] * 40, 3)
    bench.run()
    journal = bench.journal()
    lines = [json.loads(line) for line in journal]
    assert lines[0]["dropped"] == 0
    assert {line["kind"] for line in lines[1:]} == {"policy", "add", "plan", "result", "rest"}
    assert "777777" not in "".join(journal)


def test_shutdown_ends_the_loop() -> None:
    """run() returns after the step in which Shutdown was read."""
    bench = Bench()
    bench.mail.incoming.append(to_engine.Shutdown())
    bench.engine.run()


def test_a_journal_is_read_back_as_it_was_written() -> None:
    """The header, the policy first, then every entry with its line."""
    journal = Journal(entries_max=3)
    journal.record_policy(to_policy(Settings()))
    for request_id in range(5):
        journal.record(request_id, "abort", request_id)
    dump = read_journal(journal.lines())
    assert dump.n_dropped == 2
    assert dump.policy is not None
    assert dump.policy["pools"]["short"]["n_slots"] == Settings().pools.short.slots
    assert [(e.line, e.now_ns, e.kind, e.values) for e in dump.entries] == [
        (3, 2, "abort", [2]),
        (4, 3, "abort", [3]),
        (5, 4, "abort", [4]),
    ]


def test_the_cost_of_carrying_is_measured_where_cells_are_counted() -> None:
    """A move costs time, too, but says nothing of its cells; nor does what failed. Either would bend the cost of a cell."""
    pools = [PoolInfo("short", 4, 512, True, 0)]
    clock = VirtualClock()
    runner = ExactRunner(
        pools,
        clock=clock,
        carry_us_per_cell=3.0,
        fault=lambda what, subject: isinstance(subject, StoreSlot) and subject.slot == 1,
    )
    inheritance = Inheritance(None, Bench().scheduler.placement, b"")
    execution = Execution(runner, clock, {}, BoxWriter(), DraftPolicy(), inheritance)
    for slot in (0, 1, 2):
        runner.execute("short", [Row(1 + slot, slot, 0, prompt(1, 100), False)])
    before_ns = clock.now_ns()
    operations = (StoreSlot("short", 0, 7, 100), StoreSlot("short", 1, 8, 100), MoveSlot("short", 2, 3, 3), DropEntry(7))
    result, _ = execution.carry_out(StepPlan(0, operations, ()))
    assert (result.carried_us, result.carried_cells) == (300, 100)
    assert (result.stored, result.unstored) == (((7, 6400),), (8,))
    assert (execution.kv_ns, execution.forward_ns, execution.sample_ns) == (clock.now_ns() - before_ns, 0, 0) == (900_000, 0, 0)


def test_a_step_takes_what_the_process_computed_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done between two steps is paused for as well; what a rest has taken is nobody's."""
    bench, cpu_ns, told = Bench(), [7_000_000_000], list[int]()
    bench.engine.cpu_ns = lambda: cpu_ns[0]
    complete, execute, send = bench.scheduler.complete, bench.runner.execute, bench.mail.send

    def executed(pool: str, rows: Sequence[Row]) -> list[Sampled]:
        cpu_ns[0] += 5_000
        return execute(pool, rows)

    def sent(message: wire.ToGateway) -> None:
        cpu_ns[0] += 300 if isinstance(message, wire.Step) else 0
        send(message)

    def completed(plan: StepPlan, result: StepResult, now_ns: int) -> list[Event]:
        told.extend([result.busy_ns] if plan.batches else [])
        return complete(plan, result, now_ns)

    monkeypatch.setattr(bench.runner, "execute", executed)
    monkeypatch.setattr(bench.mail, "send", sent)
    monkeypatch.setattr(bench.scheduler, "complete", completed)
    for request_id in (1, 2):
        bench.submit(request_id, prompt(1, 10), 3)
        bench.run()
        cpu_ns[0] += 10**9
    assert told == [5_000, 5_300, 5_300] * 2
