"""Processes: files run out, engines die at the worst moment, the gateway is killed. Nothing is left, nobody stays deaf."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from tests.attacks.besieged import Besieged, start
from tests.e2e.server import PoiseServer


@contextmanager
def no_more_files(process: psutil.Process) -> Iterator[None]:
    """The process may open nothing: what it has it keeps."""
    limits = process.rlimit(resource.RLIMIT_NOFILE)
    process.rlimit(resource.RLIMIT_NOFILE, (process.num_fds(), limits[1]))
    try:
        yield
    finally:
        process.rlimit(resource.RLIMIT_NOFILE, limits)


def engine_of(gateway: psutil.Process) -> psutil.Process | None:
    found = [child for child in gateway.children() if "simulated_engine" in " ".join(child.cmdline())]
    return found[0] if found else None


def tasks_at_fault(server: PoiseServer) -> list[str]:
    return [task["name"] for task in server.get("/status")[1]["tasks"] if task["state"] in ("failing", "given_up")]


@pytest.mark.slow
def test_an_engine_that_dies_while_files_have_run_out_is_started_again(tmp_path: Path) -> None:
    """Nothing can be opened for seconds: connections wait, watchers fail and go on, and the next engine comes when it can."""
    server = start(folder=tmp_path)
    try:
        gateway = psutil.Process(server.process.pid)
        engine = engine_of(gateway)
        assert engine is not None
        with no_more_files(gateway):
            engine.kill()
            engine.wait(120)
            time.sleep(3)  # what is to be shown is that three seconds of this are survived
        server.eventually(lambda: server.get("/health")[1].get("status") == "ok", "an engine again", 200.0)
        server.eventually(lambda: tasks_at_fault(server) == [], "all tasks at work", 200.0)
        newest = server.get("/status/history")[1]["next"]
        server.eventually(lambda: server.get("/status/history")[1]["next"] > newest, "another sample", 200.0)
    finally:
        assert server.stop() == 0


@pytest.mark.slow
def test_children_end_with_a_gateway_that_is_killed(tmp_path: Path) -> None:
    """Whatever they are at: nobody is left to hold the model's folder or the cores."""
    server = start(folder=tmp_path)
    children = psutil.Process(server.process.pid).children(recursive=True)
    assert children
    server.process.send_signal(signal.SIGKILL)
    server.process.wait(120)
    assert server.process.stdout is not None
    server.process.stdout.close()
    _, alive = psutil.wait_procs(children, timeout=120)
    assert alive == []


def test_only_the_engine_has_the_store(anybodys: Besieged) -> None:
    """Copies of everybody's cells, in the gateway's memory: a text worker, in which strangers' templates run, cannot reach it."""
    gateway = psutil.Process(anybodys.server.process.pid)
    engine = engine_of(gateway)
    assert engine is not None
    held = {p.pid: [os.readlink(file) for file in Path(f"/proc/{p.pid}/fd").iterdir()] for p in gateway.children(recursive=True)}
    assert len(held) > 1
    assert [pid for pid, files in held.items() if any("poise-store" in file for file in files)] == [engine.pid]


async def test_no_process_dumps_its_memory_or_hands_secrets_on(anybodys: Besieged) -> None:
    """Of cores there is none, and the operator's key is in no child's environment or command line."""
    gateway = psutil.Process(anybodys.server.process.pid)
    for process in (gateway, *gateway.children(recursive=True)):
        assert process.rlimit(resource.RLIMIT_CORE)[0] == 0, process
        if process != gateway:
            told = " ".join([*process.cmdline(), *await asyncio.to_thread(process.environ)])
            assert "operator-secret-key" not in told
            assert "POISE_AUTH" not in told
