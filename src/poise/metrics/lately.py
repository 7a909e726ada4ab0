"""What has happened since it was last asked: one append for each token, made into figures once a second for the history."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import ceil

from poise.scheduler.request import RequestClass

_TIMES_MAX = 65_536
"""Of a class in one second. It bounds what is kept where nobody asks."""


@dataclass(frozen=True, slots=True)
class Times:
    """Durations in seconds, sorted. There is at least one."""

    seconds: list[float]

    def as_json(self, *shares: int) -> dict[str, float | int]:
        """How many there are, the percentiles `shares` by nearest rank, and the greatest; in milliseconds."""
        ranks = {f"p{share}": _ms(self.seconds[ceil(share * len(self.seconds) / 100) - 1]) for share in shares}
        return {"count": len(self.seconds), **ranks, "max": _ms(self.seconds[-1])}


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
    ttft_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES_MAX))
    itl_s: deque[float] = field(default_factory=lambda: deque(maxlen=_TIMES_MAX))
    finished: dict[str, int] = field(default_factory=dict)
    refused: dict[str, int] = field(default_factory=dict)


class Lately:
    """Written as things happen, and emptied by `take`."""

    def __init__(self) -> None:
        self._classes = {name.value: _Counts() for name in RequestClass}
        self._unclassed: dict[str, int] = {}

    def first_token(self, request_class: str, ttft_s: float) -> None:
        self._classes[request_class].ttft_s.append(ttft_s)

    def next_token(self, request_class: str, gap_s: float) -> None:
        self._classes[request_class].itl_s.append(gap_s)

    def ended(self, request_class: str, outcome: str) -> None:
        finished = self._classes[request_class].finished
        finished[outcome] = finished.get(outcome, 0) + 1

    def refused(self, request_class: str | None, reason: str) -> None:
        """`request_class`: None where it was refused before its class was known."""
        refused = self._unclassed if request_class is None else self._classes[request_class].refused
        refused[reason] = refused.get(reason, 0) + 1

    def take(self) -> tuple[dict[str, ClassEvents], dict[str, int]]:
        """By class, and the refused ones of no class, since the last call."""
        taken, self._classes = self._classes, {name.value: _Counts() for name in RequestClass}
        unclassed, self._unclassed = self._unclassed, {}
        return {name: _events(counts) for name, counts in taken.items()}, unclassed


def _events(counts: _Counts) -> ClassEvents:
    n_tokens = len(counts.ttft_s) + len(counts.itl_s)
    return ClassEvents(n_tokens, _times(counts.ttft_s), _times(counts.itl_s), counts.finished, counts.refused)


def _times(seconds: Iterable[float]) -> Times | None:
    known = sorted(seconds)
    return Times(known) if known else None


def _ms(seconds: float) -> float:
    return round(seconds * 1000, 3)
