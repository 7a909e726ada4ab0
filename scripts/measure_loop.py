"""Measure for how long the largest requests that are allowed hold the gateway's event loop, over all of its endpoints.

    .venv/bin/python scripts/measure_loop.py [--limit MS] [--repeat N]

The application is the real one, with a stand-in for the engine and for the text workers (other processes, which hold nobody up);
requests come at the level of ASGI, without a socket. Each case is sent `--repeat` times, and every GET of the OpenAPI document
once more, filled with what the cases left behind. What counts is the processor time of the loop's thread between two turns of it,
the lowest of the repeats: other programs do not count. Prints a row for each, and ends with 1 when one is over the limit.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from starlette.applications import Starlette  # noqa: E402
from tests.gateway.fakes import MODEL, N_TOKENS, OPERATOR, FakeEngine, Submission, make_app, says  # noqa: E402

from poise.config import Settings  # noqa: E402
from poise.gateway.serve import freeze_heap  # noqa: E402
from poise.wire.messages import PoolInfo, Ready  # noqa: E402

TOKENS, CHOICES, KEPT = 4096, 8, 3000
BODY_BYTES = 4 << 20
TENANTS = 300


@dataclass(frozen=True, slots=True)
class Case:
    """`held_ms`: at most, of the best repeat."""

    name: str
    status: int
    held_ms: float


class Watch:
    """The longest time between two turns of the loop, in seconds of its thread's processor time."""

    def __init__(self) -> None:
        self._worst_s = 0.0
        self._task = asyncio.create_task(self._look(), name="watch")

    async def _look(self) -> None:
        before_s = time.thread_time()
        while True:
            await asyncio.sleep(0)
            now_s = time.thread_time()
            self._worst_s = max(self._worst_s, now_s - before_s)
            before_s = now_s

    async def reset(self) -> None:
        await asyncio.sleep(0)
        self._worst_s = 0.0

    async def worst_ms(self) -> float:
        await asyncio.sleep(0)
        return 1000 * self._worst_s

    def stop(self) -> None:
        self._task.cancel()


async def call(
    app: Starlette, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
) -> tuple[int, bytes]:
    """Status and the first megabyte of the answer. The body comes in the pieces in which a socket would bring it."""
    place, _, query = path.partition("?")
    named = {"host": "localhost", "content-type": "application/json", **(headers or {})}
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": place,
        "raw_path": place.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
        "client": ("127.0.0.1", 50_000),
        "server": ("127.0.0.1", 8000),
        "state": {},
    }
    pieces = [body[at : at + (1 << 16)] for at in range(0, len(body), 1 << 16)] or [b""]
    sent, status, answer = 0, 0, bytearray()
    ended = asyncio.Event()

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent < len(pieces):
            sent += 1
            await asyncio.sleep(0)
            return {"type": "http.request", "body": pieces[sent - 1], "more_body": sent < len(pieces)}
        await ended.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        nonlocal status
        if message["type"] == "http.response.start":
            status = message["status"]
        elif len(answer) < 1 << 20:
            answer.extend(message.get("body", b"")[: 1 << 20])

    try:
        await app(scope, receive, send)
    finally:
        ended.set()
    return status, bytes(answer)


