"""How conversations are written for a model: what callers are told of it, and where an answer ends without tokens for that."""

from __future__ import annotations

import pytest

from poise.worker.text.systems import FOLDED, MERGED
from tests.gateway.fakes import FakeEngine, ToyVocab, ask, chat_body, make_app, prompt_body, readable, says, text_here

CHAT = "/v1/chat/completions"
WARNING = "x-poise-warning"
LINES = "{% for m in messages %}[{{ m.role }}:{{ m.content }}]{% endfor %}"
NO_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LINES
ONE_SYSTEM = "{% if messages[1].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + LINES
SAID = [
    {"role": "system", "content": "A"},
    {"role": "system", "content": "B"},
    {"role": "user", "content": "Hi"},
]


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
