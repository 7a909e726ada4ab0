"""What clients send beside the request itself: fields without effect are taken and named, values as others take them."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config import Settings
from poise.gateway.api.openai import rendering
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.http.body import parse_object
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.headers import list_ignored
from poise.gateway.request.refusals import ApiError
from poise.metrics.clients import FIELDS
from tests.gateway.fakes import FakeEngine, ask, chat_body, exchange, make_app, prompt_body, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
HINTS: dict[str, Any] = {
    "metadata": {"a": "b"},
    "store": True,
    "prompt_cache_key": "k",
    "prompt_cache_retention": "24h",
    "safety_identifier": "s",
    "user": "u",
    "parallel_tool_calls": True,
    "reasoning_effort": "none",
    "verbosity": "low",
    "modalities": ["text"],
    "keep_alive": "5m",
    "num_ctx": 4096,
    "think": False,
    "include_reasoning": True,
    "service_tier": "on_demand",
    "stream_options": {"include_usage": True},
    "cache_prompt": False,
    "tools": [],
    "typical_p": 1,
    "no_such_thing": {"x": [1]},
    "temprature": 1,
}
STRICT = Settings.model_validate({"server": {"strict": True}})
PARSER = RequestParser(Settings())


def chat(*messages: dict[str, Any], **fields: Any) -> Generate:
    """What a chat comes to."""
    return PARSER.chat(chat_body(**fields) | ({"messages": list(messages)} if messages else {}))


def texts(request: Generate) -> list[str]:
    assert isinstance(request.prompt, Conversation)
    return [message.content for message in request.prompt.messages]


@pytest.mark.parametrize("name", HINTS)
async def test_what_has_no_effect_is_taken_and_named(name: str) -> None:
    """In a header, whole or streamed; and counted, under its name if that is known."""
    app = make_app(FakeEngine(says("x")))
    fields = {name: HINTS[name]}
    reply = await ask(app, "POST", CHAT, chat_body(**fields))
    assert (reply.status, reply.headers.get("x-poise-ignored")) == (200, name), reply.body
    if name != "stream_options":
        reply = await ask(app, "POST", CHAT, chat_body(stream=True, **fields))
        assert (reply.status, reply.headers.get("x-poise-ignored")) == (200, name)
    label = name if name in FIELDS else "other"
    counted = f'poise_ignored_fields_total{{field="{label}"}} {1.0 if name == "stream_options" else 2.0}'
    assert counted in (await ask(app, "GET", "/metrics")).body.decode()


async def test_nothing_is_named_where_nothing_was_ignored() -> None:
    """Neither what is null, nor what has an effect."""
    app = make_app(FakeEngine(says("x")))
    body = chat_body(metadata=None, no_such_thing=None, top_k=5, stream_options=None, user=None)
    assert "x-poise-ignored" not in (await ask(app, "POST", CHAT, body)).headers


async def test_what_clients_leave_in_messages_is_named_once() -> None:
    """However many messages have it."""
    part = {"type": "text", "text": "x", "cache_control": {"type": "ephemeral"}}
    turn = {"role": "user", "content": [part, part], "id": 5, "timestamp": 1.5}
    app = make_app(FakeEngine(says("x")))
    reply = await ask(app, "POST", CHAT, chat_body() | {"messages": [turn, turn]})
    assert (reply.status, reply.headers["x-poise-ignored"]) == (
        200,
        "messages[].id, messages[].timestamp, messages[].content[].cache_control",
    )
    exposition = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_ignored_fields_total{field="cache_control"} 1.0' in exposition


async def test_the_tokenizer_takes_the_same() -> None:
    """A conversation is counted as it will be sent."""
    message = {"role": "user", "content": "x", "id": 5}
    reply = await ask(make_app(FakeEngine()), "POST", "/tokenize", {"messages": [message], "metadata": {"a": "b"}})
    assert (reply.status, reply.headers["x-poise-ignored"]) == (200, "metadata, messages[].id")
    reply = await ask(make_app(FakeEngine(), STRICT), "POST", "/tokenize", {"messages": [message]})
    assert (reply.status, reply.error["param"]) == (400, "messages[0].id")


def test_the_header_is_bounded_and_safe() -> None:
    """Whatever a client calls its fields."""
    names = chat(**{f"x{i}\r\nSet-Cookie: é{'y' * 100}": 1 for i in range(200)}).ignored
    header = list_ignored(names)
    assert len(header) <= 20 * 50 + 20
    assert header.endswith(", 180 more")
    assert set(header) <= set("xy0123456789?, more-SetCki:é") - set("\r\n:é")


@pytest.mark.parametrize("name", sorted(set(HINTS) - {"user", "modalities", "tools", "typical_p", "parallel_tool_calls"}))
async def test_a_strict_server_refuses_it_by_name(name: str) -> None:
    """As one that would rather have its clients' mistakes."""
    reply = await ask(make_app(FakeEngine(), STRICT), "POST", CHAT, chat_body(**{name: HINTS[name]}))
    assert (reply.status, reply.error["param"]) == (400, name), reply.body


