"""The engine's loop: drain the inbox once, plan, run, sample, emit. The same code runs live and in the simulator.

It owns what the scheduler must not know: token ids, the runner, the ports. It runs at its own pace: messages are read once
a step and never interrupt one."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import msgspec

from poise.engine.arena import Arena
from poise.engine.blackbox import BoxWriter
from poise.engine.blocks import BlockChain
from poise.engine.desk import JournalDesk
from poise.engine.execution import Execution, Live
from poise.engine.figures import StepTallies
from poise.engine.inheritance import Inheritance
from poise.engine.journal import ERASED, Journal
from poise.engine.ports import Clock, Inbox, Outbox, Runner, Sampled
from poise.engine.report import Reporter, news_of
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.request import Control, Event, Finished, Hold, Rejected, Request, RequestClass
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts

OPERATOR = ""
"""The tenant of what nobody asked for: the computing of declared templates."""


@dataclass(frozen=True, slots=True)
class Declared:
    """A template. The scheduler knows it by `key`, which another text of the same name does not share."""

    key: str
    tokens: list[int]


@dataclass(slots=True)
class Engine:
    """One scheduler over one runner. `step` is the whole life of the engine; `run` repeats it until Shutdown or EOF."""

    scheduler: Scheduler
    runner: Runner
    clock: Clock
    inbox: Inbox
    outbox: Outbox
    journal: Journal = field(default_factory=Journal)
    box: BoxWriter = field(default_factory=BoxWriter)
    """What is left to read when the process has died; by itself it goes nowhere."""
    n_steps: int = 0
    rss_bytes: Callable[[], int] = lambda: 0
    """Resident memory of the process, asked for when gauges are reported."""
    weights_bytes: int = 0
    cpu_ns: Callable[[], int] = lambda: 0
    """Processor time of the process so far; 0: it is not known, or not what limits it."""
    secret: bytes = b"poise"
    """Key of the block hashes; a live engine is given the gateway's."""
    arena: Arena | None = None
    """The memory that the runner's host store has, if it outlives this engine."""
    fingerprint: bytes = b""
    """Of all that a stored state depends on."""
    execution: Execution = field(init=False)
    tallies: StepTallies = field(default_factory=StepTallies)
    _inheritance: Inheritance = field(init=False)
    _reporter: Reporter = field(init=False)
    _desk: JournalDesk = field(init=False)
    _live: dict[int, Live] = field(default_factory=dict)
    _templates: dict[str, Declared] = field(default_factory=dict)
    _erased: list[wire.Erased] = field(default_factory=list)
    _preparing: dict[int, str] = field(default_factory=dict)
    """Requests whose grammars are being made, with the digests that the journal has instead of them."""
    _cpu_ns: int = 0
    """As it stood when a step was last accounted for: what is done between two steps counts as well."""
    _gives_back: bool = False
    """Memory that the store keeps for entries to come is to go back when the next plan is carried out."""
    _n_output: int = 0
    _n_declared: int = 0
    _n_internal: int = 0
    _idle: bool = False
    _untold: bool = False
    """How things stand in this rest was not said yet."""
    _wake_at_ns: int | None = None
    _stopping: bool = False
    _knows_accounts: bool = False
    """It was sent those of an engine before it: what it says of them from now on is the whole."""

    def __post_init__(self) -> None:
        self._inheritance = Inheritance(self.arena, self.scheduler.placement, self.fingerprint)
        self.execution = Execution(self.runner, self.clock, self._live, self.box, self.scheduler.drafts, self._inheritance)
        stored_bytes = self._inheritance.resident_bytes
        self._reporter = Reporter(self.scheduler, self.runner, self.rss_bytes, self.weights_bytes, stored_bytes)
        self._desk = JournalDesk(self.outbox.send)

    def run(self) -> None:
        while not self._stopping:
            self.step()

    def step(self) -> None:
        """One turn: wait for a message if there is nothing to do, then plan and carry out one step."""
        drain_ns = self.clock.now_ns()
        if self._idle:
            self.box.resting(self.n_steps, drain_ns)
        messages = self.inbox.drain(self._wake_at_ns, block=self._idle)
        began_ns = self.clock.now_ns()
        if not self._live:
            self._cpu_ns = self.cpu_ns()  # what rest took is nobody's
        self.box.planning(self.n_steps, began_ns, drained=True)
        if self._idle:
            drain_ns = began_ns  # waiting is no part of the step
        events: list[Event] = []
        for message in messages:
            request_id = getattr(message, "request_id", 0)
            if request_id:
                self.box.taking(self.n_steps, self.clock.now_ns(), request_id)
            self._handle(message, began_ns, events)
            if request_id:
                self.box.planning(self.n_steps, self.clock.now_ns())
        if self._preparing:
            self._take_prepared(began_ns, events)
        if expired := self.scheduler.expire(began_ns):
            self.journal.record(began_ns, "expire", len(expired))
            events += expired
        handled_ns = self.clock.now_ns()
        plan = self.scheduler.plan(began_ns)
        if plan.is_empty:
            self._give_back()
            self._emit(plan, [], events)
            self._rest(plan, began_ns, changed=bool(events))
            return
        self._idle = False
        self.journal.record(began_ns, "plan", plan)
        planned_ns = self.clock.now_ns()
        result, sampled = self.execution.carry_out(plan)
        if cpu_ns := self.cpu_ns():
            result = replace(result, busy_ns=max(1, (cpu_ns - self._cpu_ns) // max(1, self.runner.threads)))
            self._cpu_ns = cpu_ns
        self._give_back()
        now_ns = self.clock.now_ns()
        self.box.planning(plan.step, now_ns)
        self.journal.record(now_ns, "result", result)
        events += self.scheduler.complete(plan, result, now_ns)
        accounted_ns = self.clock.now_ns()
        self._emit(plan, sampled, events)
        for answer in self._erased:  # what was to be overwritten is: the plan after an erasure has it done
            self.outbox.send(answer)
        self._erased.clear()
        self.n_steps += 1
        if now_ns >= self._reporter.due_ns:
            self._report(now_ns)
        runner_ns = (self.execution.kv_ns, self.execution.forward_ns, self.execution.sample_ns)
        own_ns = now_ns - planned_ns - sum(runner_ns)
        ended_ns = self.clock.now_ns()
        parts_ns = (handled_ns - drain_ns, planned_ns - handled_ns, *runner_ns)
        self.tallies.add(plan, result, (*parts_ns, own_ns + accounted_ns - now_ns, ended_ns - accounted_ns))

    def _rest(self, plan: StepPlan, now_ns: int, *, changed: bool) -> None:
        """Nothing can run: say how things stand, once or when they have `changed`, then wait for a message or the plan's time."""
        self.journal.record(now_ns, "rest", plan)  # each one: a call that finds nothing changes the scheduler, too
        if not self._idle:
            self._untold = True
        # A pause between two steps is no news: their own reports are enough.
        pauses = plan.wake_at_ns is not None and plan.wake_at_ns < self._reporter.due_ns
        if changed or (self._untold and not pauses):
            self._report(self.clock.now_ns())
            self._untold = False
        self._idle = True
        self._wake_at_ns = plan.wake_at_ns

    def _give_back(self) -> None:
        if self._gives_back:
            self._gives_back = False
            self._inheritance.give_back()

    def _handle(self, message: to_engine.ToEngine, now_ns: int, events: list[Event]) -> None:
        match message:
            case to_engine.Submit():
                self._submit(message, now_ns)
            case to_engine.Abort():
                self.journal.record(now_ns, "abort", message.request_id)
                events += self.scheduler.abort(message.request_id, now_ns)
            case to_engine.Control():
                self.journal.record(now_ns, "control", message.request_id, message.action)
                action = Control(message.action)
                state, detail, changes = self.scheduler.control(message.request_id, action, now_ns)
                events += changes
                self.outbox.send(wire.Controlled(message.request_id, message.action, state, detail))
            case to_engine.Forget():
                self.journal.record(now_ns, "forget", message.tenant)
                self.outbox.send(wire.Forgotten(message.forget_id, *self.scheduler.forget(message.tenant)))
            case to_engine.Hold():
                self.journal.record(now_ns, "hold", message.request_id, message.hold)
                events += self.scheduler.hold(message.request_id, Hold(message.hold), now_ns)
            case to_engine.Inherit():
                entries = self._inheritance.take(keep=message.keep)
                self.runner.inherit(entries)
                self.journal.record(now_ns, "inherit", entries)
                self.scheduler.placement.inherit(entries, now_ns)
            case Accounts():
                self.journal.record(now_ns, "restore", message.accounts, message.at_ns)
                self.scheduler.restore(message.accounts, message.at_ns)
                self._knows_accounts = True
            case to_engine.Adjust():
                self.journal.record(now_ns, "adjust", message.queue_share, message.slots_share)
                self.scheduler.adjust(message.queue_share, message.slots_share)
            case to_engine.Power():
                self.journal.record(now_ns, "limit", message.limits)
                self.scheduler.limit(message.limits)
                self.runner.limit_threads(message.threads)
                self._gives_back = True
            case to_engine.Release():
                if not self._live:
                    self.runner.release()
                self._gives_back = True
            case to_engine.Erase():
                self._desk.erase(message.tenant)
                n_entries = self.journal.erase(message.tenant)
                self.journal.record(now_ns, "erase", ERASED)
                dropped = self.scheduler.erase(message.tenant)
                self._inheritance.withhold()
                self._gives_back = True
                self._erased.append(wire.Erased(message.erase_id, *dropped, n_entries))
            case to_engine.Template():
                self._declare(message, now_ns, events)
            case to_engine.ReadJournal():
                self._desk.read(message, self.journal)
            case to_engine.Shutdown():
                self._stopping = True

    def _submit(self, message: to_engine.Submit, now_ns: int) -> None:
        tokens = [*message.prompt, *message.output]
        chain = BlockChain(self.secret, message.tenant)
        template = self._templates.get(message.template)
        if template is not None and message.prompt[: len(template.tokens)] != template.tokens:
            template = None
        request = Request(
            request_id=message.request_id,
            tenant=message.tenant,
            request_class=RequestClass(message.request_class),
            n_prompt=len(message.prompt),
            max_output=message.max_output,
            blocks=tuple(chain.extend(tokens)),
            template="" if template is None else template.key,
            template_cells=0 if template is None else len(template.tokens),
            queue_timeout_us=message.queue_timeout_ms * 1000,
            n_output=len(message.output),
            readmitted=message.readmitted,
            suspect=message.suspect,
            erased=message.erased,
            account=message.account,
            declared=message.declared or message.tenant in self.scheduler.declared,
            prepares=message.grammar is not None,
            scores=message.sampling.n_prompt_logprobs >= 0,
        )
        answer = self.scheduler.add(request, now_ns)
        self.journal.record(now_ns, "add", request, answer)
        if request.erased:
            self.journal.erase(request.tenant)
        if isinstance(answer, Rejected):
            self.outbox.send(msgspec.convert(answer, wire.Refused, from_attributes=True))
            return
        self._live[request.request_id] = Live(request, tokens, message.sampling, chain, prediction=message.prediction)
        self.outbox.send(wire.Accepted(answer.request_id, answer.position, answer.eta_us, answer.prompt_us))
        if (grammar := message.grammar) is not None:
            digest = blake2b(grammar.text.encode(), key=self.secret, digest_size=8)
            self._preparing[request.request_id] = digest.hexdigest()
            self.runner.prepare(request.request_id, request.account, grammar, message.output, self.inbox.wake)

    def _take_prepared(self, now_ns: int, events: list[Event]) -> None:
        """Grammars that are made: their requests can have slots."""
        for request_id, took_us in self.runner.prepared():
            if (digest := self._preparing.pop(request_id, None)) is None:
                self.runner.close(request_id)  # it has ended meanwhile
                continue
            self.journal.record(now_ns, "prepared", request_id, digest, took_us)
            events += self.scheduler.prepared(request_id, now_ns)

    def _declare(self, message: to_engine.Template, now_ns: int, events: list[Event]) -> None:
        """Have a template's cells computed in every pool. Where it does not fit, requests compute it themselves.

        A text that had the name before is given up at once, with its cells; requests that still name it must not get others."""
        if (former := self._templates.get(message.name)) is not None:
            self.journal.record(now_ns, "retract", former.key)
            events += self.scheduler.retract(former.key)
        self._n_declared += 1
        template = self._templates[message.name] = Declared(f"{message.name}@{self._n_declared}", message.tokens)
        for pool in self.runner.pools:
            self._n_internal -= 1
            request = Request(
                request_id=self._n_internal,
                tenant=OPERATOR,
                request_class=RequestClass.BACKGROUND,
                n_prompt=len(template.tokens),
                max_output=1,
                pins=template.key,
                pool=pool.name,
            )
            answer = self.scheduler.add(request, now_ns)
            self.journal.record(now_ns, "add", request, answer)
            if not isinstance(answer, Rejected):
                sampling, chain = to_engine.SamplingParams(temperature=0.0), BlockChain(self.secret, OPERATOR)
                self._live[request.request_id] = Live(request, list(template.tokens), sampling, chain)

    def _emit(self, plan: StepPlan, sampled: list[Sampled], events: list[Event]) -> None:
        """Send everything that the step brought in one message; what the engine asked of itself stays here."""
        drawn = (draw for draw in sampled if not draw.ends and draw.token.request_id > 0)
        tokens = [token for draw in drawn for token in (draw.token, *draw.further)]
        computed = self.execution.prefills if plan.batches else []
        prefills = [prefill for prefill in computed if prefill.request_id > 0]
        scores = list(self.execution.scores) if plan.batches else []
        drafts = [drafted for drafted in self.execution.drafted if drafted.request_id > 0] if plan.batches else []
        self._n_output += len(tokens)
        for event in events:
            if isinstance(event, Finished):
                self.runner.close(event.request_id)
                self._preparing.pop(event.request_id, None)
                del self._live[event.request_id]
        starts, changes, finishes = news_of(events)
        if starts or changes or prefills or tokens or finishes:
            self.outbox.send(wire.Step(plan.step, starts, tokens, finishes, changes, prefills, scores, drafts))

    def _report(self, now_ns: int) -> None:
        if self._knows_accounts:
            self.outbox.send(self._reporter.accounts(now_ns))
        figures, prompt_tokens = self.tallies.figures(), self.execution.prompt_tokens
        self.outbox.send(self._reporter.status(now_ns, figures, prompt_tokens, self._n_output))
