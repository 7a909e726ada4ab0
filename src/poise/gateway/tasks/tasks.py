"""Every long-lived task of the gateway, under one supervisor: an exception is logged, counted and shown, and the task goes on.

    tasks.start("engine-supervisor", supervise, essential=True)    # a coroutine function that runs for ever
    tasks.every("engine-watchdog", 0.5, watch)                     # a function that looks now and then

One that failed waits a little longer each time before it goes on. Where an essential one cannot go on, `on_give_up` is called, so
that the process ends with a code and a service manager acts: nothing dies in silence. Work for a single request is not started
here: it ends with its request, which answers for its failure."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from poise.gateway.request.bugs import described
from poise.gateway.tasks.account import TaskAccount, TaskRow, kind_of
from poise.metrics.tasks import TaskMetrics

log = logging.getLogger(__name__)

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
            due_s = self._clock()
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
