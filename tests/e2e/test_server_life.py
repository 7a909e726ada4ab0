"""The server process: clients that leave, an engine that dies, starts that cannot succeed, a clean end."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from poise.llama.files.default_model import locate
from tests.e2e.server import END_S_MAX, PoiseServer, run_poise

pytestmark = pytest.mark.slow


def body(**changes: object) -> bytes:
    request: dict[str, object] = {
        "model": "default",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": 2000,
        "ignore_eos": True,
        "stream": True,
    }
    return json.dumps(request | changes).encode()


def open_stream(server: PoiseServer, payload: bytes) -> socket.socket:
    """A raw connection on which the request has been sent, so that the test can close it whenever it wants."""
    host, port = server.url.removeprefix("http://").split(":")
    connection = socket.create_connection((host, int(port)), timeout=120)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    connection.sendall(head.encode() + f"Content-Length: {len(payload)}\r\n\r\n".encode() + payload)
    return connection


def read_until(connection: socket.socket, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        data = connection.recv(65536)
        assert data, f"the stream ended without {wanted!r}: {seen[-500:]!r}"
        seen += data
    return seen


def running(server: PoiseServer) -> int:
    return sum(c["running"] for c in server.get("/status")[1]["classes"].values())


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_compute(poise_server: PoiseServer, stream: bool) -> None:
    """Streaming or waiting for the whole answer: when the connection closes, the sequence stops."""
    connection = open_stream(poise_server, body(stream=stream))
    if stream:
        read_until(connection, b'"content"')
    poise_server.eventually(lambda: running(poise_server) == 1, "the request runs")
    connection.close()
    poise_server.eventually(lambda: poise_server.nothing_runs(), "the request is gone")


def test_queued_work_of_a_client_that_leaves_never_runs(poise_server: PoiseServer) -> None:
    """With every slot busy, a waiting request whose client goes away costs no compute."""

    def queued() -> int:
        return sum(c["queued"] for c in poise_server.get("/status")[1]["classes"].values())

    with contextlib.ExitStack() as connections:
        for _ in range(12):
            connections.enter_context(open_stream(poise_server, body(max_tokens=3000)))
        poise_server.eventually(lambda: running(poise_server) == 12, "the slots are busy")
        with open_stream(poise_server, body(max_tokens=3000)):
            poise_server.eventually(lambda: queued() == 1, "one waits")
        poise_server.eventually(lambda: queued() == 0, "it waits no longer")
    poise_server.eventually(lambda: poise_server.nothing_runs(), "everything is gone")


@pytest.fixture
def own_server() -> Iterator[PoiseServer]:
    server = PoiseServer.start()
    yield server
    assert server.stop() == 0


def test_a_stream_goes_on_after_its_engine_was_killed(own_server: PoiseServer) -> None:
    """kill -9: comments tell of it, /health tells the truth, new requests are told when to come back."""
    with open_stream(own_server, body(max_tokens=64)) as connection:
        seen = read_until(connection, b'"content"')
        engine = own_server.engine()
        engine.send_signal(signal.SIGKILL)
        seen += read_until(connection, b": recovering")
        status, health = own_server.get("/health")
        assert (status, health["status"], health["ready"]) == (503, "restarting", False)
        assert "SIGKILL" in health["detail"]
        with open_stream(own_server, body()) as refused:
            answer = read_until(refused, b'"error"')
        assert answer.startswith(b"HTTP/1.1 503")
        assert b"retry-after:" in answer.lower()
        seen += read_until(connection, b"[DONE]")
    assert b": recovered recomputed=" in seen
    assert b'"error"' not in seen
    assert b'"outcome"' not in seen
    assert seen.count(b'"finish_reason":"length"') == 1
    status, health = own_server.get("/health")
    assert (status, health["restarts"]) == (200, 1)
    assert own_server.engine().pid != engine.pid


def test_a_request_that_waits_for_its_whole_answer_gets_it_though_the_engine_died(own_server: PoiseServer) -> None:
    """Not streaming: it takes longer, and nothing else."""
    with open_stream(own_server, body(stream=False, max_tokens=64)) as connection:
        own_server.eventually(lambda: running(own_server) == 1, "the request runs")
        own_server.engine().send_signal(signal.SIGKILL)
        seen = read_until(connection, b'"usage"')
    assert seen.startswith(b"HTTP/1.1 200")
    assert b'"completion_tokens":64' in seen
    assert own_server.get("/health")[1]["restarts"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_stops_ends_what_it_has_begun(number: signal.Signals) -> None:
    """New requests are refused, the running stream comes to its own end, then the process ends with 0."""
    server = PoiseServer.start()
    with open_stream(server, body(max_tokens=100)) as connection:
        seen = read_until(connection, b'"content"')
        server.process.send_signal(number)
        server.eventually(lambda: server.get("/health")[1]["status"] == "draining", "it drains")
        with open_stream(server, body()) as refused:
            answer = read_until(refused, b'"error"')
        assert answer.startswith(b"HTTP/1.1 503")
        assert b'"draining"' in answer
        seen += read_until(connection, b"[DONE]")
    assert seen.count(b'"finish_reason":"length"') == 1
    assert b'"outcome"' not in seen
    assert server.stop() == 0


def test_what_does_not_end_in_time_is_cut() -> None:
    """`server.drain_s`: the stream ends in order with what there was; who had nothing yet gets an error."""
    server = PoiseServer.start("--set", "server.drain_s=1", "--set", "classes.interactive.slots_max=1")
    with open_stream(server, body()) as first:
        read_until(first, b'"content"')  # it has the slot: of two sent at once either may get it
        with open_stream(server, body(stream=False)) as second:
            server.eventually(lambda: server.get("/status")[1]["live_choices"] == 2, "both are there")
            server.process.terminate()
            seen = read_until(first, b"[DONE]")
            assert b'"poise":{"outcome":"server_stopping"}' in seen
            seen = read_until(second, b"server_stopping")
            assert seen.startswith(b"HTTP/1.1 503")
    assert server.process.wait(END_S_MAX) == 0
    assert server.stop() == 0


def test_a_second_signal_stops_at_once() -> None:
    """Whatever still runs."""
    server = PoiseServer.start("--set", "server.drain_s=3600")
    with open_stream(server, body()) as connection:
        read_until(connection, b'"content"')
        server.process.terminate()
        server.eventually(lambda: server.get("/health")[1]["status"] == "draining", "it drains")
        engine = server.engine()
        server.process.terminate()
        assert server.process.wait(END_S_MAX) == 0
        engine.wait(END_S_MAX)  # an engine never outlives its gateway
    assert server.process.stdout is not None
    assert "Traceback" not in server.process.stdout.read()
    assert server.stop() == 0


def damaged(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("missing", "missing.gguf"),
        ("truncated", "truncated.gguf"),
        ("garbage", "garbage.gguf"),
        ("too big", "memory"),
        ("folder", "directory"),
    ],
)
def test_a_model_that_cannot_be_served_is_one_clear_line(tmp_path: Path, case: str, expected: str) -> None:
    """Exit code 2, no traceback, the file and what is wrong with it."""
    options: list[str] = []
    match case:
        case "missing":
            path = tmp_path / "missing.gguf"
        case "truncated":
            with locate().open("rb") as file:
                path = damaged(tmp_path, "truncated.gguf", file.read(40_000_000))
        case "garbage":
            path = damaged(tmp_path, "garbage.gguf", b"not a model" * 1000)
        case "folder":
            path = tmp_path
        case _:
            path = locate()
            options = ["--set", "pools.short.slots=256", "--set", "pools.short.slot_tokens=1048576"]
            options += ["--set", "engine.batch_tokens=512", "--set", "pools.long.slot_tokens=1048576"]
    done = run_poise("serve", "--port", "0", "--model", str(path), *options)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    (line,) = [x for x in done.stderr.splitlines() if x.strip()]
    assert expected in line


def test_no_process_of_a_server_leaves_core_dumps(poise_server: PoiseServer) -> None:
    """Neither the gateway nor a child of it: prompts would be in it."""
    gateway = psutil.Process(poise_server.process.pid)
    for process in (gateway, *gateway.children(recursive=True)):
        limits = Path(f"/proc/{process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max core file size")]
        assert line.split()[4] == "0"
        assert Path(f"/proc/{process.pid}/coredump_filter").read_text().strip("0\n") == ""


BROKEN_SERVER = """
from poise.cli import main
from poise.gateway.supervision.supervisor import Supervisor
from poise.gateway.tasks import tasks

