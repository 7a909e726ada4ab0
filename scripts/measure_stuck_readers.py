"""Measure what clients that do not read cost those that do.

    .venv/bin/python scripts/measure_stuck_readers.py [--stuck N] [--normal N] [--seconds S] [--rounds N]

Starts two equal servers of the default model. `--normal` clients ask one of them for one answer after the other, for `--seconds`,
then the other one; which is first alternates. That is done for `--rounds` rounds while nobody is stuck at either, which shows
how much two equal servers differ here; then `--stuck` clients ask the second server for a long answer with log probabilities,
and read nothing; and when all of them are stuck, for as many rounds again. Prints, for both parts, the second server's time to
first token, gaps between tokens and processor time for each answer as ratios to the first one's (median and range of the
rounds), and by how much the second one's gateway grew while its clients became stuck.

A client that is refused is told of, and asks again. The script gives up when no further client became stuck for two minutes.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Sequence
from typing import NamedTuple

import psutil

STALL_SWAP_S = 0.5
GIVE_UP_S = 120


def start(n_stuck: int) -> tuple[subprocess.Popen[str], str, int]:
    """A server, and where it listens."""
    settings = {
        "server.max_connections": n_stuck + 200,
        "classes.background.queue_max": 4 * n_stuck,  # a queue this long is no reason for another level
        "classes.background.slots_max": 8,
        "streams.background.stall_swap_s": STALL_SWAP_S,
        "streams.background.stall_end_s": 3600,
    }
    options = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "poise", "serve", "--port", "0", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - ourselves
    assert process.stdout is not None
    for line in process.stdout:
        if found := re.search(r"http://([0-9.]+):(\d+)", line):
            return process, found[1], int(found[2])
    raise SystemExit("the server did not start")


def request(host: str, **changes: object) -> bytes:
    body = {"model": "default", "messages": [{"role": "user", "content": "Tell me a story."}], "stream": True, "ignore_eos": True}
    data = json.dumps(body | changes).encode()
    return f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data


def stuck_client(host: str, port: int) -> socket.socket:
    """It has next to no room for what it does not read."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    client.connect((host, port))
    client.sendall(request(host, max_tokens=600, logprobs=True, top_logprobs=20, service_tier="flex"))
    return client


def normal_client(host: str, port: int, until_s: float, ttfts: list[float], gaps: list[float]) -> None:
    while time.monotonic() < until_s:
        with socket.create_connection((host, port), timeout=300) as client:
            began_s = time.monotonic()
            client.sendall(request(host, max_tokens=40))
            last_s, seen = None, b""
            while b"[DONE]" not in seen:
                data = client.recv(1 << 16)
                assert data, "the server closed a stream"
                now_s = time.monotonic()
                if b'"content"' in data:
                    (ttfts if last_s is None else gaps).append(now_s - (began_s if last_s is None else last_s))
                    last_s = now_s
                seen = seen[-64:] + data


