"""What an operator should look at now: a few named conditions, each said in a sentence with its numbers.

They are judged on what is passed in. Each one has an entry in docs/runbook.md. An alert is for whoever is not looking, and
waits for minutes; a finding is for whoever is, and comes within seconds.

1. hog: one tenant has most of the live requests or of the KV cells, beside others; or one request has most of the cells.
2. downgraded: a request went over what its class allows and goes on as background work.
3. memory_growing: memory that no book accounts for grows steadily.
4. disk_slow: the disk does not keep up with the audit log; audit_lost: entries of it were lost; audit_full: it has nearly all
   the bytes that it may have; clock_jumped: the clock is days ahead of it.
5. crash_loop: engines end again and again.
6. reader_stuck: nobody takes what a request's streams bring, so that it is held.
7. model_changed: another model file is there than the one that the server was started with.

A finding stays for `LINGER_S` after its condition, so that it does not flicker."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import msgspec

from poise.gateway.records.changes import RequestState
from poise.metrics.audit import Standing
from poise.wire.fingerprint import MODEL_CHANGED

LINGER_S = 5.0
AUDIT_FULL_SHARE = 0.9
NOTED_S = 60.0
"""For how long something that happened at a moment is worth a look."""
CRASHES, CRASHES_S = 2, 120.0
STUCK_S = 2.0
DISK_BUSY_S = 1.0
QUEUE_LONG = 100
HOG_SHARE, HOG_REQUESTS, HOG_CELLS = 0.6, 6, 1500
GROWTH_FAST_S, GROWTH_FAST_BYTES = 5.0, 40 << 20
GROWTH_SLOW_S, GROWTH_SLOW_BYTES = 300.0, 256 << 20
_MIB = 1 << 20
_CLOCK_JUMPED = "The clock is days ahead of the audit log's entries before: nothing of it is deleted by days for now"


@dataclass(frozen=True, slots=True)
class LiveFigures:
    """`n_tokens`: of its prompt and output so far. `held_for_s`: for how long all its readers have been behind."""

    response_id: str
    tenant: str
    state: str
    n_tokens: int
    held_for_s: float | None = None
    downgraded_for: str = ""
    """The allowance that it went over; empty if it was not, or by an operator."""


@dataclass(frozen=True, slots=True)
class Observation:
    """One moment. Memory: None while it is not known, or belongs to another process than before."""

    live: Sequence[LiveFigures] = ()
    cells_by_tenant: Mapping[str, int] = field(default_factory=dict)
    engine_bytes: int | None = None
    """Resident memory of the engine that no book accounts for."""
    gateway_bytes: int | None = None
    """Resident memory of the gateway without the responses that it keeps."""
    audit_busy_s: float = 0.0
    audit_worst_s: float = 0.0
    """The longest piece of work with the disk that ended since the last look."""
    audit_queue: int = 0
    audit_lost: int = 0
    """Since the start."""
    audit: Standing = field(default_factory=Standing)
    model_changed: bool = False
    engine_ready: bool = True
    engine_ends: Sequence[str] = ()
    """How each engine ended that was lost since the last look, not on purpose: a signal's name, an exit code, or a hang."""


class FindingRow(msgspec.Struct, frozen=True):
    finding: str
    text: str
    age_s: float
    runbook: str
    detail: dict[str, Any] | None


@dataclass(slots=True)
class Finding:
    """`text` names nobody; `detail` is for operators."""

    name: str
    text: str
    detail: dict[str, Any]
    since_s: float
    seen_s: float

    def row(self, now_s: float, *, named: bool) -> FindingRow:
        """As /status shows it."""
        age_s, detail = round(now_s - self.since_s, 1), self.detail if named else None
        return FindingRow(self.name, self.text, age_s, f"docs/runbook.md#{self.name}", detail)


