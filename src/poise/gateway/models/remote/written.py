"""What of another server's answer is in the record: its choices piece by piece, with the figures of each, and one end."""

import logging
import time
from collections import deque
from collections.abc import Sequence

from poise.gateway.models.backend import close
from poise.gateway.models.remote.events import Called, Delta, Ended, Used
from poise.gateway.models.remote.queue import Place
from poise.gateway.records.changes import RequestState
from poise.gateway.records.moments import ChoiceRecord, End
from poise.gateway.records.record import RUNNING, Record
from poise.gateway.records.values import Logprob, Usage
from poise.gateway.request.headers import LONG_WAIT_US
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.answers import EntryKind, StopScanner
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.story import Outcome
from poise.scheduler.request import Queued
from poise.wire.changes import ChangeKind
from poise.wire.messages import Accepted

log = logging.getLogger(__name__)

SPARE_TOKENS = 16
"""Pieces that an answer may have beyond its allowance before it is cut here: a token can come in more than one."""
_GOOD = (Outcome.STOP.value, Outcome.LENGTH.value)


class Written:
    """All choices of one API request that `backend` is asked for. `max_output`: of each."""

    def __init__(self, backend: str, record: Record, metrics: GatewayMetrics, stop: Sequence[str], max_output: int) -> None:
        self._backend, self._record, self._metrics, self._max_output = backend, record, metrics, max_output
        self._parts = [_Part(choice, stop) for choice in record.choices]

    @property
    def is_complete(self) -> bool:
        """Every choice has ended."""
        return all(choice.outcome is not None for choice in self._record.choices)

    @property
    def is_cut(self) -> bool:
        """Every choice has ended, and the server does not know it of one of them."""
        return self.is_complete and any(part.is_cut for part in self._parts)

    def tell_place(self, place: Place) -> None:
        """Where it stands in the queue."""
        record, eta_ms = self._record, place.eta_us // 1000
        if record.is_ended:
            return
        if all(part.record.place is None for part in self._parts):
            for part in self._parts:
                record.note("queued", part.record.index, position=place.position, eta_ms=eta_ms)
        for part in self._parts:
            part.record.place = Queued(0, place.position, place.eta_us)
        if record.accepted is None:
            record.accepted = Accepted(0, place.position, place.eta_us)
        if place.eta_us >= LONG_WAIT_US or record.place is not None:
            record.place = place.position, eta_ms
        record.notify()

    def begin(self, wait_us: int) -> None:
        """It was sent, and an answer has begun."""
        record = self._record
        record.place = None
        if record.accepted is None:
            record.accepted = Accepted(0, 1, 0)
        for part in self._parts:
            own = part.record
            if own.place is None:
                record.note("queued", own.index, position=1, eta_ms=0)
            own.started, own.state, own.place = True, RUNNING, None
            record.note("started", own.index, pool=self._backend, cached_tokens=0, wait_ms=wait_us // 1000)

    def open(self, n_prompt: int, wait_us: int, form: str) -> None:
        """The first content is here. `form`: the kind of what the answer must be."""
        record = self._record
        record.n_prompt = n_prompt
        record.open()
        if form:
            record.note("held_to", kind=form)
        for part in self._parts:
            self._metrics.started(part.record.counts_as, wait_us / 1e6, 0)

    def forget(self) -> None:
        """Nothing came: whoever is asked next finds the record as it was, but for what is on its timeline."""
        self._record.place = None
        for part in self._parts:
            part.record.started, part.record.state, part.record.place = False, RequestState.QUEUED, None

    def put(self, event: Delta | Called | Ended) -> None:
        """What has come of a choice. What comes behind its end is nobody's."""
        part = self._parts[event.choice]
        if part.record.outcome is not None:
            return
        if isinstance(event, Ended):
            self._end(part, event.reason, event.reason if event.reason in _GOOD else Outcome.STOP.value)
        elif isinstance(event, Called):
            self._append(part, EntryKind.CALL_NAME, event.name, ())
        else:
            self._append(part, event.kind, event.text, event.logprobs)

    def hold(self, *, runs: bool) -> None:
        """It is read, or not read any more, because its readers keep up, or do not."""
        record, change = self._record, ChangeKind.RESUME if runs else ChangeKind.STALL
        for part in self._live() if record.is_open else []:
            part.record.state = RUNNING if runs else RequestState.PAUSED
            self._metrics.changed(record.origin.request_class, change)
            record.note(change, part.record.index)

    def end_all(self, reason: str, outcome: str) -> None:
        """End what has not ended; what has come stays."""
        for part in self._live():
            self._end(part, reason, outcome)

    def most_output(self) -> int:
        """Tokens that an answer of which this much has come can have had: what the server has told is some time ago."""
        n_bytes = sum(len(text.encode()) for text in self._record.texts)
        return min(self._max_output * len(self._parts), n_bytes + SPARE_TOKENS)

    def tell_usage(self, used: Used) -> None:
        """What the server says that it took is what counts."""
        record = self._record
        record.n_prompt = used.prompt
        record.told = Usage(used.prompt, used.output, used.cached, used.reasoning)
        record.choices[0].n_cached = used.cached
        if len(record.choices) == 1:
            record.choices[0].n_output = used.output

    def fail(self, error: ApiError) -> None:
        """It cannot go on. What has come stands."""
        for part in self._live():
            part.record.outcome = Outcome.FAILED.value
        self.close(error)

    def close(self, failure: ApiError | None) -> None:
        """Write the books and end the record."""
        record = self._record
        close(record, self._metrics, failure, self._backend)
        if record.is_open:
            self._metrics.accepted(record.origin.request_class, record.n_prompt)

    def _append(self, part: "_Part", kind: EntryKind, text: str, logprobs: Sequence[Logprob]) -> None:
        record, own, now_s = self._record, part.record, time.perf_counter()
        n_tokens = len(logprobs) or 1
        if part.last_s is None:
            self._metrics.first_tokens(own.counts_as, n_tokens, now_s - record.origin.arrived_s, now_s)
            record.note("first_token", own.index)
        else:
            self._metrics.more_tokens(own.counts_as, n_tokens, now_s - part.last_s)
        part.last_s = now_s
        own.n_output += n_tokens
        if kind == EntryKind.TEXT:
            text, logprobs = part.push(text, logprobs)
        record.append(own.index, text, logprobs, now_s, kind, n_tokens)
        part.is_cut = part.stopped or own.n_output > self._max_output + SPARE_TOKENS
        if part.is_cut:
            reason = (Outcome.STOP if part.stopped else Outcome.LENGTH).value
            self._end(part, reason, reason)

    def _end(self, part: "_Part", reason: str, outcome: str) -> None:
        text, logprobs = part.flush()
        self._record.end_choice(End(self._record.n_entries, part.record.index, reason, text, logprobs), outcome)

    def _live(self) -> list["_Part"]:
        return [part for part in self._parts if part.record.outcome is None]


class _Part:
    """One choice: what of its text may be shown, with the log probabilities that belong to it."""

    def __init__(self, record: ChoiceRecord, stop: Sequence[str]) -> None:
        self.record = record
        self.last_s: float | None = None
        self.is_cut = False
        """It was ended here, without the server's knowledge."""
        self._scanner = StopScanner(stop)
        self._logprobs: deque[Logprob] = deque()
        self._n_shown = 0

    @property
    def stopped(self) -> bool:
        """A stop string was found."""
        return self._scanner.stopped

    def push(self, text: str, logprobs: Sequence[Logprob]) -> tuple[str, Sequence[Logprob]]:
        """A piece of text. Returns what can be shown of it now."""
        self._logprobs += logprobs
        shown = self._scanner.push(text)
        return shown, self._take(len(shown))

    def flush(self) -> tuple[str, Sequence[Logprob]]:
        """What was held back."""
        text = self._scanner.flush()
        return text, self._take(len(text))

    def _take(self, n_shown: int) -> Sequence[Logprob]:
        self._n_shown += n_shown
        taken = []
        while self._logprobs and self._logprobs[0].end <= self._n_shown:
            taken.append(self._logprobs.popleft())
        return taken
