"""One real server, shared by the end-to-end tests that leave it as they found it; and Ctrl-C as at a terminal."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from tests.e2e.server import PoiseServer


def pytest_configure() -> None:
    """A shell without job control ignores SIGINT in what it starts with `&`, and so would every process below these tests."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def poise_server() -> Iterator[PoiseServer]:
    server = PoiseServer.start()
    yield server
    assert server.stop() == 0
