"""When each token of a stream is to be sent, so that what comes in bursts is read at an even pace.

A playout schedule: token i is due at max(arrival, min(previous due + gap, arrival + delay)), where the gap follows the mean of
the last ones between arrivals. A token that comes early waits until it would have come at an even pace; none waits longer than
`delay_s`, the first one never does, and nothing is invented. What waits is a reserve for the next stall. It is told a little
faster than it came and so used up in time: to hold the tokens of a stream that has long been even again would cost a timer
for each. For the same reason a token that is early by less than anybody sees goes out at once.

The tokens of each choice have a schedule of their own. A stream keeps the order of arrival across choices: a token that is due
goes out when those before it are. Pure: times are passed in.
"""

from __future__ import annotations

WINDOW = 16
"""Gaps that the estimate follows the mean of; older ones fade."""
HASTE = 0.98
"""Gap between two tokens of a reserve, by that with which they came."""
UNSEEN_SHARE, UNSEEN_S = 0.5, 0.01
"""A token that is early by less than this share of a gap, or than this time, is not held."""


class Pacer:
    """The schedule of one stream."""

    def __init__(self, delay_s: float, n_choices: int) -> None:
        self._lanes = [_Lane(delay_s) for _ in range(n_choices)]

    def due_s(self, choice: int, arrival_s: float) -> float:
        """When the next token of a choice is due, which arrived at `arrival_s`. Called once for each, in their order."""
        return self._lanes[choice].due_s(arrival_s)


class _Lane:
    __slots__ = ("_arrival_s", "_delay_s", "_due_s", "_gap_s", "_n_gaps")

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._gap_s = 0.0
        self._n_gaps = 0
        self._arrival_s: float | None = None
        self._due_s = 0.0

    def due_s(self, arrival_s: float) -> float:
        if self._arrival_s is None:
            self._arrival_s = self._due_s = arrival_s
            return arrival_s
        # A longer gap is a stall that no delay can bridge; in the mean it would only slow down what comes after it.
        gap_s = min(arrival_s - self._arrival_s, self._delay_s)
        if self._n_gaps < WINDOW:
            self._n_gaps += 1
        self._gap_s += (gap_s - self._gap_s) / self._n_gaps
        early_s = self._due_s + HASTE * self._gap_s - arrival_s
        unseen = early_s <= UNSEEN_S or early_s <= UNSEEN_SHARE * self._gap_s
        self._arrival_s = arrival_s
        self._due_s = arrival_s if unseen else arrival_s + min(early_s, self._delay_s)
        return self._due_s
