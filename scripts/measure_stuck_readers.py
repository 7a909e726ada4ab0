"""Measure what clients that do not read cost those that do.

    .venv/bin/python scripts/measure_stuck_readers.py [--stuck N] [--normal N] [--seconds S]

Starts a server of the default model with a queue that is long enough, then lets `--normal` clients ask for one answer after the
other for `--seconds`: first alone, then beside `--stuck` clients that have asked for a long answer with log probabilities, and
read nothing. Prints time to first token and gaps between tokens of the normal ones, each time with the requests that were held,
and by how much the gateway's memory grew. The stuck ones get their turns first: the second round begins when
none of them runs any more.
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

import psutil

STALL_SWAP_S = 0.5


def start(n_stuck: int) -> tuple[subprocess.Popen[str], str, int]:
    """A server, and where it listens."""
    settings = {
        "server.max_connections": n_stuck + 200,
        "classes.background.queue_max": n_stuck + 100,
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
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": "Tell me a story."}],
        "stream": True,
        "ignore_eos": True,
    }
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
    threads = [
        threading.Thread(target=normal_client, args=(host, port, until_s, ttfts, gaps)) for _ in range(n_clients)
    ]
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


def told(values: Sequence[float]) -> str:
    ordered = sorted(values)
    return f"{1000 * statistics.median(ordered):7.1f} {1000 * ordered[int(0.95 * (len(ordered) - 1))]:7.1f}"


def measure(n_stuck: int, n_normal: int, seconds: float) -> None:
    process, host, port = start(n_stuck)
    clients: list[socket.socket] = []
    try:
        gateway = psutil.Process(process.pid)
        load(host, port, n_normal, 3)  # what is only built once is built
        rows = {"alone": load(host, port, n_normal, seconds)}
        rss = gateway.memory_info().rss
        clients = [stuck_client(host, port) for _ in range(n_stuck)]
        while (n := stalled(host, port)) < n_stuck:
            print(f"{n} of {n_stuck} are stuck", flush=True)
            time.sleep(5)
        grown = gateway.memory_info().rss - rss
        rows[f"beside {n_stuck} stuck"] = load(host, port, n_normal, seconds)
        print(f"{'':18}  TTFT p50     p95   gap p50     p95  (ms)   answers")
        for name, (ttfts, gaps) in rows.items():
            print(f"{name:18} {told(ttfts)}  {told(gaps)}  {len(ttfts):14}")
        print(
            f"gateway: {rss / 1e6:.0f} MB before, {grown / 1e6:+.1f} MB, {grown / max(1, n_stuck) / 1e3:.0f} kB for each"
        )
    finally:
        for client in clients:
            client.close()
        process.send_signal(signal.SIGINT)
        process.wait(60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stuck", type=int, default=500)
    parser.add_argument("--normal", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    measure(arguments.stuck, arguments.normal, arguments.seconds)


if __name__ == "__main__":
    main()