async def test_a_strict_server_helps_with_misspelt_names() -> None:
    """The closest known name, if one is close; and it looks into messages, parts and options too."""
    app = make_app(FakeEngine(), STRICT)
    for field, hint in (("temprature", "Did you mean 'temperature'?"), ("zzz", "Remove it")):
        reply = await ask(app, "POST", CHAT, chat_body() | {field: 1})
        assert (reply.error["code"], reply.error["param"]) == ("unknown_parameter", field)
        assert hint in reply.error["message"]
    part = {"type": "text", "text": "x", "bold": True}
    for message, param in (
        ({"role": "user", "content": "x", "nmae": "y"}, "messages[0].nmae"),
        ({"role": "user", "content": [part]}, "messages[0].content[0].bold"),
    ):
        reply = await ask(app, "POST", CHAT, {"messages": [message]})
        assert (reply.error["code"], reply.error["param"]) == ("unknown_parameter", param)
    body = chat_body(stream=True, stream_options={"segment": True})
    assert (await ask(app, "POST", CHAT, body)).error["param"] == "stream_options.segment"


async def test_a_strict_server_takes_what_asks_for_nothing() -> None:
    """Clients that send everything with its default keep working, and are told nothing."""
    neutral: dict[str, Any] = {
        "tools": [], "tool_choice": "none", "parallel_tool_calls": True, "response_format": {"type": "text"},
        "modalities": ["text"], "store": False, "metadata": None, "function_call": None, "reasoning_effort": None,
        "logprobs": False, "top_logprobs": 0, "stop": None, "max_tokens": None, "stream_options": None, "user": "u",
    }  # fmt: skip
    app = make_app(FakeEngine(says("x")), STRICT)
    reply = await ask(app, "POST", CHAT, chat_body(**neutral))
    assert reply.status == 200, reply.body
    assert "x-poise-ignored" not in reply.headers
    reply = await ask(app, "POST", COMPLETIONS, prompt_body(echo=False, best_of=2, n=2, suffix=None))
    assert reply.status == 200, reply.body
    answer: dict[str, Any]
    answer = {"role": "assistant", "content": "x", "refusal": None, "tool_calls": [], "annotations": [], "audio": None}
    reply = await ask(app, "POST", CHAT, {"messages": [answer]})
    assert reply.status == 200, reply.body


@pytest.mark.parametrize(
    ("written", "field", "value"),
    [
        *[({name: 7}, "max_tokens", 7) for name in ("max_completion_tokens", "n_predict", "num_predict", "max_new_tokens")],
        ({"max_tokens": 7.0, "n_predict": 7}, "max_tokens", 7),
        ({"max_tokens": -1}, "max_tokens", None),
        ({"n_predict": -2}, "max_tokens", None),
        ({"max_tokens": 0}, "max_tokens", 0),
        ({"stop_sequences": ["a"], "stop": "a"}, "stop", ("a",)),
        ({"stop": [f"stop {i}" for i in range(32)]}, "stop", tuple(f"stop {i}" for i in range(32))),
        ({"stop": ["", "b"]}, "stop", ("b",)),
        ({"stop": ""}, "stop", ()),
        ({"random_seed": 5}, "seed", 5),
        ({"seed": -1}, "seed", None),
        ({"seed": 2**64 - 1}, "seed", 2**64 - 1),
        ({"model": None}, "model", ""),
        ({"model": ""}, "model", ""),
        ({"n": 2.0}, "n", 2),
    ],
)
def test_values_as_others_take_them(written: dict[str, Any], field: str, value: object) -> None:
    """Under the names that others have for them, and with the numbers that mean something of their own."""
    for request in (chat(**written), PARSER.completion(prompt_body(**written))):
        assert getattr(request, field) == value
        assert request.ignored == ()


