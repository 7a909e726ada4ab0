"""What made one request take as long as it did: its own record held against the others that were there and against the samples of
the server. Facts and numbers only; `explain_words` says them.

Nothing is guessed: what is not kept any more is missing, and `Facts` says that it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from poise.gateway.neighbours import Beside, Capacity, Company, Neighbours
from poise.gateway.record import PREFILL, Moment, Record
from poise.gateway.spans import DECODE, PAUSED, QUEUED, STALLED, Span, computed_of, overlap_s, percentile, spans_of

TOGETHER_S = 0.05
"""What happened within this time of each other may have happened in one step."""
AWAYS_MAX = 100


@dataclass(frozen=True, slots=True)
class Weather:
    """The server in a span of time, from its samples. Empty where none of that time is kept."""

    limited: dict[str, float] = field(default_factory=dict)
    """Share of the time in which each resource was the limit."""
    levels: tuple[str, ...] = ()
    """The levels it had, in order."""
    slowest: float = 0.0
    """In the slowest second, how many times as long as predicted the passes took."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known beside the record itself."""

    neighbours: Neighbours
    capacity: Callable[[str], Capacity]
    """By pool."""
    weather: Callable[[float, float], Weather]
    forgotten_s: float | None
    """The last end of a record that is no longer kept."""


@dataclass(frozen=True, slots=True)
class Wait:
    """In the queue, until the first choice that started had its slot."""

    begin_s: float
    end_s: float
    is_over: bool
    position: int
    eta_s: float
    paused_s: float
    """For how long of it an operator or its reader kept it."""
    capacity: Capacity
    company: Company
    weather: Weather

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Prefill:
    """From the slot to the first token."""

    begin_s: float
    end_s: float
    is_over: bool
    n_cached: int
    n_computed: int
    n_chunks: int
    pass_s: float
    n_beside: int
    away_s: float
    company: Company

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s

    @property
    def per_s(self) -> float | None:
        """Tokens a second, while nothing kept it."""
        there_s = self.took_s - self.away_s
        return self.n_computed / there_s if self.n_computed and there_s > 0 else None


@dataclass(frozen=True, slots=True)
class Gap:
    """The longest time between two tokens of a choice."""

    begin_s: float
    end_s: float
    choice: int
    n_before: int
    """Tokens that the choice had given by then."""
    away: dict[str, float]
    """Seconds that the choice spent in other states than decoding."""
    n_again: int
    """Tokens of its own that were computed again."""
    chunk: Beside | None
    """The largest prompt chunk of another request."""
    company: Company
    weather: Weather

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Decode:
    """Time between tokens of one choice, in seconds."""

    n_gaps: int
    p50_s: float
    p99_s: float
    gap: Gap


@dataclass(frozen=True, slots=True)
class Away:
    """A choice stopped. `kept_by`: "operator", "reader", "engine" (it was lost), or "" when its slot was given to others."""

    what: str
    choice: int
    begin_s: float
    end_s: float | None
    """When it went on; None: it did not."""
    kept_by: str
    why: str
    """Of a slot that was lost: a PreemptionReason of the scheduler."""
    started: list[Beside]
    """Who got a slot of that pool at that moment."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of why a request took as long as it did."""

    record: Record
    now_s: float
    summary_turns: int | None
    before_s: float | None
    """From its arrival to the queue."""
    wait: Wait | None
    prefill: Prefill | None
    ttft_s: float | None
    decode: Decode | None
    aways: list[Away]
    downgrades: list[str]
    n_recomputed: int
    served_s: float | None
    """Compute, when the engine has said it."""
    n_left_out: int
    """Other requests that were not looked at, there being too many."""
    others_missing: bool
    """Some of those that ran in its time are no longer kept."""
    timeline_cut: bool

    @property
    def arrived_s(self) -> float:
        return self.record.origin.arrived_s

    @property
    def lived_s(self) -> float:
        return (self.now_s if self.record.ended_s is None else self.record.ended_s) - self.arrived_s

    @property
    def share(self) -> float | None:
        """Of the engine's time, while it lived."""
        return self.served_s / self.lived_s if self.served_s is not None and self.lived_s > 0 else None


def facts_of(record: Record, around: Surroundings, now_s: float) -> Facts:
    """What is known now."""
    spans, timeline = spans_of(record, now_s), record.timeline
    choice = _foremost(record)
    queued = next((m for m in timeline if m.what == "queued" and m.choice == choice), None)
    started = next((m for m in timeline if m.what == "started" and m.choice == choice), None)
    begun_s = _begun_s(record, started) if started is not None else None
    first = next((m for m in timeline if m.what == "first_token"), None)
    summary = next((m for m in timeline if m.what == "summarizing"), None)
    end_s = now_s if record.ended_s is None else record.ended_s
    lost = any(m.what == "lost" for m in timeline)
    return Facts(
        record=record,
        now_s=now_s,
        summary_turns=summary.detail["turns"] if summary is not None else None,
        before_s=queued.at_s - record.origin.arrived_s if queued is not None else None,
        wait=_wait(record, queued, started, end_s if begun_s is None else begun_s, spans, around)
        if queued is not None
        else None,
        prefill=_prefill(record, started, begun_s, first, end_s, spans, around)
        if started is not None and begun_s is not None
        else None,
        ttft_s=first.at_s - record.origin.arrived_s if first is not None else None,
        decode=_decode(record, spans, around),
        aways=_aways(record, around.neighbours),
        downgrades=[m.detail.get("why", "") for m in timeline if m.what == "downgrade"],
        n_recomputed=sum(c.n_recomputed for c in record.choices)
        + sum(int(m.detail["why"]) for m in timeline if m.what == "recover" and m.detail.get("why")),
        served_s=record.served_us / 1e6 if record.ended_s is not None and record.served_us and not lost else None,
        n_left_out=around.neighbours.n_left_out,
        others_missing=around.forgotten_s is not None and around.forgotten_s > record.origin.arrived_s,
        timeline_cut=record.is_cut,
    )


