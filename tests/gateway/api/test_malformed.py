"""Requests that are wrong in one thing each: every one gets its own clear error, and none disturbs a stream beside it."""

from __future__ import annotations

import itertools
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from poise.config import Settings
from tests.gateway.fakes import FakeEngine, ask, chat_body, exchange, make_app, prompt_body, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def part(**fields: Any) -> dict[str, Any]:
    return {"model": "toy", "messages": [{"role": "user", "content": [fields]}]}


def message(**fields: Any) -> dict[str, Any]:
    return {"model": "toy", "messages": [fields]}


def raw(parameters: str) -> bytes:
    """A chat request with parameters that json.dumps would not write."""
    return b'{"model": "toy", "messages": [{"role": "user", "content": "Hi"}], ' + parameters.encode() + b"}"


BAD_JSON = {
    "empty": b"",
    "white space": b" \n",
    "truncated": b'{"model": "toy", "mess',
    "trailing": b"{} {}",
    "array": b"[1]",
    "number": b"5",
    "null": b"null",
    "invalid UTF-8": b'{"model": "\xff"}',
    "half a character in half a body": b'{"model": "\\ud800',
    "half a character after a backslash": b'{"model": "\\\\\\ud83d\\\\ud83d\\udc00"}',
    "NaN": raw('"temperature": NaN'),
    "Infinity": raw('"temperature": Infinity'),
    "huge float": raw('"temperature": 1e999'),
    "single quotes": b"{'model': 'toy'}",
    "UTF-16": '{"model": "toy"}'.encode("utf-16"),
    "deep": b"[" * 100_000,
    "deep objects": b'{"a":' * 50_000,
    "countless arrays": b'{"model": [' + b"[]," * 300_000 + b"[]]}",
}

