"""The same application behind uvicorn on a real connection: what only a network can show."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from poise.config import Settings
from tests.gateway.fakes import WAIT_S, FakeEngine, chat_body, make_app, says
from tests.gateway.http.serving import served

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def connect(port: int, head: str, body: bytes = b"") -> Connection:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body)
    await writer.drain()
    return reader, writer


async def post(port: int, body: Any) -> Connection:
    data = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\nHost: localhost\nContent-Type: application/json\nContent-Length: {len(data)}"
    return await connect(port, head, data)


async def read(reader: asyncio.StreamReader, until: bytes) -> bytes:
    return await asyncio.wait_for(reader.readuntil(until), WAIT_S)


async def test_a_stream_over_a_connection_and_its_loss() -> None:
    """Events arrive as they are made; closing the connection ends the work, with no further token."""
    engine = FakeEngine()
    async with served(make_app(engine)) as port:
        reader, writer = await post(port, chat_body(stream=True))
        request = await engine.submitted()
        request.accept()
        head = await read(reader, b"\r\n\r\n")
        assert b"200 OK" in head
        assert b"text/event-stream" in head
        assert b"x-accel-buffering: no" in head.lower()
        request.say("one")
        assert await read(reader, b'"content":"one"')
        writer.close()
        assert await engine.aborts(1) == [1]


async def test_the_loss_of_a_connection_that_waits_for_a_whole_answer() -> None:
    """The server sends nothing in the meantime, so only listening can tell."""
    engine = FakeEngine()
    async with served(make_app(engine)) as port:
        _, writer = await post(port, chat_body())
        (await engine.submitted()).accept()
        writer.close()
        assert await engine.aborts(1) == [1]


async def test_one_connection_can_ask_again() -> None:
    """Keep-alive, for whole answers and after a complete stream."""
    async with served(make_app(FakeEngine(says("x")))) as port:
        reader, writer = await post(port, chat_body())
        await read(reader, b'"cached_tokens":0}}}')
        for body in (chat_body(stream=True), chat_body()):
            data = json.dumps(body).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(data) + data
            )
            await read(reader, b"0\r\n\r\n" if body.get("stream") else b'"cached_tokens":0}}}')
        writer.close()


async def test_an_oversized_body_is_refused_and_the_connection_closed() -> None:
    """Whether its length was announced or not; the rest is not read."""
    made = Settings.model_validate({"server": {"max_body_bytes": 2000}})
    app = make_app(FakeEngine(), made)
    async with served(app, made) as port:
        reader, writer = await connect(port, "POST /v1/completions HTTP/1.1\nHost: localhost\nContent-Length: 9000000000")
        assert b"413" in await read(reader, b"\r\n")
        assert (await asyncio.wait_for(reader.read(), WAIT_S)).endswith(b"}}")
        writer.close()
        chunk = b"bb8\r\n" + b"x" * 3000 + b"\r\n"
        head = "POST /v1/completions HTTP/1.1\nHost: localhost\nTransfer-Encoding: chunked"
        reader, writer = await connect(port, head, chunk)
        assert b"413" in await read(reader, b"\r\n")
        assert b"request_too_large" in await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()


async def test_a_body_that_stops_coming() -> None:
    """Answered with 408 and closed, not kept for ever."""
    made = Settings.model_validate({"server": {"body_timeout_s": 0.05}})
    app = make_app(FakeEngine(), made)
    async with served(app, made) as port:
        reader, writer = await connect(port, "POST /v1/completions HTTP/1.1\nHost: localhost\nContent-Length: 100", b"{")
        assert b"408" in await read(reader, b"\r\n")
        assert b"request_timeout" in await asyncio.wait_for(reader.read(), WAIT_S)
        writer.close()