def load(host: str, port: int, n_clients: int, seconds: float) -> tuple[list[float], list[float]]:
    ttfts: list[float] = []
    gaps: list[float] = []
    until_s = time.monotonic() + seconds
    threads = [threading.Thread(target=normal_client, args=(host, port, until_s, ttfts, gaps)) for _ in range(n_clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return ttfts, gaps


def get(host: str, port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://{host}:{port}{path}", timeout=60) as response:
        return str(response.read().decode())


def stalled(host: str, port: int) -> int:
    found = re.search(r"^poise_readers_stalled ([0-9.]+)", get(host, port, "/metrics"), re.MULTILINE)
    return int(float(found[1])) if found else 0


class Sample(NamedTuple):
    """What one load of normal clients met; times in seconds."""

    ttft_p50: float
    ttft_p95: float
    gap_p50: float
    gap_p95: float
    gateway_cpu: float
    """Processor time of the gateway for each answer."""
    engine_cpu: float


class Server:
    """One of the two, and what it cost so far."""

    def __init__(self, n_stuck: int) -> None:
        self.process, self.host, self.port = start(n_stuck)
        self.gateway = psutil.Process(self.process.pid)

    def sample(self, n_clients: int, seconds: float) -> Sample:
        before = self._cpu_s()
        ttfts, gaps = load(self.host, self.port, n_clients, seconds)
        after = self._cpu_s()
        per_answer = [(x - y) / len(ttfts) for x, y in zip(after, before, strict=True)]
        ttfts.sort()
        gaps.sort()
        p50s = statistics.median(ttfts), statistics.median(gaps)
        return Sample(p50s[0], at(ttfts, 0.95), p50s[1], at(gaps, 0.95), *per_answer)

    def stop(self) -> None:
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)

    def _cpu_s(self) -> tuple[float, float]:
        """Of the gateway, and of all that it started."""
        times = [x.cpu_times() for x in (self.gateway, *self.gateway.children(recursive=True))]
        spent = [x.user + x.system for x in times]
        return spent[0], sum(spent[1:])


def at(ordered: Sequence[float], share: float) -> float:
    return ordered[int(share * (len(ordered) - 1))]


def refusal(client: socket.socket) -> str:
    """The status line of an answer other than 200, or nothing. It stays unread."""
    try:
        first = client.recv(64, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return ""
    line = first.split(b"\r\n")[0].decode(errors="replace")
    return "" if line.startswith("HTTP/1.1 200") else line or "closed"


def make_stuck(server: Server, n_stuck: int) -> list[socket.socket]:
    """`n_stuck` clients, every one of them stuck. Raises SystemExit when no more of them become it."""
    clients = [stuck_client(server.host, server.port) for _ in range(n_stuck)]
    most, since_s = 0, time.monotonic()
    while (n := stalled(server.host, server.port)) < n_stuck:
        if n > most:
            most, since_s = n, time.monotonic()
        elif time.monotonic() - since_s > GIVE_UP_S:
            raise SystemExit(f"only {most} of {n_stuck} clients became stuck")
        refused = {i: why for i, client in enumerate(clients) if (why := refusal(client))}
        if refused:
            print(f"{len(refused)} were refused, and ask again: {sorted(set(refused.values()))}", flush=True)
        for i in refused:
            clients[i].close()
            clients[i] = stuck_client(server.host, server.port)
        time.sleep(2)
    return clients


def compare(one: Server, two: Server, n_clients: int, seconds: float, n_rounds: int) -> list[list[float]]:
    """The second server's figures divided by the first one's: a row of `Sample`'s fields for each round."""
    rows = []
    for i in range(n_rounds):
        order = (one, two) if i % 2 == 0 else (two, one)
        found = {id(x): x.sample(n_clients, seconds) for x in order}
        rows.append([y / x if x else 1.0 for x, y in zip(found[id(one)], found[id(two)], strict=True)])
        print(" ".join(f"{x:6.3f}" for x in rows[-1]), flush=True)
    return rows


def told(name: str, rows: list[list[float]]) -> str:
    columns = [f"{statistics.median(x):5.3f} ({min(x):.2f}-{max(x):.2f})" for x in zip(*rows, strict=True)]
    return f"{name:12} " + "  ".join(f"{x:>17}" for x in columns)


def measure(n_stuck: int, n_normal: int, seconds: float, n_rounds: int) -> None:
    servers: list[Server] = []
    clients: list[socket.socket] = []
    try:
        for _ in range(2):
            servers.append(Server(n_stuck))
            servers[-1].sample(n_normal, 5)  # what is only built once is built
        one, two = servers
        nobody = compare(one, two, n_normal, seconds, n_rounds)
        rss, began_s = two.gateway.memory_info().rss, time.monotonic()
        clients = make_stuck(two, n_stuck)
        grown = two.gateway.memory_info().rss - rss
        print(f"{n_stuck} became stuck within {time.monotonic() - began_s:.0f} s", flush=True)
        beside = compare(one, two, n_normal, seconds, n_rounds)
        print(f"{'':12} " + "  ".join(f"{x:>17}" for x in Sample._fields))
        print(told("nobody stuck", nobody))
        print(told(f"{n_stuck} stuck", beside))
        each = grown / max(1, n_stuck) / 1e3
        print(f"gateway: {rss / 1e6:.0f} MB before, {grown / 1e6:+.1f} MB when all were stuck, {each:.0f} kB for each")
    finally:
        for client in clients:
            client.close()
        for server in servers:
            server.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stuck", type=int, default=500)
    parser.add_argument("--normal", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--rounds", type=int, default=6)
    arguments = parser.parse_args()
    measure(arguments.stuck, arguments.normal, arguments.seconds, arguments.rounds)


if __name__ == "__main__":
    main()