def test_top_p_0_is_the_likeliest_token() -> None:
    """As OpenAI has it."""
    sampling = chat(top_p=0, temperature=1, top_k=50).sampling
    assert (sampling.top_p, sampling.top_k) == (1.0, 1)
    assert chat(repeat_penalty=1.5).sampling.repetition_penalty == 1.5


def test_best_of_up_to_n_is_taken() -> None:
    """All choices are sent, so the best ones are among them."""
    assert PARSER.completion(prompt_body(n=3, best_of=2)).n == 3


@pytest.mark.parametrize(
    ("turn", "text"),
    [
        ({}, ""),
        ({"content": None}, ""),
        ({"content": []}, ""),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": [{"type": "refusal", "refusal": "No."}]}, "No."),
        ({"content": "Hi", "refusal": "No."}, "Hi"),
        ({"content": [{"type": "output_text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
        ({"content": "Hi", "name": ""}, "Hi"),
    ],
)
def test_an_assistants_turn_may_be_without_text(turn: dict[str, Any], text: str) -> None:
    """After a stop, or a refusal, which is text as well."""
    assert texts(chat({"role": "assistant", **turn}, {"role": "user", "content": "x"})) == [text, "x"]


@pytest.mark.parametrize("stream", [False, True])
async def test_no_tokens_at_all(stream: bool) -> None:
    """The prompt is computed; the token that the engine draws is not said, nor counted."""
    engine = FakeEngine()
    client = exchange(make_app(engine), "POST", CHAT, chat_body(max_tokens=0, stream=stream)).open()
    submission = await engine.submitted()
    assert submission.max_output == 1
    submission.accept()
    submission.start()
    submission.say("x")
    submission.finish("stop")
    if not stream:
        answer = (await client.reply()).json()
        assert answer["choices"][0]["message"]["content"] == ""
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] == 0
        return
    assert await client.start() == 200
    frames = [await client.frame()]
    while frames[-1] != "[DONE]":
        frames.append(await client.frame())
    choices = [json.loads(frame)["choices"][0] for frame in frames if frame.startswith("{")]
    assert "".join(choice["delta"].get("content") or "" for choice in choices) == ""
    assert choices[-1]["finish_reason"] == "length"


def test_a_byte_order_mark_is_skipped() -> None:
    """Which some editors write."""
    assert parse_object(b"\xef\xbb\xbf" + b'{"a": 1}') == {"a": 1}


UNITS = st.sampled_from(["\ud83d", "\ude00", "\\", "n", '"', "é", "\ud83d\ude00", "\\ud83d"])


@given(st.lists(UNITS, max_size=8).map("".join))
def test_half_a_character_is_replaced(text: str) -> None:
    """And nothing else, whatever stands around it. Behind a backslash, or what looks like the other half, it is refused."""
    body = json.dumps({"a": text}).encode()
    wanted = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    try:
        assert parse_object(body) == {"a": wanted}
    except ApiError:
        assert any(f"\\{half}" in text for half in ("\ud83d", "\ude00", "ud83d\ude00"))


def test_every_ambiguous_name_is_known_to_one_list_only() -> None:
    """A harmless field is none that has an effect."""
    fields = [field for _, field in itertools.chain(*[[(p, f) for f in p] for p in (PARSER._chat, PARSER._completion)])]
    effective = {name for field in fields for name in field.names}
    effective -= {"user", "service_tier", "stream_options", "model", "parallel_tool_calls"}
    effective -= {name for field in rendering.THINKING_FIELDS for name in field.names}  # models that do not reason ignore these
    assert not effective & set(FIELDS)
