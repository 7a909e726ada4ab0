"""A full server: who fills it is stopped first, others go on, and operators always get in."""

from __future__ import annotations

import asyncio
import json
import resource
import socket
import subprocess
import sys
from typing import Any

from poise.config import Settings
from poise.gateway.app import Gateway
from tests.gateway.fakes import WAIT_S, FakeEngine, ask, chat_body, make_app, says
from tests.gateway.http.serving import served
from tests.gateway.http.test_connections import small, until, until_closed

KEYS = {"auth": {"required": True, "keys": {"alice": "alice-secret-1", "bob": "bob-secret-22"}}}


def head(method: str, path: str, key: str, length: int = 0) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", f"Content-Length: {length}"]
    lines += [f"Authorization: Bearer {key}"] if key else []
    return "\r\n".join([*lines, "", ""]).encode()


async def call(port: int, method: str, path: str, body: bytes = b"", key: str = "") -> tuple[int, dict[str, Any]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(method, path, key, len(body)) + body)
    answer = await until_closed(reader)
    writer.close()
    content = answer.partition(b"\r\n\r\n")[2]
    return int(answer.split()[1]), json.loads(content) if content.startswith(b"{") else {}


async def chat(port: int, key: str = "", padding: int = 0) -> tuple[int, dict[str, Any]]:
    return await call(port, "POST", "/v1/chat/completions", padded(padding), key)


def padded(n_bytes: int) -> bytes:
    """A chat, and white space before it, which JSON allows."""
    return b" " * n_bytes + json.dumps(chat_body()).encode()


async def hold(port: int, key: str = "", padding: int = 0) -> asyncio.StreamWriter:
    """A chat that is not answered before the engine says something."""
    _, writer = await asyncio.open_connection("127.0.0.1", port)
    body = padded(padding)
    writer.write(head("POST", "/v1/chat/completions", key, len(body)) + body)
    return writer


def n_open(app: Gateway) -> int:
    return int(app.metrics.n_open)


async def test_files_that_nobody_reads_leave_the_api_alone() -> None:
    """As many silent sockets as there may be open requests, each with dozens of requests in one packet, and no key."""
    made = Settings.model_validate(KEYS | {"server": {"max_connections": 16, "send_timeout_s": 0.5}})
    engine = FakeEngine(says("fine"))
    app = make_app(engine, made)
    one = b"GET /page/style.css HTTP/1.1\r\nHost: localhost\r\n\r\n"
    async with served(app, made) as port:
        held = [await small(port, one * 60) for _ in range(16)]
        await until(lambda: n_open(app) == 8)  # strangers have half
        for _ in range(3):
            assert (await chat(port, "alice-secret-1"))[0] == 200
        await until(lambda: n_open(app) == 0)  # and lose it, because they do not read
        for client in held:
            client.close()


async def test_a_stuck_stream_with_a_request_behind_it_gives_back_what_it_held() -> None:
    """The end of its patience ends the connection, and its open request."""
    reader = {"unsent_bytes_max": 1024, "stall_swap_s": 0.05, "stall_end_s": 0.1}
    made = Settings.model_validate({"streams": {"send_buffer_bytes": 2048, "interactive": reader}})
    engine = FakeEngine(says("word " * 10_000))
    app = make_app(engine, made)
    async with served(app, made) as port:
        await ask(app, "POST", "/v1/chat/completions", chat_body(background=True))
        (row,) = (await ask(app, "GET", "/v1/requests")).json()["data"]
        one = f"GET /v1/requests/{row['id']}/stream HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        held = [await small(port, one + one) for _ in range(4)]
        await until(lambda: n_open(app) == 4)
        await until(lambda: n_open(app) == 0)
        for client in held:
            client.close()


