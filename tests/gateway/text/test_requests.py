"""Requests and their texts: what is refused unseen, whose account the work is counted to, and what a client that leaves ends."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from poise.config import Settings
from poise.wire import text as wire
from tests.gateway.fakes import (
    SLOT_CELLS,
    FakeEngine,
    TextHere,
    ask,
    chat_body,
    exchange,
    make_app,
    prompt_body,
    says,
    text_here,
    text_model,
    tokeniser,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LONGEST = text_model().longest
MOST = SLOT_CELLS * LONGEST
"""Bytes that the tokens of the longest prompt can stand for."""


class TextWaits(TextHere):
    """Answers no text of the account "slow", until it may."""

    def __init__(self) -> None:
        super().__init__(tokeniser())
        self.go = asyncio.Event()
        self.n_waiting = self.n_cancelled = 0

    async def run(self, job: wire.Job, account: str, n_bytes: int) -> wire.Answer:
        if account.startswith("slow"):
            self.n_waiting += 1
            try:
                await self.go.wait()
            except asyncio.CancelledError:
                self.n_cancelled += 1
                raise
            finally:
                self.n_waiting -= 1
        return await super().run(job, account, n_bytes)


KEYS = Settings.model_validate({"auth": {"keys": {"slow": "sk-slow-key-of-somebody", "fast": "sk-fast-key-of-somebody"}}})
SLOW, FAST = ({"authorization": f"Bearer sk-{name}-key-of-somebody"} for name in ("slow", "fast"))


async def until(condition: Any) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 - there is no event
            await asyncio.sleep(0)


@pytest.mark.parametrize("detached", [False, True])
async def test_a_client_that_leaves_ends_the_work_on_its_texts(detached: bool) -> None:
    """Six long ones, and another tenant is answered at once. Who asked for its result to be kept goes on."""
    jobs = TextWaits()
    engine = FakeEngine(says("x"))
    app = make_app(engine, KEYS, jobs=jobs)
    headers = SLOW | ({"X-Poise-Detach": "1"} if detached else {})
    gone = [exchange(app, "POST", CHAT, chat_body("x" * 400), headers).open() for _ in range(6)]
    await until(lambda: jobs.n_waiting == 6)
    for each in gone:
        each.disconnect()
    if detached:
        jobs.go.set()
        await until(lambda: len(engine.submissions) == 6)
    for each in gone:
        await each.ended()
    assert (jobs.n_waiting, jobs.n_cancelled) == (0, 0 if detached else 6)
    assert (await ask(app, "POST", CHAT, chat_body(), headers=FAST)).status == 200
    assert len(engine.submissions) == (7 if detached else 1)


async def test_the_work_is_counted_to_whose_texts_they_are() -> None:
    jobs = text_here()
    app = make_app(FakeEngine(says("x")), KEYS, jobs=jobs)
    jobs.asked.clear()
    for path, body in ((CHAT, chat_body()), (COMPLETIONS, prompt_body())):
        assert (await ask(app, "POST", path, body, headers=FAST)).status == 200
    assert [account for account, _ in jobs.asked] == ["fast", "fast"]


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        (CHAT, chat_body("x" * (MOST + 1)), "messages"),
        (CHAT, chat_body(" " * (MOST + 1)), "messages"),
        (CHAT, chat_body("é" * (MOST // 2 + 1)), "messages"),
        (COMPLETIONS, prompt_body("x" * (MOST + 1)), "prompt"),
    ],
    ids=["letters", "blanks", "two bytes", "prompt"],
)
async def test_what_cannot_fit_is_refused_unseen(path: str, body: Any, param: str) -> None:
    """By its bytes, with the numbers; nobody tokenises it."""
    jobs = text_here()
    app = make_app(FakeEngine(), jobs=jobs)
    jobs.asked.clear()
    reply = await ask(app, "POST", path, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", param)
    for told in (f"{MOST} is the most", f"is too long: at least {SLOT_CELLS + 1} tokens > {SLOT_CELLS} maximum"):
        assert told in reply.error["message"], told
    assert not jobs.asked


async def test_what_may_fit_is_looked_at() -> None:
    """A byte less; and white space that the model's chat template leaves out does not count."""
    jobs = text_here()
    app = make_app(FakeEngine(), jobs=jobs)
    jobs.asked.clear()
    reply = await ask(app, "POST", CHAT, chat_body("x" * MOST))
    assert reply.error["code"] == "context_length_exceeded"
    assert "maximum context length" in reply.error["message"]
    assert len(jobs.asked) == 1
    trims = text_here(template="{% for m in messages %}{{ m.content | trim }}{% endfor %}")
    app = make_app(FakeEngine(says("x")), jobs=trims)
    assert (await ask(app, "POST", CHAT, chat_body("x" + " " * MOST))).status == 200


@pytest.mark.parametrize("policy", ["trim", "summarize"])
async def test_a_context_policy_has_a_bound_of_its_own(policy: str) -> None:
    """`text.trim_chars_max`: below it a conversation that cannot fit is shortened, above it refused unseen."""
    settings = Settings.model_validate({"text": {"trim_chars_max": MOST + 100}})
    turns = [{"role": "user", "content": "x" * (MOST + 50)}, {"role": "user", "content": "y"}]
    body = {"model": "toy", "messages": turns, "context_policy": policy, "max_tokens": 5}
    jobs = text_here()
    app = make_app(FakeEngine(says("x")), settings, jobs=jobs)
    if policy == "trim":
        assert (await ask(app, "POST", CHAT, body)).json()["poise"]["context"]["dropped_turns"] == 1
    turns[0]["content"] += "x" * 50
    jobs.asked.clear()
    reply = await ask(app, "POST", CHAT, body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert f"{MOST + 101} characters" in reply.error["message"]
    assert not jobs.asked