class Findings:
    """Judges moment after moment. Times are seconds of one monotonic clock."""

    def __init__(self) -> None:
        self._found: dict[str, Finding] = {}
        self._memory = {"engine": _Growth(), "gateway": _Growth()}
        self._ends: deque[tuple[float, str]] = deque()
        self._n_lost = 0
        self._lost_s: float | None = None
        self._disk: deque[tuple[float, float]] = deque()
        self._downgraded: dict[str, float] = {}

    def look(self, now_s: float, seen: Observation) -> list[Finding]:
        """What is to be looked at now, the oldest first."""
        for name, found in self._conditions(now_s, seen).items():
            if found is not None:
                known = self._found.setdefault(name, Finding(name, *found, now_s, now_s))
                (known.text, known.detail), known.seen_s = found, now_s
        for name in [name for name, known in self._found.items() if now_s - known.seen_s > LINGER_S]:
            del self._found[name]
        return self.current()

    def current(self) -> list[Finding]:
        return sorted(self._found.values(), key=lambda found: (found.since_s, found.name))

    def _conditions(self, now_s: float, seen: Observation) -> dict[str, _Found]:
        return {
            "hog": _hog(seen),
            "downgraded": self._downgrades(now_s, seen),
            "memory_growing": self._growth(now_s, seen),
            "disk_slow": self._slow_disk(now_s, seen),
            "audit_lost": self._losses(now_s, seen),
            "audit_full": _full(seen),
            "clock_jumped": (_CLOCK_JUMPED, {}) if seen.audit.jumped else None,
            "crash_loop": self._crashes(now_s, seen),
            "reader_stuck": _stuck(seen),
            "model_changed": _changed(seen),
        }

    def _downgrades(self, now_s: float, seen: Observation) -> _Found:
        live = {r.response_id: r.downgraded_for for r in seen.live if r.downgraded_for}
        self._downgraded = {i: s for i, s in self._downgraded.items() if i in live}
        for response_id in live:
            self._downgraded.setdefault(response_id, now_s)
        recent = {i: live[i] for i, s in self._downgraded.items() if now_s - s <= NOTED_S}
        if not recent:
            return None
        why = " and ".join(sorted(set(recent.values())))
        text = f"Requests over the {why} allowance of their class, which go on as background work: {len(recent)}"
        return text, {"requests": recent}

    def _growth(self, now_s: float, seen: Observation) -> _Found:
        parts, detail = [], {}
        for name, value in (("engine", seen.engine_bytes), ("gateway", seen.gateway_bytes)):
            if (growth := self._memory[name].look(now_s, value)) is not None:
                grew = f"grew by {growth[0] // _MIB} MB in {growth[1]:.0f} s, and did not stop"
                parts.append(f"the {name}'s memory beyond what its books hold {grew}")
                detail[name] = {"bytes": growth[0], "seconds": round(growth[1], 1)}
        return (_sentence("; ".join(parts)), detail) if parts else None

    def _slow_disk(self, now_s: float, seen: Observation) -> _Found:
        self._disk.append((now_s, max(seen.audit_busy_s, seen.audit_worst_s)))
        while self._disk[0][0] < now_s - 10.0:
            self._disk.popleft()
        worst_s = max(s for _, s in self._disk)
        if worst_s < DISK_BUSY_S and seen.audit_queue < QUEUE_LONG:
            return None
        text = f"The disk took {worst_s:.1f} s for one piece of work of the audit log; entries that wait: {seen.audit_queue}"
        return text, {"worst_s": round(worst_s, 2), "queue": seen.audit_queue}

    def _losses(self, now_s: float, seen: Observation) -> _Found:
        if seen.audit_lost > self._n_lost:
            self._n_lost, self._lost_s = seen.audit_lost, now_s
        if self._lost_s is None or now_s - self._lost_s > NOTED_S:
            return None
        text = f"Entries of the audit log that were lost since the start: {self._n_lost}"
        return text, {"lost": self._n_lost}

    def _crashes(self, now_s: float, seen: Observation) -> _Found:
        self._ends.extend((now_s, how) for how in seen.engine_ends)
        while self._ends and now_s - self._ends[0][0] > CRASHES_S:
            self._ends.popleft()
        if len(self._ends) < CRASHES:
            return None
        ways = ", ".join(dict.fromkeys(how for _, how in self._ends))
        times = f"{len(self._ends)} times in {CRASHES_S:.0f} s ({ways})"
        return f"The engine ended {times}; streams go on with each new one", {"ends": [how for _, how in self._ends]}


_Found = tuple[str, dict[str, Any]] | None


