"""Starting an engine survives the lack of anything at every line: nothing is leaked, and the next try works."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import mmap
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from poise.config import Settings
from poise.config.settings import EngineSettings
from poise.engine import blackbox
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.supervision.launch import Launcher
from poise.gateway.supervision.supervisor import Supervisor
from tests.gateway.supervision.test_supervisor import pid_of, submit, supervisor, until_ready

COMMAND = (sys.executable, "-m", "tests.gateway.simulated_engine", "works")
LACKS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN, errno.ENOSPC]
ERRORS = [*[OSError(number, os.strerror(number)) for number in LACKS], MemoryError("memory"), RuntimeError("no thread")]
CALLS: dict[str, tuple[object, str]] = {
    "memfd_create": (os, "memfd_create"),
    "ftruncate": (os, "ftruncate"),
    "mmap": (mmap, "mmap"),
    "socketpair": (socket, "socketpair"),
    "fork": (subprocess, "Popen"),
    "epoll": (asyncio.SelectorEventLoop, "add_reader"),
    "transport": (asyncio.SelectorEventLoop, "create_unix_connection"),
}


def open_files() -> list[str]:
    """Every descriptor of this process, with what it is."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{name} {os.readlink(f'/proc/self/fd/{name}').split(':')[0]}")
        except FileNotFoundError:  # the one that lists them
            continue
    return found


def failing(error: BaseException, times: int, good: Callable[..., Any]) -> Callable[..., Any]:
    left = [error] * times

    def call(*arguments: Any, **named: Any) -> Any:
        if left:
            raise left.pop()
        return good(*arguments, **named)

    return call


@pytest.mark.parametrize("error", ERRORS, ids=str)
@pytest.mark.parametrize("call", CALLS)
async def test_what_is_lacking_is_an_error_and_leaves_nothing(
    call: str, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a descriptor nor a process; and then it works."""
    owner, name = CALLS[call]
    launcher = Launcher(("/bin/sh", "-c", "exec sleep 60"))
    before = len(open_files())
    with monkeypatch.context() as broken:
        broken.setattr(owner, name, failing(error, 1, getattr(owner, name)))
        with pytest.raises(OSError, match=str(error.args[-1])):
            await launcher.launch(lambda _: None)
    assert not children()
    launcher.close()
    await asyncio.sleep(0)
    assert len(open_files()) == before
    engine = await launcher.launch(lambda _: None)
    engine.kill()
    assert await engine.end(1.0) == -signal.SIGKILL
    launcher.close()
    await asyncio.sleep(0)
    assert len(open_files()) == before


def children() -> list[int]:
    """Processes that this one has, also such as have ended and were not waited for."""
    pid = os.getpid()
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


@pytest.mark.parametrize("call", ["memfd_create", "fork", "transport"])
async def test_a_server_goes_on_when_what_was_lacking_is_there_again(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four starts fail; requests wait, and go on; nothing is held against them, and no descriptor is left."""
    monkeypatch.setattr("poise.gateway.supervision.life.RESTART_DELAY_FIRST_S", 0.01)
    owner, name = CALLS[call]
    async with supervisor(recoveries_max=1) as s:
        await s.until(lambda state: state.is_settled)
        n_files = len(open_files())
        waiting = submit(s, [1, 2, 3], 4000)
        await waiting.receive()
        if call == "memfd_create":
            s._launcher.close()  # the box is made once: let it be made again
        error = OSError(errno.EMFILE, "Too many open files")
        monkeypatch.setattr(owner, name, failing(error, 4, getattr(owner, name)))
        os.kill(pid_of(s), signal.SIGKILL)
        await until_ready(s, restarts=4)
        assert not waiting.done
        await asyncio.sleep(0)
        assert len(open_files()) == n_files
        waiting.abort()


def use_up(held: list[int]) -> None:
    """Takes every file that there is."""
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))


async def test_an_engine_starts_again_while_every_file_is_used_up() -> None:
    """Clients may have them all: what a start needs was put aside."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(line.split()[0]) for line in open_files())
        held: list[int] = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 20, limits[1]))
        try:
            use_up(held)
            for n in range(1, 4):
                os.kill(pid_of(s), signal.SIGKILL)
                await until_ready(s, restarts=n)
                use_up(held)  # also what the lost engine had
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for number in held:
                os.close(number)


async def test_a_bug_of_the_supervisor_is_not_the_end_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task goes on with another engine, the one that it lost track of has ended, and live requests go on."""
    s = Supervisor(Settings(engine=EngineSettings(restart_delay_max_s=0.5)), "model.gguf", COMMAND)
    await s.start()
    try:
        await s.until(lambda state: state.is_settled)
        waiting = submit(s, [1, 2, 3], 4000)
        await waiting.receive()
        before = pid_of(s)
        monkeypatch.setattr(s, "_note_death", failing(KeyError("a bug"), 1, s._note_death))
        os.kill(before, signal.SIGKILL)
        await s.until(lambda state: state.phase is EnginePhase.READY and state.ready is not None and state.ready.pid != before)
        (task,) = [row for row in s._tasks.rows() if row.name == "engine-supervisor"]
        assert (task.failures, task.last_error, task.state) == (1, "KeyError", "running")
        waiting.abort()
    finally:
        await s.stop()


def test_the_box_of_one_engine_says_nothing_to_the_next() -> None:
    box = blackbox.BlackBox.create()
    blackbox.BoxWriter(box.fd).computing(1, 2, [3])
    box.clear()
    assert box.read() == blackbox.BoxReading(blackbox.Phase.LOADING)
    box.close()
