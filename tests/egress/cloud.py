"""A scripted cloud: a real HTTP server in this process that answers as it is told, also badly, and keeps every byte that it got.

    async with Cloud() as cloud:
        cloud.answers(says("hello"))          # one script for each request, in their order; the last one stays
        ... settings: {"backends": {"cloud": cloud.backend()}}
        assert CANARY not in cloud.received   # everything that ever came in, heads and bodies

A script is an async function of an exchange, which writes bytes as they are: see `Exchange`. With `tls` it speaks HTTPS, with a
certificate of `cloud.authority` for 127.0.0.1 and localhost; `ca_file` has that authority's own, for `backends.NAME.ca_file`.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trustme


@dataclass(eq=False)
class Exchange:
    """One request, and the means to answer it."""

    head: bytes
    body: bytes
    _writer: asyncio.StreamWriter = field(repr=False)
    gone: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    """Its client has left."""

    @property
    def path(self) -> str:
        return self.head.split(b" ", 2)[1].decode()

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()

    @property
    def headers(self) -> dict[str, str]:
        lines = self.head.decode("latin-1").split("\r\n")[1:]
        return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines) if name}

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, data: bytes) -> None:
        """As it is. Ends the script when its client has left."""
        if self._writer.is_closing() or self.gone.is_set():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()
        await asyncio.sleep(0)

    async def begin(self, status: str = "200 OK", kind: str = "text/event-stream", **headers: str) -> None:
        """The head of an answer that comes in chunks."""
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.send(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Transfer-Encoding: chunked\r\n\r\n".encode())

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, value: Any, name: str = "") -> None:
        data = value if isinstance(value, str) else json.dumps(value)
        await self.chunk((f"event: {name}\n" if name else "").encode() + f"data: {data}\n\n".encode())

    async def end(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def whole(self, body: bytes, status: str = "200 OK", kind: str = "application/json", **headers: str) -> None:
        more = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        await self.send(f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n{more}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def die(self) -> None:
        """The connection is lost at once."""
        self._writer.transport.abort()


Script = Callable[[Exchange], Awaitable[None]]


class Cloud:
    """Listens on 127.0.0.1 while it is entered."""

    def __init__(self, *, tls: bool = False, names: tuple[str, ...] = ("127.0.0.1", "localhost"), folder: Path | None = None):
        """`names`: those that its certificate is for. `folder`: where its authority's certificate is written, with `tls`."""
        self.exchanges: list[Exchange] = []
        self.asked = asyncio.Event()
        """There was a request."""
        self.n_connections = 0
        self._raw = bytearray()
        self._scripts: list[Script] = [says("hello")]
        self._tls: ssl.SSLContext | None = None
        self.ca_file = ""
        if tls:
            assert folder is not None, "a folder is needed for the authority's certificate"
            authority = trustme.CA()
            self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            authority.issue_cert(*names).configure_cert(self._tls)
            authority.cert_pem.write_to_path(str(folder / "authority.pem"))
            self.ca_file = str(folder / "authority.pem")

    async def __aenter__(self) -> Cloud:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls, limit=1 << 26)
        self.port = self._server.sockets[0].getsockname()[1]
        self._tasks: set[asyncio.Task[None]] = set()
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self.port}/v1"

    @property
    def received(self) -> bytes:
        """Every byte that ever came in, after TLS."""
        return bytes(self._raw)

    @property
    def n_requests(self) -> int:
        return len(self.exchanges)

    @property
    def last(self) -> Exchange:
        return self.exchanges[-1]

    def backend(self, **settings: Any) -> dict[str, Any]:
        """Its section in the settings: as a server elsewhere, whose address happens to be this host's."""
        return {"url": self.url, "leaves_host": True, "ceiling": "public", "model": "big", "ca_file": self.ca_file} | settings

    def answers(self, *scripts: Script) -> None:
        """From now on: one for each request; the last one answers all that follow."""
        self._scripts = list(scripts)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.n_connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # the client has left, or the test is over
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        self._raw += head
        exchange = Exchange(head.removesuffix(b"\r\n\r\n"), b"", writer)
        exchange.body = await reader.readexactly(int(exchange.headers.get("content-length", "0")))
        self._raw += exchange.body
        self.exchanges.append(exchange)
        self.asked.set()
        script = self._scripts.pop(0) if len(self._scripts) > 1 else self._scripts[0]
        answering = asyncio.ensure_future(script(exchange))
        watching = asyncio.ensure_future(self._watch(reader, exchange))
        try:
            await answering
            return not exchange.gone.is_set() and not writer.is_closing()
        finally:
            answering.cancel()
            watching.cancel()
            await asyncio.gather(answering, watching, return_exceptions=True)

    async def _watch(self, reader: asyncio.StreamReader, exchange: Exchange) -> None:
        """Until its client leaves."""
        while not reader.at_eof() and reader.exception() is None:  # noqa: ASYNC110 (it has no event for that)
            await asyncio.sleep(0.005)
        exchange.gone.set()


