"""What made one request take as long as it did: its own record held against the others that were there and against the samples of
the server. Facts and numbers only; `words` says them.

Nothing is guessed: what is not kept any more is missing, and `Facts` says that it is."""

from collections.abc import Callable
from dataclasses import dataclass, field

from poise.gateway.explain.neighbours import Beside, Company, Neighbours, SlotLimits
from poise.gateway.records.changes import GOES_ON, STOPS, KeptBy
from poise.gateway.records.moments import PREFILL, Moment
from poise.gateway.records.record import Record
from poise.gateway.records.spans import DECODE, QUEUED, computed_of, overlap_s, percentile, spans_of
from poise.wire.changes import ChangeKind

TOGETHER_S = 0.05
"""What happened within this time of each other may have happened in one step."""
AWAYS_MAX = 100
_KEPT = (KeptBy.OPERATOR, KeptBy.READER)
"""Who keeps a choice until they let it go on, and may have it lose its slot by that."""


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
    limits: Callable[[str], SlotLimits]
    """By pool."""
    weather: Callable[[float, float], Weather]
    forgotten_s: float | None
    """The last end of a record that is no longer kept."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """A part of the request's time, and the other requests in it."""

    begin_s: float
    end_s: float
    company: Company

    @property
    def took_s(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True)
class Wait(Stretch):
    """The time in the queue, until the first choice that started had its slot."""

    is_over: bool
    position: int
    eta_s: float
    paused_s: float
    """For how long of it an operator or its reader kept it."""
    limits: SlotLimits
    weather: Weather


@dataclass(frozen=True, slots=True)
class PrefillStretch(Stretch):
    """The time from the slot to the first token."""

    is_over: bool
    n_cached: int
    n_computed: int
    n_chunks: int
    pass_s: float
    n_beside: int
    away_s: float

    @property
    def per_s(self) -> float | None:
        """Tokens a second, while nothing kept it."""
        there_s = self.took_s - self.away_s
        return self.n_computed / there_s if self.n_computed and there_s > 0 else None


@dataclass(frozen=True, slots=True)
class Gap(Stretch):
    """The longest time between two tokens of a choice."""

    choice: int
    n_before: int
    """Tokens that the choice had given by then."""
    away: dict[str, float]
    """Seconds that the choice spent in other states than decoding."""
    n_again: int
    """Tokens of its own that were computed again."""
    chunk: Beside | None
    """The largest prompt chunk of another request."""
    weather: Weather


@dataclass(frozen=True, slots=True)
class Decode:
    """Time between tokens of one choice, in seconds."""

    n_gaps: int
    p50_s: float
    p99_s: float
    gap: Gap


@dataclass(frozen=True, slots=True)
class Away:
    """A choice stopped. `what`: a ChangeKind."""

    what: str
    choice: int
    begin_s: float
    end_s: float | None
    """When it went on; None: it did not."""
    kept_by: KeptBy
    why: str
    """Of a slot that was lost: a PreemptionReason of the scheduler."""
    started: list[Beside]
    """Who got a slot of that pool at that moment."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of why a request took as long as it did."""

    record: Record
    end_s: float
    """Its own end, or now."""
    summary_turns: int | None
    before_s: float | None
    """From its arrival to the queue."""
    wait: Wait | None
    prefill: PrefillStretch | None
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

    @property
    def arrived_s(self) -> float:
        return self.record.origin.arrived_s

    @property
    def lived_s(self) -> float:
        return self.end_s - self.arrived_s

    @property
    def share(self) -> float | None:
        """Of the engine's time, while it lived."""
        return self.served_s / self.lived_s if self.served_s is not None and self.lived_s > 0 else None


def facts_of(record: Record, around: Surroundings, now_s: float) -> Facts:
    """Gather the facts of a record as they are known now."""
    life, timeline, arrived_s = _Life(record, around, now_s), record.timeline, record.origin.arrived_s
    first, summary = life.moment("first_token"), life.moment("summarizing")
    recomputed = [int(m.detail["why"]) for m in timeline if m.what == ChangeKind.RECOVER and m.detail.get("why")]
    is_charged = record.is_ended and record.served_us and life.moment(ChangeKind.LOST) is None
    return Facts(
        record=record,
        end_s=life.end_s,
        summary_turns=summary.detail["turns"] if summary is not None else None,
        before_s=life.queued.at_s - arrived_s if life.queued is not None else None,
        wait=life.wait(life.queued) if life.queued is not None else None,
        prefill=life.prefill(life.started, first) if life.started is not None else None,
        ttft_s=first.at_s - arrived_s if first is not None else None,
        decode=life.decode(),
        aways=_aways(record, around.neighbours),
        downgrades=[m.detail.get("why", "") for m in timeline if m.what == ChangeKind.DOWNGRADE],
        n_recomputed=sum(recomputed) + sum(choice.n_recomputed for choice in record.choices),
        served_s=record.served_us / 1e6 if is_charged else None,
        n_left_out=around.neighbours.n_left_out,
        others_missing=around.forgotten_s is not None and around.forgotten_s > arrived_s,
    )


