"""How one long-lived task stands: its failures, how long it waits before it goes on, and whether it cannot go on.

Pure: moments are passed in, in seconds of one monotonic clock."""

import errno
from collections import deque
from enum import StrEnum

import msgspec

DELAY_FIRST_S = 0.1
DELAY_MAX_S = 5.0
FAILURES_MAX, FAILURES_S = 10, 60.0
"""An essential task that fails so often within this time, with nothing done in between, cannot go on."""
STABLE_S = 10.0
"""A task that worked for so long before it failed has done something."""
_EXHAUSTION = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOBUFS, errno.ENOSPC, errno.EDQUOT)


class TaskState(StrEnum):
    RUNNING = "running"
    FAILING = "failing"
    """It failed and has done nothing since: it waits to go on, or has just gone on."""
    ENDED = "ended"
    """It came to its end in order."""
    GIVEN_UP = "given_up"
    """It cannot go on: the process ends."""


class TaskRow(msgspec.Struct, frozen=True):
    name: str
    state: TaskState
    since_s: float
    failures: int
    last_error: str | None


class TaskAccount:
    """What is known of one task."""

    def __init__(self, name: str, now_s: float, *, essential: bool = False) -> None:
        self.name = name
        self.essential = essential
        self.state = TaskState.RUNNING
        self.since_s = now_s
        """When it came to this state."""
        self.n_failures = 0
        self.last_error = ""
        """The type of what was raised last; for errors of the system with its name, as in "OSError EMFILE"."""
        self.failed_s: float | None = None
        """When it failed last."""
        self._began_s = now_s
        self._in_a_row = 0
        self._grave: deque[float] = deque(maxlen=FAILURES_MAX)
        """When it failed, since it last did something, for another reason than exhaustion."""

    def began(self, now_s: float) -> None:
        """The task was started, for the first time or again."""
        self._began_s = now_s

    def worked(self, now_s: float) -> None:
        """The task has done something: earlier failures no longer count."""
        if self._in_a_row:
            self._in_a_row = 0
            self._grave.clear()
            self._come_to(TaskState.RUNNING, now_s)

    def ended(self, now_s: float) -> None:
        self._come_to(TaskState.ENDED, now_s)

    def failed(self, error: BaseException, now_s: float) -> float | None:
        """Note a failure; returns the seconds until it goes on, or None if it cannot go on."""
        if now_s - max(self._began_s, self.failed_s or self._began_s) >= STABLE_S:
            self.worked(now_s)
        self.n_failures += 1
        self._in_a_row += 1
        self.failed_s, self.last_error = now_s, kind_of(error)
        self._come_to(TaskState.FAILING, now_s)
        if self.essential and not is_exhaustion(error):
            self._grave.append(now_s)
            if len(self._grave) == FAILURES_MAX and now_s - self._grave[0] <= FAILURES_S:
                self._come_to(TaskState.GIVEN_UP, now_s)
                return None
        return float(min(DELAY_FIRST_S * 2 ** min(self._in_a_row - 1, 10), DELAY_MAX_S))

    def row(self, now_s: float) -> TaskRow:
        """As /status shows it."""
        since_s = round(now_s - self.since_s, 1)
        return TaskRow(self.name, self.state, since_s, self.n_failures, self.last_error or None)

    @property
    def is_first_in_a_row(self) -> bool:
        """The last failure was the first since the task did something."""
        return self._in_a_row == 1

    def _come_to(self, state: TaskState, now_s: float) -> None:
        if state is not self.state:
            self.state, self.since_s = state, now_s


def is_exhaustion(error: BaseException) -> bool:
    """Whether it tells of something that was used up for a moment, as file descriptors or memory: it may be there again."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _EXHAUSTION)


def kind_of(error: BaseException) -> str:
    """What an error was, without its own words: they could quote a request."""
    name = type(error).__name__
    if isinstance(error, OSError) and error.errno is not None:
        return f"{name} {errno.errorcode.get(error.errno, error.errno)}"
    return name
