"""What made one request take as long as it did: its own record held against the others that were there and against the samples of
the server. Facts and numbers only, most of them as they are sent; `words` says them.

Nothing is guessed: what is not kept any more is missing, and `Facts` says that it is."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from poise.gateway.explain.neighbours import Beside, Company, Neighbours, SlotLimits
from poise.gateway.records.changes import GOES_ON, STOPS, KeptBy
from poise.gateway.records.moments import PREFILL, ChoiceState, Moment
from poise.gateway.records.record import Record
from poise.gateway.records.spans import DECODE, QUEUED, calls_of, computed_of, overlap_s, percentile, spans_of
from poise.gateway.records.values import Bill, one_of
from poise.scheduler.request import PreemptionReason
from poise.wire.changes import ChangeKind

TOGETHER_S = 0.05
"""What happened within this time of each other may have happened in one step."""
STOPS_MAX = 100
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
    watts: float | None = None
    """Mean power while something is computed."""


class OtherRequests(msgspec.Struct, frozen=True, rename={"class_": "class"}):
    """Requests of one class, of the same tenant or of others, in a span of time."""

    class_: str
    same_tenant: bool
    requests: int
    slots: int
    prompt_tokens: int
    output_tokens: int
    ids: list[str]


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    position: int
    estimate_ms: int
    waited_ms: int
    over: bool
    held_back_ms: int
    pool: str | None
    slots: int | None
    slots_held: int
    slots_full_ms: int
    class_full_ms: int
    tenant_full_ms: int
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class PrefillFigures(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    computed_tokens: int
    chunks: int
    took_ms: int
    over: bool
    away_ms: int
    passes_ms: int
    beside_tokens: int
    tokens_per_s: float | None
    others: list[OtherRequests]


class GapFigures(msgspec.Struct, frozen=True, kw_only=True):
    took_ms: int
    ms: int
    choice: int
    after_tokens: int
    away_ms: dict[str, int]
    recomputed_tokens: int
    largest_chunk_tokens: int | None
    largest_chunk_pass_ms: int | None
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class DecodeFigures(msgspec.Struct, frozen=True, kw_only=True):
    gaps: int
    itl_p50_ms: float
    itl_p99_ms: float
    longest_gap: GapFigures


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    what: Annotated[str, one_of(*STOPS)]
    choice: int
    ms: int
    for_ms: int | None
    kept_by: Annotated[str, one_of(*KeptBy)]
    why: Annotated[str, one_of(*PreemptionReason)] | None


class ExplanationFigures(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    class_: str
    state: ChoiceState
    outcome: str | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tool_calls: int
    recomputed_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    lived_ms: int
    ttft_ms: int | None
    queue: QueueFigures | None
    prefill: PrefillFigures | None
    decode: DecodeFigures | None
    stops: list[Stop]
    engine_ms: int | None
    engine_share: float | None
    joules_estimate: float | None = None
    others_missing: bool
    others_left_out: int
    bill: Bill | UnsetType = UNSET
    """Where another server answered."""


@dataclass(frozen=True, slots=True)
class Around:
    """What there was beside a request in a span of its time."""

    company: Company
    limits: SlotLimits
    weather: Weather = Weather()
    chunk: Beside | None = None
    """The largest prompt chunk of another request."""

    def others(self) -> list[OtherRequests]:
        groups = self.company.groups
        return [OtherRequests(g.request_class, g.own, g.n_requests, g.n_slots, g.n_prompt, g.n_output, g.ids) for g in groups]

    def figures(self) -> dict[str, Any]:
        """The fields of a span of time that samples say something of."""
        limited = {name: round(part, 4) for name, part in self.weather.limited.items()}
        return {"limited": limited, "levels": list(self.weather.levels), "others": self.others()}


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that is known of why a request took as long as it did: the figures that are sent, and what is beside them."""

    record: Record
    figures: ExplanationFigures
    queue: Around | None
    """While it waited for the slot of the choice that started first; while that computed its prompt; in the longest gap."""
    prefill: Around | None
    gap: Around | None
    started: list[list[Beside]]
    """For each stop, who got a slot of that pool at that moment."""
    summary_turns: int | None
    before_ms: int | None
    """From its arrival to the queue."""
    downgrades: list[str]


