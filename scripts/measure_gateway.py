"""Measure what a streamed token costs the gateway process, in CPU time.

    .venv/bin/python scripts/measure_gateway.py [--streams N] [--step-ms MS] [--tokens N] [--rounds N] [--busy]

Three processes: an engine that computes nothing and sends one Step frame every few milliseconds over the real socket pair; the
gateway as `poise serve` builds it (supervisor, vocabulary of the default model, application, uvicorn); and this one, which
reads the streams. Prints, for each round, the gateway's CPU time over the stream divided by the tokens, and its context
switches. `--busy` lets two threads of the engine sweep through memory all the while, as computing a model does: the gateway
then finds its caches cold and has to get a core back first.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import select
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import psutil

from poise.config import Settings
from poise.gateway.app import create_app
from poise.gateway.http.connections.server import HttpServer
from poise.gateway.supervision.supervisor import Supervisor
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.gateway.text.workers import TextWorkers
from poise.llama.files.default_model import default_model
from poise.scheduler.memory.kv import PoolStatus
from poise.scheduler.snapshot import ClassStatus
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from poise.wire.framing import FrameDecoder, encode_frame

STATUS_EVERY_S = 0.25


def engine(step_s: float, busy: bool) -> None:
    """Answers each Submit at once and then gives every live request one token in each step."""
    connection = socket.socket(fileno=int(sys.argv[-1]))
    frames: FrameDecoder[to_engine.ToEngine] = FrameDecoder(to_engine.ToEngine)
    left: dict[int, int] = {}
    for _ in range(2 if busy else 0):
        threading.Thread(target=sweep, daemon=True).start()
    step, next_s, status_s = 0, time.monotonic(), 0.0
    classes = {name: ClassStatus(0, 1, 0) for name in ("interactive", "background")}
    while True:
        wait_s = max(0.0, next_s - time.monotonic()) if left else None
        if select.select([connection], [], [], wait_s)[0]:
            data = connection.recv(1 << 18)
            if not data:
                return
            for message in frames.feed(data):
                if isinstance(message, to_engine.Configure):
                    pools = [wire.PoolInfo("short", 12, 4096, True, 0)]
                    connection.sendall(encode_frame(wire.Ready("fake", 0, 49152, 8192, pools, os.getpid())))
                elif isinstance(message, to_engine.Submit):
                    left[message.request_id] = message.max_output
                    connection.sendall(encode_frame(wire.Accepted(message.request_id, 1, 0)))
                    next_s = max(next_s, time.monotonic())
                elif isinstance(message, to_engine.Abort):
                    left.pop(message.request_id, None)
                elif isinstance(message, to_engine.Shutdown):
                    return
            continue
        step, next_s = step + 1, next_s + step_s
        tokens = [wire.Token(request_id, 1000 + step % 100) for request_id in left]
        left = {request_id: n - 1 for request_id, n in left.items()}
        finishes = [wire.Finish(request_id, "length", 1, 1, 1) for request_id, n in left.items() if n == 0]
        left = {request_id: n for request_id, n in left.items() if n}
        connection.sendall(encode_frame(wire.Step(step, [], tokens, finishes)))
        if time.monotonic() - status_s > STATUS_EVERY_S:
            status_s = time.monotonic()
            pools_now = [PoolStatus("short", len(left), 12, 10, 49152)]
            figures = {"prompt_tokens": 1, "output_tokens": step, "moves": 0, "rss_bytes": 1 << 20}
            connection.sendall(encode_frame(wire_status.Status(step=step, classes=classes, pools=pools_now, **figures)))


def sweep() -> None:
    """Keeps a core and the memory bus busy for ever."""
    weights = np.ones(8 << 20)
    while True:
        weights.sum()


def gateway(engine_arguments: list[str]) -> None:
    """Serves on a free port, which it prints, until SIGINT."""
    path = default_model()
    settings = Settings.model_validate({"engine": {"watchdog_s": 3600}})  # the engine here keeps no black box
    command = (sys.executable, __file__, "--role", "engine", *engine_arguments)
    supervisor = Supervisor(settings, str(path), command)
    workers = TextWorkers(settings.text, str(path))
    app = create_app(settings, supervisor, model_name="fake", text=TextSlot(workers))
    server = HttpServer(app, settings)

    def stop() -> None:
        server.should_exit = True

    async def run() -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
        await supervisor.start()
        workers.start()
        await app.set_text(TextModel(await workers.vocabulary(), workers))
        await supervisor.until(lambda state: state.is_settled)
        listener = socket.create_server(("127.0.0.1", 0))
        print(listener.getsockname()[1], flush=True)
        await server.serve([listener])
        await workers.stop()
        await supervisor.stop()

    with asyncio.Runner(loop_factory=server.config.get_loop_factory()) as runner:
        runner.run(run())


def stream(port: int, n_streams: int, n_tokens: int) -> None:
    """Open all streams and read them to their ends."""
    body = json.dumps(
        {"model": "default", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": n_tokens, "stream": True}
    ).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    poll = select.poll()
    tails: dict[int, bytes] = {}
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(n_streams)]
    for connection in connections:
        connection.sendall(head + body)
        poll.register(connection, select.POLLIN)
        tails[connection.fileno()] = b""
    by_number = {connection.fileno(): connection for connection in connections}
    while tails:
        for number, _ in poll.poll():
            data = by_number[number].recv(1 << 16)
            assert data, "the gateway closed a stream"
            tails[number] = (tails[number] + data)[-200:]
            if tails[number].endswith(b"0\r\n\r\n"):
                assert b"[DONE]" in tails[number]
                del tails[number]
                poll.unregister(number)
                by_number[number].close()


def cpu_s(process: psutil.Process) -> float:
    """CPU time of all threads of a process, to the nanosecond: its own clock rather than the ticks in /proc."""
    return time.clock_gettime((~process.pid << 3) | 2)


def measure(arguments: argparse.Namespace) -> None:
    command = [sys.executable, __file__, "--role", "gateway", "--step-ms", str(arguments.step_ms)]
    with subprocess.Popen(command + ["--busy"] * arguments.busy, stdout=subprocess.PIPE) as process:  # noqa: S603 - itself
        assert process.stdout is not None
        port = int(process.stdout.readline())
        watched = psutil.Process(process.pid)
        stream(port, arguments.streams, 100)
        print("round  ms CPU per token  context switches per token  share of a core")
        costs = []
        for i in range(arguments.rounds):
            cpu, switches, began_s = cpu_s(watched), sum(watched.num_ctx_switches()), time.monotonic()
            stream(port, arguments.streams, arguments.tokens)
            n = arguments.tokens * arguments.streams
            cpu, switches = cpu_s(watched) - cpu, sum(watched.num_ctx_switches()) - switches
            share = cpu / (time.monotonic() - began_s)
            costs.append(1000 * cpu / n)
            print(f"{i + 1:5}  {costs[-1]:16.3f}  {switches / n:26.2f}  {share:15.1%}", flush=True)
        print(f"median {statistics.median(costs):15.3f}")
        process.send_signal(signal.SIGINT)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--role", choices=("measure", "gateway", "engine"), default="measure", help=argparse.SUPPRESS)
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--step-ms", type=float, default=8.0)
    parser.add_argument("--tokens", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--busy", action="store_true")
    arguments, _ = parser.parse_known_args()
    if arguments.role == "engine":
        engine(arguments.step_ms / 1000, arguments.busy)
    elif arguments.role == "gateway":
        gateway(["--step-ms", str(arguments.step_ms), *(["--busy"] * arguments.busy)])
    else:
        measure(arguments)


if __name__ == "__main__":
    main()
