"""One API request on its way through the engine: token events in, a record out, everything counted, nothing left running.

A `Choice` is one engine request; its stages, and what an event means in each, are a table at the head of that module. A
`Generation` has all choices of an API request: it submits them and writes what they bring into the record, in the moment in which
an event is dispatched. No task of its own and none of a client is needed for that."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

from poise.gateway.models.backend import close
from poise.gateway.models.local.choice import NOTHING, Act, Choice, Stage, act_on
from poise.gateway.models.local.echo import Echo
from poise.gateway.models.local.refusals import bad_end, engine_unavailable, refused
from poise.gateway.records.following import Stop
from poise.gateway.records.moments import WOKEN, End
from poise.gateway.records.record import CANCELLED, RUNNING, Record
from poise.gateway.records.values import Logprob
from poise.gateway.request.bugs import log_bug
from poise.gateway.request.headers import LONG_WAIT_US
from poise.gateway.request.refusals import ApiError, internal_error
from poise.gateway.supervision.engine import (
    ENGINE_LOST,
    QUARANTINED,
    SERVER_STOPPING,
    Engine,
    EngineUnavailable,
    RequestEvent,
    RequestHandle,
)
from poise.gateway.text.answers import AnswerParser, EntryKind
from poise.gateway.text.tokens import TextModel
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import FinishReason, Hold, Queued, Started
from poise.wire.changes import ChangeKind
from poise.wire.messages import Accepted, Change, Drafted, Finish, Prefill, PromptLogprobs, Refused, Token
from poise.wire.to_engine import Grammar, SamplingParams, Submit

log = logging.getLogger(__name__)

_GOOD_ENDS = (FinishReason.STOP, FinishReason.LENGTH)
_NAMED_ENDS = (FinishReason.FAILED, FinishReason.EXPIRED, QUARANTINED, SERVER_STOPPING)
_LIVE = Stage.LIVE
NewParser = Callable[[], AnswerParser]
Leaves = Callable[[Accepted | Refused], bool]


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """What the engine is asked for. `max_output` 0: nothing is said; it draws a token all the same, which is nobody's."""

    prompt: list[int]
    max_output: int
    sampling: SamplingParams
    template: str = ""
    grammar: Grammar | None = None
    echo: str | None = None
    """The text that the answer begins with; empty: that of the prompt's tokens."""
    prediction: Sequence[int] = ()


