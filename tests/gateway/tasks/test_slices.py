"""The largest requests that are allowed do not hold up the event loop: others have their turns in between."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Generator
from typing import Any

import pytest

from poise.gateway.http.replies import WHOLE_BYTES, json_of
from poise.gateway.tasks.slices import at_once, in_turns
from poise.wire.messages import PoolInfo, Ready
from tests.gateway.fakes import N_TOKENS, FakeEngine, Submission, ask, chat_body, make_app, prompt_body, unpaced

TOKENS = 600


class Turns:
    """Counts the turns that somebody else has."""

    def __init__(self) -> None:
        self.n = 0
        self._task = asyncio.create_task(self._count(), name="turns")

    async def _count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.n += 1

    def stop(self) -> int:
        self._task.cancel()
        return self.n


def work(n: int) -> Generator[None, None, str]:
    for _ in range(n):
        yield
    return "done"


async def test_others_have_a_turn_wherever_work_yields() -> None:
    turns = Turns()
    assert await in_turns(work(20)) == "done"
    assert turns.stop() >= 19
    assert at_once(work(20)) == "done"


async def test_a_small_answer_has_its_length_and_a_large_one_comes_in_pieces() -> None:
    """What is in memory of a large one is what was made before it was known to be large, and a piece."""
    small = await json_of(iter([b"[", b"]"]), {"x-a": "b"})
    assert (small.body, small.headers["content-length"], small.headers["x-a"]) == (b"[]", "2", "b")
    n_made = 0

    def pieces() -> Generator[bytes, None, None]:
        nonlocal n_made
        for _ in range(100):
            n_made += 1
            yield b"x" * (WHOLE_BYTES // 10)

    large = await json_of(pieces(), {})
    assert n_made == 11
    assert "content-length" not in large.headers


def engine() -> FakeEngine:
    """With room for long answers, which it gives at once."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start()
        submission.say([65 + n % 26 for n in range(submission.max_output)])
        submission.finish("length")

    made = FakeEngine(script)
    pools = [PoolInfo("short", 4, 4096, True, 0), PoolInfo("long", 1, 4096, False, 0)]
    made.state.ready = Ready("toy", 1, N_TOKENS, 4096, pools, 1)
    return made


@pytest.mark.parametrize("endpoint", ["chat/completions", "completions"])
async def test_a_large_answer_with_log_probabilities_is_written_in_turns(endpoint: str) -> None:
    """It is the answer that a small one would be, and others go on while it is written."""
    app = make_app(engine(), unpaced())
    if endpoint == "completions":
        body = prompt_body(max_tokens=TOKENS, n=4, logprobs=5)
    else:
        body = chat_body(max_tokens=TOKENS, n=4, logprobs=True, top_logprobs=20)
    turns = Turns()
    reply = await ask(app, "POST", f"/v1/{endpoint}", body)
    assert turns.stop() > 4 * TOKENS // 128
    answer: dict[str, Any] = reply.json()
    assert answer["usage"]["completion_tokens"] == 4 * TOKENS
    for index, choice in enumerate(answer["choices"]):
        assert choice["index"] == index
        if endpoint == "completions":
            text, tokens = choice["text"], choice["logprobs"]["tokens"]
            assert {len(values) for values in choice["logprobs"].values()} == {TOKENS}
        else:
            text, tokens = choice["message"]["content"], [t["token"] for t in choice["logprobs"]["content"]]
            assert {len(t["top_logprobs"]) for t in choice["logprobs"]["content"]} == {20}
        assert text == "".join(tokens) == "".join(chr(65 + n % 26) for n in range(TOKENS))


async def test_others_have_turns_while_a_fast_client_takes_up_a_long_stream() -> None:
    """Its socket never makes the stream wait."""
    app = make_app(engine(), unpaced())
    body = chat_body(max_tokens=3000, logprobs=True, top_logprobs=20)
    identity = (await ask(app, "POST", "/v1/chat/completions", body)).json()["id"]
    turns = Turns()
    reply = await ask(app, "GET", f"/v1/requests/{identity}/stream")
    assert turns.stop() > len(reply.body) // 65_536


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("chat/completions", {"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}] * 1000}] * 9},
         "have at most 8192 content parts and calls in all; join those of a message, or send strings, but has 9000"),
        ("completions", {"prompt": ["a"] * 1025}, "have at most 1024 prompts, but has 1025"),
        ("completions", {"prompt": [[1]] * 1025}, "have at most 1024 prompts, but has 1025"),
    ],
    ids=["parts", "texts", "ids"],
)  # fmt: skip
async def test_what_would_take_too_long_to_look_at_is_refused_with_its_number(
    path: str, body: dict[str, Any], words: str
) -> None:
    reply = await ask(make_app(FakeEngine()), "POST", f"/v1/{path}", {"model": "toy"} | body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_value")
    assert words in reply.error["message"]


async def test_a_body_may_not_open_too_many_containers() -> None:
    body = json.dumps({"x": [[]] * 65_536}).encode()
    reply = await ask(make_app(FakeEngine()), "POST", "/v1/chat/completions", body)
    assert (reply.status, reply.error["code"]) == (400, "invalid_json")
    assert "more than 65536 arrays and objects" in reply.error["message"]
