"""How conversations are written for a model: what callers are told of it, and where an answer ends without tokens for that."""

from __future__ import annotations

from typing import Any

import pytest

from poise.worker.text.chat_template import FOLDED, MERGED
from tests.gateway.fakes import FakeEngine, ToyVocab, ask, chat_body, make_app, prompt_body, readable, says, text_here

CHAT = "/v1/chat/completions"
WARNING = "x-poise-warning"
LINES = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LINES
ONE_SYSTEM = "{% if messages[1].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LINES
SAID = [{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("policy", ["reject", "trim", "summarize"])
@pytest.mark.parametrize(
    ("template", "prompt", "note"),
    [
        (LINES, "[system:A][system:B][user:Hi]", None),
        (ONE_SYSTEM, "[system:A\n\nB][user:Hi]", MERGED),
        (NO_SYSTEM, "[user:A\n\nB\n\nHi]", FOLDED),
    ],
    ids=["as sent", "one", "none"],
)
async def test_who_sends_system_messages_is_told_where_they_went(
    template: str, prompt: str, note: str | None, policy: str
) -> None:
    """Nothing is moved in silence, whatever is to happen to a conversation that is too long."""
    engine = FakeEngine(says("x"))
    app = make_app(engine, jobs=text_here(template=template))
    reply = await ask(app, "POST", CHAT, chat_body(messages=SAID, context_policy=policy))
    assert reply.status == 200
    assert readable(engine.submissions[0].prompt) == prompt
    assert reply.headers.get(WARNING) == note


class Bare(ToyVocab):
    """Of a base model: no token ends a turn."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        return super().tokenize(text, add_special=add_special, parse_special=False)


async def test_a_model_without_a_template_and_its_tokens_ends_at_its_marks() -> None:
    """A base model writes them as text, and would go on with the user's turn; a raw prompt's answer ends where it does."""
    app = make_app(FakeEngine(says("Hello.<|im_end|>\n<|im_start|>user")), jobs=text_here(Bare()))
    choice = (await ask(app, "POST", CHAT, chat_body())).json()["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == ("Hello.", "stop")
    raw = (await ask(app, "POST", "/v1/completions", prompt_body())).json()["choices"][0]
    assert raw["text"] == "Hello.<|im_end|>\n<|im_start|>user"


@pytest.mark.parametrize(("vocab", "template"), [(ToyVocab(), None), (Bare(), LINES)], ids=["tokens", "template"])
async def test_others_do_not_end_there(vocab: ToyVocab, template: str | None) -> None:
    """Who has the tokens ends by them, and another template has other marks: the text is only text."""
    app = make_app(FakeEngine(says("a <|im_end|> b")), jobs=text_here(vocab, template))
    choice = (await ask(app, "POST", CHAT, chat_body())).json()["choices"][0]
    assert choice["message"]["content"] == "a <|im_end|> b"


KWARGS = (
    "{% for m in messages %}[{{ m.role }}:{{ m.reasoning_content }}:{{ m.content }}]{% endfor %}"
    "{{ x }}{% if add_generation_prompt %}>{% endif %}"
)
ASSISTANT = {"role": "assistant", "content": "Dear"}
USER = {"role": "user", "content": "Hi"}


@pytest.mark.parametrize(
    ("body", "prompt"),
    [
        ({}, "[user::Hi][assistant::Dear]>"),
        ({"add_generation_prompt": True, "continue_final_message": None}, "[user::Hi][assistant::Dear]>"),
        ({"add_generation_prompt": False}, "[user::Hi][assistant::Dear]"),
        ({"continue_final_message": True}, "[user::Hi][assistant::Dear"),
        ({"continue_final_message": True, "add_generation_prompt": False}, "[user::Hi][assistant::Dear"),
        ({"messages": [USER, ASSISTANT | {"prefix": True}]}, "[user::Hi][assistant::Dear"),
        ({"messages": [USER, ASSISTANT | {"reasoning_content": "Hm"}]}, "[user::Hi][assistant:Hm:Dear]>"),
        ({"messages": [USER, ASSISTANT | {"reasoning": "Hm"}]}, "[user::Hi][assistant:Hm:Dear]>"),
        ({"chat_template_kwargs": {"x": 7, "unknown": [None]}}, "[user::Hi][assistant::Dear]7>"),
    ],
)
async def test_callers_say_how_it_is_written(body: dict[str, Any], prompt: str) -> None:
    """By the names that vLLM, SGLang, DeepSeek and Mistral have for it."""
    engine = FakeEngine(says("x"))
    app = make_app(engine, jobs=text_here(template=KWARGS))
    reply = await ask(app, "POST", CHAT, chat_body(**{"messages": [USER, ASSISTANT], **body}))
    assert reply.status == 200, reply.json()
    assert readable(engine.submissions[0].prompt) == prompt


DEEP: list[object] = []
for _ in range(500):
    DEEP = [DEEP]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": [USER], "continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "add_generation_prompt"),
        ({"chat_template_kwargs": [1]}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"not a name": 1}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {f"x{i}": 1 for i in range(33)}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * 20_000}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": DEEP}}, "chat_template_kwargs"),
        ({"messages": [USER, ASSISTANT | {"reasoning_content": 1}]}, "messages[1].reasoning_content"),
        ({"messages": [USER, ASSISTANT | {"prefix": "yes"}]}, "messages[1].prefix"),
        ({"messages": [ASSISTANT, USER | {"prefix": True}]}, "messages[1].prefix"),
    ],
)
async def test_what_cannot_be_written_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    """Within bounds, and never the server's error."""
    app = make_app(FakeEngine(says("x")), jobs=text_here(template=KWARGS))
    reply = await ask(app, "POST", CHAT, chat_body(**{"messages": [USER, ASSISTANT], **body}))
    assert (reply.status, reply.json()["error"]["param"]) == (400, param)
