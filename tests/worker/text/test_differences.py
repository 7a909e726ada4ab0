"""What a template shows of calls and reasoning reads what the template writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.gateway.text.reading.machine import ResponseParser
from poise.gateway.text.reading.templates import choose
from poise.worker.text.chat_template import ChatTemplate
from poise.worker.text.differences import fields_of
from tests.gateway.text.test_reading import read

TURNS = (
    "{% for m in messages %}<turn:{{ m.role }}>\n{% if m.reasoning_content %}%THINK%{% endif %}{{ m.content or '' }}"
    "{% for call in m.tool_calls or [] %}{% set f = call.function %}{% if loop.first %}%FIRST%{% endif %}%CALL%"
    "{% if not loop.last %}%BETWEEN%{% else %}%LAST%{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<turn:assistant>\n{% endif %}"
)
OBJECT = '{"name": "{{ f.name }}", "arguments": {{ f.arguments | tojson }}}'
TAGS = "{% for k, v in f.arguments.items() %}<arg:{{ k }}>\n{{ v }}\n</arg>\n{% endfor %}"
CALLS: dict[str, tuple[str, str, str, str]] = {
    "objects between tags": ("\n", f"<do>\n{OBJECT}\n</do>", "\n", ""),
    "a list of objects": ("{CALLS}[", OBJECT, ", ", "]"),
    "a bare object": ("", OBJECT, ";", ""),
    "a name and an object": ("", "<<{{ f.name }}|>{{ f.arguments | tojson }}<</>>", "\n", ""),
    "marks around all": ("<all>", "<one>{{ f.name }}<with>{{ f.arguments | tojson }}</one>", "", "</all>"),
    "arguments between tags": ("", f"<do>\n<fn={{{{ f.name }}}}>\n{TAGS}</fn>\n</do>", "\n", ""),
    "tags of keys and values": (
        "",
        "<do>{{ f.name }}\n{% for k, v in f.arguments.items() %}<k>{{ k }}</k>\n<v>{{ v }}</v>\n{% endfor %}</do>",
        "\n",
        "",
    ),
    "arguments as text": ("", '<do>{"name": "{{ f.name }}", "arguments": {{ f.arguments + "" }}}</do>', "", ""),
}
ARGUMENTS = ({"city": "Aix", "unit": 'a "b" <c>'}, {"n": "x\ny"})
TOOLS: dict[str, dict[str, Any]] = {
    "first_one": {"properties": {"city": {"type": "string"}, "unit": {"type": "string"}}},
    "other.one": {"properties": {"n": {"type": "string"}}},
}


def template(first: str, call: str, between: str, last: str, think: str = "") -> ChatTemplate:
    marks = {"%FIRST%": first, "%CALL%": call, "%BETWEEN%": between, "%LAST%": last, "%THINK%": think}
    source = TURNS
    for mark, text in marks.items():
        source = source.replace(mark, text)
    return ChatTemplate(source)


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("n", [1, 2])
def test_calls_are_read_as_they_are_written(name: str, n: int) -> None:
    """By what was found, the template's own writing comes to the calls that it was given."""
    written = template(*CALLS[name])
    found = choose("", fields_of(written), {})
    as_text = "+" in CALLS[name][1]
    calls = [
        {"function": {"name": tool, "arguments": json.dumps(arguments) if as_text else arguments}}
        for tool, arguments in list(zip(TOOLS, ARGUMENTS, strict=True))[:n]
    ]
    text = written.plain([{"role": "assistant", "content": "", "tool_calls": calls}])
    answer = text.removeprefix("<turn:assistant>\n").removesuffix("<end>\n")
    told = read(ResponseParser(found, TOOLS), answer)
    assert [text for kind, text in told if kind == "call"] == list(TOOLS)[:n]
    assert [json.loads(text) for kind, text in told if kind == "with"] == list(ARGUMENTS)[:n]
    assert not [text for kind, text in told if kind == "say"]


def test_reasoning_is_found() -> None:
    """Where the template writes that of a turn."""
    found = fields_of(template("", "", "", "", "[HM]{{ m.reasoning_content }}[/HM]\n\n"))
    assert found == {"reasoning_content": {"open": "[HM]", "close": "[/HM]"}}


@pytest.mark.parametrize(
    "source", [None, "{{ raise_exception('no') }}", "{% for m in messages %}{{ m.content }}{% endfor %}", "x"]
)
def test_nothing_is_found_where_nothing_is_written(source: str | None) -> None:
    """Templates that know no functions, fail, or leave out turns."""
    assert fields_of(ChatTemplate(source)) == {}