# path, body, code, param
WRONG: list[tuple[str, Any, str, str | None]] = [
    (CHAT, message() | {"messages": []}, "invalid_value", "messages"),
    (CHAT, {"model": "toy"}, "missing_required_parameter", "messages"),
    (CHAT, chat_body(model=5), "invalid_type", "model"),
    (CHAT, {"model": "toy", "messages": "Hi"}, "invalid_type", "messages"),
    (CHAT, {"model": "toy", "messages": ["Hi"]}, "invalid_type", "messages[0]"),
    (CHAT, {"model": "toy", "messages": [{"role": "user", "content": "x"}] * 4097}, "invalid_value", "messages"),
    (CHAT, message(content="x"), "missing_required_parameter", "messages[0].role"),
    (CHAT, message(role="robot", content="x"), "invalid_value", "messages[0].role"),
    (CHAT, message(role=None, content="x"), "missing_required_parameter", "messages[0].role"),
    (CHAT, message(role="user"), "missing_required_parameter", "messages[0].content"),
    (CHAT, message(role="user", content=None), "missing_required_parameter", "messages[0].content"),
    (CHAT, message(role="system", refusal="x"), "missing_required_parameter", "messages[0].content"),
    (CHAT, message(role="assistant", refusal=5), "invalid_type", "messages[0].refusal"),
    (CHAT, message(role="user", content=5), "invalid_type", "messages[0].content"),
    (CHAT, message(role="user", content=[]), "invalid_value", "messages[0].content"),
    (CHAT, message(role="user", content=["x"]), "invalid_type", "messages[0].content[0]"),
    (CHAT, message(role="user", content="x", name=5), "invalid_type", "messages[0].name"),
    (
        CHAT,
        message(role="assistant", content="", tool_calls=[{"id": "1"}]),
        "missing_required_parameter",
        "messages[0].tool_calls[0].function",
    ),
    (CHAT, part(type="image_url", image_url={"url": "data:"}), "unsupported_parameter", "messages[0].content[0]"),
    (CHAT, part(type="input_audio", input_audio={}), "unsupported_parameter", "messages[0].content[0]"),
    (CHAT, part(type="text"), "missing_required_parameter", "messages[0].content[0].text"),
    (CHAT, part(type="poem", text="x"), "invalid_value", "messages[0].content[0].type"),
    (CHAT, part(type="text", text=1), "invalid_type", "messages[0].content[0].text"),
    (CHAT, part(type="refusal", text="x"), "missing_required_parameter", "messages[0].content[0].refusal"),
    (CHAT, message(role="user", content="x", **{f"k{i}": 0 for i in range(257)}), "too_many_unknown", None),
    (
        CHAT,
        {"messages": [message(role="user", content="x", **dict.fromkeys("abcdefghijklmnopq", 0))["messages"][0]] * 4000},
        "too_many_unknown",
        None,
    ),
    (CHAT, chat_body(temperature=True), "invalid_type", "temperature"),
    (CHAT, chat_body(temperature="1"), "invalid_type", "temperature"),
    (CHAT, chat_body(temperature=2.5), "invalid_value", "temperature"),
    (CHAT, chat_body(temperature=-0.1), "invalid_value", "temperature"),
    (CHAT, raw('"temperature": 123456789012345678901234567890'), "invalid_value", "temperature"),
    (CHAT, chat_body(top_p=-0.1), "invalid_value", "top_p"),
    (CHAT, chat_body(top_p=1.1), "invalid_value", "top_p"),
    (CHAT, chat_body(top_k=-2), "invalid_value", "top_k"),
    (CHAT, chat_body(top_k=1.5), "invalid_type", "top_k"),
    (CHAT, chat_body(min_p=2), "invalid_value", "min_p"),
    (CHAT, chat_body(presence_penalty=3), "invalid_value", "presence_penalty"),
    (CHAT, chat_body(frequency_penalty=-3), "invalid_value", "frequency_penalty"),
    (CHAT, chat_body(repetition_penalty=0), "invalid_value", "repetition_penalty"),
    (CHAT, chat_body(repeat_penalty=0), "invalid_value", "repeat_penalty"),
    (CHAT, chat_body(repetition_penalty=1.1, repeat_penalty=1.2), "conflicting_parameters", "repeat_penalty"),
    (CHAT, chat_body(max_tokens=-3), "invalid_value", "max_tokens"),
    (CHAT, chat_body(n_predict="10"), "invalid_type", "n_predict"),
    (CHAT, chat_body(num_predict=-3), "invalid_value", "num_predict"),
    (CHAT, chat_body(max_tokens="10"), "invalid_type", "max_tokens"),
    (CHAT, chat_body(max_tokens=1, max_completion_tokens=2), "conflicting_parameters", "max_completion_tokens"),
    (CHAT, chat_body(n_predict=1, max_new_tokens=2), "conflicting_parameters", "n_predict"),
    (CHAT, chat_body(max_tokens=0, min_tokens=1), "invalid_value", "min_tokens"),
    (CHAT, chat_body(stop=["a"], stop_sequences=["b"]), "conflicting_parameters", "stop_sequences"),
    (CHAT, chat_body(stop_sequences=["a", 5]), "invalid_type", "stop_sequences[1]"),
    (CHAT, chat_body(min_tokens=20, max_tokens=10), "invalid_value", "min_tokens"),
    (CHAT, chat_body(min_tokens=4097), "invalid_value", "min_tokens"),
    (CHAT, chat_body(n=0), "invalid_value", "n"),
    (CHAT, chat_body(n=9), "invalid_value", "n"),
    (CHAT, chat_body(n=True), "invalid_type", "n"),
    (CHAT, chat_body(stop=["a"] * 33), "invalid_value", "stop"),
    (CHAT, chat_body(stop=["a", 5]), "invalid_type", "stop[1]"),
    (CHAT, chat_body(stop={}), "invalid_type", "stop"),
    (CHAT, chat_body(stop="x" * 1025), "invalid_value", "stop"),
    (CHAT, raw('"seed": 18446744073709551616'), "invalid_value", "seed"),
    (CHAT, chat_body(seed=1.5), "invalid_type", "seed"),
    (CHAT, chat_body(logit_bias={"x": 1}), "invalid_value", "logit_bias"),
    (CHAT, chat_body(logit_bias={"5": 101}), "invalid_value", "logit_bias[5]"),
    (CHAT, chat_body(logit_bias={"5": "1"}), "invalid_type", "logit_bias[5]"),
    (CHAT, chat_body(logit_bias=[1]), "invalid_type", "logit_bias"),
    (CHAT, chat_body(logit_bias={"259": 1}), "invalid_value", "logit_bias"),
    (CHAT, chat_body(logit_bias={str(i): 1 for i in range(1025)}), "invalid_value", "logit_bias"),
    (CHAT, chat_body(logprobs=3), "invalid_type", "logprobs"),
    (CHAT, chat_body(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
    (CHAT, chat_body(top_logprobs=3), "invalid_value", "top_logprobs"),
    (CHAT, chat_body(stream="yes"), "invalid_type", "stream"),
    (CHAT, chat_body(stream=True, stream_options={"segments": 1}), "invalid_type", "stream_options.segments"),
    (CHAT, chat_body(stream=True, stream_options=True), "invalid_type", "stream_options"),
    (CHAT, chat_body(service_tier=5), "invalid_type", "service_tier"),
    (CHAT, chat_body(ignore_eos=1), "invalid_type", "ignore_eos"),
    (CHAT, chat_body(prompt="x"), "unknown_parameter", "prompt"),
    (COMPLETIONS, {"model": "toy"}, "missing_required_parameter", "prompt"),
    (CHAT, chat_body(context_policy="cut"), "invalid_value", "context_policy"),
    (CHAT, chat_body(context_policy=True), "invalid_type", "context_policy"),
    (CHAT, chat_body(template="x"), "template_not_found", "template"),
    (CHAT, chat_body(template=""), "invalid_value", "template"),
    (CHAT, chat_body(template=["x"]), "invalid_type", "template"),
    (COMPLETIONS, prompt_body(context_policy="trim"), "unsupported_parameter", "context_policy"),
    (COMPLETIONS, prompt_body(template="x"), "unknown_parameter", "template"),
    (COMPLETIONS, prompt_body(5), "invalid_type", "prompt"),
    (COMPLETIONS, prompt_body([]), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body(""), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body(["a", 5]), "invalid_type", "prompt"),
    (COMPLETIONS, prompt_body([True]), "invalid_type", "prompt"),
    (COMPLETIONS, prompt_body([[1], []]), "invalid_value", "prompt[1]"),
    (COMPLETIONS, prompt_body([[1], ["a"]]), "invalid_type", "prompt[1]"),
    (COMPLETIONS, prompt_body([-1]), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body([259]), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body([1 << 40]), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body(["a"] * 5, n=2), "invalid_value", "prompt"),
    (COMPLETIONS, prompt_body(logprobs=6), "invalid_value", "logprobs"),
    (COMPLETIONS, prompt_body(logprobs=True), "invalid_type", "logprobs"),
    (COMPLETIONS, prompt_body(messages=[]), "unknown_parameter", "messages"),
    (COMPLETIONS, prompt_body(max_completion_tokens=-3), "invalid_value", "max_completion_tokens"),
    (COMPLETIONS, prompt_body(best_of=2), "invalid_value", "best_of"),
    (COMPLETIONS, prompt_body(tools=[{}]), "unknown_parameter", "tools"),
    (COMPLETIONS, prompt_body(top_logprobs=1), "unknown_parameter", "top_logprobs"),
]

UNSUPPORTED: list[tuple[str, str, Any]] = [
    (CHAT, "modalities", ["text", "audio"]),
    (CHAT, "audio", {"voice": "x"}),
    (CHAT, "web_search_options", {}),
    (CHAT, "mirostat", 2),
    (CHAT, "chat_template", "x"),
    (CHAT, "stop_token_ids", [1]),
    (COMPLETIONS, "suffix", "x"),
]


class Bystander:
    """A stream beside the bad requests, which must go on as if they were not there."""

    def __init__(self) -> None:
        self.engine = FakeEngine()
        self.app = make_app(self.engine)
        self._words = (f"word{i} " for i in itertools.count())

    async def open(self) -> None:
        self.stream = exchange(self.app, "POST", CHAT, chat_body(stream=True)).open()
        (await self.engine.submitted()).accept()
        assert await self.stream.start() == 200

    async def check(self) -> None:
        word = next(self._words)
        self.engine.submissions[0].say(word)
        assert (await self.stream.event())["choices"][0]["delta"]["content"] == word
        assert len(self.engine.submissions) == 1, "a bad request reached the engine"
        assert not self.engine.aborted

    async def close(self) -> None:
        self.engine.submissions[0].finish()
        assert (await self.stream.event())["choices"][0]["finish_reason"] == "stop"
        assert await self.stream.frame() == "[DONE]"
        await self.stream.ended()


async def check(bystander: Bystander, path: str, body: Any, code: str, param: str | None) -> str:
    reply = await ask(bystander.app, "POST", path, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, code, param), reply.error
    assert reply.error["type"] == "invalid_request_error"
    await bystander.check()
    return str(reply.error["message"])


@pytest.fixture
async def bystander() -> AsyncIterator[Bystander]:
    stream = Bystander()
    await stream.open()
    yield stream
    await stream.close()


@pytest.mark.parametrize("body", BAD_JSON.values(), ids=BAD_JSON.keys())
async def test_bodies_that_are_no_json_object(bystander: Bystander, body: bytes) -> None:
    """Whatever arrives, the answer says that it is not a JSON object."""
    await check(bystander, CHAT, body, "invalid_json", None)


@pytest.mark.parametrize(("path", "body", "code", "param"), WRONG, ids=[f"{row[3]}-{row[2]}" for row in WRONG])
async def test_wrong_requests(bystander: Bystander, path: str, body: Any, code: str, param: str | None) -> None:
    """Status, code and parameter of each, and a message that names the parameter and does not repeat the request."""
    text = await check(bystander, path, body, code, param)
    assert param is None or param.split("[")[0].split(".")[0] in text, text
    assert len(text) < 400, text


@pytest.mark.parametrize(("path", "name", "value"), UNSUPPORTED, ids=[row[1] for row in UNSUPPORTED])
async def test_unsupported_parameters_are_refused_by_name(bystander: Bystander, path: str, name: str, value: Any) -> None:
    """With the reason, so that nobody waits for an effect that cannot come."""
    body = (chat_body if path == CHAT else prompt_body)(**{name: value})
    assert "not supported" in await check(bystander, path, body, "unsupported_parameter", name)


async def test_a_message_names_value_and_limit(bystander: Bystander) -> None:
    """What was found, what is allowed."""
    text = await check(bystander, CHAT, chat_body(temperature=2.5), "invalid_value", "temperature")
    assert text == "'temperature' must be at least 0 and at most 2, but is 2.5."
    text = await check(bystander, CHAT, chat_body(stop="x" * 1600), "invalid_value", "stop")
    assert "has 1600" in text


async def test_two_names_of_one_thing_are_both_named(bystander: Bystander) -> None:
    """As they were written, with their values."""
    body = chat_body(n_predict=5, max_completion_tokens=6)
    text = await check(bystander, CHAT, body, "conflicting_parameters", "n_predict")
    assert text == "'max_completion_tokens' (6) and 'n_predict' (5) mean the same, but differ. Send one of them."


async def test_content_types() -> None:
    """JSON is JSON, whatever it is said to be: `curl -d` calls it a form. Of what is none it is told."""
    app = make_app(FakeEngine(says("x")))
    for kind in ("application/x-www-form-urlencoded", "text/plain", "", "Application/JSON; charset=utf-8"):
        reply = await ask(app, "POST", CHAT, chat_body(), headers={"content-type": kind})
        assert reply.status == 200
        reply = await ask(app, "POST", CHAT, b"no", headers={"content-type": kind})
        assert (reply.error["code"], kind in reply.error["message"]) == ("invalid_json", not kind.startswith("A"))


@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x"])
@pytest.mark.parametrize("said", [{"origin": "https://evil.example"}, {"origin": "null"}, {"sec-fetch-site": "cross-site"}])
async def test_forms_of_other_sites(kind: str, said: dict[str, str]) -> None:
    """A page may send these without asking first: what it sends is not begun."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(), headers={"content-type": kind} | said)
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
    assert not engine.submissions


async def test_a_body_over_the_limit_is_refused_before_it_is_read() -> None:
    """By its announced length at once, else as soon as it is too long; the connection is closed either way."""
    app = make_app(FakeEngine(), Settings.model_validate({"server": {"max_body_bytes": 2000}}))
    announced = exchange(app, "POST", CHAT, [b"x"], headers={"content-length": "2001"}, complete=False)
    reply = await announced.open().reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert reply.headers["connection"] == "close"
    assert announced.parts == [b"x"], "the body was read"
    chunked = exchange(app, "POST", CHAT, [b"x" * 1000, b"x" * 1000, b"x", b"rest"])
    reply = await chunked.open().reply()
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert chunked.parts == [b"rest"], "reading went on"
    assert "2000" in reply.error["message"]


async def test_a_body_that_does_not_come_is_given_up() -> None:
    """A client may not hold a place open by sending nothing."""
    app = make_app(FakeEngine(), Settings.model_validate({"server": {"body_timeout_s": 0.01}}))
    slow = exchange(app, "POST", CHAT, [json.dumps(chat_body()).encode()[:20]], complete=False)
    reply = await slow.open().reply()
    assert (reply.status, reply.error["code"]) == (408, "request_timeout")
    assert reply.headers["connection"] == "close"
