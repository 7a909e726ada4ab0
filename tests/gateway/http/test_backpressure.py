"""Clients that do not read: their requests are held, then give up their slots, then end; others are not disturbed."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from poise.config import Settings
from poise.config.serving import ReaderSettings
from poise.gateway.app import Gateway
from poise.gateway.http import backpressure
from poise.gateway.http.backpressure import Outlet, ReaderStuck, until_room
from poise.metrics.clients import StreamMetrics
from tests.gateway.fakes import WAIT_S, FakeEngine, Submission, ask, chat_body, frames, make_app
from tests.gateway.http.serving import served

CHAT, REQUESTS = "/v1/chat/completions", "/v1/requests"
LONG = 3600.0


def settings(swap_s: float = LONG, end_s: float = LONG) -> Settings:
    reader = {"unsent_bytes_max": 4096, "stall_swap_s": swap_s, "stall_end_s": end_s}
    return Settings.model_validate({"streams": {"send_buffer_bytes": 4096, "interactive": reader}})


async def connect(port: int, method: str, path: str, body: Any = None, fields: str = "") -> socket.socket:
    """A client with next to no room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    data = b"" if body is None else json.dumps(body).encode()
    await loop.sock_sendall(
        client, f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{fields}Content-Length: {len(data)}\r\n\r\n".encode() + data
    )
    return client


async def read_all(client: socket.socket) -> bytes:
    """Everything to the end of the answer, without the chunks' lengths."""
    loop, data = asyncio.get_running_loop(), b""
    while not data.endswith(b"0\r\n\r\n"):
        more = await asyncio.wait_for(loop.sock_recv(client, 1 << 16), WAIT_S)
        assert more, "the connection was closed"
        data += more
    rest, out = data.partition(b"\r\n\r\n")[2], b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        out, rest = out + rest[: int(size, 16)], rest[int(size, 16) + 2 :]
    return out


async def fill(request: Submission, engine: FakeEngine, holds: int = 1) -> str:
    """Say something, again and again, until the engine was told something of the reader. Returns all that was said."""
    said = ""
    while len(engine.held) < holds:
        request.say("word " * 20)
        said += "word " * 20
        await asyncio.sleep(0.001)
        assert len(said) < 10_000_000, "nobody noticed"
    return said


async def stuck(port: int, engine: FakeEngine, **parameters: Any) -> tuple[socket.socket, Submission, str]:
    n = len(engine.submissions)
    client = await connect(port, "POST", CHAT, chat_body(stream=True, **parameters))
    request = await engine.submitted(n + 1)
    request.accept()
    request.start()
    said = await fill(request, engine, len(engine.held) + 1)
    return client, request, said


