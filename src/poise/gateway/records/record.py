"""What is kept of one response, in memory only: its timeline, its output entry by entry, and how it ended.

A record is written by the generation as the engine's events arrive, and read by any number of followers, each with a place of its
own: so a reader can leave, come back, be slow or come late, and none of it touches the engine, except that a request is
held while all its readers are behind, and ends when the last one leaves (unless it was detached)."""

from __future__ import annotations

import asyncio
import time
from array import array
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from typing import Any, Literal, Protocol

from poise.gateway.records.changes import RequestState
from poise.gateway.records.following import Stage, Stop, consequence
from poise.gateway.records.moments import PREFILL, ChoiceRecord, End, Gathered, Moment, bytes_of, drafts_of, end_bytes, weight_of
from poise.gateway.records.values import Answer, Bill, Heading, Logprob, Notes, Usage
from poise.gateway.records.writer import MakeWriter, Writer
from poise.gateway.request.generate import PLAIN, AnswerOptions
from poise.gateway.request.labels import Label
from poise.gateway.request.refusals import ApiError
from poise.gateway.tasks.slices import at_once
from poise.gateway.text.answers import EntryKind
from poise.metrics.story import Outcome
from poise.scheduler.request import Hold, RequestClass
from poise.wire.messages import Accepted, Prefill


class Wakeup(asyncio.Event):
    """Lets one waiter sleep until somebody has something for it. Who is woken looks for itself what it is."""

    async def wait(self) -> Literal[True]:
        """Returns at the next `set`. What was set before does not count."""
        self.clear()
        return await super().wait()


_REASONING = EntryKind.REASONING
QUEUED, RUNNING, ENDED = RequestState.QUEUED, RequestState.RUNNING, RequestState.ENDED
_FOREMOST = (RUNNING, RequestState.PAUSED, RequestState.SWAPPED, QUEUED)
"""A request is as far as its foremost choice."""
PREFILL_ALONE = 16
"""So many chunks of a prompt have a moment each. Of later ones a moment holds a sixteenth of those before it: a prompt of
thousands of chunks takes about a hundred moments."""
CANCELLED = Outcome.CANCELLED.value
"""How a choice ended that was no longer wanted, and the finish reason that its readers are told."""
MOMENTS_MAX = 1000
"""A request that is held and resumed for ever must not grow for ever: later changes are left out, its end is not."""
WEIGHED_ENTRIES, GATHERED_ENTRIES = 256, 4096


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an API request comes from, for the books and the log. `arrived_s` is of the clock `time.perf_counter`."""

    request_id: str
    tenant: str
    request_class: RequestClass
    prompt_param: str
    arrived_s: float
    queue_timeout_ms: int = 0
    """How long each of its engine requests may wait for a slot; 0: for ever."""
    traceparent: str = ""
    """The caller's span, from the header of that name."""
    account: str = ""
    """Under what name admission and fair shares are counted; empty: the tenant's."""
    is_declared: bool = False
    """The operator made that account."""
    operation: str = ""
    """What metrics and traces call it: the name of its dialect."""
    key_label: Label = Label.PUBLIC
    """The label that its key gives it."""
    claim: Label | None = None
    """The label that its sender has named."""
    may_fall_back: bool = True
    """Whoever is the first choice answers it, or nobody."""


class Work(Protocol):
    """What is being done for a record that has not ended."""

    def stop(self, why: Stop) -> None:
        """End it now."""

    def hold(self, level: Hold) -> None: ...

    def requests(self) -> list[tuple[int, int]]:
        """Index and id of each engine request that has not ended."""


