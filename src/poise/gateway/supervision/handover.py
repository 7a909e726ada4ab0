"""What is kept of every live request, so that another engine can go on where a lost one stopped.

1. Kept are the Submit message and every token id that has come. An engine that is new is given both, in the order of arrival,
   and goes on with the next token; a client sees a pause.
2. To the client's side of a request nothing happens twice: one Accepted, one Start, one last event, the counts of the first
   computation. In between it may be sent Change LOST and RECOVER, in pairs.
3. What no engine has, no engine has to be asked about: an abort ends it here.
4. Each loss counts for every request that the engine had, also for those in its queue. After `recoveries_max` of them a request
   ends with ENGINE_LOST, so that none waits for ever on engines that cannot live. An engine that never was ready had none; it
   counts for all when the pause between two starts is at its longest.
5. Who was being computed when an engine died is a suspect, and may be quarantined (`poise.gateway.supervision.blame`).
6. Where UNNAMED_DEATHS engines in a row died without a word of whom, the next one is given one request at a time: the next comes
   when a whole step was made with the one before. An engine that dies then has named it."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from dataclasses import replace as replaced

from msgspec.structs import replace

from poise.gateway.supervision.blame import ERASED, PROBATION_TOKENS, Blame, Death, Quarantine, QuarantineReport, utc
from poise.gateway.supervision.engine import ENGINE_LOST, QUARANTINED, RequestHandle
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import Control, FinishReason, Hold, Queued, RequestClass, Started
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.changes import ChangeKind

UNNAMED_DEATHS = 2


@dataclass(slots=True)
class _Live:
    handle: RequestHandle
    submit: to_engine.Submit
    label: str
    accepted_at: str
    output: list[int] = field(default_factory=list)
    """Every token that has come, from whatever engine."""
    accepted: bool = False
    started: bool = False
    n_cached: int = 0
    """Of its first start: what a client is sent."""
    n_losses: int = 0
    lost_ns: int = 0
    """When the engine was lost that it waits to be recovered from; 0: it does not."""
    handed: bool = False
    """The present engine has it."""
    answered: bool = False
    """The present engine has said that it has it."""
    n_handed: int = 0
    """Tokens that the present engine was given."""
    on_watch: bool = False
    """Its next tokens mean something: the end of a recovery, or of a probation."""
    aborted: bool = False
    paused: bool = False
    hold: str = Hold.RUN


class Handover:
    """All live requests. `send` reaches the present engine."""

    def __init__(self, send: Callable[[to_engine.ToEngine], None], metrics: RecoveryMetrics, recoveries_max: int) -> None:
        self.quarantine = Quarantine()
        self._send, self._metrics, self._recoveries_max = send, metrics, recoveries_max
        self._lives: dict[int, _Live] = {}
        self._blame = Blame()
        self._n_unnamed = 0
        """Engines that died in a row, with requests and without naming any."""
        self._trial: int | None = None
        """Whom the engine was given last, while it is given one at a time."""
        self._untried: deque[int] = deque()

    @property
    def n_live(self) -> int:
        return len(self._lives)

    def queued_by_account(self, request_class: RequestClass) -> dict[str, int]:
        """Requests of a class that have not begun, by account."""
        submits = (live.submit for live in self._lives.values() if not live.started)
        return Counter(each.account or each.tenant for each in submits if each.request_class == request_class)

    def add(self, submit: to_engine.Submit, label: str) -> RequestHandle:
        """Hand a request to the engine, which must be ready."""
        handle = RequestHandle(submit.request_id, self._abort)
        live = self._lives[submit.request_id] = _Live(handle, submit, label, utc())
        if self._trial is None:
            live.handed = True
            self._send(submit)
        else:
            self._untried.append(submit.request_id)
        return handle

    def lose(self, death: Death, *, hopeless: bool = False) -> None:
        """The engine is gone. Who can go on is sent LOST and waits; the others end. `hopeless`: this counts for all of them."""
        now_ns = time.monotonic_ns()
        death = self._named(death)
        guilty = self._blame.judge(death)
        self._trial = None
        self._untried.clear()
        for request_id, live in self._each():
            live.n_losses += live.handed or hopeless
            live.handed = live.answered = False
            if live.aborted:
                self._end(live, FinishReason.ABORTED)
            elif request_id == guilty:
                self._put_away(live, death)
            elif live.n_losses > self._recoveries_max:
                self._end(live, ENGINE_LOST, f"{live.n_losses} engines were lost under it")
            else:
                if live.accepted and not live.lost_ns:
                    live.handle.put(wire.Change(request_id, ChangeKind.LOST.value))
                live.lost_ns = live.lost_ns or now_ns
        for request_id in death.pass_ids:
            if request_id not in self._lives:  # it has just ended, or was the engine's own
                self._blame.acquit(request_id)

    def _named(self, death: Death) -> Death:
        """The death with the requests it names: those of the black box, or else the one that was on trial."""
        if death.is_on_purpose or not any(live.handed for live in self._lives.values()):
            return death
        if any(request_id in self._lives for request_id in death.pass_ids):
            self._n_unnamed = 0
            return death
        if self._trial is not None:
            return replaced(death, pass_ids=(self._trial,))
        self._n_unnamed += 1
        return death

    def hand_over(self) -> None:
        """An engine is ready: give it everything that is live, in the order of arrival, as the lost one had it."""
        if self._n_unnamed >= UNNAMED_DEATHS:
            self._untried.extend(self._lives)
            self._try_next()
            return
        for _, live in self._each():
            self._hand(live)

    def _try_next(self) -> None:
        """Send the engine the next untried request, one at a time; all others are harmless, or have been shown to be."""
        self._trial = None
        while self._untried:
            request_id = self._untried.popleft()
            if (live := self._lives.get(request_id)) is None:
                continue
            self._hand(live)
            if request_id in self._lives and not live.paused and live.hold == Hold.RUN:
                self._trial = request_id
                return
        self._n_unnamed = 0

    def _hand(self, live: _Live) -> None:
        request_id = live.submit.request_id
        if len(live.output) >= live.submit.max_output:
            self._end(live, FinishReason.LENGTH)
            return
        suspect = self._blame.is_suspect(request_id)
        live.n_handed, live.on_watch, live.handed = len(live.output), True, True
        # Who has had no answer yet is new to the engine: it may still be refused.
        again = replace(live.submit, output=list(live.output), readmitted=live.accepted, suspect=suspect)
        self._send(again)
        if live.paused:
            self._send(to_engine.Control(request_id, Control.PAUSE.value))
        if live.hold != Hold.RUN:
            self._send(to_engine.Hold(request_id, live.hold))

    def end_all(self, reason: str, detail: str) -> None:
        """Nothing more will be computed: every live request gets its last event."""
        self._trial = None
        self._untried.clear()
        for _, live in self._each():
            if live.handed:
                self._send(to_engine.Abort(live.submit.request_id))
            self._end(live, FinishReason.ABORTED if live.aborted else reason, detail)

    def hold(self, request_id: int, hold: str) -> None:
        """How far the readers of a request are behind; it is sent to every engine that has it."""
        live = self._lives.get(request_id)
        if live is not None and hold != live.hold:
            live.hold = hold
            if live.handed:
                self._send(to_engine.Hold(request_id, hold))
            if request_id == self._trial:
                self._try_next()  # nothing is computed for it now: it must not keep the others waiting

    def disown(self, tenant: str) -> int:
        """A tenant is erased: what is live of it leaves nothing, whatever engine has it, and reports do not name it.

        Returns how many reports did."""
        for live in self._lives.values():
            if live.submit.tenant == tenant:
                live.submit = replace(live.submit, erased=True)
        return self.quarantine.erase(tenant)

    def answered(self, answer: wire.Accepted | wire.Refused) -> None:
        live = self._lives.get(answer.request_id)
        if live is None:
            return
        live.answered = True
        if isinstance(answer, wire.Refused):
            if live.accepted:
                self._end(live, ENGINE_LOST, f"another engine refused it: {answer.reason}")
            else:
                self._forget(live)
                live.handle.put(answer)
        elif not live.accepted:
            live.accepted, live.lost_ns = True, 0
            live.handle.put(answer)
        elif not live.started:
            # It keeps its place among those that wait, and has lost nothing.
            live.lost_ns = 0
            self._recovered(live, 0)
            live.handle.put(Queued(answer.request_id, answer.position, answer.eta_us))

    def waiting(self, waiting: Queued) -> None:
        if (live := self._lives.get(waiting.request_id)) is not None:
            live.handle.put(waiting)

    def controlled(self, answer: wire.Controlled) -> None:
        """An operator's pause outlives the engine that carried it out."""
        live = self._lives.get(answer.request_id)
        if live is not None and not answer.detail and answer.action in (Control.PAUSE, Control.RESUME):
            live.paused = answer.action == Control.PAUSE
            if answer.request_id == self._trial:
                self._try_next()

    def step(self, step: wire.Step) -> None:
        lives = self._lives
        for start in step.starts:
            if (live := lives.get(start.request_id)) is not None:
                self._started(live, start)
        for change in step.changes:
            if (live := lives.get(change.request_id)) is not None:
                if change.what == ChangeKind.DOWNGRADE:
                    live.submit = replace(live.submit, request_class=RequestClass.BACKGROUND.value)
                live.handle.put(change)
        for prefill in step.prefills:
            if (live := lives.get(prefill.request_id)) is not None:
                live.handle.put(prefill)
        for scored in step.scores:
            if (live := lives.get(scored.request_id)) is not None:
                live.handle.put(scored)
        for drafted in step.drafts:
            if (live := lives.get(drafted.request_id)) is not None:
                live.handle.put(drafted)
        for token in step.tokens:
            if (live := lives.get(token.request_id)) is not None:
                live.output.append(token.token)
                if live.on_watch:
                    self._watch(live)
                live.handle.put(token)
        for finish in step.finishes:
            if (live := lives.get(finish.request_id)) is not None:
                self._finished(live, finish)
        if self._trial is not None and self._lives[self._trial].answered:
            self._try_next()

    def _each(self) -> Iterator[tuple[int, _Live]]:
        """All live requests in order, without those that ended meanwhile: a listener may end others."""
        for request_id, live in list(self._lives.items()):
            if request_id in self._lives:
                yield request_id, live

    def _started(self, live: _Live, start: Started) -> None:
        if not live.started:
            live.started, live.n_cached = True, start.n_cached
            live.handle.put(start)
            return
        n_known = len(live.submit.prompt) + live.n_handed
        self._recovered(live, max(0, n_known - start.n_cached))

    def _recovered(self, live: _Live, n_recomputed: int) -> None:
        self._metrics.recovered(live.submit.request_class, n_recomputed)
        live.handle.put(wire.Change(live.submit.request_id, ChangeKind.RECOVER.value, f"{n_recomputed}"))

    def _watch(self, live: _Live) -> None:
        """A token has come of a request that was handed over."""
        if live.lost_ns:
            self._metrics.going_on(live.submit.request_class, (time.monotonic_ns() - live.lost_ns) / 1e9)
            live.lost_ns = 0
        if len(live.output) - live.n_handed >= PROBATION_TOKENS:
            self._blame.acquit(live.submit.request_id)
            live.on_watch = False

    def _finished(self, live: _Live, finish: wire.Finish) -> None:
        if live.n_losses:
            # What the first engine had cached is what the client has been sent.
            finish = replace(finish, n_cached=live.n_cached)
        self._forget(live)
        live.handle.put(finish)

    def _put_away(self, live: _Live, death: Death) -> None:
        submit = live.submit
        report = QuarantineReport(
            request_id=live.label,
            request_class=submit.request_class,
            engine_request=submit.request_id,
            tenant=ERASED if submit.erased else submit.tenant,
            prompt_tokens=len(submit.prompt),
            output_tokens=len(live.output),
            deaths=self._blame.deaths(submit.request_id),
            ended_by=death.how,
            accepted_at=live.accepted_at,
            quarantined_at=utc(),
        )
        self.quarantine.add(report)
        self._metrics.quarantined(submit.request_class)
        self._end(live, QUARANTINED)

    def _end(self, live: _Live, reason: str, detail: str = "") -> None:
        """End a request with a last event that no engine sends."""
        of, n_prompt, n_output = live.submit.request_id, len(live.submit.prompt), len(live.output)
        self._forget(live)
        live.handle.put(wire.Finish(of, str(reason), n_prompt, n_output, 0, detail, n_cached=live.n_cached))

    def _forget(self, live: _Live) -> None:
        self._blame.acquit(live.submit.request_id)
        del self._lives[live.submit.request_id]
        if live.submit.request_id == self._trial:
            self._try_next()

    def _abort(self, request_id: int) -> None:
        live = self._lives.get(request_id)
        if live is None:
            return
        if not live.handed:
            self._end(live, FinishReason.ABORTED)
        elif not live.aborted:
            live.aborted = True
            self._send(to_engine.Abort(request_id))