def delta(text: str = "", finish: str | None = None, **more: Any) -> dict[str, Any]:
    """A chunk of a chat in OpenAI's format."""
    said = ({"content": text} if text else {}) | more
    return {"object": "chat.completion.chunk", "model": "big", "choices": [{"index": 0, "delta": said, "finish_reason": finish}]}


ROLE = delta(role="assistant", content="")
USAGE = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 4}}
MODELS = {"object": "list", "data": [{"id": "big", "object": "model", "max_model_len": 8192}]}


def says(*texts: str, usage: dict[str, Any] | None = USAGE, finish: str = "stop") -> Script:
    """A chat that streams these texts. Asked for its models, it names one."""

    async def answer(exchange: Exchange) -> None:
        if exchange.method == "GET":
            await exchange.whole(json.dumps(MODELS).encode())
            return
        await exchange.begin()
        await exchange.event(ROLE)
        for text in texts:
            await exchange.event(delta(text))
        await exchange.event(delta(finish=finish))
        if usage is not None:
            await exchange.event({"choices": [], "usage": usage})
        await exchange.event("[DONE]")
        await exchange.end()

    return answer


def writes(*values: Any) -> Script:
    """These events, and the end. A text is sent as it is: bytes that are no event are possible."""

    async def answer(exchange: Exchange) -> None:
        await exchange.begin()
        for value in values:
            await (exchange.chunk(value.encode()) if isinstance(value, str) else exchange.event(value))
        await exchange.end()

    return answer


def dies_after(*values: Any) -> Script:
    """These events, then the connection is lost. Without any: not even a head."""

    async def answer(exchange: Exchange) -> None:
        if values:
            await exchange.begin()
        for value in values:
            await exchange.event(value)
        exchange.die()

    return answer


def dies_after_bytes(data: bytes) -> Script:
    async def answer(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(data)
        exchange.die()

    return answer


def refuses(status: str, body: bytes = b'{"error": {"message": "no"}}', **headers: str) -> Script:
    """An error, as in `refuses("429 Too Many Requests", Retry_After="2")`."""

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(body, status, **headers)

    return answer


def is_json(body: bytes, **headers: str) -> Script:
    """A 200 that is no stream: an error in its body, or something compressed."""

    async def answer(exchange: Exchange) -> None:
        await exchange.whole(body, **headers)

    return answer


def redirects(where: str, status: str = "307 Temporary Redirect") -> Script:
    return refuses(status, b"", Location=where)


def drips(data: bytes, begin: bytes = b"", step: int = 1) -> Script:
    """One byte after the other, or so many, again and again, until its client has had enough."""

    async def answer(exchange: Exchange) -> None:
        await exchange.begin()
        if begin:
            await exchange.chunk(begin)
        while not exchange.gone.is_set():
            for i in range(0, len(data), step):
                await exchange.chunk(data[i : i + step])
                await asyncio.sleep(0.002)

    return answer


def is_large(n_bytes: int) -> Script:
    """An event that does not end before that many bytes."""

    async def answer(exchange: Exchange) -> None:
        await exchange.begin()
        await exchange.chunk(b'data: {"choices": [{"delta": {"content": "')
        for _ in range(0, n_bytes, 1 << 16):
            await exchange.chunk(b"x" * (1 << 16))
        await exchange.chunk(b'"}}]}\n\n')
        await exchange.end()

    return answer


async def never(exchange: Exchange) -> None:
    """It takes the request, and that is all."""
    await exchange.gone.wait()


async def stops_talking(exchange: Exchange) -> None:
    """A first token, then nothing."""
    await exchange.begin()
    await exchange.event(delta("one"))
    await exchange.gone.wait()
