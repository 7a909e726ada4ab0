"""A real engine killed, or stopped, in the middle of eight streams: what the official client sees of it, which is nothing."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import psutil
import pytest
from scripts.measure_recovery import Recovery, disturb

from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

STREAMS, TOKENS = 8, 48


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    started = PoiseServer.start("--set", "engine.watchdog_s=5", "--set", "levels.crashes_max=100")
    yield started
    assert started.stop() == 0


def check(server: PoiseServer, how: signal.Signals, restarts: int) -> Recovery:
    recovery = disturb(server.url, psutil.Process(server.process.pid), how, n_streams=STREAMS, n_tokens=TOKENS)
    assert recovery.problems == []
    assert server.get("/health")[1]["restarts"] == restarts
    server.eventually(server.nothing_runs, "the books are clean")
    return recovery


def test_streams_survive_a_killed_engine(server: PoiseServer) -> None:
    """kill -9: eight complete answers of the asked length, token by token, without an error."""
    recovery = check(server, signal.SIGKILL, server.get("/health")[1]["restarts"] + 1)
    assert recovery.n_recovered == STREAMS


def test_streams_survive_an_engine_that_hangs(server: PoiseServer) -> None:
    """SIGSTOP: the watchdog ends it, and the rest is the same."""
    recovery = check(server, signal.SIGSTOP, server.get("/health")[1]["restarts"] + 1)
    assert recovery.n_recovered == STREAMS
    assert 'poise_engine_losses_total{cause="hang"} 1.0' in server.get("/metrics")[1]
