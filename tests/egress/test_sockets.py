"""At run time: without an open door, nothing that the gateway does opens a connection to anywhere."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.models.egress.door import EgressError
from tests.egress.cloud import Cloud
from tests.gateway.fakes import OPERATOR, FakeEngine, ask, chat_body, make_app, says
from tests.gateway.models.egress.test_door import CALL, Door, permitted

PATHS = ("/health", "/status", "/metrics", "/v1/models", "/", "/openapi.json", "/admin/requests")


@pytest.fixture
def reached(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Addresses that a connection was opened to."""
    addresses: list[Any] = []

    class Watched(socket.socket):
        def connect(self, address: Any) -> None:
            addresses.append(address)
            super().connect(address)

        def connect_ex(self, address: Any) -> int:
            addresses.append(address)
            return super().connect_ex(address)

    monkeypatch.setattr(socket, "socket", Watched)
    return addresses


async def test_requests_reach_nobody(reached: list[Any]) -> None:
    """Whatever is asked for: chats, streams, summaries of what is too long, errors, and what operators look at."""
    settings = Settings.model_validate({"backends": {"cloud": {"url": "https://api.example/v1"}}})
    app = make_app(FakeEngine(says("hello")), settings)
    for stream in (False, True):
        await ask(app, "POST", "/v1/chat/completions", chat_body("prompt", stream=stream))
    await ask(app, "POST", "/v1/chat/completions", chat_body("prompt", context_policy="summarize"))
    await ask(app, "POST", "/v1/chat/completions", chat_body("prompt", temperature="hot"))
    for path in PATHS:
        await ask(app, "GET", path, headers=OPERATOR)
    assert reached == []


async def test_a_closed_door_reaches_nobody(reached: list[Any]) -> None:
    """And an open one is seen to: the test above would notice it."""
    async with Cloud() as cloud:
        for options in ({"open": False}, {"environ": {"POISE_NO_CLOUD": "1"}}, {"error": OSError()}):
            with pytest.raises(EgressError):
                await Door(cloud.backend(), **options).ask()
        assert reached == []
        door = Door(cloud.backend())
        async with door.egress.send(permitted(), CALL) as reply:
            await reply.body(1 << 20)
        await door.egress.close()
        assert reached == [("127.0.0.1", cloud.port)]
    await asyncio.sleep(0)