class _Growth:
    """One process's memory over time: has it grown steadily, quickly in seconds or slowly in minutes?"""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()

    def look(self, now_s: float, value: int | None) -> tuple[int, float] | None:
        """Bytes and seconds of a growth that goes on, or None."""
        if value is None:
            self._seen.clear()
            return None
        self._seen.append((now_s, value))
        while self._seen[0][0] < now_s - 1.2 * GROWTH_SLOW_S:
            self._seen.popleft()
        fast = self._over(now_s, GROWTH_FAST_S, GROWTH_FAST_BYTES)
        return fast or self._over(now_s, GROWTH_SLOW_S, GROWTH_SLOW_BYTES)

    def _over(self, now_s: float, span_s: float, least: int) -> tuple[int, float] | None:
        """A single jump is a buffer that was allocated: each quarter of the time must have its part of the growth."""
        if self._seen[0][0] > now_s - span_s:
            return None
        edges = [self._at(now_s - span_s * k / 4) for k in (4, 3, 2, 1, 0)]
        grown = edges[-1] - edges[0]
        steady = all(b - a >= grown / 12 for a, b in pairwise(edges))
        return (grown, span_s) if grown >= least and steady else None

    def _at(self, at_s: float) -> int:
        """The last value that was seen by then."""
        return next((value for seen_s, value in reversed(self._seen) if seen_s <= at_s), self._seen[0][1])


def _hog(seen: Observation) -> _Found:
    cells = {tenant: n for tenant, n in seen.cells_by_tenant.items() if n}
    by_tenant: dict[str, list[LiveFigures]] = {}
    for request in seen.live:
        by_tenant.setdefault(request.tenant, []).append(request)
    if len(by_tenant) > 1:
        tenant, own = max(by_tenant.items(), key=lambda item: (len(item[1]), item[0]))
        cells_share = cells.get(tenant, 0) / sum(cells.values()) if cells else 0.0
        if len(own) >= HOG_REQUESTS and max(len(own) / len(seen.live), cells_share) >= HOG_SHARE:
            return _hog_tenant(seen, tenant, own, cells_share)
    largest = max(seen.live, key=lambda request: (request.n_tokens, request.response_id), default=None)
    n_cells = sum(request.n_tokens for request in seen.live)
    if largest is None or len(seen.live) < 2 or largest.n_tokens < max(HOG_CELLS, HOG_SHARE * n_cells):
        return None
    text = f"One request has {largest.n_tokens} of the {n_cells} tokens of all {len(seen.live)} live requests"
    return text, {"request": largest.response_id, "tenant": largest.tenant, "tokens": largest.n_tokens}


def _hog_tenant(seen: Observation, tenant: str, own: Sequence[LiveFigures], cells_share: float) -> _Found:
    waiting = sum(r.state == RequestState.QUEUED for r in own)
    others = sum(r.state == RequestState.QUEUED for r in seen.live) - waiting
    text = f"One tenant has {len(own)} of {len(seen.live)} live requests and {100 * cells_share:.0f}% of the KV cells; "
    text += f"waiting are {waiting} of its own and {others} of others"
    return text, {"tenant": tenant, "live": len(own), "waiting": waiting, "others_waiting": others}


def _full(seen: Observation) -> _Found:
    n_bytes, bytes_max, n_early, _ = seen.audit
    if not bytes_max or n_bytes < AUDIT_FULL_SHARE * bytes_max:
        return None
    text = f"The audit log has {n_bytes >> 20} of {bytes_max >> 20} MiB; files that went before their time: {n_early}"
    return text, {"bytes": n_bytes, "bytes_max": bytes_max, "deleted_early": n_early}


def _stuck(seen: Observation) -> _Found:
    held = {r.response_id: round(r.held_for_s, 1) for r in seen.live if r.held_for_s is not None}
    longest_s = max(held.values(), default=0.0)
    if longest_s < STUCK_S:
        return None
    text = f"Requests that are held because nobody reads their answers: {len(held)}, the longest for {longest_s:.0f} s"
    return text, {"requests": held}


def _changed(seen: Observation) -> _Found:
    if not seen.model_changed:
        return None
    how = "the engine goes on with the one that it has" if seen.engine_ready else "no engine is started with it"
    return f"{_sentence(MODEL_CHANGED)}; until then {how}", {}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