class _Life:
    """A record, taken apart once. Queue, slot and prompt are those of the choice that started first."""

    def __init__(self, record: Record, around: Surroundings, now_s: float) -> None:
        self._record = record
        self._around = around
        self._spans = spans_of(record, now_s)
        self._chunks = computed_of(record)
        self.end_s = now_s if record.ended_s is None else record.ended_s
        self.started = self.moment("started")
        self._choice = self.started.choice if self.started is not None else 0
        self.queued = self.moment("queued", self._choice)
        self._begun_s = self._begins(self.started) if self.started is not None else self.end_s

    def moment(self, what: str, choice: int | None = None) -> Moment | None:
        """The first of that kind, of a choice or of any."""
        return next((m for m in self._record.timeline if m.what == what and choice in (None, m.choice)), None)

    def _begins(self, started: Moment) -> float:
        """When a choice had its slot. The message of its start comes with its first chunk, after the pass that computed that."""
        first = next((c for c in self._chunks if c.choice == started.choice), None)
        if first is None or first.begin_s > started.at_s:
            return started.at_s
        return max(first.begin_s, self.queued.at_s) if self.queued is not None else first.begin_s

    def _spent_s(self, choice: int | None, begin_s: float, end_s: float) -> dict[str, float]:
        """Seconds of that time in each state, in the order in which they ended."""
        spent: dict[str, float] = {}
        for span in self._spans:
            inside_s = overlap_s(begin_s, end_s, span.begin_s, span.end_s) if span.choice == choice else 0.0
            if inside_s > 0:
                spent[span.state] = spent.get(span.state, 0.0) + inside_s
        return spent

    def wait(self, queued: Moment) -> Wait:
        begin_s, end_s, around = queued.at_s, self._begun_s, self._around
        limits = around.limits(self.started.detail["pool"] if self.started is not None else "")
        spent = self._spent_s(queued.choice, begin_s, end_s)
        return Wait(
            begin_s,
            end_s,
            around.neighbours.company(begin_s, end_s, limits),
            is_over=self.started is not None,
            position=queued.detail["position"],
            eta_s=queued.detail["eta_ms"] / 1000,
            paused_s=sum(spent.get(stop.span, 0.0) for stop in STOPS.values() if stop.kept_by in _KEPT),
            limits=limits,
            weather=around.weather(begin_s, end_s),
        )

    def prefill(self, started: Moment, first: Moment | None) -> PrefillStretch:
        begin_s, around = self._begun_s, self._around
        end_s = max(begin_s, first.at_s if first is not None else self.end_s)
        chunks = [c for c in self._chunks if c.choice == started.choice and c.begin_s < end_s]
        spent = self._spent_s(started.choice, begin_s, end_s)
        return PrefillStretch(
            begin_s,
            end_s,
            around.neighbours.company(begin_s, end_s, around.limits(started.detail["pool"])),
            is_over=first is not None,
            n_cached=started.detail["cached_tokens"],
            n_computed=sum(c.n_tokens for c in chunks),
            n_chunks=sum(c.n_chunks for c in chunks),
            pass_s=sum(c.pass_s for c in chunks),
            n_beside=sum(c.n_beside for c in chunks),
            away_s=sum(spent_s for state, spent_s in spent.items() if state not in (QUEUED, PREFILL)),
        )

    def decode(self) -> Decode | None:
        """None before any choice has two tokens."""
        last: dict[int, tuple[float, int]] = {}
        gaps: list[tuple[float, float, float, int, int]] = []
        record, n_all = self._record, 0
        for owner, at_s, n_so_far in zip(record.owners, record.arrivals, record.counts, strict=True):
            n_tokens, n_all = n_so_far - n_all, n_so_far
            if not n_tokens:
                continue
            before_s, n_before = last.get(owner, (0.0, 0))
            if n_before:
                gaps.append((at_s - before_s, before_s, at_s, owner, n_before))
            last[owner] = at_s, n_before + n_tokens
        if not gaps:
            return None
        ordered = sorted(gap[0] for gap in gaps)
        return Decode(len(gaps), percentile(ordered, 0.5), percentile(ordered, 0.99), self._gap(*max(gaps)[1:]))

    def _gap(self, begin_s: float, end_s: float, choice: int, n_before: int) -> Gap:
        neighbours, spent = self._around.neighbours, self._spent_s(choice, begin_s, end_s)
        return Gap(
            begin_s,
            end_s,
            neighbours.company(begin_s, end_s, SlotLimits()),
            choice=choice,
            n_before=n_before,
            away={state: spent_s for state, spent_s in spent.items() if state not in (PREFILL, DECODE)},
            n_again=sum(c.n_tokens for c in self._chunks if c.choice == choice and begin_s < c.end_s <= end_s),
            chunk=neighbours.largest_chunk(begin_s, end_s),
            weather=self._around.weather(begin_s, end_s),
        )


def _aways(record: Record, neighbours: Neighbours) -> list[Away]:
    """Every time that a choice stopped, the first AWAYS_MAX of them."""
    pools: dict[int | None, str] = {}
    held: dict[int | None, KeptBy] = {}
    found: list[Away] = []
    for i, moment in enumerate(record.timeline):
        what, choice = moment.what, moment.choice
        if what == "started":
            pools[choice] = moment.detail["pool"]
        elif what in GOES_ON:
            held.pop(choice, None)
        if what not in STOPS or len(found) == AWAYS_MAX:
            continue
        kept_by = STOPS[what].kept_by
        if kept_by is KeptBy.SCHEDULER:
            kept_by = held.get(choice, kept_by)
        if kept_by in _KEPT:
            held[choice] = kept_by
        goes_on = (*GOES_ON, "started")
        end = next((m for m in record.timeline[i + 1 :] if m.choice == choice and m.what in goes_on), None)
        gives_up_slot = STOPS[what].gives_up_slot
        started: list[Beside] = []
        if gives_up_slot and kept_by is KeptBy.SCHEDULER:
            started = neighbours.started(moment.at_s, pools.get(choice, ""), TOGETHER_S)
        why = moment.detail.get("why", "") if gives_up_slot else ""
        end_s = end.at_s if end is not None else None
        found.append(Away(what, choice or 0, moment.at_s, end_s, kept_by, why, started))
    return found
