"""What has happened lately: one append for each token, made into figures once a second, and for /status when it is asked for."""

from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from math import ceil

import msgspec

from poise.scheduler.request import RequestClass

RECENT_S = 60.0
"""For how long times to first tokens are kept."""
_TTFT_MAX, _ITL_MAX = 4096, 65_536
"""Of a class: in so many seconds, and in one. They bound what is kept where nobody asks."""


def ranks_ms(seconds: Collection[float], *shares: int) -> list[float]:
    """Percentiles in milliseconds: for each share the smallest time that at least so many percent do not exceed."""
    known = sorted(seconds)
    return [round(known[ceil(share * len(known) / 100) - 1] * 1000, 3) for share in shares]


class RecentTtft(msgspec.Struct, frozen=True):
    p50: float | None
    p95: float | None
    count: int


@dataclass(slots=True)
class ClassEvents:
    """Of one class, since the last sample.

    `ttft_s`: of the choices whose first token has come; `itl_s`: between two arrivals of tokens in one choice."""

    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TTFT_MAX))
    itl_s: deque[float] = field(default_factory=lambda: deque(maxlen=_ITL_MAX))
    finished: Counter[str] = field(default_factory=Counter)
    """Choices that ended, by outcome."""
    refused: Counter[str] = field(default_factory=Counter)
    """Requests that were refused before anything was computed, by error code."""

    @property
    def n_tokens(self) -> int:
        return len(self.ttft_s) + len(self.itl_s)


class Lately:
    """Written as things happen. `take` empties it, but for the times to first tokens of the last minute."""

    def __init__(self) -> None:
        self._classes = {name.value: ClassEvents() for name in RequestClass}
        self._ttft: dict[str, deque[tuple[float, float]]]
        self._ttft = {name.value: deque(maxlen=_TTFT_MAX) for name in RequestClass}
        """When the token came, and how long that took, in s."""
        self._unclassed: Counter[str] = Counter()

    def first_token(self, request_class: str, ttft_s: float, now_s: float) -> None:
        self._classes[request_class].ttft_s.append(ttft_s)
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
        taken, self._classes = self._classes, {name.value: ClassEvents() for name in RequestClass}
        unclassed, self._unclassed = self._unclassed, Counter()
        return taken, unclassed

    def ttft_ms(self, request_class: str, now_s: float) -> RecentTtft:
        """Times to first tokens of the last minute: median and 95th percentile (None without any), and how many there are."""
        kept = self._ttft[request_class]
        while kept and kept[0][0] < now_s - RECENT_S:
            kept.popleft()
        if not kept:
            return RecentTtft(None, None, 0)
        p50, p95 = ranks_ms([ttft_s for _, ttft_s in kept], 50, 95)
        return RecentTtft(p50, p95, len(kept))
