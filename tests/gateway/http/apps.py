"""A small application for tests of connections: it answers in every way that one can, and notes what it was asked."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.types import Receive, Scope, Send

BIG_BYTES = 8 << 20


class App:
    """`/` says ok, `/echo` what it was sent, `/chunks` two words without a length, `/big` megabytes; `/wait` waits."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.may_answer = asyncio.Event()
        self.n_lost = 0
        """Requests in `/wait` whose client has left."""
        self.scopes: list[Scope] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.append(f"{scope['method']} {scope['path']}")
        self.scopes.append(scope)
        ways: dict[str, Callable[[Receive, Send], Awaitable[None]]] = {
            "/echo": self._echo, "/chunks": self._chunks, "/big": self._big, "/wait": self._wait,
        }  # fmt: skip
        await ways.get(scope["path"], self._ok)(receive, send)

    async def _ok(self, _: Receive, send: Send) -> None:
        await _answer(send, b"ok")

    async def _echo(self, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        await _answer(send, b"<" + body + b">")

    async def _chunks(self, _: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for word in (b"one", b"two"):
            await send({"type": "http.response.body", "body": word, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def _big(self, _: Receive, send: Send) -> None:
        await _answer(send, b"x" * BIG_BYTES)

    async def _wait(self, receive: Receive, send: Send) -> None:
        message: Any = await receive()
        while message["type"] != "http.disconnect" and not self.may_answer.is_set():
            told = asyncio.ensure_future(receive())
            allowed = asyncio.ensure_future(self.may_answer.wait())
            await asyncio.wait({told, allowed}, return_when=asyncio.FIRST_COMPLETED)
            message = told.result() if told.done() else message
            told.cancel()
            allowed.cancel()
        if message["type"] == "http.disconnect":
            self.n_lost += 1
        else:
            await _answer(send, b"waited")


async def _answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