@dataclass(eq=False, repr=False, slots=True)
class Record:
    """One response. Only what made it writes it; every change is followed by `notify`."""

    origin: Origin
    heading: Heading
    n_choices: InitVar[int]
    _make_writer: MakeWriter | None = None
    """Writes it for those who read it; None where nobody does but the gateway."""
    options: AnswerOptions = PLAIN
    detached: bool = field(default=False, kw_only=True)
    """It goes on when nobody reads it."""
    notes: Notes | None = None
    """What the answer is to say about how it was made."""
    choices: list[ChoiceRecord] = field(init=False)
    n_prompt: int = 0
    owners: array[int] = field(default_factory=lambda: array("B"))
    """Of each entry, the choice that it belongs to. A token makes one or several; a place in the record counts entries."""
    kinds: array[int] = field(default_factory=lambda: array("B"))
    counts: array[int] = field(default_factory=lambda: array("I"))
    """Of each entry, the output tokens up to and including it."""
    reasoned: array[int] = field(default_factory=lambda: array("I"))
    """Entries that are tokens of reasoning."""
    n_tokens: int = 0
    """Output tokens so far."""
    arrivals: array[float] = field(default_factory=lambda: array("d"))
    texts: list[str] = field(default_factory=list)
    """Of each entry, the text that became visible with it: never half a character or a part of a stop string."""
    logprobs: list[Sequence[Logprob]] = field(default_factory=list)
    """The log probabilities that became visible with it; empty unless they were asked for."""
    wants_logprobs: bool = False
    ends: list[End] = field(default_factory=list)
    timeline: list[Moment] = field(init=False)
    accepted: Accepted | None = None
    place: tuple[int, int] | None = None
    """Place in the queue and estimated wait in ms, as long as that is worth telling."""
    prefill: dict[str, int] | None = None
    """How far a long prompt is, as long as that is worth telling: see `ChoiceRecord.foreseen`."""
    downgraded: bool = False
    served_us: int = 0
    """Compute, a summary's included, as far as the engine has told."""
    bill: Bill | None = None
    """What another server took for it, if one answered."""
    told: Usage | None = None
    """What another server, which has answered, says that it took."""
    is_open: bool = False
    """The engine has taken every choice."""
    ended_s: float | None = None
    failure: ApiError | None = None
    followers: list[Follower] = field(default_factory=list)
    work: Work | None = None
    on_end: Callable[[Record], None] | None = None
    """Is told of the end, and forgotten with it: what made the record must not live as long as it is kept."""
    erased: bool = False
    """Its tenant's data was erased while it was live: it is not kept, and nothing names its tenant any more."""
    held: Hold = Hold.RUN
    stopped_by: Stop | None = None
    """What ended it before the engine did."""
    _content_bytes: int = 0
    _n_weighed: int = 0
    _n_moments_weighed: int = 0
    """Entries and moments whose contents are counted."""

    def __post_init__(self, n_choices: int) -> None:
        self.choices = [ChoiceRecord(index, self.origin.request_class.value) for index in range(n_choices)]
        self.timeline = [Moment("arrived", self.origin.arrived_s, 0, None, {})]

    @property
    def response_id(self) -> str:
        return self.heading.response_id

    @property
    def n_entries(self) -> int:
        return len(self.texts)

    def tokens_at(self, n_entries: int) -> int:
        """Output tokens up to a place."""
        return self.counts[n_entries - 1] if n_entries else 0

    @property
    def stage(self) -> Stage:
        """How far it has come."""
        if self.ended_s is None:
            return Stage.OPEN if self.is_open else Stage.NEW if self.work is None else Stage.STARTED
        return Stage.REFUSED if self.failure is not None and not self.is_open else Stage.ENDED

    @property
    def is_ended(self) -> bool:
        return self.ended_s is not None

    @property
    def is_cut(self) -> bool:
        """So much happened that some of it was left out of the timeline."""
        return len(self.timeline) >= MOMENTS_MAX

    @property
    def state(self) -> RequestState:
        if self.ended_s is not None:
            return ENDED
        states = {choice.state for choice in self.choices if choice.outcome is None}
        return next((state for state in _FOREMOST if state in states), QUEUED)

    @property
    def outcome(self) -> str | None:
        """How its choices ended, each way once."""
        if self.ended_s is None:
            return None
        return "+".join(dict.fromkeys(choice.outcome or CANCELLED for choice in self.choices))

    @property
    def n_bytes(self) -> int:
        """Memory that it takes."""
        self._weigh()
        n_bytes = bytes_of(len(self.choices), len(self.ends), self.n_entries)
        return n_bytes + len(self.reasoned) * self.reasoned.itemsize + self._content_bytes

    def _weigh(self) -> None:
        """Count what has come since the last time."""
        begin, moments = self._n_weighed, self.timeline[self._n_moments_weighed :]
        self._content_bytes += weight_of(self.texts[begin:], self.logprobs[begin:], moments)
        self._n_weighed, self._n_moments_weighed = len(self.texts), len(self.timeline)

    def usage(self, n_entries: int | None = None) -> Usage:
        """Tokens so far, or up to a place."""
        if self.told is not None and (n_entries is None or n_entries == self.n_entries):
            return self.told
        n_output = self.n_tokens if n_entries is None else self.tokens_at(n_entries)
        n_reasoned = len(self.reasoned) if n_entries is None else bisect_left(self.reasoned, n_entries)
        drafted = drafts_of(self.choices) if n_entries in (None, self.n_entries) else (0, 0)
        return Usage(self.n_prompt, n_output, sum(choice.n_cached for choice in self.choices), n_reasoned, *drafted)

    def note(self, what: str, choice: int | None = None, **detail: Any) -> None:
        """Put something on the timeline, as of now."""
        if choice is not None:
            self.choices[choice].chunks = None
        if len(self.timeline) < MOMENTS_MAX or what == "finished":
            self.timeline.append(Moment(what, time.perf_counter(), self.n_entries, choice, detail))

    def note_prefill(self, choice: int, prefill: Prefill) -> None:
        """A chunk of a prompt was computed. It goes to the moment of those before it when there are many."""
        told = self.choices[choice]
        told.n_chunks += 1
        self.prefill = None if self.n_entries else told.foreseen(prefill, self.n_prompt, time.perf_counter())
        if told.chunks is None or told.chunks.detail["chunks"] >= told.n_chunks // PREFILL_ALONE:
            detail = {"computed_tokens": prefill.n_tokens, "chunks": 1, "pass_us": prefill.pass_us}
            n_moments = len(self.timeline)
            self.note(PREFILL, choice, **detail, beside_tokens=prefill.n_beside, until_ms=0)
            if len(self.timeline) == n_moments:
                return
            told.chunks = self.timeline[-1]
            told.chunks.detail["until_ms"] = int((told.chunks.at_s - self.origin.arrived_s) * 1000)
            return
        detail = told.chunks.detail
        detail["computed_tokens"] += prefill.n_tokens
        detail["chunks"] += 1
        detail["pass_us"] += prefill.pass_us
        detail["beside_tokens"] += prefill.n_beside
        detail["until_ms"] = int((time.perf_counter() - self.origin.arrived_s) * 1000)

    def append(
        self,
        choice: int,
        text: str,
        logprobs: Sequence[Logprob],
        at_s: float,
        kind: EntryKind = EntryKind.TEXT,
        n_tokens: int = 1,
    ) -> None:
        """A piece of output has arrived. `n_tokens`: how many tokens have come with it; none when it is not their first."""
        if kind == _REASONING and n_tokens:
            self.reasoned.append(len(self.texts))
        self.owners.append(choice)
        self.kinds.append(kind)
        self.arrivals.append(at_s)
        self.texts.append(text)
        self.n_tokens += n_tokens
        self.counts.append(self.n_tokens)
        if n_tokens:
            told = self.choices[choice]
            told.last_s = at_s
            if told.first_s is None:
                told.first_s = at_s
        if self.wants_logprobs:
            self.logprobs.append(logprobs)
            if len(self.texts) - self._n_weighed >= WEIGHED_ENTRIES:  # not all of a long answer at its end
                self._weigh()

    def end_choice(self, end: End, outcome: str) -> None:
        choice = self.choices[end.choice]
        choice.finish_reason, choice.outcome = end.reason, outcome
        self.ends.append(end)
        self._content_bytes += weight_of([end.text], [end.logprobs])
        self.note("finished", end.choice, reason=end.reason, outcome=outcome)

    def start(self, work: Work) -> None:
        """`work` is being done for it from now on, perhaps in the place of another that gave it up."""
        assert self.stage in (Stage.NEW, Stage.STARTED), "something of it is there"
        self.work = work

    def open(self) -> None:
        """Every choice of it was taken."""
        assert self.stage is Stage.STARTED, "it is not there to be taken"
        self.is_open = True

    def end(self, failure: ApiError | None = None) -> None:
        """Nothing more will come: it has failed, or was stopped (`stopped_by`), or every choice has ended. Once."""
        assert self.ended_s is None, "it has ended"
        assert self.is_open or failure is not None or self.stopped_by is not None, "it was not taken"
        self.ended_s = time.perf_counter()
        self.failure, self.place, self.work = failure and failure.afresh(), None, None
        if failure is not None:
            self.note("finished", reason=failure.code, outcome=self.outcome)
        self._content_bytes += end_bytes(failure, self.notes, self.bill)
        on_end, self.on_end = self.on_end, None
        if on_end is not None:
            on_end(self)
        self.notify()

    def notify(self) -> None:
        for follower in self.followers:
            follower.notify()

    def leave(self, follower: Follower, *, stuck: bool = False) -> None:
        """Somebody no longer follows. The last one takes the request along, unless it was detached."""
        if follower in self.followers:
            self.followers.remove(follower)
        self.review(stuck=stuck)

    def review(self, *, stuck: bool = False) -> None:
        """Have the request held, or stopped, as its readers are; see `poise.gateway.records.following`."""
        if self.work is None:
            return
        lags = [follower.lag for follower in self.followers]
        follows = consequence(lags, goes_on=self.detached, stuck=stuck)
        if isinstance(follows, Stop):
            self.work.stop(follows)
        elif follows is not self.held:
            self.held = follows
            self.work.hold(follows)

    def answers(self) -> list[Answer]:
        """What every choice has come to so far, at once."""
        return at_once(self.gather())

    def gather(self) -> Generator[None, None, list[Answer]]:
        """The same in steps of a millisecond or so; returns the answers. A record that has not ended is cut where it is now."""
        answers = [Gathered() for _ in self.choices]
        logprobs: list[list[Logprob]] = [[] for _ in self.choices]
        n_entries, ends = self.n_entries, list(self.ends)
        for begin in range(0, n_entries, GATHERED_ENTRIES):
            for i in range(begin, min(begin + GATHERED_ENTRIES, n_entries)):
                owner = self.owners[i]
                answers[owner].add(self.texts[i], self.kinds[i])
                if self.wants_logprobs:
                    logprobs[owner] += self.logprobs[i]
            yield
        for end in ends:
            answers[end.choice].add(end.text)
            logprobs[end.choice] += end.logprobs
        reasons = [choice.finish_reason or "stop" for choice in self.choices]
        return [answers[i].answer(i, why, logprobs[i] if self.wants_logprobs else None) for i, why in enumerate(reasons)]

    def body(self, answers: Sequence[Answer]) -> Iterator[bytes]:
        """The response of a request that does not stream, in pieces that take a few milliseconds each."""
        writer = self.writer()
        if self.downgraded:
            writer.downgrade()
        return writer.body(answers)

    def writer(self) -> Writer:
        """For one more reader."""
        assert self._make_writer is not None, "it is read by nobody outside"
        return self._make_writer(self)


class Follower:
    """Somebody who waits for what a record brings. `leave` always, at the end."""

    def __init__(self, record: Record) -> None:
        self.record = record
        self.lag = 0
        """How far it is behind: 0, 1 (its request is held) or 2 (for long)."""
        self._wakeup = Wakeup()
        record.followers.append(self)
        record.review()  # one who is not behind is enough for it to go on

    def notify(self) -> None:
        """The record has changed."""
        self._wakeup.set()

    async def opened(self) -> None:
        """Wait until the engine has taken the request. Raises the ApiError with which it was refused."""
        while not (self.record.is_open or self.record.is_ended):
            await self._wakeup.wait()
        if not self.record.is_open and self.record.failure is not None:
            raise self.record.failure.afresh()

    async def ended(self) -> None:
        """Wait for the end. Raises the ApiError that it was."""
        while not self.record.is_ended:
            await self._wakeup.wait()
        if self.record.failure is not None:
            raise self.record.failure.afresh()

    def leave(self, *, stuck: bool = False) -> None:
        """Follow no longer. Any number of times."""
        self.record.leave(self, stuck=stuck)
