"""What has happened lately: one append for each token, made into figures once a second, and for /status when it is asked for."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from math import ceil

import msgspec

from poise.scheduler.request import RequestClass

RECENT_S = 60.0
"""For how long times to first tokens are kept."""
_TTFT_MAX, _ITL_MAX = 4096, 65_536
"""Of a class: in so many seconds, and in one. They bound what is kept where nobody asks."""


@dataclass(frozen=True, slots=True)
class Times:
    """Durations in seconds, sorted. There is at least one."""

    seconds: list[float]

    def ranks_ms(self, *shares: int) -> list[float]:
        """Percentiles, in milliseconds."""
        return [self.ms(share) for share in shares]

    def ms(self, share: int) -> float:
        """The smallest time that at least `share` percent of all do not exceed."""
        return round(self.seconds[ceil(share * len(self.seconds) / 100) - 1] * 1000, 3)


class RecentTtft(msgspec.Struct, frozen=True):
    p50: float | None
    p95: float | None
    count: int


@dataclass(frozen=True, slots=True)
class ClassEvents:
    """Of one class. `ttft`: of the choices whose first token has come; `itl`: between two arrivals of tokens in one choice."""

    n_tokens: int
    ttft: Times | None
    itl: Times | None
    finished: dict[str, int]
    """Choices that ended, by outcome."""
    refused: dict[str, int]
    """Requests that were refused before anything was computed, by error code."""


@dataclass(slots=True)
class _Counts:
    """Since the last sample."""

    n_first: int = 0
    itl_s: deque[float] = field(default_factory=lambda: deque(maxlen=_ITL_MAX))
    finished: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)


class Lately:
    """Written as things happen. `take` empties it, but for the times to first tokens of the last minute."""

    def __init__(self) -> None:
        self._classes = {name.value: _Counts() for name in RequestClass}
        self._ttft: dict[str, deque[tuple[float, float]]] = {
            name.value: deque(maxlen=_TTFT_MAX) for name in RequestClass
        }
        """When the token came, and how long that took, in s."""
        self._unclassed: Counter[str] = Counter()

    def first_token(self, request_class: str, ttft_s: float, now_s: float) -> None:
        self._classes[request_class].n_first += 1
        self._ttft[request_class].append((now_s, ttft_s))

    def next_token(self, request_class: str, gap_s: float) -> None:
        self._classes[request_class].itl_s.append(gap_s)

    def ended(self, request_class: str, outcome: str) -> None:
        self._classes[request_class].finished[outcome] += 1

    def refused(self, request_class: str | None, reason: str) -> None:
        """`request_class`: None where it was refused before its class was known."""
        refused = self._unclassed if request_class is None else self._classes[request_class].refused
        refused[reason] += 1

    def take(self) -> tuple[dict[str, ClassEvents], dict[str, int]]:
        """By class, and the refused ones of no class, since the last call."""
        taken, self._classes = self._classes, {name.value: _Counts() for name in RequestClass}
        unclassed, self._unclassed = self._unclassed, Counter()
        return {name: self._events(name, counts) for name, counts in taken.items()}, unclassed

    def ttft_ms(self, request_class: str, now_s: float) -> RecentTtft:
        """Times to first tokens of the last minute: median and 95th percentile (None without any), and how many there are."""
        kept = self._ttft[request_class]
        while kept and kept[0][0] < now_s - RECENT_S:
            kept.popleft()
        times = _times(ttft_s for _, ttft_s in kept)
        if times is None:
            return RecentTtft(None, None, 0)
        return RecentTtft(times.ms(50), times.ms(95), len(times.seconds))

    def _events(self, request_class: str, counts: _Counts) -> ClassEvents:
        newest = islice(reversed(self._ttft[request_class]), counts.n_first)
        return ClassEvents(
            counts.n_first + len(counts.itl_s),
            _times(ttft_s for _, ttft_s in newest),
            _times(counts.itl_s),
            counts.finished,
            counts.refused,
        )


def _times(seconds: Iterable[float]) -> Times | None:
    known = sorted(seconds)
    return Times(known) if known else None
