"""What the books say of memory is what is taken: of each kept record, and of a gateway with thousands of requests behind it."""

from __future__ import annotations

import gc
import logging
import time
import tracemalloc
from collections.abc import Callable, Iterator
from random import Random
from typing import Any, cast

import pytest

from poise.config import Settings
from poise.gateway.tenancy.auditing import Audit
from poise.metrics.gateway import GatewayMetrics
from poise.metrics.lately import RECENT_S
from poise.scheduler.request import RequestClass
from poise.wire import messages as wire
from poise.worker.text.tokeniser import LITERAL_CHARS_MAX
from tests.gateway.fakes import TextHere, ask, chat_body, unpaced
from tests.gateway.test_given_back import CHAT, World

COLLECTIONS = 10
"""msgspec keeps up to 512 names of fields that it has read, and forgets them at each tenth full collection: 30 KiB, or none."""
WORDS = ("some ", "words", " of ", "a", "nswer, ", "\N{EN DASH}", "ünf", ".\n")


class Server(World):
    """A gateway that is looked at as in life, where `second` is what happens while nobody sends anything."""

    def __init__(self, context_max: int = 0, **results: Any) -> None:
        given = unpaced().model_dump() | {"results": results}
        given["classes"]["interactive"]["max_context_tokens"] = context_max
        settings = Settings.model_validate(given)
        super().__init__(settings, Audit(settings))
        self._random = Random(5)
        self._metrics: GatewayMetrics = self.app.metrics

    def second(self) -> None:
        """What has happened lately is taken for the history, and what was a minute ago is forgotten."""
        self._metrics.lately.take()
        assert self.app._local is not None
        cast(TextHere, self.app._local._text.jobs).asked.clear()  # the stand-in's own
        for name in RequestClass:
            self._metrics.lately.ttft_ms(name.value, time.perf_counter() + 2 * RECENT_S)
        self.engine.n_prompt.clear()
        self.engine.aborted.clear()

    async def books(self) -> int:
        exposed = (await ask(self.app, "GET", "/metrics")).body.decode()
        (line,) = (line for line in exposed.splitlines() if line.startswith("poise_record_bytes "))
        return int(float(line.rpartition(" ")[2]))

    async def answer(self, n_words: int = 3, end: str = "stop", chunks: int = 0, changes: int = 0, **body: Any) -> None:
        """One request to its end."""
        first, n = self.engine.n_submitted + 1, body.get("n", 1)
        asked = self.send("POST", CHAT, chat_body("Hi", **({"stream": False, "max_tokens": 500} | body)))
        await self.engine.until_submitted(first + n - 1)
        for request_id in range(first, first + n):
            self.engine.start(request_id)
            self._compute(request_id, chunks, changes)
            self._speak(request_id, n_words, body.get("top_logprobs", -1))
            self.engine.finish(request_id, end)
        await asked.reply()

    def _compute(self, request_id: int, chunks: int, changes: int) -> None:
        for i in range(chunks):
            self._step(prefills=[wire.Prefill(request_id, 300 + i, 5000 + i, 400 + i)])
        for i in range(changes):
            self._step(changes=[wire.Change(request_id, *(("pause", "turn") if i % 2 == 0 else ("resume",)))])

    def _speak(self, request_id: int, n_words: int, n_top: int) -> None:
        for _ in range(n_words):
            for token in self._random.choice(WORDS).encode():
                top = [wire.TokenLogprob(97 + k, -self._random.random()) for k in range(max(0, n_top))]
                self._step(tokens=[wire.Token(request_id, token, -self._random.random(), top)])

    def _step(self, **parts: Any) -> None:
        self.engine.handover.step(wire.Step(**{"step": 1, "starts": [], "tokens": [], "finishes": [], **parts}))


@pytest.fixture
def traced(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], int]]:
    """What Python has allocated since, in bytes, garbage left out."""
    caplog.set_level(logging.CRITICAL, "poise")  # a test keeps what is logged
    gc.collect()
    tracemalloc.start()

    def taken() -> int:
        for _ in range(COLLECTIONS):
            gc.collect()
        return tracemalloc.get_traced_memory()[0]

    yield taken
    tracemalloc.stop()