def _foremost(record: Record) -> int:
    """The choice that started first."""
    return next((m.choice for m in record.timeline if m.what == "started" and m.choice is not None), 0)


def _begun_s(record: Record, started: Moment) -> float:
    """When a choice had its slot: its start is heard of after the pass with its first chunk, which comes with it."""
    first = next((c for c in computed_of(record) if c.choice == started.choice), None)
    if first is None or first.begin_s > started.at_s:
        return started.at_s
    queued_s = next(
        (m.at_s for m in record.timeline if m.what == "queued" and m.choice == started.choice), first.begin_s
    )
    return max(first.begin_s, queued_s)


def _wait(
    record: Record, queued: Moment, started: Moment | None, over_s: float, spans: list[Span], around: Surroundings
) -> Wait:
    begin_s = queued.at_s
    capacity = around.capacity(started.detail["pool"] if started is not None else "")
    own = [s for s in spans if s.choice == queued.choice and s.state in (PAUSED, STALLED)]
    return Wait(
        begin_s,
        over_s,
        started is not None,
        queued.detail["position"],
        queued.detail["eta_ms"] / 1000,
        sum(overlap_s(begin_s, over_s, s.begin_s, s.end_s) for s in own),
        capacity,
        around.neighbours.company(begin_s, over_s, capacity),
        around.weather(begin_s, over_s),
    )


def _prefill(
    record: Record,
    started: Moment,
    begin_s: float,
    first: Moment | None,
    end_s: float,
    spans: list[Span],
    around: Surroundings,
) -> Prefill:
    choice = started.choice
    over_s = max(begin_s, first.at_s if first is not None else end_s)
    chunks = [c for c in computed_of(record) if c.choice == choice and c.begin_s < over_s]
    away = [s for s in spans if s.choice == choice and s.state not in (QUEUED, PREFILL)]
    return Prefill(
        begin_s,
        over_s,
        first is not None,
        started.detail["cached_tokens"],
        sum(c.n_tokens for c in chunks),
        sum(c.n_chunks for c in chunks),
        sum(c.pass_s for c in chunks),
        sum(c.n_beside for c in chunks),
        sum(overlap_s(begin_s, over_s, s.begin_s, s.end_s) for s in away),
        around.neighbours.company(begin_s, over_s, around.capacity(started.detail["pool"])),
    )


def _decode(record: Record, spans: list[Span], around: Surroundings) -> Decode | None:
    """None before any choice has two tokens."""
    last: dict[int, tuple[float, int]] = {}
    gaps: list[tuple[float, float, float, int, int]] = []
    for owner, at_s in zip(record.owners, record.arrivals, strict=True):
        before_s, n_before = last.get(owner, (0.0, 0))
        if n_before:
            gaps.append((at_s - before_s, before_s, at_s, owner, n_before))
        last[owner] = at_s, n_before + 1
    if not gaps:
        return None
    _, begin_s, end_s, choice, n_before = max(gaps)
    ordered = sorted(gap[0] for gap in gaps)
    away: dict[str, float] = {}
    for span in spans:
        if span.choice == choice and span.state not in (PREFILL, DECODE):
            inside_s = overlap_s(begin_s, end_s, span.begin_s, span.end_s)
            if inside_s > 0:
                away[span.state] = away.get(span.state, 0.0) + inside_s
    again = [c for c in computed_of(record) if c.choice == choice and begin_s < c.end_s <= end_s]
    gap = Gap(
        begin_s,
        end_s,
        choice,
        n_before,
        away,
        sum(c.n_tokens for c in again),
        around.neighbours.largest_chunk(begin_s, end_s),
        around.neighbours.company(begin_s, end_s, Capacity()),
        around.weather(begin_s, end_s),
    )
    return Decode(len(gaps), percentile(ordered, 0.5), percentile(ordered, 0.99), gap)


_STOPS = {"pause": "operator", "stall": "reader", "lost": "engine", "swap": "", "drop": ""}


def _aways(record: Record, neighbours: Neighbours) -> list[Away]:
    """Every time that a choice stopped, the first AWAYS_MAX of them."""
    pools: dict[int | None, str] = {}
    held: dict[int | None, str] = {}
    found: list[Away] = []
    for i, moment in enumerate(record.timeline):
        what, choice = moment.what, moment.choice
        if what == "started":
            pools[choice] = moment.detail["pool"]
        elif what in ("resume", "recover"):
            held.pop(choice, None)
        if what not in _STOPS or len(found) == AWAYS_MAX:
            continue
        kept_by = _STOPS[what] or held.get(choice, "")
        if kept_by in ("operator", "reader"):
            held[choice] = kept_by
        goes_on = ("resume", "recover", "started")
        end = next((m for m in record.timeline[i + 1 :] if m.choice == choice and m.what in goes_on), None)
        taken = what in ("swap", "drop") and not kept_by
        started = neighbours.started(moment.at_s, pools.get(choice, ""), TOGETHER_S) if taken else []
        end_s = end.at_s if end is not None else None
        why = moment.detail.get("why", "") if what in ("swap", "drop") else ""
        found.append(Away(what, choice or 0, moment.at_s, end_s, kept_by, why, started))
    return found
