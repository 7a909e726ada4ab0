"""A client that is slow with its headers is answered with 408; others are not disturbed by the timer."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from poise.config import Settings
from tests.gateway.http.serving import served

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def serving(timeout_s: float) -> contextlib.AbstractAsyncContextManager[int]:
    return served(app, Settings.model_validate({"server": {"body_timeout_s": timeout_s}}), lifespan="off")


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: x\r\nX-Slow: "])
async def test_slow_headers_are_answered_with_408(sent: bytes) -> None:
    """Nothing at all, half a request line, half the headers: an error in OpenAI's format, then the connection closes."""
    async with serving(0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        answer = await reader.read()
        writer.close()
        assert answer.startswith(b"HTTP/1.1 408")
        assert b'"code":"request_timeout"' in answer


async def test_a_second_request_on_a_connection_has_its_own_time() -> None:
    """The timer starts with each request and ends with its headers."""
    async with serving(30.0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(3):
            writer.write(REQUEST)
            assert (await reader.readuntil(b"ok")).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_connection_that_is_idle_between_requests_is_not_an_error() -> None:
    """Keeping a connection open for later is normal: no 408 is written into it."""
    async with serving(0.05) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readuntil(b"ok")
        with contextlib.suppress(TimeoutError):
            data = await asyncio.wait_for(reader.read(), 0.2)
            assert data == b""
        writer.close()
