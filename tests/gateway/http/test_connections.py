"""A connection from its first byte to its last, over real sockets, on both event loops: each kind of abuse has its end."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from poise.config import Settings
from poise.metrics.clients import ConnectionMetrics
from tests.gateway.fakes import WAIT_S
from tests.gateway.http.apps import BIG_BYTES, App
from tests.gateway.http.serving import served

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HELLO = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
SHORT = 0.15


class Server:
    def __init__(self, port: int, app: App, registry: CollectorRegistry) -> None:
        self.port, self.app = port, app
        self._registry = registry

    async def open(self, *pieces: bytes) -> Connection:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        return reader, writer

    async def ask(self, *pieces: bytes) -> bytes:
        """Everything that comes until the server closes the connection."""
        reader, writer = await self.open(*pieces)
        data = await until_closed(reader)
        writer.close()
        return data

    def cut(self, reason: str) -> float:
        value = self._registry.get_sample_value("poise_connections_cut_total", {"reason": reason})
        assert value is not None, generate_latest(self._registry)
        return value


@contextlib.asynccontextmanager
async def serving(**server: Any) -> AsyncIterator[Server]:
    app, registry = App(), CollectorRegistry()
    settings = Settings.model_validate({"server": server})
    metrics = ConnectionMetrics(registry)
    async with served(app, settings, metrics=metrics, lifespan="off") as port:
        yield Server(port, app, registry)
        app.may_answer.set()


async def until_closed(reader: asyncio.StreamReader) -> bytes:
    data = bytearray()
    with contextlib.suppress(ConnectionResetError):
        while more := await asyncio.wait_for(reader.read(1 << 16), WAIT_S):
            data += more
    return bytes(data)


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not is_so():  # noqa: ASYNC110 - what happens on the other side of a socket has no event
            await asyncio.sleep(0.005)


@pytest.mark.parametrize(
    ("data", "status", "code"),
    [
        (b"GET /" + b"x" * 9000, 414, "uri_too_long"),
        (b"GET /" + b"x" * 9000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414, "uri_too_long"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 40_000, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\nA: " + b"x" * 40_000 + b"\r\n\r\n", 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 200, 431, "headers_too_large"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 100 + b"\r\n", 431, "headers_too_large"),
    ],
)
async def test_a_head_has_its_bounds(data: bytes, status: int, code: str) -> None:
    """Counted as the bytes come in; the rest is not waited for, and the application hears nothing of it."""
    async with serving() as server:
        answer = await server.ask(data)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert f'"code":"{code}"'.encode() in answer
        assert server.app.asked == []
        assert server.cut(code) == 1


async def test_the_largest_head_that_is_allowed() -> None:
    """A request line and a number of headers at their limits are served."""
    async with serving() as server:
        line = b"GET /" + b"x" * (8192 - len("GET / HTTP/1.1")) + b" HTTP/1.1\r\n"
        answer = await server.ask(line + b"Host: x\r\n" + b"a:\r\n" * 98 + b"Connection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200 OK")


@pytest.mark.parametrize(
    "head",
    [
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 3, 3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: +3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.0\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nA: b\r\n c: d\r\n\r\n",
        b"POST /echo HTTP/1.1\nHost: x\n\n",
        b"POST /echo HTTP/1.1\r\nHost: x\nContent-Length: 3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\rContent-Length: 3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nA: \0\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length : 3\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: x\r\nHost: y\r\n\r\n",
        b"POST /echo HTTP/1.1\r\n\r\n",
        b"POST  /echo  HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /echo RTSP/1.0\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
        b"\r\n" * 40 + b"POST /echo HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
)
async def test_what_two_servers_could_read_in_two_ways_is_refused(head: bytes) -> None:
    """With 400, and the connection ends: what comes behind is not run."""
    async with serving() as server:
        answer = await server.ask(head + HELLO)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1
        assert server.app.asked == []


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"CONNECT a.example:443 HTTP/1.1\r\nHost: a.example\r\n\r\n", 405),
        (b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ],
)
async def test_what_is_not_spoken_here(head: bytes, status: int) -> None:
    async with serving() as server:
        answer = await server.ask(head)
        assert answer.startswith(b"HTTP/1.1 %d " % status)
        assert b'{"error":{' in answer
        assert server.app.asked == []


@pytest.mark.parametrize("upgrade", ["h2c", "websocket", "TLS/1.2", "anything"])
@pytest.mark.parametrize("chunked", [False, True])
async def test_an_offer_to_upgrade_is_ignored(upgrade: str, chunked: bool) -> None:
    """The body is the request's, also when it comes later and looks like a request; the connection serves another one."""
    inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
    length = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % len(inner)
    head = b"POST /echo HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: %b\r\n" % upgrade.encode()
    body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(inner), inner) if chunked else inner
    async with serving() as server:
        reader, writer = await server.open(head + length + b"\r\n\r\n")
        await until(lambda: server.app.asked == ["POST /echo"])
        writer.write(body)
        answer = await asyncio.wait_for(reader.readuntil(b">"), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"<" + inner + b">")
        writer.write(HELLO)
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)).startswith(b"HTTP/1.1 200 OK")
        writer.close()
        assert server.app.asked == ["POST /echo", "GET /"]