async def broken(self):
    raise KeyError("a bug in the supervisor")

tasks.DELAY_FIRST_S = tasks.DELAY_MAX_S = 0.0
Supervisor._run_one = broken
main()
"""


def test_a_server_that_cannot_do_its_work_ends_with_a_code(tmp_path: Path) -> None:
    """For a service manager to act on, and with the audit log closed in order."""
    audit = ["--set", "audit.enabled=true", "--set", f"audit.path={tmp_path}", "--set", "auth.admin_key=an-admin-s-own-key"]
    done = subprocess.run(
        [sys.executable, "-c", BROKEN_SERVER, "serve", "--port", "0", *audit],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 70, done.stderr
    assert "task engine-supervisor cannot go on: KeyError: the server ends" in done.stderr
    (log,) = tmp_path.glob("audit-*.jsonl")
    last = json.loads(log.read_text().splitlines()[-1])
    assert (last["event"], last["exit_code"]) == ("stop", 70)


def test_a_port_in_use_is_one_clear_line(poise_server: PoiseServer) -> None:
    """The address, what is wrong and what to do; no traceback."""
    port = poise_server.url.rsplit(":", 1)[1]
    done = run_poise("serve", "--port", port)
    assert done.returncode == 2
    (line,) = [x for x in done.stderr.splitlines() if x.strip()]
    assert port in line
    assert "in use" in line


def test_the_server_says_what_it_serves(poise_server: PoiseServer) -> None:
    """The start prints the model, the limits of each class and a curl line to try."""
    status, models = poise_server.get("/v1/models")
    assert status == 200
    assert models["data"][0]["id"] in "".join(poise_server.output)