def facts_of(record: Record, around: Surroundings, now_s: float) -> Facts:
    """Gather the facts of a record as they are known now."""
    life, timeline, usage = _Life(record, around, now_s), record.timeline, record.usage()
    first, summary, queued = life.moment("first_token"), life.moment("summarizing"), life.queued
    recomputed = [int(m.detail["why"]) for m in timeline if m.what == ChangeKind.RECOVER and m.detail.get("why")]
    is_charged = record.is_ended and record.served_us and life.moment(ChangeKind.LOST) is None
    lived_s, served_s = life.end_s - record.origin.arrived_s, record.served_us / 1e6
    queue, in_queue = life.wait(queued) if queued is not None else (None, None)
    prefill, in_prefill = life.prefill(life.started, first) if life.started is not None else (None, None)
    decode, in_gap = life.decode() or (None, None)
    stops = _stops(record, around.neighbours)
    figures = ExplanationFigures(
        class_=record.origin.request_class.value,
        state=record.state,
        outcome=record.outcome,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        tool_calls=calls_of(record),
        recomputed_tokens=sum(recomputed) + sum(choice.n_recomputed for choice in record.choices),
        drafted_tokens=usage.accepted_tokens + usage.rejected_tokens,
        accepted_tokens=usage.accepted_tokens,
        lived_ms=_ms(lived_s),
        ttft_ms=life.since_arrival_ms(first.at_s) if first is not None else None,
        queue=queue,
        prefill=prefill,
        decode=decode,
        stops=[stop for stop, _ in stops],
        engine_ms=_ms(served_s) if is_charged else None,
        engine_share=round(served_s / lived_s, 4) if is_charged and lived_s > 0 else None,
        joules_estimate=round(around.watts * served_s, 3) if is_charged and around.watts is not None else None,
        others_missing=around.forgotten_s is not None and around.forgotten_s > record.origin.arrived_s,
        others_left_out=around.neighbours.n_left_out,
        bill=record.bill or UNSET,
    )
    return Facts(
        record,
        figures,
        in_queue,
        in_prefill,
        in_gap,
        [started for _, started in stops],
        summary_turns=summary.detail["turns"] if summary is not None else None,
        before_ms=life.since_arrival_ms(queued.at_s) if queued is not None else None,
        downgrades=[m.detail.get("why", "") for m in timeline if m.what == ChangeKind.DOWNGRADE],
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

    def since_arrival_ms(self, at_s: float) -> int:
        return _ms(at_s - self._record.origin.arrived_s)

    def wait(self, queued: Moment) -> tuple[QueueFigures, Around]:
        begin_s, end_s = queued.at_s, self._begun_s
        limits = self._around.limits(self.started.detail["pool"] if self.started is not None else "")
        spent, around = self._spent_s(queued.choice, begin_s, end_s), self._beside(begin_s, end_s, limits)
        company = around.company
        figures = QueueFigures(
            position=queued.detail["position"],
            estimate_ms=queued.detail["eta_ms"],
            waited_ms=_ms(end_s - begin_s),
            over=self.started is not None,
            held_back_ms=_ms(sum(spent.get(stop.span, 0.0) for stop in STOPS.values() if stop.kept_by in _KEPT)),
            pool=limits.pool or None,
            slots=limits.slots,
            slots_held=company.n_slots,
            slots_full_ms=_ms(company.slots_full_s),
            class_full_ms=_ms(company.class_full_s),
            tenant_full_ms=_ms(company.tenant_full_s),
            **around.figures(),
        )
        return figures, around

    def prefill(self, started: Moment, first: Moment | None) -> tuple[PrefillFigures, Around]:
        begin_s = self._begun_s
        end_s = max(begin_s, first.at_s if first is not None else self.end_s)
        chunks = [c for c in self._chunks if c.choice == started.choice and c.begin_s < end_s]
        spent = self._spent_s(started.choice, begin_s, end_s)
        away_s = sum(spent_s for state, spent_s in spent.items() if state not in (QUEUED, PREFILL))
        there_s, n_computed = end_s - begin_s - away_s, sum(c.n_tokens for c in chunks)
        limits = self._around.limits(started.detail["pool"])
        around = Around(self._around.neighbours.company(begin_s, end_s, limits), limits)
        figures = PrefillFigures(
            cached_tokens=started.detail["cached_tokens"],
            computed_tokens=n_computed,
            chunks=sum(c.n_chunks for c in chunks),
            took_ms=_ms(end_s - begin_s),
            over=first is not None,
            away_ms=_ms(away_s),
            passes_ms=_ms(sum(c.pass_s for c in chunks)),
            beside_tokens=sum(c.n_beside for c in chunks),
            tokens_per_s=round(n_computed / there_s, 1) if n_computed and there_s > 0 else None,
            others=around.others(),
        )
        return figures, around

    def decode(self) -> tuple[DecodeFigures, Around] | None:
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
        p50_ms, p99_ms = (round(percentile(ordered, share) * 1000, 1) for share in (0.5, 0.99))
        longest, around = self._gap(*max(gaps)[1:])
        return DecodeFigures(gaps=len(gaps), itl_p50_ms=p50_ms, itl_p99_ms=p99_ms, longest_gap=longest), around

    def _gap(self, begin_s: float, end_s: float, choice: int, n_before: int) -> tuple[GapFigures, Around]:
        spent, around = self._spent_s(choice, begin_s, end_s), self._beside(begin_s, end_s, SlotLimits())
        largest = self._around.neighbours.largest_chunk(begin_s, end_s)
        chunk = largest.computed if largest is not None else None
        figures = GapFigures(
            took_ms=_ms(end_s - begin_s),
            ms=self.since_arrival_ms(begin_s),
            choice=choice,
            after_tokens=n_before,
            away_ms={state: _ms(spent_s) for state, spent_s in spent.items() if state not in (PREFILL, DECODE)},
            recomputed_tokens=sum(c.n_tokens for c in self._chunks if c.choice == choice and begin_s < c.end_s <= end_s),
            largest_chunk_tokens=round(chunk.n_tokens / chunk.n_chunks) if chunk is not None else None,
            largest_chunk_pass_ms=_ms(chunk.pass_s / chunk.n_chunks) if chunk is not None else None,
            **around.figures(),
        )
        return figures, replace(around, chunk=largest)

    def _beside(self, begin_s: float, end_s: float, limits: SlotLimits) -> Around:
        company = self._around.neighbours.company(begin_s, end_s, limits)
        return Around(company, limits, self._around.weather(begin_s, end_s))


def _stops(record: Record, neighbours: Neighbours) -> list[tuple[Stop, list[Beside]]]:
    """Every time that a choice stopped, the first STOPS_MAX of them, and who got a slot of its pool at that moment."""
    pools: dict[int | None, str] = {}
    held: dict[int | None, KeptBy] = {}
    found: list[tuple[Stop, list[Beside]]] = []
    for i, moment in enumerate(record.timeline):
        what, choice = moment.what, moment.choice
        if what == "started":
            pools[choice] = moment.detail["pool"]
        elif what in GOES_ON:
            held.pop(choice, None)
        if what not in STOPS or len(found) == STOPS_MAX:
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
        stop = Stop(
            what=what,
            choice=choice or 0,
            ms=_ms(moment.at_s - record.origin.arrived_s),
            for_ms=_ms(end.at_s - moment.at_s) if end is not None else None,
            kept_by=kept_by,
            why=moment.detail.get("why") if gives_up_slot else None,
        )
        found.append((stop, started))
    return found


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
