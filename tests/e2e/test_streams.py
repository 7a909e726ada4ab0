"""Streams of a real server that are left, taken up again, cancelled in every state, and not read."""

from __future__ import annotations

import json
import random
import socket
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.e2e.server import PoiseServer
from tests.e2e.test_server_life import body, open_stream, read_until

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
LONG_PROMPT = "river stone paper window garden silver market winter " * 100
SLOTS = 4
N_CANCELS_MIN = 40


@pytest.fixture(scope="module")
def streams_server() -> Iterator[PoiseServer]:
    """Few slots, so that some wait; clients are allowed to be behind a little, and not for long."""
    settings = {
        "pools.short.slots": SLOTS,
        "classes.interactive.slots_max": SLOTS,
        "streams.send_buffer_bytes": 4096,
        "streams.interactive.unsent_bytes_max": 4096,
        "streams.interactive.stall_swap_s": 0.5,
    }
    server = PoiseServer.start(*(x for key, value in settings.items() for x in ("--set", f"{key}={value}")))
    yield server
    assert server.stop() == 0


def post(server: PoiseServer, path: str, payload: bytes = b"", request_id: str = "") -> Any:
    headers = {"Content-Type": "application/json"} | ({"X-Request-Id": request_id} if request_id else {})
    request = urllib.request.Request(server.url + path, payload, headers, method="POST")
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.load(response)


def response_id(head: bytes) -> str:
    return head.lower().partition(b"x-poise-response-id: ")[2].partition(b"\r\n")[0].decode()


def events(server: PoiseServer, path: str) -> list[tuple[str, str]]:
    """Id and data of a whole stream's events."""
    with urllib.request.urlopen(server.url + path, timeout=120) as response:
        found, last = [], ""
        for line in response.read().decode().splitlines():
            if line.startswith("id: "):
                last = line.removeprefix("id: ")
            elif line.startswith("data: "):
                found.append((last, line.removeprefix("data: ")))
        return found


def text_of(told: list[tuple[str, str]]) -> str:
    chunks = [json.loads(data) for _, data in told if data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)


def state(server: PoiseServer, request_id: str) -> str:
    status, told = server.get(f"/v1/requests/{request_id}")
    return told["state"] if status == 200 else "unknown"


def clean(server: PoiseServer) -> bool:
    """Nothing runs or waits, no slot is held, no record is live, and what was swapped out is gone."""
    status = server.get("/status")[1]
    lines = server.get("/metrics")[1].splitlines()
    swapped = status["store"]["entries_by_purpose"].get("swap", 0) if status["store"] else 0
    return (
        server.nothing_runs()
        and all(c["paused"] == c["swapped"] == 0 for c in status["classes"].values())
        and all(pool["slots_held"] == 0 for pool in status["pools"])
        and swapped == 0
        and 'poise_records{state="live"} 0.0' in lines
    )


def test_a_detached_stream_is_taken_up_again(streams_server: PoiseServer) -> None:
    """Left in the middle, read on from the last event that arrived: together they are the whole answer."""
    with open_stream(streams_server, body(max_tokens=120, background=True)) as connection:
        seen = read_until(connection, b"id: 15\n") + read_until(connection, b"\n\n")
    name = response_id(seen)
    blocks = seen.partition(b"\r\n\r\n")[2].decode(errors="ignore").split("\n\n")[:-1]
    first = []
    for block in blocks:
        lines = {line.partition(": ")[0]: line.partition(": ")[2] for line in block.splitlines()}
        if "id" in lines and lines.get("data", "").endswith("}"):
            first.append((lines["id"], lines["data"]))
    rest = events(streams_server, f"/v1/requests/{name}/stream?from={first[-1][0]}")
    whole = events(streams_server, f"/v1/requests/{name}/stream")
    assert text_of(first) + text_of(rest) == text_of(whole)
    assert whole[-1] == rest[-1] == ("120.1", "[DONE]")
    told = streams_server.get(f"/v1/requests/{name}")[1]
    assert told["choices"][0]["text"] == text_of(whole)
    assert (told["outcome"], told["usage"]["completion_tokens"]) == ("length", 120)
    streams_server.eventually(lambda: clean(streams_server), "nothing is left behind")


