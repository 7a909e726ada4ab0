"""The engine's loop: drain the inbox once, plan, run, sample, emit. The same code runs live and in the simulator.

It owns what the scheduler must not know: token ids, the runner, the ports. It runs at its own pace: messages are read once
a step and never interrupt one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from poise.engine.journal import Journal
from poise.engine.ports import Clock, Inbox, Outbox, Row, Runner, RunnerError, Sampled
from poise.scheduler.plan import Batch, BatchResult, StepPlan, StepResult
from poise.scheduler.request import Event, Finished, Rejected, Request, RequestClass, Started
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire

STATUS_PERIOD_NS = 200_000_000
"""A busy engine reports its levels at most this often."""


@dataclass(slots=True)
class _Live:
    """A request's tokens: the prompt and what was generated so far."""

    request: Request
    tokens: list[int]
    sampling: wire.SamplingParams


@dataclass(slots=True)
class Counters:
    """Totals since start. `execute_ns`: inside the runner; `loop_ns`: the loop's own time in steps that ran something."""

    steps: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    execute_ns: int = 0
    loop_ns: int = 0


@dataclass(slots=True)
class Engine:
    """One scheduler over one runner. `step` is the whole life of the engine; `run` repeats it until Shutdown or EOF."""

    scheduler: Scheduler
    runner: Runner
    clock: Clock
    inbox: Inbox
    outbox: Outbox
    journal: Journal = field(default_factory=Journal)
    counters: Counters = field(default_factory=Counters)
    rss_bytes: Callable[[], int] = lambda: 0
    """Resident memory of the process, asked for when levels are reported."""
    _live: dict[int, _Live] = field(default_factory=dict)
    _idle: bool = False
    _wake_at_ns: int | None = None
    _status_at_ns: int = 0
    _stopping: bool = False

    def run(self) -> None:
        while not self._stopping:
            self.step()

    def step(self) -> None:
        """One turn: wait for a message if there is nothing to do, then plan and carry out one step."""
        messages = self.inbox.drain(self._wake_at_ns, block=self._idle)
        began_ns = self.clock.now_ns()
        ended: list[wire.Finish] = []
        for message in messages:
            self._handle(message, began_ns, ended)
        plan = self.scheduler.plan(began_ns)
        if plan.is_empty:
            if ended:
                self.outbox.send(wire.Step(plan.step, [], [], ended))
            self._rest(plan)
            return
        self._idle = False
        self.journal.record(began_ns, "plan", plan)
        executed_before = self.counters.execute_ns
        result, sampled = self._carry_out(plan)
        now_ns = self.clock.now_ns()
        self.journal.record(now_ns, "result", result)
        events = self.scheduler.complete(plan, result, now_ns)
        self._emit(plan, sampled, events, ended)
        self.counters.steps += 1
        if now_ns >= self._status_at_ns:
            self._report(now_ns)
        self.counters.loop_ns += self.clock.now_ns() - began_ns - (self.counters.execute_ns - executed_before)

    def _rest(self, plan: StepPlan) -> None:
        """Nothing can run: say how things stand once, then wait for a message or the plan's time."""
        if not self._idle:
            self._report(self.clock.now_ns())
        self._idle = True
        self._wake_at_ns = plan.wake_at_ns

    def _handle(self, message: wire.ToEngine, now_ns: int, ended: list[wire.Finish]) -> None:
        match message:
            case wire.Submit():
                self._submit(message, now_ns)
            case wire.Abort():
                self.journal.record(now_ns, "abort", message.request_id)
                events = self.scheduler.abort(message.request_id, now_ns)
                ended += [self._finish(e) for e in events if isinstance(e, Finished)]
            case wire.DumpJournal():
                self.outbox.send(wire.Journal(message.dump_id, list(self.journal.lines())))
            case wire.Shutdown():
                self._stopping = True

    def _submit(self, message: wire.Submit, now_ns: int) -> None:
        request = Request(
            request_id=message.request_id,
            tenant=message.tenant,
            request_class=RequestClass(message.request_class),
            n_prompt=len(message.prompt),
            max_output=message.max_output,
        )
        answer = self.scheduler.add(request, now_ns)
        self.journal.record(now_ns, "add", request, answer)
        if isinstance(answer, Rejected):
            self.outbox.send(
                wire.Refused(answer.request_id, answer.reason.value, answer.value, answer.limit, answer.retry_after_us)
            )
            return
        self._live[request.request_id] = _Live(request, list(message.prompt), message.sampling)
        self.outbox.send(wire.Accepted(answer.request_id, answer.position, answer.eta_us))

    def _carry_out(self, plan: StepPlan) -> tuple[StepResult, list[Sampled]]:
        for operation in plan.operations:
            self.runner.apply(operation)
        results: list[BatchResult] = []
        sampled: list[Sampled] = []
        for batch in plan.batches:
            began_ns = self.clock.now_ns()
            failed, drawn = "", list[Sampled]()
            try:
                drawn = self._execute(batch)
            except RunnerError as error:
                failed = str(error) or type(error).__name__
            cost_ns = self.clock.now_ns() - began_ns
            self.counters.execute_ns += cost_ns
            ended = tuple(s.token.request_id for s in drawn if s.ends)
            results.append(BatchResult(cost_ns // 1000, ended, failed))
            sampled += drawn
        return StepResult(tuple(results)), sampled

    def _execute(self, batch: Batch) -> list[Sampled]:
        rows = []
        for chunk in batch.chunks:
            live = self._live[chunk.request_id]
            if chunk.start == 0:
                self.runner.open(chunk.request_id, live.tokens, live.sampling)
            tokens = live.tokens[chunk.start : chunk.start + chunk.n_tokens]
            rows.append(Row(chunk.request_id, chunk.slot, chunk.start, tokens, chunk.sample))
        drawn = self.runner.execute(batch.pool, rows)
        self.counters.prompt_tokens += sum(c.n_tokens for c in batch.chunks if c.is_prompt)
        return drawn

    def _emit(self, plan: StepPlan, sampled: list[Sampled], events: list[Event], ended: list[wire.Finish]) -> None:
        """Send everything that the step brought in one message."""
        tokens = []
        for draw in sampled:
            if not draw.ends:
                self._live[draw.token.request_id].tokens.append(draw.token.token)
                tokens.append(draw.token)
        self.counters.output_tokens += len(tokens)
        starts = [wire.Start(e.request_id, e.wait_us, e.pool) for e in events if isinstance(e, Started)]
        finishes = ended + [self._finish(e) for e in events if isinstance(e, Finished)]
        if starts or tokens or finishes:
            self.outbox.send(wire.Step(plan.step, starts, tokens, finishes))

    def _finish(self, event: Finished) -> wire.Finish:
        self.runner.close(event.request_id)
        del self._live[event.request_id]
        return wire.Finish(
            event.request_id, event.reason.value, event.n_prompt, event.n_output, event.served_us, event.detail
        )

    def _report(self, now_ns: int) -> None:
        self._status_at_ns = now_ns + STATUS_PERIOD_NS
        snapshot = self.scheduler.snapshot()
        self.outbox.send(
            wire.Status(
                step=snapshot.step,
                classes={
                    c.value: wire.ClassStatus(s.n_waiting, s.n_running, s.wait_estimate_us)
                    for c, s in snapshot.classes.items()
                },
                pools=[
                    wire.PoolStatus(name, b.slots_held, b.slots, b.cells_used, b.cells)
                    for name, b in snapshot.pools.items()
                ],
                prompt_tokens=self.counters.prompt_tokens,
                output_tokens=self.counters.output_tokens,
                decode_us=self.counters.execute_ns // 1000,
                loop_us=self.counters.loop_ns // 1000,
                moves=snapshot.n_moves,
                rss_bytes=self.rss_bytes(),
            )
        )