async def test_one_tenant_cannot_have_all_open_requests() -> None:
    """It is told so with 429, and another one is served."""
    made = Settings.model_validate(KEYS | {"server": {"max_connections": 9}})
    engine = FakeEngine()
    app = make_app(engine, made)
    async with served(app, made) as port:
        held = [await hold(port, "alice-secret-1") for _ in range(8)]
        await engine.submitted(8)
        status, body = await chat(port, "alice-secret-1")
        assert (status, body["error"]["code"]) == (429, "tenant_too_many_requests")
        held.append(await hold(port, "bob-secret-22"))
        await engine.submitted(9)
        status, body = await chat(port, "bob-secret-22")
        assert (status, body["error"]["code"]) == (503, "too_many_open_requests")
        for writer in held:
            writer.close()
        await until(lambda: n_open(app) == 0)


async def test_operators_get_into_a_server_whose_connections_are_all_at_work() -> None:
    """Others are told to come back. Silent sockets that fill the reserve change nothing."""
    made = Settings.model_validate(KEYS | {"server": {"connections_total": 2}})
    engine = FakeEngine()
    app = make_app(engine, made)
    async with served(app, made) as port:
        held = [await hold(port, key) for key in ("alice-secret-1", "bob-secret-22")]
        await engine.submitted(2)
        silent = [(await asyncio.open_connection("127.0.0.1", port))[1] for _ in range(20)]
        status, body = await chat(port, "bob-secret-22")
        assert (status, body["error"]["code"]) == (503, "too_many_connections")
        for path in ("/health", "/metrics", "/status"):
            assert (await call(port, "GET", path))[0] == 200
        assert (await call(port, "GET", "/admin/requests"))[0] == 401  # asked for its key, not turned away
        for writer in held + silent:
            writer.close()


async def test_bytes_of_bodies_in_flight_have_a_total() -> None:
    """One tenant's are refused before another's; when its requests end, it may have them again."""
    made = Settings.model_validate(KEYS | {"server": {"body_bytes_total": 90_000, "max_body_bytes": 40_000}})
    engine = FakeEngine()
    app = make_app(engine, made)
    async with served(app, made) as port:
        held = [await hold(port, "alice-secret-1", padding=30_000) for _ in range(2)]
        await engine.submitted(2)
        status, body = await chat(port, "alice-secret-1", padding=30_000)
        assert (status, body["error"]["code"]) == (429, "too_many_body_bytes")
        held.append(await hold(port, "bob-secret-22"))
        await engine.submitted(3)
        for writer in held:
            writer.close()
        await until(lambda: n_open(app) == 0)
        held = [await hold(port, "alice-secret-1", padding=30_000)]
        await engine.submitted(4)
        held[0].close()


async def test_a_stranger_s_bodies_leave_room_for_who_has_a_key() -> None:
    """Requests without a key are refused before their bodies are read."""
    made = Settings.model_validate(KEYS)
    app = make_app(FakeEngine(says("fine")), made)
    async with served(app, made) as port:
        status, body = await chat(port)
        assert (status, body["error"]["code"]) == (401, "missing_api_key")
        assert (await chat(port, "bob-secret-22"))[0] == 200


SILENT = """
import asyncio, resource, socket
resource.setrlimit(resource.RLIMIT_NOFILE, (96, 96))
from tests.gateway.fakes import FakeEngine, make_app, says
from tests.gateway.http.serving import served
async def main():
    async with served(make_app(FakeEngine(says("x")))) as port:
        print(port, flush=True)
        await asyncio.get_running_loop().run_in_executor(None, input)
asyncio.run(main())
"""


def test_a_server_with_few_files_is_never_deaf() -> None:
    """Three times as many silent connections as it may have files: it goes on answering."""
    command = [sys.executable, "-c", SILENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        silent = [socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) for _ in range(300)]
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", port), timeout=WAIT_S) as client:
                client.sendall(head("GET", "/health/live", ""))
                assert client.recv(64).startswith(b"HTTP/1.1 200")
        for connection in silent:
            connection.close()
        process.communicate("\n", timeout=WAIT_S)
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] != 96
