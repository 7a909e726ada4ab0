"""Who else was on the server in some span of time, from the records that are kept: how many, of which class, what they held and
computed.

Of other tenants' requests there are numbers only; ids are for those who may see them."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from poise.gateway.records.moments import PREFILL
from poise.gateway.records.record import Record
from poise.gateway.records.spans import DECODE, Computed, Span, class_at, computed_of, covered_s, overlap_s, spans_of

NEIGHBOURS_MAX = 300
"""Records that are looked at for one explanation, those that arrived last. The gateway has streams to serve meanwhile."""
IDS_MAX = 20


@dataclass(slots=True)
class Group:
    """Requests of one class, of the same tenant or of others."""

    request_class: str
    own: bool
    n_requests: int = 0
    n_slots: int = 0
    """Slots that they held when the time began."""
    n_held: int = 0
    """Requests that held a slot at any moment of that time."""
    n_prompt: int = 0
    """Prompt tokens that were computed for them in that time."""
    n_output: int = 0
    ids: list[str] = field(default_factory=list)
    """Of those that may be named."""
    holders: list[str] = field(default_factory=list)
    """The same, of those that held slots when the time began."""


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """How many slots there are for one request. None: not known, or no such limit."""

    pool: str = ""
    slots: int | None = None
    class_slots: int | None = None
    tenant_running: int | None = None


@dataclass(slots=True)
class Company:
    """The others in a span of time, and for how long it was full for one request."""

    request_class: str
    """Of the one that is explained, when the time began."""
    groups: list[Group]
    slots_full_s: float
    class_full_s: float
    tenant_full_s: float
    is_exact: bool = True
    """False: of prompt chunks that are kept as one, a part was taken."""

    @property
    def n_slots(self) -> int:
        return sum(group.n_slots for group in self.groups)

    @property
    def n_prompt(self) -> int:
        return sum(group.n_prompt for group in self.groups)

    @property
    def n_output(self) -> int:
        return sum(group.n_output for group in self.groups)


@dataclass(frozen=True, slots=True)
class Beside:
    """A prompt chunk of another request, or one that started: when and whose."""

    at_s: float
    request_class: str
    own: bool
    response_id: str
    """Empty if it may not be named."""
    computed: Computed | None = None


@dataclass(frozen=True, slots=True)
class _Other:
    record: Record
    spans: Sequence[Span]
    chunks: Sequence[Computed]


class Neighbours:
    """The other requests, as one request sees them. `sees(record)`: whether its id may be named."""

    def __init__(self, subject: Record, records: Iterable[Record], sees: Callable[[Record], bool], now_s: float) -> None:
        """`records`: the last to arrive first."""
        self._subject, self._sees, self._now_s = subject, sees, now_s
        begin_s, end_s = subject.origin.arrived_s, subject.ended_s if subject.ended_s is not None else now_s
        others = [record for record in records if record is not subject and self._is_there(record, begin_s, end_s)]
        self.n_left_out = max(0, len(others) - NEIGHBOURS_MAX)
        self._others = [_Other(each, spans_of(each, now_s), computed_of(each)) for each in others[:NEIGHBOURS_MAX]]

    def company(self, begin_s: float, end_s: float, limits: SlotLimits) -> Company:
        """What they held and computed between two moments."""
        groups: dict[tuple[str, bool], Group] = {}
        in_pool: list[tuple[float, float]] = []
        in_class: list[tuple[float, float]] = []
        of_tenant: list[tuple[float, float]] = []
        request_class, all_exact = class_at(self._subject, begin_s), True
        for other in self._between(begin_s, end_s):
            record, spans = other.record, other.spans
            its_class, own = class_at(record, begin_s), self._is_own(record)
            held = [s for s in spans if s.pool and limits.pool in ("", s.pool)]
            in_pool += [(s.begin_s, s.end_s) for s in held]
            if its_class == request_class:
                in_class += [(s.begin_s, s.end_s) for s in held]
            if own:
                of_tenant += [(s.begin_s, s.end_s) for s in spans if s.pool and s.state in (PREFILL, DECODE)]
            n_slots = sum(s.begin_s <= begin_s < s.end_s for s in held)
            n_held = any(s.begin_s < end_s and s.end_s > begin_s for s in held)
            n_prompt, n_output, is_exact = _computed(other, begin_s, end_s)
            all_exact = all_exact and is_exact
            if not (n_held or n_prompt or n_output):
                continue
            group = groups.setdefault((its_class, own), Group(its_class, own))
            group.n_requests += 1
            group.n_slots += n_slots
            group.n_held += n_held
            group.n_prompt += n_prompt
            group.n_output += n_output
            if self._sees(record) and len(group.ids) < IDS_MAX:
                group.ids.append(record.response_id)
                group.holders += [record.response_id] * (n_slots > 0)
        return Company(
            request_class,
            sorted(groups.values(), key=lambda g: (-g.n_slots, -g.n_requests, g.request_class, g.own)),
            _full_s(in_pool, limits.slots, begin_s, end_s),
            _full_s(in_class, limits.class_slots, begin_s, end_s),
            _full_s(of_tenant, limits.tenant_running, begin_s, end_s),
            all_exact,
        )

    def largest_chunk(self, begin_s: float, end_s: float) -> Beside | None:
        """Of others' prompts, the chunk with the longest pass that was computed between two moments, as far as each is known."""
        chunks = [
            (computed, other.record)
            for other in self._between(begin_s, end_s)
            for computed in other.chunks
            if computed.begin_s < end_s and computed.end_s > begin_s
        ]
        if not chunks:
            return None
        computed, record = max(chunks, key=lambda found: found[0].pass_s / found[0].n_chunks)
        return self._beside(record, computed.begin_s, computed)

    def started(self, at_s: float, pool: str, within_s: float) -> list[Beside]:
        """Those that got a slot of a pool at about that moment."""
        found = []
        for other in self._others:
            gained = [s.begin_s for s in other.spans if s.pool == pool and abs(s.begin_s - at_s) <= within_s]
            before = [s for s in other.spans if s.pool == pool and any(s.end_s == begin_s for begin_s in gained)]
            if gained and not before:
                found.append(self._beside(other.record, gained[0]))
        return found

    def _is_there(self, record: Record, begin_s: float, end_s: float) -> bool:
        ended_s = record.ended_s if record.ended_s is not None else self._now_s
        return record.origin.arrived_s < end_s and ended_s > begin_s

    def _between(self, begin_s: float, end_s: float) -> Iterator[_Other]:
        return (other for other in self._others if self._is_there(other.record, begin_s, end_s))

    def _is_own(self, record: Record) -> bool:
        return record.origin.tenant == self._subject.origin.tenant

    def _beside(self, record: Record, at_s: float, computed: Computed | None = None) -> Beside:
        name = record.response_id if self._sees(record) else ""
        return Beside(at_s, class_at(record, at_s), self._is_own(record), name, computed)


def _full_s(spans: list[tuple[float, float]], limit: int | None, begin_s: float, end_s: float) -> float:
    return covered_s(spans, limit, begin_s, end_s) if limit else 0.0


def _computed(other: _Other, begin_s: float, end_s: float) -> tuple[int, int, bool]:
    """Prompt and output tokens that a request got between two moments, and whether that is exact: of chunks that are kept as one,
    it is the part in that time."""
    record, n_prompt, is_exact = other.record, 0.0, True
    for computed in other.chunks:
        whole_s = computed.end_s - computed.begin_s
        if computed.n_chunks == 1 or whole_s <= 0:
            n_prompt += computed.n_tokens if begin_s < computed.end_s <= end_s else 0
        else:
            inside_s = overlap_s(begin_s, end_s, computed.begin_s, computed.end_s)
            n_prompt += computed.n_tokens * inside_s / whole_s
            is_exact = is_exact and inside_s in (0.0, whole_s)
    first, last = bisect_left(record.arrivals, begin_s), bisect_right(record.arrivals, end_s)
    return round(n_prompt), record.tokens_at(last) - record.tokens_at(first), is_exact