async def test_a_client_that_asks_before_it_sends_its_body() -> None:
    """It is told to go on when the body is wanted. When it is answered at once, the connection ends: its body may come or not."""
    head = b"Host: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    async with serving() as server:
        reader, writer = await server.open(b"POST /echo HTTP/1.1\r\n" + head)
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), WAIT_S) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hi")
        assert (await asyncio.wait_for(reader.readuntil(b">"), WAIT_S)).endswith(b"<hi>")
        writer.close()
        answer = await server.ask(b"POST / HTTP/1.1\r\n" + head)
        assert b"connection: close\r\n" in answer
        assert b"100 Continue" not in answer


async def test_bytes_that_are_no_request_do_not_keep_an_idle_connection() -> None:
    async with serving(idle_timeout_s=SHORT) as server:
        reader, writer = await server.open(HELLO)
        await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)
        reading = asyncio.create_task(until_closed(reader))
        n_sent = 0
        while not reading.done():
            writer.write(b"\r\n" if n_sent < 20 else b"")
            n_sent += 1
            await asyncio.sleep(SHORT / 10)
            assert n_sent < 10 * WAIT_S / SHORT
        assert await reading == b""
        writer.close()


async def test_an_idle_connection_outlives_the_time_for_a_head() -> None:
    """Silence between two requests has a time of its own."""
    async with serving(idle_timeout_s=60, body_timeout_s=SHORT) as server:
        reader, writer = await server.open(HELLO)
        await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)
        await server.ask(b"GET / HT")  # takes longer than SHORT
        writer.write(HELLO)
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)).startswith(b"HTTP/1.1 200")
        writer.close()


async def test_a_second_request_that_never_completes() -> None:
    """Is answered with 408 like a first one."""
    async with serving(body_timeout_s=SHORT) as server:
        reader, writer = await server.open(HELLO)
        await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)
        writer.write(b"\r\nGET /never")
        assert (await until_closed(reader)).startswith(b"HTTP/1.1 408 ")
        writer.close()


async def test_a_body_that_nobody_wants_and_that_does_not_come() -> None:
    """The answer is there at once; the connection does not wait for the rest for ever, nor holds an open request."""
    async with serving(body_timeout_s=SHORT) as server:
        answer = await server.ask(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc")
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert answer.endswith(b"ok")
        assert server.cut("body_timeout") == 1


async def test_a_body_that_nobody_wants_and_that_comes_later() -> None:
    """It is read and dropped, and the connection serves the next request."""
    async with serving() as server:
        inner = b"GET /inner HTTP/1.1\r\nHost: x\r\n\r\n"
        head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(inner)
        reader, writer = await server.open(head)
        await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)
        writer.write(inner + HELLO)
        assert (await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)).startswith(b"HTTP/1.1 200")
        writer.close()
        assert server.app.asked == ["POST /", "GET /"]