KINDS: dict[str, dict[str, Any]] = {
    "nothing": {"n_words": 0},
    "a few words": {},
    "text": {"n_words": 120},
    "log probabilities": {"n_words": 20, "logprobs": True, "top_logprobs": 5},
    "without alternatives": {"n_words": 20, "logprobs": True, "top_logprobs": 0},
    "choices": {"n": 4, "n_words": 30},
    "segments": {"n_words": 60, "stream": True, "stream_options": {"segments": True}},
    "a long prompt": {"chunks": 500},
    "held and resumed": {"changes": 200},
    "failed": {"end": "failed"},
}


@pytest.mark.parametrize("name", KINDS)
async def test_the_books_say_what_a_kept_record_takes(name: str, traced: Callable[[], int]) -> None:
    """Within a quarter: of outputs of each kind, of what happened to them, and of what every record takes."""
    server, n = Server(), 25
    for _ in range(5):
        await server.answer(**KINDS[name])
    server.second()
    before, books_before = traced(), await server.books()
    for _ in range(n):
        await server.answer(**KINDS[name])
    server.second()
    books = await server.books() - books_before
    took = traced() - before
    # Names of one byte, as this vocabulary's are, are shared by Python; those of a real one are not, and are what is counted.
    most = 1.5 if name == "without alternatives" else 1.25
    assert 0.75 < books / took < most, f"{books / n:.0f} bytes a record in the books, {took / n:.0f} really"


N_BEFORE, N_REQUESTS = 1000, 3000
CONTEXT_MAX = 800
"""Room for any of the texts here with its template and the default output."""
GROWTH_MAX = 48 << 10
"""Bytes of all those requests together that no book has: 24 of each. One list kept for each would be more."""


async def test_thousands_of_requests_leave_what_the_books_say(traced: Callable[[], int]) -> None:
    """Of every kind, by hundreds of tenants, refused ones too: after the first third nothing grows but what is counted."""
    server = Server(CONTEXT_MAX, retention_s=3600, budget_mb=1)
    rng = Random(7)
    for i in range(N_BEFORE):
        await one_of_many(server, rng, i)
    server.second()
    before, books_before = traced(), await server.books()
    for i in range(N_BEFORE, N_REQUESTS):
        await one_of_many(server, rng, i)
        if i % 100 == 0:
            server.second()
    server.second()
    unaccounted = traced() - before - (await server.books() - books_before)
    assert unaccounted < GROWTH_MAX, f"{unaccounted} bytes in no book"
    assert server.engine.n_live == 0


async def one_of_many(server: Server, rng: Random, i: int) -> None:
    """The next request: mostly cheap ones, because there are thousands."""
    headers = {"x-api-key": f"key-{i % 700}", "authorization": "", "x-request-id": f"r-{i}", "traceparent": "t" * (i % 90)}
    text = "words " * rng.randrange(40)
    kind = i % 10
    if kind < 5:
        await refused(server, i, text, headers)
        return
    ignored = {f"unknown_{i}": 1}
    body = chat_body(text, stream=kind % 2 == 0, stop=["zzz"], logprobs=kind == 6) | ignored
    asked = server.send("POST", CHAT, body, headers)
    first = server.engine.n_submitted + 1
    await server.engine.until_submitted(first)
    if kind == 5:
        server.engine.refuse(first)
    else:
        server.engine.start(first)
        server.engine.say(first, "some words of it"[: rng.randrange(16)])
        if kind == 7:
            asked.disconnect()
        else:
            server.engine.finish(first, ("stop", "length", "failed", "stop")[i // 10 % 4])
    await asked.ended()


async def refused(server: Server, i: int, text: str, headers: dict[str, str]) -> None:
    """Before there is anything to compute."""
    kind = i % 10
    if kind == 0:
        asked = server.send("POST", CHAT, b'{"messages": "' + text.encode(), headers)
    elif kind == 1:
        asked = server.send("POST", CHAT, chat_body(text, temperature=3 + len(text)), headers)
    elif kind == 2:
        # A tenth is also too long for what is remembered of a template's text: that is split again each time, which is slow.
        n_blanks = 1 + (LITERAL_CHARS_MAX if i // 10 % 10 == 0 else CONTEXT_MAX)
        asked = server.send("POST", CHAT, chat_body(" " * n_blanks + text), headers)
    elif kind == 3:
        asked = server.send("GET", f"/v1/requests/{text[:20].strip() or 'none'}", None, headers)
    else:
        asked = server.send("POST", f"/v1/{text[:12].strip() or 'nothing'}", {}, headers)
    await asked.ended()