class Generation:
    """All choices of one API request. Its record ends exactly once, by what the engine says or by `stop` and `fail`."""

    def __init__(self, record: Record, engine: Engine, text: TextModel, metrics: GatewayMetrics) -> None:
        self._record = record
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._choices: list[Choice] = []
        self.leaves: Leaves | None = None
        """Is asked when the engine has said how long the wait is, or that it refuses: does another server answer instead? If so,
        nothing more is written here."""
        self._is_woken = False
        """The model's pages had been given back when it came."""

    def submit(self, asked: Sequence[ChoiceRequest], stop: Sequence[str] = (), parser: NewParser = AnswerParser) -> None:
        """Hand every choice to the engine. A refusal is the end of the record. `parser`: makes one for a choice's answer."""
        record, state = self._record, self._engine.state
        if state.is_released:
            state.is_released, self._is_woken = False, True
            record.note(WOKEN)
        try:
            for choice, request in zip(record.choices, asked, strict=True):
                wants_logprobs = request.sampling.n_logprobs >= 0
                record.wants_logprobs |= wants_logprobs
                handle = self._submit(request)
                echo = Echo(request.echo, request.prompt, self._text, record, choice.index, wants_logprobs)
                made = Choice(choice, handle, self._text, stop, wants_logprobs, echo, parser())
                made.is_mute = not request.max_output
                self._choices.append(made)
        except EngineUnavailable as error:
            self.fail(engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent))
            return
        except Exception as bug:
            self._break(bug)
            return
        for made in self._choices:
            made.handle.listen(partial(self._hear, made))

    def stop(self, why: Stop) -> None:
        """End what has not ended; what has come stays. See `Work.stop`."""
        if self._record.is_ended:
            return
        if why is Stop.LEFT:
            self._metrics.disconnected(self._record.origin.request_class)
        self._record.stopped_by = why
        outcome = why.value if why is Stop.READER_TIMEOUT else CANCELLED
        for record, choice in zip_longest(self._record.choices, self._choices):
            if record.outcome is not None:
                continue
            text, logprobs = self._rest(choice) if choice is not None else ("", NOTHING)
            self._record.end_choice(End(self._record.n_entries, record.index, CANCELLED, text, logprobs), outcome)
            if choice is not None:
                self._take_back(choice)
        self._close(None)

    def fail(self, error: ApiError) -> None:
        """It cannot go on. What was computed stands; choices that had not ended are taken back."""
        if self._record.is_ended:
            return
        for choice in self._choices:
            if choice.record.outcome is None:
                choice.record.outcome = CANCELLED
                self._take_back(choice)
        self._close(error)

    def hold(self, level: Hold) -> None:
        """Tell the engine how far the readers are behind."""
        self._metrics.streams.held(self._record.origin.request_class, level)
        for _, request_id in self.requests():
            self._engine.hold(request_id, level)

    def requests(self) -> list[tuple[int, int]]:
        """Index and engine request of each choice that has not ended."""
        return [(one.record.index, one.handle.request_id) for one in self._choices if one.record.outcome is None]

    def _submit(self, request: ChoiceRequest) -> RequestHandle:
        origin = self._record.origin
        submit = Submit(
            request_id=0,
            tenant=origin.tenant,
            request_class=origin.request_class.value,
            prompt=request.prompt,
            max_output=max(1, request.max_output),
            sampling=request.sampling,
            template=request.template,
            queue_timeout_ms=origin.queue_timeout_ms,
            erased=self._record.erased,
            account=origin.account,
            declared=origin.is_declared,
            grammar=request.grammar,
            prediction=list(request.prediction),
        )
        return self._engine.submit(submit, origin.request_id)

    def _hear(self, choice: Choice, event: RequestEvent) -> None:
        """An event of the engine. Whatever goes wrong with it is the end of this request and of no other."""
        try:
            if choice.stage is _LIVE and type(event) is Token:  # nearly always
                self._token(choice, event)
            elif choice.stage is _LIVE:
                self._write(choice, event)
            else:
                self._act(choice, event)
            self._record.notify()
        except Exception as bug:
            self._break(bug, choice)

    def _act(self, choice: Choice, event: RequestEvent) -> None:
        """What to do with an event of a choice that is not live; see the table in `poise.gateway.models.local.choice`."""
        match act_on(choice.stage, event):
            case Act.REFUSE if not self._left(event):
                self.fail(self._refusal(event))
            case Act.KEEP if not self._left(event):
                choice.stage = Stage.TAKEN
                choice.early.append(event)
                if not any(other.stage is Stage.ASKED for other in self._choices):
                    self._open()
            case Act.SETTLE:
                self._settle(choice, event)

    def _left(self, event: RequestEvent) -> bool:
        """Whether another server gets the request: the engine is to forget it."""
        if self.leaves is None or not isinstance(event, Accepted | Refused) or not self.leaves(event):
            return False
        for choice in self._choices:
            self._take_back(choice)
        return True

    def _open(self) -> None:
        """The engine has taken every choice: what it has said of them goes into the record."""
        record = self._record
        record.open()
        self._metrics.accepted(record.origin.request_class, record.n_prompt)
        for choice in self._choices:
            choice.stage = _LIVE
            choice.echo.begin()
        for choice in self._choices:
            early, choice.early = choice.early, []
            for event in early:
                if choice.stage is _LIVE:
                    self._write(choice, event)

    def _break(self, bug: Exception, choice: Choice | None = None) -> None:
        """Something unforeseen was raised: the log has what, the client an id to ask for it."""
        error_id = log_bug(log, self._record.origin.request_id, bug)
        if choice is not None and choice.record.outcome is None:
            choice.record.outcome = FinishReason.FAILED.value
            self._take_back(choice)
        self.fail(internal_error(error_id))

    def _write(self, choice: Choice, event: RequestEvent) -> None:
        if type(event) is Token:
            self._token(choice, event)
        elif type(event) is Prefill:
            self._record.note_prefill(choice.record.index, event)
        elif type(event) is Drafted:
            choice.record.draft(event)
        elif type(event) is PromptLogprobs:
            choice.echo.add(event)
        elif type(event) is Finish:
            self._finish(choice, event)
        elif type(event) is Change:
            self._change(choice, event)
        elif type(event) is Started:
            self._start(choice, event)
        elif type(event) is Queued:
            self._waiting(choice, event)
        elif type(event) is Accepted:
            self._accepted(choice, event)

    def _token(self, choice: Choice, token: Token) -> None:
        if choice.is_mute:
            return
        record, now_s = self._record, time.perf_counter()
        if choice.tokens_at_s is None:
            self._metrics.first_tokens(choice.record.counts_as, 1, now_s - record.origin.arrived_s, now_s)
            record.note("first_token", choice.record.index)
            if self._is_woken:
                self._is_woken = False
                self._metrics.power.woken(now_s - record.origin.arrived_s)
        else:
            self._metrics.more_tokens(choice.record.counts_as, 1, now_s - choice.tokens_at_s)
        choice.tokens_at_s = now_s
        pieces, logprobs = choice.push(token)
        n_tokens = 1
        for kind, text in pieces:  # the first one counts as the token
            record.append(choice.record.index, text, logprobs, now_s, kind, n_tokens)
            logprobs, n_tokens = NOTHING, 0
        if choice.stopped:
            self._end(choice, FinishReason.STOP.value, FinishReason.STOP.value, *self._rest(choice))
            self._take_back(choice)
            self._close_if_all_ended()

    def _rest(self, choice: Choice) -> tuple[str, Sequence[Logprob]]:
        """What a choice that ends still held back: text goes with its end, and what comes before that becomes entries."""
        pieces, logprobs = choice.flush()
        text = ""
        if pieces and pieces[-1][0] is EntryKind.TEXT:
            *pieces, (_, text) = pieces
        for kind, piece in pieces:
            self._record.append(choice.record.index, piece, NOTHING, time.perf_counter(), kind, n_tokens=0)
        return text, logprobs

    def _accepted(self, choice: Choice, accepted: Accepted) -> None:
        record, eta_ms = self._record, accepted.eta_us // 1000
        record.note("queued", choice.record.index, position=accepted.position, eta_ms=eta_ms)
        if record.accepted is None:  # what comes first decides when something comes
            record.accepted = accepted
            if accepted.eta_us >= LONG_WAIT_US:
                record.place = accepted.position, eta_ms

    def _waiting(self, choice: Choice, waiting: Queued) -> None:
        record = self._record
        if choice.record.started:
            return
        choice.record.place = waiting
        # The wait is over when something begins to come; until then it is that of the first choice in the queue.
        if not any(other.started for other in record.choices):
            first = min((other.place for other in record.choices if other.place), key=lambda place: place.position)
            record.place = first.position, first.eta_us // 1000

    def _start(self, choice: Choice, start: Started) -> None:
        own = choice.record
        if not own.started:
            self._metrics.started(own.counts_as, start.wait_us / 1e6, start.n_cached)
        own.started, own.state, own.place, own.n_cached = True, RUNNING, None, start.n_cached
        self._record.place = None
        self._record.note("started", own.index, pool=start.pool, cached_tokens=start.n_cached, wait_ms=start.wait_us // 1000)

    def _change(self, choice: Choice, change: Change) -> None:
        record = self._record
        choice.change(change)
        self._metrics.changed(record.origin.request_class, change.what)
        record.downgraded |= change.what == ChangeKind.DOWNGRADE
        record.note(change.what, choice.record.index, **({"why": change.why} if change.why else {}))

    def _finish(self, choice: Choice, finish: Finish) -> None:
        self._charge(choice, finish)
        # What there is when the server must stop is an answer that was cut, and no failure.
        cut = finish.reason == SERVER_STOPPING and choice.record.n_output > 0
        if cut or finish.reason in _GOOD_ENDS:
            choice.record.n_cached = finish.n_cached
            text, logprobs = self._rest(choice)
            outcome = FinishReason.LENGTH.value if choice.is_mute else finish.reason
            reason = FinishReason.STOP.value if choice.stopped else outcome
            self._end(choice, reason, outcome, text, logprobs)
            choice.stage = Stage.OVER
            self._close_if_all_ended()
            return
        # A request ended by an engine that is shutting down counts as lost, too: the caller did not ask for it.
        choice.record.outcome = str(finish.reason) if finish.reason in _NAMED_ENDS else ENGINE_LOST
        choice.stage = Stage.OVER
        self.fail(bad_end(finish, self._record.origin, self._engine.state))

    def _end(self, choice: Choice, reason: str, outcome: str, text: str, logprobs: Sequence[Logprob]) -> None:
        self._record.end_choice(End(self._record.n_entries, choice.record.index, reason, text, logprobs), outcome)

    def _charge(self, choice: Choice, finish: Finish) -> None:
        """What the engine has spent on a choice, as it says at its end."""
        self._record.served_us += finish.served_us
        choice.record.n_recomputed = finish.n_recomputed

    def _take_back(self, choice: Choice) -> None:
        """It has its outcome; the engine is to stop computing it. Its last word may come before this returns."""
        choice.stage, choice.aborted_s = Stage.TAKEN_BACK, time.perf_counter()
        choice.handle.abort()

    def _settle(self, choice: Choice, event: RequestEvent) -> None:
        """The engine's last word on what was taken back from it: now its slot is free."""
        assert type(event) is Finish
        assert choice.aborted_s is not None
        self._charge(choice, event)
        self._metrics.streams.freed(self._record.origin.request_class, time.perf_counter() - choice.aborted_s)
        choice.stage = Stage.OVER

    def _close_if_all_ended(self) -> None:
        if all(choice.outcome is not None for choice in self._record.choices):
            self._close(None)

    def _close(self, failure: ApiError | None) -> None:
        close(self._record, self._metrics, failure)

    def _refusal(self, event: RequestEvent) -> ApiError:
        """An event that `is_refusal`, as the client sees it."""
        origin = self._record.origin
        if type(event) is Refused:
            return refused(event, origin.request_class, origin.prompt_param)
        assert type(event) is Finish
        return bad_end(event, origin, self._engine.state)
