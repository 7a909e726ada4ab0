"""Chat templates: what they are given, what may come of them, and how they fail."""

from __future__ import annotations

import logging
from datetime import datetime

import pytest

from poise.wire.text import Message
from poise.worker.text.chat_template import ChatTemplate, TextRefused
from poise.worker.text.hidden import Piece

USER = Message("user", "Hi")


def render(source: str | None, *messages: Message) -> str:
    pieces = ChatTemplate(source).render(messages or [USER])
    return "".join(piece.text for piece in pieces)


def refusal(source: str, *messages: Message) -> TextRefused:
    with pytest.raises(TextRefused) as caught:
        render(source, *messages)
    return caught.value


def test_contents_are_kept_apart_from_the_template() -> None:
    """Each character of the result is known to be the template's or the caller's."""
    pieces = ChatTemplate("[{{ messages[0].content }}]").render([USER])
    assert pieces == [Piece("[", False), Piece("Hi", True), Piece("]", False)]


@pytest.mark.parametrize(
    ("content", "expected"), [("  Hi \n", "[Hi]"), ("Hi", "[Hi]"), ("   ", "[]"), ("", "[]"), ("a b", "[a b]")]
)
def test_templates_can_trim(content: str, expected: str) -> None:
    """White space around a content is outside its placeholder."""
    assert render("[{{ messages[0].content | trim }}]", Message("user", content)) == expected


def test_templates_can_ask_for_content() -> None:
    """An empty content is false, any other is true."""
    source = "{% for m in messages %}{{ 'yes ' if m.content else 'no ' }}{{ m.content }}{% endfor %}"
    assert render(source, USER, Message("user", "")) == "yes Hino "


def test_a_developer_speaks_as_system() -> None:
    """Templates do not know OpenAI's newer name of the role."""
    assert render(None, Message("developer", "D")).startswith("<|im_start|>system\nD<|im_end|>")


def test_names_are_contents_too() -> None:
    """A speaker's name comes from the caller as well."""
    pieces = ChatTemplate("{{ messages[0].name }}: {{ messages[0].content }}").render([Message("user", "Hi", "Ann<s>")])
    assert pieces[0] == Piece("Ann<s>", True)


def test_without_a_template_chatml_is_used_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    """A fallback changes the answers, so the operator has to know."""
    with caplog.at_level(logging.WARNING):
        assert render(None) == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert "no chat template" in caplog.text


def test_helpers_that_templates_expect() -> None:
    """strftime_now, tojson without HTML escapes, loop controls, and the texts of the special tokens."""
    now = datetime(2026, 11, 23)
    template = ChatTemplate(
        "{{ bos_token }}{{ strftime_now('%Y') }}{{ {'a': '<'} | tojson }}"
        "{% for i in range(9) %}{% if i == 2 %}{% break %}{% endif %}{{ i }}{% endfor %}{{ messages[0].content }}",
        bos_text="<s>",
        now=lambda: now,
    )
    assert "".join(s.text for s in template.render([USER])) == '<s>2026{"a": "<"}01Hi'


def test_a_templates_refusal_is_the_callers_error() -> None:
    """With the template's own words, and without what the messages say."""
    error = refusal("{{ raise_exception('roles must alternate, not ' + messages[0].content) }}")
    assert (error.status, error.code, error.param) == (400, "invalid_messages", "messages")
    assert "roles must alternate" in error.message
    assert "Hi" not in error.message


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].content + 1 }}",
        "{{ missing.attribute }}",
        "{{ messages.append(1) }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
        "{{ messages[0].content[1:] }}",
    ],
    ids=["type", "undefined", "change", "sandbox", "endless", "cut"],
)
def test_a_template_that_fails_is_told_in_its_words(source: str) -> None:
    """It would fail again, so it is the request's error; the sandbox lets it neither change its input nor reach Python."""
    error = refusal(source)
    assert (error.status, error.code) == (400, "chat_template_failed")


def test_an_endless_template_is_stopped_at_the_bound() -> None:
    """While it writes, not when it has filled the memory."""
    written: list[int] = []

    def now() -> datetime:
        written.append(1)
        return datetime(2026, 11, 23)

    source = "{% for i in range(99999) %}{{ strftime_now('x' * 100000) }}{% endfor %}"
    with pytest.raises(TextRefused):
        ChatTemplate(source, now=now).render([USER])
    assert len(written) < 200


def test_a_broken_template_is_found_at_start() -> None:
    """Not at the first request."""
    with pytest.raises(ValueError, match=r"broken in line 2"):
        ChatTemplate("line one\n{% if %}")


def test_a_message_that_the_template_drops_is_an_error() -> None:
    """Nothing that a caller says is ignored in silence."""
    error = refusal("{{ messages[0].content }}", USER, Message("tool", "result"))
    assert (error.status, error.code, error.param) == (400, "message_left_out", "messages[1]")
