"""Every long-lived task of the gateway, under one supervisor: an exception is logged, counted and shown, and the task goes on.

    tasks.start("engine-supervisor", supervise, essential=True)    # a coroutine function that runs for ever
    tasks.every("engine-watchdog", 0.5, watch)                     # a function that looks now and then

One that failed waits a little longer each time before it goes on. Where an essential one cannot go on, `on_give_up` is called, so
that the process ends with a code and a service manager acts: nothing dies in silence. Work for a single request is not started
here: it ends with its request, which answers for its failure.

What looks at the server once a second is done by one task, the pulse, one look after the other: so each sees what those before it
have made of this second. Each has an account of its own among the tasks: one that raises is logged, counted and shown under its
name, waits a little longer each time before it is tried again, and stops none of the others."""

import asyncio
import errno
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from enum import StrEnum
from math import ceil
from typing import Any

import msgspec

from poise.gateway.request.bugs import described
from poise.metrics.early import TaskMetrics

log = logging.getLogger(__name__)


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


Do = Callable[[], Coroutine[Any, Any, None]]


class Tasks:
    """The tasks of one gateway. Clock and sleep are a test's own, if it likes."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        on_give_up: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`on_give_up` is called once, with why the process cannot go on."""
        self.metrics = TaskMetrics()
        self.on_give_up = on_give_up
        self._clock = clock
        self._sleep = sleep
        self._accounts: dict[str, TaskAccount] = {}
        self._running: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, do: Do, *, essential: bool = False) -> asyncio.Task[None]:
        """Run `do` until it returns or `stop`; called in the event loop. When it raises, it is run again after a while.

        essential   without it the server is not worth running: the process ends where it cannot go on"""
        assert name not in self._running or self._running[name].done(), f"{name} is running"
        account = self._open(name, essential=essential)
        task = asyncio.get_running_loop().create_task(self._keep(account, do), name=name)
        self._running[name] = task
        return task

    def every(self, name: str, interval_s: float, look: Callable[[], None], *, essential: bool = False) -> asyncio.Task[None]:
        """Call `look` every `interval_s`, and not a little later each time. One that raises is a failure of this task alone."""

        async def rounds() -> None:
            due_s = self._clock() // interval_s * interval_s  # those of one interval look together: the process wakes once
            while True:
                due_s = max(due_s + interval_s, self._clock())
                await self._sleep(due_s - self._clock())
                look()
                self.worked(name)

        return self.start(name, rounds, essential=essential)

    def watch(self, name: str) -> None:
        """Something that runs elsewhere, in a thread or in the pulse, and whose failures come by `failed`."""
        self._open(name)

    def worked(self, name: str) -> None:
        """A task has done something: what failed before is over. Where nobody says so, working for a while does."""
        self._accounts[name].worked(self._clock())

    def failed(self, name: str, error: BaseException) -> float | None:
        """Log and count a failure, from any thread. Returns the seconds until it should go on; None: it cannot."""
        account = self._accounts[name]
        delay_s = account.failed(error, self._clock())
        self.metrics.failed(name)
        # The whole traceback once: a full disk of tracebacks helps nobody.
        words = "\n".join(described(error)) if account.is_first_in_a_row else kind_of(error)
        goes_on = "it cannot go on" if delay_s is None else f"it goes on in {delay_s:g} s"
        log.error("task %s failed, %d in all; %s: %s", name, account.n_failures, goes_on, words)
        return delay_s

    async def stop(self) -> None:
        """End all of them, and wait until they have ended."""
        running, self._running = list(self._running.values()), {}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    def rows(self) -> list[TaskRow]:
        """A row of /status for each task, in the order of their start."""
        now_s = self._clock()
        return [account.row(now_s) for account in list(self._accounts.values())]

    def failed_lately(self, within_s: float) -> list[TaskAccount]:
        """Tasks that failed within this time."""
        since_s = self._clock() - within_s
        return [a for a in list(self._accounts.values()) if a.failed_s is not None and a.failed_s >= since_s]

    def _open(self, name: str, *, essential: bool = False) -> TaskAccount:
        self.metrics.known(name)
        account = self._accounts[name] = TaskAccount(name, self._clock(), essential=essential)
        return account

    async def _keep(self, account: TaskAccount, do: Do) -> None:
        while True:
            account.began(self._clock())
            try:
                await do()
            except asyncio.CancelledError as error:
                task = asyncio.current_task()
                if task is None or task.cancelling():
                    raise
                failure: BaseException = error  # nobody ended this task: it came upon something that was cancelled
            except Exception as error:
                failure = error
            else:
                account.ended(self._clock())
                return
            delay_s = self.failed(account.name, failure)
            if delay_s is None:
                self.on_give_up(f"task {account.name} cannot go on: {account.last_error}")
                return
            del failure  # it holds the frames that it came through
            await self._sleep(delay_s)


PERIOD_S = 1.0
_TASK = "pulse"


class Pulse:
    """`looks` by name. The tasks must not know these names yet."""

    def __init__(self, tasks: Tasks, looks: Mapping[str, Callable[[], None]]) -> None:
        self._tasks = tasks
        self._looks = dict(looks)
        self._left_out: dict[str, int] = {}
        """Beats for which a look that failed is still left out."""

    def start(self) -> None:
        """Run the looks once a second until the tasks are stopped; the first time in a second."""
        for name in self._looks:
            self._tasks.watch(name)
        self._tasks.every(_TASK, PERIOD_S, self.beat)

    def beat(self) -> None:
        """Run every look once."""
        for name, look in self._looks.items():
            if n_left := self._left_out.pop(name, 0):
                self._left_out[name] = n_left - 1
                continue
            try:
                look()
            except (Exception, asyncio.CancelledError) as error:  # the latter is of something that the look came upon
                delay_s = self._tasks.failed(name, error)
                assert delay_s is not None, "only an essential task cannot go on"
                self._left_out[name] = ceil(delay_s / PERIOD_S) - 1
            else:
                self._tasks.worked(name)
