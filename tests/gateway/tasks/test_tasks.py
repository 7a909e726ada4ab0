"""The supervisor of tasks: exceptions are counted and shown, and tasks go on; an essential one that cannot ends the process."""

from __future__ import annotations

import ast
import asyncio
import errno
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from prometheus_client.exposition import generate_latest

from poise.gateway.tasks import Tasks
from poise.gateway.tasks.tasks import DELAY_MAX_S, FAILURES_MAX, TaskRow

SOURCE = Path(__file__).parents[3] / "src" / "poise"


class Clockwork:
    """A clock that moves by what is slept, and the tasks that live by it."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.slept: list[float] = []
        self.gave_up: list[str] = []
        self.tasks = Tasks(clock=lambda: self.now_s, sleep=self.sleep, on_give_up=self.gave_up.append)

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now_s += seconds
        await asyncio.sleep(0)

    def told(self, name: str) -> TaskRow:
        return next(row for row in self.tasks.rows() if row.name == name)


def failing(errors: list[BaseException], then: asyncio.Event) -> Callable[[], Awaitable[None]]:
    """Raises one after the other, then says so and waits for ever."""
    left = iter(errors)

    async def do() -> None:
        for error in left:
            raise error
        then.set()
        await asyncio.Event().wait()

    return do


async def test_a_task_goes_on_after_each_exception_a_little_later_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """Counted by name; the first of a row is in the log with its place; messages, which could quote a request, are not."""
    work, reached = Clockwork(), asyncio.Event()
    with caplog.at_level(logging.ERROR):
        work.tasks.start("one", failing([ValueError("a prompt")] * 9, reached))  # type: ignore[arg-type]
        await asyncio.wait_for(reached.wait(), 5)
    assert work.slept == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, DELAY_MAX_S, DELAY_MAX_S, DELAY_MAX_S]
    told = work.told("one")
    assert (told.state, told.failures, told.last_error) == ("failing", 9, "ValueError")
    assert b'poise_task_failures_total{task="one"} 9.0' in generate_latest(work.tasks.metrics.registry)
    assert "a prompt" not in caplog.text
    assert caplog.text.count("raise error") == 1
    assert not work.gave_up
    await work.tasks.stop()


async def test_a_look_that_fails_is_the_failure_of_one_task_alone() -> None:
    """The others look on, and it does, too, as soon as it can; then nothing is held against it."""
    work, seen, done = Clockwork(), {"good": 0, "bad": 0}, asyncio.Event()

    def good() -> None:
        seen["good"] += 1

    def bad() -> None:
        seen["bad"] += 1
        if seen["bad"] <= 3:
            raise OSError(errno.EMFILE, "too many open files")
        if seen["bad"] == 6:
            done.set()

    work.tasks.every("good", 1.0, good)
    work.tasks.every("bad", 1.0, bad)
    await asyncio.wait_for(done.wait(), 5)
    assert seen["good"] >= 3
    assert (work.told("good").failures, work.told("good").state) == (0, "running")
    told = work.told("bad")
    assert (told.failures, told.last_error, told.state) == (3, "OSError EMFILE", "running")
    await work.tasks.stop()


async def test_a_look_keeps_its_pace() -> None:
    """What a look takes is not added to the pause before the next one."""
    work, at, done = Clockwork(), list[float](), asyncio.Event()

    def look() -> None:
        at.append(work.now_s)
        work.now_s += 0.25
        if len(at) == 4:
            done.set()

    work.tasks.every("look", 1.0, look)
    await asyncio.wait_for(done.wait(), 5)
    assert at[:4] == [1.0, 2.0, 3.0, 4.0]
    await work.tasks.stop()


async def test_an_essential_task_that_cannot_go_on_ends_the_process() -> None:
    """Ten failures within a minute with nothing done in between."""
    work = Clockwork()

    async def do() -> None:
        raise KeyError

    await asyncio.wait_for(work.tasks.start("heart", do, essential=True), 5)
    assert work.gave_up == ["task heart cannot go on: KeyError"]
    assert (work.told("heart").state, work.told("heart").failures) == ("given_up", FAILURES_MAX)


async def test_what_does_something_in_between_goes_on() -> None:
    """Failures are only held against a task while it does nothing."""
    work, done, n = Clockwork(), asyncio.Event(), 0

    async def do() -> None:
        nonlocal n
        n += 1
        if n % 5 == 0:
            work.tasks.worked("heart")
        if n == 4 * FAILURES_MAX:
            done.set()
        raise KeyError

    work.tasks.start("heart", do, essential=True)
    await asyncio.wait_for(done.wait(), 5)
    assert not work.gave_up
    await work.tasks.stop()


@pytest.mark.parametrize(
    "error", [OSError(errno.EMFILE, ""), OSError(errno.ENFILE, ""), OSError(errno.ENOMEM, ""), MemoryError()]
)
async def test_what_was_used_up_never_ends_the_process(error: Exception) -> None:
    """It may be there again in a moment."""
    work, reached = Clockwork(), asyncio.Event()
    work.tasks.start("heart", failing([error] * 3 * FAILURES_MAX, reached), essential=True)  # type: ignore[arg-type]
    await asyncio.wait_for(reached.wait(), 5)
    assert (work.gave_up, work.told("heart").failures) == ([], 3 * FAILURES_MAX)
    await work.tasks.stop()


async def test_something_cancelled_inside_of_a_task_is_not_its_end() -> None:
    """Only who cancels the task itself ends it."""
    work, reached = Clockwork(), asyncio.Event()
    task = work.tasks.start("one", failing([asyncio.CancelledError()], reached))  # type: ignore[arg-type]
    await asyncio.wait_for(reached.wait(), 5)
    assert work.told("one").last_error == "CancelledError"
    await work.tasks.stop()
    assert task.cancelled()


async def test_a_task_that_comes_to_its_end_is_not_begun_again() -> None:
    work = Clockwork()

    async def do() -> None:
        return

    await work.tasks.start("short", do)
    assert (work.told("short").state, work.slept) == ("ended", [])


ROOMS = ("gateway", "audit", "engine", "worker/engine")
STARTS = {"create_task", "ensure_future", "Thread"}
ALLOWED = {
    "gateway/tasks/tasks.py": "starts them all",
    "audit/log.py": "the writer's thread, which survives each of its rounds and tells the supervisor of what failed",
    "engine/desk.py": "the thread that formats the journal, which survives each page and dies with its engine",
    "gateway/condition/power/sampling.py": "the thread that reads sensors: one that blocks is left, what fails is absent",
    "gateway/models/local/job.py": "the summary of one request, which ends with it and answers for its failure",
    "gateway/models/routed.py": "the way of one request over other servers, which ends with it and answers for its failure",
    "gateway/models/money/books.py": "the thread that owns the ledger; what it cannot write is refused to who asked",
    "gateway/http/stream.py": "the work and the watch of one answer, both awaited by it",
    "gateway/http/connections/server.py": "the opening of one connection, within the time of a handshake",
    "gateway/http/connections/hub.py": "the answer to one request, which uvicorn waits for when it stops",
}


def test_no_long_lived_task_is_started_elsewhere() -> None:
    """Whoever starts a task or a thread of its own must be on the list, with a reason; whoever is on it must do so."""
    found = set()
    paths = {room: sorted((SOURCE / room).rglob("*.py")) for room in ROOMS}
    assert all(paths.values()), "a room that is not there is not looked at"
    for path in [path for room in ROOMS for path in paths[room]]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name in STARTS:
                    found.add(path.relative_to(SOURCE).as_posix())
    assert found == set(ALLOWED)
