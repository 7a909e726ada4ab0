"""What a request was doing, and when: spans of states, slots held and prompt chunks computed, from the timeline of its record;
and of one that has ended its story, times and counts for metrics and traces.

Times are of the gateway's clock `time.perf_counter`; an event is known when the step that brought it has been heard of."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from poise.gateway.records.changes import MEANINGS
from poise.gateway.records.moments import PREFILL, ChoiceRecord, Moment
from poise.gateway.records.record import CANCELLED, Record
from poise.gateway.text.answers import EntryKind
from poise.metrics.story import ChoiceStory, Happened, RequestStory
from poise.metrics.tenants import OTHER
from poise.scheduler.request import RequestClass
from poise.wire.changes import ChangeKind

QUEUED, DECODE = "queued", "decode"
"""States of a choice that nothing keeps, as PREFILL is; the others are those of the changes that stop it."""


class Span(NamedTuple):
    """A choice was in one state. `pool`: the one that it held a slot of; "": none.

    A named tuple, as Computed is: an explanation looks at thousands."""

    choice: int
    state: str
    begin_s: float
    end_s: float
    pool: str


class Computed(NamedTuple):
    """Chunks of a prompt that were computed between two moments, in passes of `pass_s` together. `n_beside`: tokens of others
    in those passes."""

    choice: int
    begin_s: float
    end_s: float
    n_tokens: int
    n_chunks: int
    pass_s: float
    n_beside: int


@dataclass(slots=True)
class _Open:
    """The span of a choice that has not ended yet."""

    state: str
    begin_s: float
    runs_as: str = QUEUED
    """What it is when nothing keeps it."""
    slot_of: str = ""
    pool: str = ""

    def turn(self, moment: Moment) -> None:
        """The state that a moment leads to."""
        match moment.what:
            case "started":
                self.slot_of = self.pool = moment.detail["pool"]
                self.state = self.runs_as = PREFILL
            case "first_token":
                self.state = self.runs_as = DECODE
            case what if (meaning := MEANINGS[what]).stops:
                self.state = meaning.span
                if not meaning.keeps_slot:
                    self.pool = ""
            case _:
                self.state, self.pool = self.runs_as, self.slot_of


_TURNS = ("started", "first_token", *MEANINGS)


def spans_of(record: Record, now_s: float) -> list[Span]:
    """The states of all choices since the engine had them, in the order in which they ended; those that last end now."""
    spans: list[Span] = []
    open_: dict[int, _Open] = {}

    def close(choice: int, at_s: float) -> None:
        was = open_[choice]
        if at_s > was.begin_s:
            spans.append(Span(choice, was.state, was.begin_s, at_s, was.pool))
        was.begin_s = at_s

    for moment in record.timeline:
        choice = moment.choice
        if moment.what == "queued" and choice is not None:
            open_[choice] = _Open(QUEUED, moment.at_s)
        elif moment.what == "finished":
            for ended in [choice] if choice is not None else list(open_):
                if ended in open_:
                    close(ended, moment.at_s)
                    del open_[ended]
        elif choice in open_ and moment.what in _TURNS:
            assert choice is not None
            close(choice, moment.at_s)
            open_[choice].turn(moment)
    for choice in list(open_):
        close(choice, now_s if record.ended_s is None else record.ended_s)
    return spans


def computed_of(record: Record) -> list[Computed]:
    """The prompt chunks of all choices."""
    return [
        Computed(
            moment.choice if moment.choice is not None else 0,
            # The first chunk's pass began before the moment at which it was heard of.
            moment.at_s - moment.detail["pass_us"] / moment.detail["chunks"] / 1e6,
            max(moment.at_s, record.origin.arrived_s + moment.detail["until_ms"] / 1000),
            moment.detail["computed_tokens"],
            moment.detail["chunks"],
            moment.detail["pass_us"] / 1e6,
            moment.detail["beside_tokens"],
        )
        for moment in record.timeline
        if moment.what == PREFILL
    ]


def class_at(record: Record, at_s: float) -> str:
    """The class of a request at a moment: a downgrade changes it."""
    times_s = (m.at_s for m in record.timeline if m.what == ChangeKind.DOWNGRADE)
    downgraded = record.downgraded and any(time_s <= at_s for time_s in times_s)
    return (RequestClass.BACKGROUND if downgraded else record.origin.request_class).value


def overlap_s(begin_s: float, end_s: float, other_begin_s: float, other_end_s: float) -> float:
    """For how long two spans of time are one."""
    return max(0.0, min(end_s, other_end_s) - max(begin_s, other_begin_s))


def covered_s(spans: Iterable[tuple[float, float]], at_least: int, begin_s: float, end_s: float) -> float:
    """For how long, between two moments, `at_least` so many of the spans were open at once."""
    edges: list[tuple[float, int]] = []
    for span_begin_s, span_end_s in spans:
        first_s, last_s = max(begin_s, span_begin_s), min(end_s, span_end_s)
        if first_s < last_s:
            edges += [(first_s, 1), (last_s, -1)]
    edges.sort()
    n_open, total_s, since_s = 0, 0.0, 0.0
    for at_s, step in edges:
        if n_open >= at_least:
            total_s += at_s - since_s
        n_open, since_s = n_open + step, at_s
    return total_s


def percentile(ordered: Sequence[float], share: float) -> float:
    """Of ascending values, the one that this share of them does not exceed."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def story_of(record: Record) -> RequestStory:
    """The story of a record to which nothing is added any more."""
    origin = record.origin
    return RequestStory(
        request_id=origin.request_id,
        response_id=record.response_id,
        tenant=OTHER if record.erased else origin.tenant,
        request_class=origin.request_class.value,
        operation=origin.operation,
        traceparent=origin.traceparent,
        arrived_s=origin.arrived_s,
        n_prompt=record.n_prompt,
        choices=[_choice(record, choice) for choice in record.choices],
        # A span holds a limited number of events, the last ones: a long prompt's chunks would push the others out.
        timeline=[Happened(m.what, m.at_s, m.choice, m.detail) for m in record.timeline if m.what != PREFILL],
    )


def calls_of(record: Record, choice: int | None = None) -> int:
    """Calls of functions so far, in all choices or in one."""
    n = record.kinds.count(EntryKind.CALL_NAME)
    if not n or choice is None:
        return n
    return sum(kind == EntryKind.CALL_NAME for owner, kind in zip(record.owners, record.kinds, strict=True) if owner == choice)


def _choice(record: Record, choice: ChoiceRecord) -> ChoiceStory:
    own = [moment for moment in record.timeline if moment.choice == choice.index]
    started = next((moment for moment in own if moment.what == "started"), None)
    ended_s = next((moment.at_s for moment in own if moment.what == "finished"), record.timeline[-1].at_s)
    return ChoiceStory(
        outcome=choice.outcome or CANCELLED,
        n_output=choice.n_output,
        n_cached=choice.n_cached,
        wait_s=started.detail["wait_ms"] / 1000 if started is not None else None,
        first_s=choice.first_s,
        last_s=choice.last_s,
        ended_s=ended_s,
        n_calls=calls_of(record, choice.index),
    )