async def test_a_large_body_that_nobody_wants_ends_the_connection() -> None:
    """The answer arrives although the client is still sending."""
    async with serving() as server:
        reader, writer = await server.open(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n", b"x" * 500_000)
        answer = await until_closed(reader)
        assert b"connection: close\r\n" in answer
        assert answer.endswith(b"ok")
        writer.close()


async def small(port: int, data: bytes) -> socket.socket:
    """A client with next to no room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, data)
    return client


@pytest.mark.parametrize("last", [b"", b"Connection: close\r\n"])
async def test_an_answer_that_is_not_taken(last: bytes) -> None:
    """Neither the handler's end nor that it was the last answer lets its bytes wait for ever."""
    async with serving(send_timeout_s=SHORT) as server:
        client = await small(server.port, b"GET /big HTTP/1.1\r\nHost: x\r\n" + last + b"\r\n")
        await until(lambda: server.cut("not_taken") == 1)
        client.close()


async def test_an_answer_that_is_taken_by_drops() -> None:
    """A few bytes now and then are too few."""
    async with serving(send_timeout_s=SHORT) as server:
        client = await small(server.port, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(WAIT_S):
            while server.cut("not_taken") == 0:
                with contextlib.suppress(OSError):
                    await loop.sock_recv(client, 1)
                await asyncio.sleep(SHORT / 10)
        client.close()


async def test_an_answer_that_is_taken_slowly_but_surely() -> None:
    """Arrives whole, though it takes many times as long as a client may take nothing."""
    async with serving(send_timeout_s=0.05) as server:
        client = await small(server.port, b"GET /big HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        loop, n_bytes, n_read = asyncio.get_running_loop(), 0, 0
        while data := await asyncio.wait_for(loop.sock_recv(client, 1 << 16), WAIT_S):
            n_bytes += len(data)
            n_read += 1
            await asyncio.sleep(0.002 if n_read % 8 == 0 else 0)
        assert n_bytes > BIG_BYTES
        client.close()


async def test_requests_that_come_at_once_are_answered_in_turn() -> None:
    """The second one does not begin before the first one's answer is complete."""
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n"
    async with serving() as server:
        reader, writer = await server.open(wait + HELLO, b"GET /chunks HTTP/1.1\r\nHost: x\r\n\r\n")
        await until(lambda: server.app.asked == ["GET /wait"])
        server.app.may_answer.set()
        answer = await asyncio.wait_for(reader.readuntil(b"0\r\n\r\n"), WAIT_S)
        assert answer.count(b"HTTP/1.1 200 OK") == 3
        assert answer.index(b"waited") < answer.index(b"ok") < answer.index(b"one")
        writer.close()


async def test_nothing_runs_for_a_client_that_left_with_requests_behind_its_first() -> None:
    """The one that is being answered is told, and the others never begin."""
    async with serving() as server:
        _, writer = await server.open(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n" + HELLO * 50)
        await until(lambda: server.app.asked == ["GET /wait"])
        writer.close()
        await until(lambda: server.app.n_lost == 1)
        assert server.app.asked == ["GET /wait"]


async def test_too_much_behind_a_request() -> None:
    """Is dropped: the first one is answered, and the connection ends. That its client leaves is noticed all the same."""
    async with serving() as server:
        reader, writer = await server.open(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n", HELLO * 10_000)
        await until(lambda: server.app.asked == ["GET /wait"])
        server.app.may_answer.set()
        answer = await until_closed(reader)
        assert answer.endswith(b"waited")
        assert server.app.asked == ["GET /wait"]
        writer.close()


async def test_http_1_0_gets_no_chunks_and_no_connection_that_stays() -> None:
    """Unless it asks for it, and then only with answers of a known length."""
    async with serving() as server:
        answer = await server.ask(b"GET /chunks HTTP/1.0\r\n\r\n")
        assert answer.endswith(b"\r\n\r\nonetwo")
        assert b"chunked" not in answer
        assert (await server.ask(b"GET / HTTP/1.0\r\n\r\n")).endswith(b"ok")
        reader, writer = await server.open(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert b"connection: keep-alive" in await asyncio.wait_for(reader.readuntil(b"ok"), WAIT_S)
        writer.write(b"GET /chunks HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        assert (await until_closed(reader)).endswith(b"\r\n\r\nonetwo")
        writer.close()


async def test_head_gets_no_body() -> None:
    """The next answer follows its head at once."""
    async with serving() as server:
        answer = await server.ask(
            b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\nHEAD /chunks HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
        )
        assert answer.count(b"HTTP/1.1 200 OK") == 2
        assert b"content-length: 2\r\n" in answer
        assert answer.endswith(b"\r\n\r\n")
        assert b"ok" not in answer


async def test_silent_connections_make_room() -> None:
    """Many more than there may be: each newcomer is answered, and the oldest silent ones are gone."""
    async with serving(connections_total=8) as server:
        silent = [await server.open() for _ in range(40)]
        assert (await server.ask(HELLO.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))).endswith(b"ok")
        assert server.cut("dismissed") >= 32
        for _, writer in silent:
            writer.close()


async def test_a_proxy_that_is_trusted_tells_whose_connection_it_is() -> None:
    """An address that has many is refused, and others behind the same proxy are not; nobody else's word counts."""
    wait = b"GET /wait HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 10.0.0.1, %b\r\n\r\n"
    async with serving(connections_total=8, trusted_proxies=["127.0.0.1"]) as server:
        held = [await server.open(wait % b"203.0.113.7") for _ in range(4)]
        await until(lambda: len(server.app.asked) == 4)
        answer = await server.ask(wait % b"203.0.113.7")
        assert answer.startswith(b"HTTP/1.1 429 ")
        assert b'"code":"address_too_many_connections"' in answer
        assert b"Retry-After: 1\r\n" in answer
        held.append(await server.open(wait % b"203.0.113.8"))
        await until(lambda: len(server.app.asked) == 5)
        assert {scope["client"][0] for scope in server.app.scopes} == {"203.0.113.7", "203.0.113.8"}
        for _, writer in held:
            writer.close()
    async with serving() as server:
        _, writer = await server.open(wait % b"203.0.113.7")
        await until(lambda: len(server.app.asked) == 1)
        assert server.app.scopes[0]["client"][0] == "127.0.0.1"
        writer.close()
