"""Whether another server is asked at all: one that fails again and again is left alone for a while, then tried with one request.

Pure: times are given, in seconds of any clock that only goes forward."""

from collections import deque
from enum import StrEnum
from typing import NamedTuple

FAILURES, FAILURES_S = 5, 30.0
"""So many failures within that time open it; or half of the last OUTCOMES."""
OUTCOMES = 20
PAUSE_S, PAUSE_MAX_S = 5.0, 60.0
"""For how long it is open at first; twice as long after each probe that failed."""
BY_OPERATOR = frozenset({401, 403})
"""Statuses that no time mends: the key, or what it may do, is wrong."""


class State(StrEnum):
    CLOSED = "closed"
    """All may pass."""
    OPEN = "open"
    """None may."""
    HALF_OPEN = "half_open"
    """One may, to see how it is."""


class Pass(NamedTuple):
    """One was let through. Whoever has it says what came of it."""

    is_probe: bool


class Breaker:
    """Of one server."""

    def __init__(self) -> None:
        self._failed_s: deque[float] = deque(maxlen=FAILURES)
        self._outcomes: deque[bool] = deque(maxlen=OUTCOMES)
        self._is_probing = False
        self.reset()

    def reset(self) -> None:
        """As at the start: a probe has shown that the server is there, or an operator says so."""
        self._failed_s.clear()
        self._outcomes.clear()
        self._opened = False
        self._until_s = 0.0
        self._pause_s = PAUSE_S
        self.locked_by: int | None = None
        """The status for which an operator has to act."""

    def state(self, now_s: float) -> State:
        if self.locked_by is not None or now_s < self._until_s:
            return State.OPEN
        return State.HALF_OPEN if self._opened else State.CLOSED

    def is_free(self, now_s: float) -> bool:
        """Whether `take` would let one through."""
        state = self.state(now_s)
        return state is State.CLOSED or (state is State.HALF_OPEN and not self._is_probing)

    def take(self, now_s: float) -> Pass | None:
        """Let one through, if one may pass."""
        if not self.is_free(now_s):
            return None
        self._is_probing = self._is_probing or self._opened
        return Pass(self._opened)

    def wait_s(self, now_s: float) -> float | None:
        """When to ask again; None: not before an operator has acted."""
        return None if self.locked_by is not None else max(0.0, self._until_s - now_s)

    def succeeded(self, passed: Pass) -> None:
        """An answer came, or that the request was wrong: the server is there."""
        self._outcomes.append(True)
        if passed.is_probe:
            self._is_probing = False
            self.reset()

    def failed(self, passed: Pass, now_s: float, *, status: int | None = None, retry_after_s: float | None = None) -> None:
        """It could not be reached, broke off, or cannot answer now. `retry_after_s`: what it asked for, which is kept to."""
        if status in BY_OPERATOR:
            self.locked_by = status
        if retry_after_s:
            self._until_s = max(self._until_s, now_s + retry_after_s)
        self._failed_s.append(now_s)
        self._outcomes.append(False)
        in_a_row = len(self._failed_s) == FAILURES and now_s - self._failed_s[0] <= FAILURES_S
        too_many = len(self._outcomes) == OUTCOMES and self._outcomes.count(False) * 2 >= OUTCOMES
        if passed.is_probe or (not self._opened and (in_a_row or too_many)):
            self._until_s = max(self._until_s, now_s + self._pause_s)
            self._pause_s = min(PAUSE_MAX_S, self._pause_s * 2)
            self._opened = True
        self.gave_up(passed)

    def gave_up(self, passed: Pass) -> None:
        """Nothing is known: who was let through did not want it any more."""
        self._is_probing = self._is_probing and not passed.is_probe