def text_of(body: bytes) -> str:
    chunks = [json.loads(data) for _, data in frames(body) if data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


async def metrics(app: Gateway) -> str:
    return (await ask(app, "GET", "/metrics")).body.decode()


async def test_a_reader_that_is_behind_pauses_its_request_until_it_has_read() -> None:
    """Every byte arrives in the end; a stream beside it goes on all the while."""
    engine, made = FakeEngine(), settings()
    app = make_app(engine, made)
    async with served(app, made) as port:
        client, request, said = await stuck(port, engine)
        assert engine.held == [(1, "pause")]
        assert "poise_readers_stalled 1.0" in await metrics(app)
        beside = await connect(port, "POST", CHAT, chat_body(stream=True))
        other = await engine.submitted(2)
        other.accept()
        other.say("fine")
        other.finish()
        assert text_of(await read_all(beside)) == "fine"
        beside.close()
        reading = asyncio.create_task(read_all(client))
        assert (await engine.holds(2))[1] == (1, "run")
        request.say("end")
        request.finish()
        assert text_of(await reading) == said + "end"
        client.close()
        text = await metrics(app)
        assert "poise_readers_stalled 0.0" in text
        assert 'poise_holds_total{class="interactive",level="pause"} 1.0' in text


async def test_a_reader_that_stays_behind_gives_up_its_slot_and_then_its_connection() -> None:
    """Its result is kept, as far as it had come."""
    engine, made = FakeEngine(), settings(swap_s=0.05, end_s=0.3)
    app = make_app(engine, made)
    async with served(app, made) as port:
        client, _, said = await stuck(port, engine)
        assert await engine.aborts(1) == [1]
        assert engine.held == [(1, "pause"), (1, "swap")]
        (row,) = (await ask(app, "GET", REQUESTS)).json()["data"]
        assert (row["state"], row["outcome"]) == ("ended", "reader_timeout")
        told = (await ask(app, "GET", f"{REQUESTS}/{row['id']}")).json()
        assert told["choices"][0]["text"] == said
        with pytest.raises((ConnectionResetError, AssertionError)):
            await read_all(client)
        client.close()
        text = await metrics(app)
        assert 'poise_reader_timeouts_total{class="interactive"} 1.0' in text
        assert 'poise_requests_total{class="interactive",outcome="reader_timeout"} 1.0' in text
        assert "poise_readers_stalled 0.0" in text


async def test_one_reader_that_keeps_up_is_enough() -> None:
    """A request is held when all who read it are behind, and runs when the last one who was behind has left."""
    engine, made = FakeEngine(), settings()
    app = make_app(engine, made)
    async with served(app, made) as port:
        client, request, said = await stuck(port, engine, background=True)
        (row,) = (await ask(app, "GET", REQUESTS)).json()["data"]
        beside = await connect(port, "GET", f"{REQUESTS}/{row['id']}/stream")
        reading = asyncio.create_task(read_all(beside))
        assert (await engine.holds(2))[1] == (1, "run")
        client.close()
        request.finish()
        assert text_of(await reading) == said
        beside.close()


async def test_a_detached_request_is_not_held_by_who_has_left() -> None:
    """With nobody to wait for, it runs."""
    engine, made = FakeEngine(), settings()
    app = make_app(engine, made)
    async with served(app, made) as port:
        client, request, _ = await stuck(port, engine, background=True)
        client.close()
        assert (await engine.holds(2))[1] == (1, "run")
        request.finish()
        assert not engine.aborted


async def test_stuck_readers_cost_little_memory() -> None:
    """What a client has not taken stays with the record: unsent bytes are bounded however much is generated."""
    engine, made = FakeEngine(), settings()
    app = make_app(engine, made)
    async with served(app, made) as port:
        client, request, said = await stuck(port, engine)
        for _ in range(1000):
            request.say("and more of it ")
        await asyncio.sleep(0)
        reading = asyncio.create_task(read_all(client))
        request.finish()
        assert text_of(await reading) == said + "and more of it " * 1000
        client.close()


class Client:
    """Takes `reads(seconds since the start)` bytes in all of a stream that always has more for it. Sleeping moves its clock."""

    def __init__(self, reads: Callable[[float], float]) -> None:
        self.now_s = 0.0
        self.n_written = 0
        self._reads = reads

    def monotonic(self) -> float:
        return self.now_s

    async def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> None:
        return None

    def get_write_buffer_size(self) -> int:
        return self.n_written - min(self.n_written, int(self._reads(self.now_s)))

    async def stream(self, monkeypatch: pytest.MonkeyPatch, until_s: float) -> float:
        """When its stream ended, `until_s` at the latest."""
        monkeypatch.setattr(backpressure, "time", self)
        monkeypatch.setattr(backpressure, "asyncio", self)
        allowed = ReaderSettings(unsent_bytes_max=16_384, stall_swap_s=5.0, stall_end_s=60.0)
        outlet = Outlet({backpressure.TRANSPORT: self}, allowed.unsent_bytes_max)
        metrics = StreamMetrics(CollectorRegistry())
        follower: Any = SimpleNamespace(lag=0, record=SimpleNamespace(review=lambda: None))
        try:
            while self.now_s < until_s:
                self.n_written += 1000
                if outlet.wrote(1000):
                    await until_room(outlet, follower, allowed, metrics)
        except ReaderStuck:
            pass
        return self.now_s


def dripping(n_bytes: int, every_s: float) -> Callable[[float], float]:
    return lambda now_s: now_s // every_s * n_bytes


@pytest.mark.parametrize(("n_bytes", "every_s"), [(8192, 60.0), (8200, 59.0), (10_000, 55.0), (4000, 20.0), (100, 1.0)])
async def test_a_reader_that_drips_ends(n_bytes: int, every_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes just enough before its time is over, again and again: the time adds up."""
    assert 60.0 <= await Client(dripping(n_bytes, every_s)).stream(monkeypatch, 86_400.0) <= 600.0


async def test_what_was_taken_fast_saves_nothing_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """A megabyte at once, then nothing."""
    ended_s = await Client(lambda now_s: 1_000_000 * (now_s >= 1.0)).stream(monkeypatch, 86_400.0)
    assert 60.0 <= ended_s <= 65.0


@pytest.mark.parametrize(
    "reads",
    [lambda now_s: 300 * now_s, lambda now_s: 1000 * now_s, dripping(9000, 30.0), dripping(32_768, 55.0)],
    ids=["a_token_a_second", "four_tokens_a_second", "each_half_minute", "in_lumps"],
)
async def test_an_honest_slow_reader_never_ends(reads: Callable[[float], float], monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind all day, and it takes what it is sent."""
    assert await Client(reads).stream(monkeypatch, 86_400.0) >= 86_400.0


async def test_who_stood_still_and_caught_up_may_do_so_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty seconds behind, then twenty that it reads fast, all day."""

    def reads(now_s: float) -> float:
        rounds, within_s = divmod(now_s, 70.0)
        return 2000 * (20.0 * rounds + max(0.0, within_s - 50.0))

    assert await Client(reads).stream(monkeypatch, 86_400.0) >= 86_400.0
