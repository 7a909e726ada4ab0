"""When each token of a stream is to be sent, so that what comes in bursts is read at an even pace, and when a stream wakes.

A playout schedule: token i is due at max(arrival, min(previous due + gap, arrival + delay)), where the gap follows the mean of
the last ones between arrivals. What waits is a reserve for the next stall. As long as it is smaller than the arrivals are uneven
(four times their mean deviation, as in adaptive playout of voice, Ramjee et al. 1994), tokens are sent a little slower than they
came, and then a little faster: a stream that comes evenly is not held at all. The first token is never held, and nothing is
invented.

The tokens of each choice have a schedule of their own. A stream keeps the order of arrival across choices: a token that is due
goes out when those before it are. A token is here what a record has an entry for. Pure: times are passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

TICK_S = 0.005
"""Tokens that are due within one tick go out at its beginning, those of all streams together: a timer for each would cost more
than the evenness is worth."""
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


class Wake(Enum):
    """What is to be done so that a stream looks at its record in time."""

    NOW = "now"
    """Wake it."""
    SET_TIMER = "set timer"
    """Have it woken at `Playout.next_s`."""
    LATER = "later"
    """Nothing: its timer or the next change of the record will wake it."""


_NOW, _SET_TIMER, _LATER = Wake.NOW, Wake.SET_TIMER, Wake.LATER


class Playout:
    """Which tokens of a record one stream may send, and when it has to look for more.

    A stream looks, sends what is `free`, and rests when there was nothing; a change of its record at any time is `news`:

        timer   next token that is not free       news         rest
        set     held                              LATER        LATER
        set     there is none                     LATER        NOW after news, else LATER
        unset   held, everything before it sent   SET_TIMER    SET_TIMER
        unset   held, others before it unsent     NOW          SET_TIMER
        unset   there is none                     NOW          NOW after news, else LATER

    While the timer is set, news wakes nobody: everything is sent in its order, so that it is soon enough."""

    __slots__ = ("_arrivals", "_n_free", "_owners", "_pacers", "has_news", "is_timer_set", "next_s")

    def __init__(self, owners: Sequence[int], arrivals: Sequence[float], delay_s: float, n_choices: int, n_free: int = 0) -> None:
        """`owners`, `arrivals`: the choice of each token and when it came; both grow. `delay_s`: longest time that a token may be
        held; 0: none is. `n_free`: tokens that are old and not held."""
        self.has_news = True
        """The record may have changed since the stream looked."""
        self.is_timer_set = False
        """Set with SET_TIMER; to be unset when it rings."""
        self.next_s: float | None = None
        """When the next token may be sent, while one is held: the beginning of a tick."""
        self._owners = owners
        self._arrivals = arrivals
        self._pacers = [Pacer(delay_s) for _ in range(n_choices)] if delay_s > 0 else None
        self._n_free = n_free

    def free(self, now_s: float) -> int:
        """How many of the tokens that have come may have been sent by now."""
        n_tokens = len(self._arrivals)
        if self._pacers is None:
            return n_tokens
        while self._n_free < n_tokens:
            if self.next_s is None:
                due_s = self._pacers[self._owners[self._n_free]].due_s(self._arrivals[self._n_free])
                self.next_s = due_s - due_s % TICK_S
            if self.next_s > now_s:
                break
            self.next_s = None
            self._n_free += 1
        return self._n_free

    def news(self, n_sent: int, now_s: float) -> Wake:
        """The record has changed, of which so many tokens were sent."""
        self.has_news = True
        if self.is_timer_set:
            return _LATER
        if self._pacers is not None and n_sent == self._n_free < len(self._arrivals) and self.free(now_s) == n_sent:
            self.is_timer_set = True
            return _SET_TIMER
        return _NOW

    def rest(self) -> Wake:
        """The stream has looked, and there was nothing that it may send."""
        if self.next_s is None:
            return _NOW if self.has_news else _LATER
        if self.is_timer_set:
            return _LATER
        self.is_timer_set = True
        return _SET_TIMER


@dataclass(eq=False, slots=True)
class Pacer:
    """The schedule of one choice's tokens. None is held for longer than `_delay_s`."""

    _delay_s: float
    _gap_s: float = 0.0
    _deviation_s: float = 0.0
    _n_gaps: int = 0
    _arrival_s: float | None = None
    _due_s: float = 0.0

    def due_s(self, arrival_s: float) -> float:
        """When the next token is due, which arrived at `arrival_s`. Called once for each, in their order."""
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
