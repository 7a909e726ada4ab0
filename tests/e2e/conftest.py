"""One real server, shared by the end-to-end tests that leave it as they found it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.server import PoiseServer


@pytest.fixture(scope="session")
def poise_server() -> Iterator[PoiseServer]:
    server = PoiseServer.start()
    yield server
    assert server.stop() == 0
