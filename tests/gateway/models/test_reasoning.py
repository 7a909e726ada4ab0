"""Reasoning on its way: from a model that writes it, by tokens and text, to messages, deltas and counts."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from poise.gateway.models.local.templates import TemplateUnusable
from poise.wire.to_engine import Thinking
from tests.gateway.fakes import FakeEngine, ToyVocab, ask, chat_body, frames, make_app, readable, says, text_here, unpaced

CHAT = "/v1/chat/completions"
THINKS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is not defined or enable_thinking %}<think>\n{% endif %}{% endif %}"
)
"""A chat template that has the answer begin with reasoning."""
OPEN, CLOSE = 259, 260


class Thinker(ToyVocab):
    """Its marks of reasoning are control tokens."""

    n_tokens = 261

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        ids = []
        for part in re.split("(</?think>)", text) if parse_special else [text]:
            mark = {"<think>": OPEN, "</think>": CLOSE}.get(part) if parse_special else None
            plain = super().tokenize(part, add_special=False, parse_special=parse_special)
            ids += plain if mark is None else [mark]
        return ids

    def piece(self, token: int, *, special: bool) -> bytes:
        if token < OPEN:
            return super().piece(token, special=special)
        return (b"<think>", b"</think>")[token - OPEN] if special else b""


async def answer(said: str, *, template: str = THINKS, **body: Any) -> dict[str, Any]:
    app = make_app(FakeEngine(says(said)), jobs=text_here(template=template))
    reply = await ask(app, "POST", CHAT, chat_body(**body))
    assert reply.status == 200, reply.body
    return dict(reply.json())


async def test_a_message_has_its_reasoning() -> None:
    """Apart from what it says; its tokens are counted apart, its end mark among them."""
    body = await answer("Hm, so.\n</think>\n\nYes.")
    message = body["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm, so.", "Yes.")
    assert body["usage"]["completion_tokens_details"] == {"reasoning_tokens": len("Hm, so.\n</think>")}


async def test_an_answer_without_reasoning() -> None:
    """Where the prompt did not open it, the answer is all that there is; a model that never reasons has no such fields."""
    off = await answer("Yes </think>.", chat_template_kwargs={"enable_thinking": False})
    assert off["choices"][0]["message"]["content"] == "Yes </think>."
    plain = await answer("<think>a</think>b", template="{% for m in messages %}{{ m.content }}{% endfor %}")
    assert plain["choices"][0]["message"]["content"] == "<think>a</think>b"
    for body in (off, plain):
        assert "reasoning_content" not in body["choices"][0]["message"]
        assert "completion_tokens_details" not in body["usage"]


async def test_deltas_of_reasoning() -> None:
    """A stream has them first; joined, both are those of the message."""
    app = make_app(FakeEngine(says("Hm.</think>Yes.")), jobs=text_here(template=THINKS))
    reply = await ask(app, "POST", CHAT, chat_body(stream=True))
    deltas = [json.loads(data)["choices"][0]["delta"] for _, data in frames(reply.body) if data != "[DONE]"]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm."
    assert "".join(delta.get("content") or "" for delta in deltas) == "Yes."
    kinds = ["reasoning_content" in delta for delta in deltas if delta.get("content") or delta.get("reasoning_content")]
    assert kinds == sorted(kinds, reverse=True)


async def test_marks_that_are_control_tokens() -> None:
    """They count, and the same spelled in text does not."""
    tokens = [*b"Say </think> ", 0xC3, CLOSE, *b"Yes </think>."]
    app = make_app(FakeEngine(says(tokens)), jobs=text_here(Thinker(), THINKS))
    message = (await ask(app, "POST", CHAT, chat_body())).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Say </think> \ufffd", "Yes </think>.")


async def test_a_response_template_of_the_operators(tmp_path: Path) -> None:
    """In place of the one that would be chosen."""
    file = tmp_path / "response.json"
    settings = unpaced()
    settings = settings.model_copy(update={"model": settings.model.model_copy(update={"response_template": str(file)})})
    with pytest.raises(TemplateUnusable, match="No such file"):
        make_app(FakeEngine(), settings)
    file.write_text("{}")
    with pytest.raises(TemplateUnusable, match="no template of version 1"):
        make_app(FakeEngine(), settings)
    file.write_text(json.dumps({"fields": {"reasoning_content": {"open": "(hm)", "close": "(/hm)"}}}))
    app = make_app(FakeEngine(says("(hm)a(/hm)b")), settings)
    message = (await ask(app, "POST", CHAT, chat_body())).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("a", "b")


TOOL = {"type": "function", "function": {"name": "now", "parameters": {"type": "object", "properties": {}}}}

TOLD = "{% for t in tools or [] %}<tool_call>{{ t | tojson }}{% endfor %}"


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("template", "said"),
    [
        (THINKS + TOLD, 'Hm.</think><tool_call>{"name": "now"}</tool_call>'),
        (None, '{"tool_calls":[{"name":"now","arguments":{}}]}'),
    ],
    ids=["of its family", "generic"],
)  # fmt: skip
async def test_calls_in_an_answer(template: str | None, said: str, stream: bool) -> None:
    """As the model's template has them, or in the generic form where it tells of no functions."""
    app = make_app(FakeEngine(says(said)), jobs=text_here(template=template))
    reply = await ask(app, "POST", CHAT, chat_body(tools=[TOOL], stream=stream))
    if stream:
        choices = [json.loads(data)["choices"][0] for _, data in frames(reply.body) if data != "[DONE]"]
        calls = [call["function"] for choice in choices for call in choice["delta"].get("tool_calls", [])]
        name, arguments = calls[0]["name"], "".join(call.get("arguments", "") for call in calls)
        reason = choices[-1]["finish_reason"]
    else:
        (choice,) = reply.json()["choices"]
        (call,) = choice["message"]["tool_calls"]
        name, arguments, reason = call["function"]["name"], call["function"]["arguments"], choice["finish_reason"]
    assert (name, arguments, reason) == ("now", "{}", "tool_calls")


