"""When each token of a stream is to be sent, so that what comes in bursts is read at an even pace.

A playout schedule: token i is due at max(arrival, min(previous due + gap, arrival + delay)), where the gap is the mean of the
last ones between arrivals. A token that comes early waits until it would have come at an even pace, and what waits is a
small reserve for the next stall; none waits longer than `delay_s`, the first one never does, and nothing is invented.

The tokens of each choice have a schedule of their own. A stream keeps the order of arrival across choices: a token that is due
goes out when those before it are. Pure: times are passed in.
"""

from __future__ import annotations

from collections import deque

WINDOW = 16
"""Gaps that the estimate is the mean of."""


class Pacer:
    """The schedule of one stream."""

    def __init__(self, delay_s: float, n_choices: int) -> None:
        self._lanes = [_Lane(delay_s) for _ in range(n_choices)]

    def due_s(self, choice: int, arrival_s: float) -> float:
        """When the next token of a choice is due, which arrived at `arrival_s`. Called once for each, in their order."""
        return self._lanes[choice].due_s(arrival_s)


class _Lane:
    __slots__ = ("_arrival_s", "_delay_s", "_due_s", "_gaps", "_sum_s")

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._gaps: deque[float] = deque()
        self._sum_s = 0.0
        self._arrival_s: float | None = None
        self._due_s = 0.0

    def due_s(self, arrival_s: float) -> float:
        if self._arrival_s is None:
            self._due_s = arrival_s
        else:
            self._learn(arrival_s - self._arrival_s)
            even_s = self._due_s + self._sum_s / len(self._gaps)
            self._due_s = max(arrival_s, min(even_s, arrival_s + self._delay_s))
        self._arrival_s = arrival_s
        return self._due_s

    def _learn(self, gap_s: float) -> None:
        # A longer gap is a stall that no delay can bridge; in the mean it would only slow down what comes after it.
        gap_s = min(gap_s, self._delay_s)
        self._gaps.append(gap_s)
        self._sum_s += gap_s
        if len(self._gaps) > WINDOW:
            self._sum_s -= self._gaps.popleft()
