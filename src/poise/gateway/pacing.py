"""When each token of a stream is to be sent, so that what comes in bursts is read at an even pace.

A playout schedule: token i is due at max(arrival, min(previous due + gap, arrival + delay)), where the gap follows the mean of
the last ones between arrivals. What waits is a reserve for the next stall. As long as it is smaller than the arrivals are uneven
(four times their mean deviation, as in adaptive playout of voice, Ramjee et al. 1994), tokens are told a little slower than they
came, and then a little faster: a stream that comes evenly is not held at all. The first token is never held, and nothing is
invented.

The tokens of each choice have a schedule of their own. A stream keeps the order of arrival across choices: a token that is due
goes out when those before it are. Pure: times are passed in.
"""

from __future__ import annotations

WINDOW = 16
"""Gaps that the estimates follow the mean of; older ones fade."""
STRETCH = 1.1
"""Gap between two tokens while the reserve is too small, by that with which they came."""
HASTE = 0.98
"""The same while it is large enough."""
DEVIATIONS = 4
"""The reserve that is wanted, in mean deviations of a gap from the mean."""
STALL = 4
"""A gap of more than so many means is a stall, and counts as this much: in the mean it would slow down what comes after it."""
UNSEEN_S = 0.01
"""A token that is early by less goes out at once: a timer for each would cost more than anybody sees."""


class Pacer:
    """The schedule of one stream."""

    def __init__(self, delay_s: float, n_choices: int) -> None:
        self._lanes = [_Lane(delay_s) for _ in range(n_choices)]

    def due_s(self, choice: int, arrival_s: float) -> float:
        """When the next token of a choice is due, which arrived at `arrival_s`. Called once for each, in their order."""
        return self._lanes[choice].due_s(arrival_s)


class _Lane:
    __slots__ = ("_arrival_s", "_delay_s", "_deviation_s", "_due_s", "_gap_s", "_n_gaps")

    def __init__(self, delay_s: float) -> None:
        self._delay_s = delay_s
        self._gap_s = 0.0
        self._deviation_s = 0.0
        self._n_gaps = 0
        self._arrival_s: float | None = None
        self._due_s = 0.0

    def due_s(self, arrival_s: float) -> float:
        if self._arrival_s is None:
            self._arrival_s = self._due_s = arrival_s
            return arrival_s
        self._learn(arrival_s - self._arrival_s)
        is_short = self._due_s - self._arrival_s < DEVIATIONS * self._deviation_s
        early_s = self._due_s + (STRETCH if is_short else HASTE) * self._gap_s - arrival_s
        held_s = min(early_s, self._delay_s) if early_s > UNSEEN_S else 0.0
        self._arrival_s = arrival_s
        self._due_s = max(self._due_s, arrival_s + held_s)  # never before the one that came before it
        return self._due_s

    def _learn(self, gap_s: float) -> None:
        if self._n_gaps > 1:
            gap_s = min(gap_s, STALL * self._gap_s)
        if self._n_gaps:
            self._deviation_s += (abs(gap_s - self._gap_s) - self._deviation_s) / min(WINDOW, self._n_gaps)
        self._n_gaps = min(WINDOW, self._n_gaps + 1)
        self._gap_s += (gap_s - self._gap_s) / self._n_gaps