@pytest.mark.parametrize("where", ["queued", "prefill", "decode"])
def test_a_cancel_frees_the_slot(streams_server: PoiseServer, where: str) -> None:
    """Wherever the request stands; its reader is told, and the books are clean."""
    with ThreadPoolExecutor(SLOTS + 1) as threads:
        blockers = [f"blocker-{where}-{i}" for i in range(SLOTS if where == "queued" else 0)]
        others = [threads.submit(post, streams_server, CHAT, body(stream=False), name) for name in blockers]
        streams_server.eventually(lambda: all(state(streams_server, b) == "running" for b in blockers), "all are busy")
        name = f"mine-{where}"
        prompt = LONG_PROMPT if where == "prefill" else "Tell me a long story."
        payload = body(stream=False, messages=[{"role": "user", "content": prompt}])
        mine = threads.submit(post, streams_server, CHAT, payload, name)
        wanted = "queued" if where == "queued" else "running"
        streams_server.eventually(lambda: state(streams_server, name) == wanted, f"it is {wanted}")
        if where == "decode":
            path = f"/v1/requests/{name}"
            streams_server.eventually(lambda: streams_server.get(path)[1]["choices"][0]["tokens"] > 3, "it has begun")
        post(streams_server, f"/v1/requests/{name}/cancel")
        answer = mine.result(200)
        assert answer["poise"]["outcome"] == "cancelled"
        assert (answer["usage"]["completion_tokens"] > 0) == (where == "decode")
        for blocker in blockers:
            post(streams_server, f"/v1/requests/{blocker}/cancel")
        assert all(other.result(200)["poise"]["outcome"] == "cancelled" for other in others)
    streams_server.eventually(lambda: clean(streams_server), "nothing is left behind")


def test_hundreds_of_random_cancels_leave_the_books_clean(streams_server: PoiseServer) -> None:
    """By request, by a client that leaves, before, in and after the queue; for ten seconds, or as long as some take."""
    draw = random.Random(11)
    jobs = [(i, draw.choice(["cancel", "leave"]), draw.choice([0.0, 0.0, 0.05, 0.3]), draw.randrange(3)) for i in range(300)]
    until = time.monotonic() + 10

    def one(job: tuple[int, str, float, int]) -> int:
        number, how, pause_s, kind = job
        if number >= N_CANCELS_MIN and time.monotonic() > until:
            return 0
        prompt = "Hi" if kind else LONG_PROMPT[: 200 * (number % 10 + 1)]
        payload = body(
            messages=[{"role": "user", "content": prompt}],
            service_tier="flex" if kind == 2 else "default",
            background=how == "cancel",
            max_tokens=300,
        )
        with open_stream(streams_server, payload) as connection:
            if how == "cancel":
                name = response_id(read_until(connection, b"\r\n\r\n"))
                time.sleep(pause_s)
                post(streams_server, f"/v1/requests/{name}/cancel")
            else:
                time.sleep(pause_s)
        return 1

    with ThreadPoolExecutor(12) as threads:
        n_done = sum(threads.map(one, jobs))
    print(f"{n_done} requests were cancelled")
    assert n_done >= N_CANCELS_MIN
    streams_server.eventually(lambda: clean(streams_server), "nothing is left behind")
    assert streams_server.get("/health")[1]["restarts"] == 0


def test_a_stuck_reader_is_paused_and_swapped_while_another_streams_on(streams_server: PoiseServer) -> None:
    """It gets everything when it reads at last."""
    host, port = streams_server.url.removeprefix("http://").split(":")
    payload = body(max_tokens=400, logprobs=True, top_logprobs=20)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stuck.settimeout(120)
        stuck.connect((host, int(port)))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {len(payload)}\r\n\r\n"
        stuck.sendall(head.encode() + payload)

        def mine() -> Any:
            """The one that has not ended."""
            return next((row for row in streams_server.get("/v1/requests")[1]["data"] if row["state"] != "ended"), None)

        def slots_held() -> int:
            return sum(pool["slots_held"] for pool in streams_server.get("/status")[1]["pools"])

        streams_server.eventually(lambda: "poise_readers_stalled 1.0" in streams_server.get("/metrics")[1], "it stalls")
        streams_server.eventually(lambda: mine()["state"] == "swapped" and not slots_held(), "its slot is given up")
        beside = post(streams_server, CHAT, body(stream=False, max_tokens=40))
        assert beside["usage"]["completion_tokens"] == 40
        row = mine()
        told = streams_server.get(f"/v1/requests/{row['id']}")[1]
        assert told["state"] == "swapped"
        assert {"stall", "swap"} <= {moment["what"] for moment in told["timeline"]}
        assert 0 < told["usage"]["completion_tokens"] < 400
        seen = b""
        while data := stuck.recv(1 << 16):
            seen += data
    assert b"[DONE]" in seen
    assert b": stalled" in seen
    assert streams_server.get(f"/v1/requests/{row['id']}")[1]["usage"]["completion_tokens"] == 400
    streams_server.eventually(lambda: clean(streams_server), "nothing is left behind")