IGNORED = "x-poise-ignored"


@pytest.mark.parametrize(
    ("asked", "thinks"),
    [
        ({}, True),
        ({"enable_thinking": False}, False),
        ({"reasoning_effort": "none"}, False),
        ({"reasoning_effort": "high"}, True),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": True, "enable_thinking": False}, False),
        ({"enable_thinking": True, "chat_template_kwargs": {"enable_thinking": False}}, False),
    ],
)
async def test_a_model_is_told_how_much_to_reason(asked: dict[str, Any], thinks: bool) -> None:
    """In the words of several servers, as far as its chat template knows them; what is written for the template wins."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine, jobs=text_here(template=THINKS)), "POST", CHAT, chat_body(**asked))
    assert readable(engine.submissions[0].prompt).endswith("<think>\n") is thinks
    assert reply.status == 200
    assert IGNORED not in reply.headers


async def test_what_a_model_cannot_be_told_is_named() -> None:
    """Or refused, by a strict server."""
    both = {"type": "enabled", "budget_tokens": 9}
    asked: dict[str, Any] = {"enable_thinking": False, "reasoning_effort": "low", "thinking": both}
    app = make_app(FakeEngine(says("x")))
    reply = await ask(app, "POST", CHAT, chat_body(**asked))
    assert reply.headers[IGNORED] == "enable_thinking, thinking, reasoning_effort, thinking.budget_tokens"
    settings = unpaced()
    settings = settings.model_copy(update={"server": settings.server.model_copy(update={"strict": True})})
    reply = await ask(make_app(FakeEngine(says("x")), settings), "POST", CHAT, chat_body(reasoning_effort="low"))
    assert (reply.status, reply.json()["error"]["code"]) == (400, "unsupported_parameter")


@pytest.mark.parametrize("asked", [{"thinking_token_budget": 9}, {"reasoning_budget": 9}, {"thinking": {"budget_tokens": 9}}])
async def test_a_budget_goes_to_the_engine(asked: dict[str, Any]) -> None:
    """With the tokens that end the reasoning, and those that begin it where the prompt has not."""
    engine = FakeEngine(says("x"))
    app = make_app(engine, jobs=text_here(Thinker(), THINKS))
    await ask(app, "POST", CHAT, chat_body(**asked))
    await ask(app, "POST", CHAT, chat_body(**asked, enable_thinking=False))
    await ask(app, "POST", CHAT, chat_body(thinking_token_budget=-1))
    budgets = [submission.sampling.thinking for submission in engine.submissions]
    assert budgets == [Thinking(9, (CLOSE,)), Thinking(9, (CLOSE,), (OPEN,)), None]


async def test_budgets_that_disagree() -> None:
    """Are refused, as is one that is no number."""
    app = make_app(FakeEngine(says("x")), jobs=text_here(template=THINKS))
    for asked, param in (
        ({"thinking_token_budget": 3, "thinking": {"budget_tokens": 4}}, "thinking_token_budget"),
        ({"thinking": {"budget_tokens": "4"}}, "thinking.budget_tokens"),
        ({"thinking": "yes"}, "thinking"),
    ):
        reply = await ask(app, "POST", CHAT, chat_body(**asked))
        assert (reply.status, reply.json()["error"]["param"]) == (400, param)