def conversation(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], "max_tokens": 4, **more}


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Name, path and body of the largest requests."""
    chat, completion = "/v1/chat/completions", "/v1/completions"
    part = {"type": "text", "text": "a"}
    many = [{"role": "user", "content": [part] * 1000} for _ in range(64)]
    few = [{"role": "user", "content": [part] * 1000} for _ in range(8)]
    for name, path, body in (
        ("64,000 content parts", chat, {"model": MODEL, "messages": many}),
        ("8,000 content parts", chat, {"model": MODEL, "messages": few}),
        ("10,000 messages", chat, {"model": MODEL, "messages": [{"role": "user", "content": "a"}] * 10_000}),
        ("4,096 messages", chat, {"model": MODEL, "messages": [{"role": "user", "content": "a"}] * 4096}),
        ("1,024 biases", chat, conversation("a", logit_bias={str(i % N_TOKENS): -100 for i in range(1024)})),
        ("49,152 biases", chat, conversation("a", logit_bias={str(i): 1 for i in range(49_152)})),
        ("2,048 stops", chat, conversation("a", stop=["x" * 1000] * 2048)),
        ("8 stops", chat, conversation("a", stop=["x" * 1000 + str(i) for i in range(8)])),
        ("100,000 unknown parameters", chat, conversation("a") | {f"p{i}": 1 for i in range(100_000)}),
        ("1 million ids", completion, {"model": MODEL, "prompt": [7] * 1_000_000}),
        ("90,000 prompts of an id", completion, {"model": MODEL, "prompt": [[7]] * 90_000}),
        ("1 million prompts", completion, {"model": MODEL, "prompt": ["a"] * 1_000_000}),
    ):
        yield name, path, json.dumps(body, separators=(",", ":")).encode()[:BODY_BYTES]
    frame = b'{"model":"toy","max_tokens":1,"messages":[{"role":"user","content":"%b"}]}'
    room = BODY_BYTES - len(frame)
    yield "4 MiB of one string", chat, frame % (b"a" * room)
    yield "4 MiB of escapes", chat, frame % (b"\\u00e9" * (room // 6))
    yield "4 MiB of four-byte characters", chat, frame % ("\U0001f600".encode() * (room // 4))
    yield "nested 4 MiB", chat, b'{"x":' + b"[" * (BODY_BYTES - 5)
    yield "nested 2 MiB, closed", chat, b'{"x":' + b"[" * (2 << 20) + b"]" * (2 << 20) + b"}"
    yield "99,000 arrays", chat, b'{"x":[' + b"[1]," * 99_000 + b"[]]}"
    yield "2 million numbers", chat, b'{"x":[' + b"1," * (2_000_000) + b"1]}"
    yield "1 million strings", chat, b'{"x":[' + b'"",' * (1_300_000) + b'""]}'


class Engine(FakeEngine):
    """Answers at once; of long answers a token each turn of the loop, as steps bring them."""

    def __init__(self) -> None:
        super().__init__(self._begin)
        pools = [PoolInfo("short", 12, 8192, True, 0), PoolInfo("long", 2, 8192, False, 0)]
        self.state.ready = Ready("toy", 1234, N_TOKENS, 8192, pools, 1)
        self._tasks: set[asyncio.Task[None]] = set()

    def _begin(self, submission: Submission) -> None:
        if submission.max_output < TOKENS:
            says([65] * submission.max_output, "length")(submission)
            return
        task = asyncio.get_running_loop().create_task(self._talk(submission))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _talk(self, submission: Submission) -> None:
        submission.accept()
        submission.start()
        for n in range(submission.max_output):
            submission.say([65 + n % 26])
            await asyncio.sleep(0)
        submission.finish("length")


async def measure(limit_ms: float, repeat: int) -> list[Case]:
    values = Settings().model_dump()
    values["server"]["max_choices"] = CHOICES
    values["classes"]["interactive"] |= {"max_output_tokens": TOKENS, "pacing_ms": 0}
    values["results"] |= {"budget_mb": 2048}
    settings = Settings.model_validate(values)
    app = make_app(Engine(), settings)  # type: ignore[arg-type]
    freeze_heap()
    watch = Watch()
    found: list[Case] = []

    async def case(name: str, method: str, path: str, body: bytes = b"", n: int = repeat, **headers: str) -> bytes:
        best_ms, status, answer = float("inf"), 0, b""
        for _ in range(n):
            gc.collect()
            await watch.reset()
            status, answer = await call(app, method, path, body, headers)
            best_ms = min(best_ms, await watch.worst_ms())
        found.append(Case(name, status, best_ms))
        mark = " <-- over the limit" if best_ms > limit_ms else ""
        print(f"{best_ms:8.1f} ms  {status}  {name}{mark}", flush=True)
        return answer

    for name, path, body in bodies():
        await case(name, "POST", path, body)
    for path, count, extra in (
        ("/v1/chat/completions", {"logprobs": True, "top_logprobs": 20}, {}),
        ("/v1/completions", {"logprobs": 5}, {"prompt": "a"}),
    ):
        asked = conversation("a", n=CHOICES, ignore_eos=True, **count) | extra | {"max_tokens": TOKENS}
        if extra:
            del asked["messages"]
        body = json.dumps(asked).encode()
        answer = await case(f"{CHOICES} x {TOKENS:,} tokens with log probabilities: {path}", "POST", path, body, n=1)
        large = json.loads(answer[: answer.index(b",")] + b"}")["id"]
        for tail in ("", "/explanation", "/stream"):
            await case(f"of that one: /v1/requests/ID{tail}", "GET", f"/v1/requests/{large}{tail}", n=1)
    small = json.dumps(conversation("a")).encode()
    for _ in range(KEPT):
        await call(app, "POST", "/v1/chat/completions", small)
    ended = json.loads(await case("/v1/requests, thousands kept", "GET", "/v1/requests"))["data"][0]["id"]
    await case("/admin/requests?ended=1000", "GET", "/admin/requests?ended=1000", **OPERATOR)
    document = json.loads((await call(app, "GET", "/openapi.json"))[1])
    for template, methods in document["paths"].items():
        if "get" in methods:
            path = template.replace("{request_id}", ended).replace("{model_id}", MODEL)
            await case(f"GET {template}", "GET", path, **OPERATOR)
    for path in ("/openapi.json", "/", "/dashboard"):
        await case(f"GET {path}", "GET", path)
    watch.stop()
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=float, default=50.0, metavar="MS")
    parser.add_argument("--repeat", type=int, default=3, metavar="N")
    options = parser.parse_args()
    found = asyncio.run(measure(options.limit, options.repeat))
    over = [case for case in found if case.held_ms > options.limit]
    print(f"{len(found)} cases, {len(over)} over {options.limit:g} ms")
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main())
