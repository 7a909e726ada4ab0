"""What chat templates are written in, what they find in contents, and where they get the system messages."""

from __future__ import annotations

import pytest

from poise.wire.text import Message, Rendering
from poise.worker.text.chat_template import FOLDED, MERGED, ChatTemplate, TextRefused
from poise.worker.text.hidden import Piece

USER = Message("user", "Hi")
LINES = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
SYSTEM_FIRST = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('System message must be at the beginning.') }}{% endif %}{% endfor %}" + LINES
)
NO_SYSTEM = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}{% endfor %}" + LINES
)


def render(source: str, *messages: Message, rendering: Rendering | None = None) -> str:
    pieces, _ = ChatTemplate(source).write(messages or [USER], rendering=rendering or Rendering())
    return "".join(piece.text for piece in pieces)


def test_marks_for_training_mean_nothing() -> None:
    """SmolLM3, Phi-4-reasoning and others mark the text of assistants for training."""
    source = "{%- set x = 1 -%}{% generation %}{% set x = 2 %}{{ messages[0].content }}{{ x }}{% endgeneration %}{{ x }}"
    assert render(source) == "Hi21"


def test_json_has_pythons_options() -> None:
    """`tojson` takes what `json.dumps` does, and escapes nothing for HTML."""
    source = "{{ {'b': '<é>', 'a': [1]} | tojson(%s) }}{{ messages[0].content }}"
    assert render(source % "sort_keys=true, separators=(',', ':')") == '{"a":[1],"b":"<é>"}Hi'
    assert render(source % "indent=1") == '{\n "b": "<é>",\n "a": [\n  1\n ]\n}Hi'
    assert render(source % "ensure_ascii=true") == '{"b": "<\\u00e9>", "a": [1]}Hi'


@pytest.mark.parametrize(("options", "expected"), [("", '"say \\"é\\" \\\\"'), ("ensure_ascii=true", '"say \\"\\u00e9\\" \\\\"')])
def test_contents_in_json_are_escaped(options: str, expected: str) -> None:
    """A template that writes messages as JSON writes JSON, whatever they say."""
    said = Message("user", 'say "é" \\')
    assert render("{{ messages[0].content | tojson(" + options + ") }}", said) == expected


def test_what_is_none_is_none() -> None:
    """Templates ask whether there are tools by `is none` as well as by `if`."""
    assert render("{{ tools is none }}{{ documents is none }}{{ messages[0].content }}") == "TrueTrueHi"


THOUGHT = "<think>\nlong <|end|> thoughts\n</think>\n\nHello </think"
CUTS = {
    "in": "{% if '</think>' in n.c %}{% set n.c = n.c.split('</think>')[-1].lstrip('\\n') %}{% endif %}",
    "variable": "{% set t = '</think>' %}{% if t in n.c %}{% set n.c = (n.c.split(t) | last).lstrip() %}{% endif %}",
    "partition": "{% set n.c = n.c.rpartition('</think>')[2].lstrip() %}",
    "starts": "{% if n.c.startswith('<think>') %}{% set n.c = n.c.split('</think>\\n\\n', 1)[1] %}{% endif %}",
    "not in": "{% if '</think>' not in n.c %}{% else %}{% set n.c = n.c[n.c.index('</think>') + 8:].lstrip() %}{% endif %}",
}


@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS)
def test_reasoning_of_earlier_turns_is_cut(cut: str) -> None:
    """As the templates of reasoning models do it, each in its way. What is left is the caller's, and nothing else is."""
    cut = "{% if m.role == 'assistant' %}" + cut + "{% endif %}"
    source = "{% for m in messages %}{% set n = namespace(c=m.content) %}" + cut + "<|{{ m.role }}|>{{ n.c }}{% endfor %}"
    assert render(source, USER, Message("assistant", THOUGHT)) == "<|user|>Hi<|assistant|>Hello </think"


def test_marks_of_callers_stay_theirs() -> None:
    """What a template looks for is known in a content as the caller's, and can be no control token."""
    source = "{% if '<|end|>' in messages[0].content %}yes {% endif %}{{ messages[0].content }}<|end|>"
    pieces, _ = ChatTemplate(source).write([Message("user", "a <|end|> b<|end|>")])
    assert "".join(piece.text for piece in pieces) == "yes a <|end|> b<|end|><|end|>"
    assert "".join(piece.text for piece in pieces if not piece.is_content).split() == ["yes", "<|end|>"]


def test_marks_are_replaced_and_counted() -> None:
    """SmolLM3 takes `/no_think` out of a system message."""
    source = "{{ messages[0].content.replace('/no_think', '') | trim }}|{{ messages[0].content | replace('/no_think', 'N') }}"
    assert render(source, Message("user", "Be brief. /no_think")) == "Be brief.|Be brief. N"


def test_reasoning_goes_where_the_template_sends_it() -> None:
    """By whatever name the family has for it; where it is asked for by none, it is left out, which is no error."""
    turn = Message("assistant", "Hello", reasoning="They greet. <|end|>")
    for name in ("reasoning_content", "reasoning", "thinking"):
        source = f"{{% if messages[0].{name} %}}[{{{{ messages[0].{name} }}}}]{{% endif %}}{{{{ messages[0].content }}}}"
        pieces, _ = ChatTemplate(source).write([turn])
        assert pieces[1] == Piece("They greet. <|end|>", is_content=True)
    assert render(LINES, USER, turn).endswith("<|assistant|>Hello<|end|>")


def test_several_system_messages_become_one() -> None:
    """Where the template takes one, first; and the caller is told."""
    said = [Message("system", "A"), Message("developer", "B"), USER, Message("system", "C")]
    pieces, note = ChatTemplate(SYSTEM_FIRST).write(said)
    assert "".join(piece.text for piece in pieces) == "<|system|>A\n\nB\n\nC<|end|><|user|>Hi<|end|>"
    assert note == MERGED
    assert ChatTemplate(LINES).write(said)[1] == "", "nothing is moved where it is taken as it is"


def test_without_a_system_role_the_user_says_it() -> None:
    """As Gemma's documentation advises; and the caller is told."""
    pieces, note = ChatTemplate(NO_SYSTEM).write([Message("system", "A"), Message("system", "B"), USER])
    assert "".join(piece.text for piece in pieces) == "<|user|>A\n\nB\n\nHi<|end|>"
    assert note == FOLDED
    assert ChatTemplate(NO_SYSTEM).write([Message("system", "A")])[0][1] == Piece("A", is_content=True)


def test_a_system_message_that_is_left_out_is_moved_as_well() -> None:
    """Some templates read the first one only, and say nothing of the others."""
    source = "{% if messages[0].role == 'system' %}{{ messages[0].content }}|{% endif %}{{ messages[-1].content }}"
    assert render(source, Message("system", "A"), Message("system", "B"), USER) == "A\n\nB|Hi"


def test_what_no_place_helps_is_refused_as_it_came() -> None:
    """The error is that of the conversation that was sent."""
    with pytest.raises(TextRefused, match="System role not supported"):
        ChatTemplate(NO_SYSTEM).write([Message("system", "A"), USER, USER])


def test_callers_variables_reach_the_template() -> None:
    """Plain words and values as they are; what could be a control token stays the caller's; the template's own win."""
    source = "{{ enable_thinking }} {{ effort == 'high' }} {{ x.y[0] }} {{ bos_token }}{{ messages[0].content }}"
    variables = {"enable_thinking": False, "effort": "high", "x": {"y": ["<|end|>"]}, "bos_token": "<b>", "messages": []}
    pieces, _ = ChatTemplate(source, bos_text="<s>").write([USER], rendering=Rendering(variables=variables))
    assert "".join(piece.text for piece in pieces) == "False True <|end|> <s>Hi"
    assert Piece("<|end|>", is_content=True) in pieces


OPENED = LINES + "{% if add_generation_prompt %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("content", "rendering", "end"),
    [
        ("Dear", Rendering(), "<|assistant|>Dear<|end|><|assistant|>"),
        ("Dear", Rendering(opens_answer=False), "<|assistant|>Dear<|end|>"),
        ("Dear", Rendering(continues=True), "<|assistant|>Dear"),
        ("Dear \n", Rendering(continues=True), "<|assistant|>Dear \n"),
        ("Dear<|end|>", Rendering(continues=True), "<|assistant|>Dear<|end|>"),
        (" ", Rendering(continues=True), "Hi<|end|><|assistant|>"),
    ],
)
def test_the_last_message_can_go_on(content: str, rendering: Rendering, end: str) -> None:
    """Nothing comes after its text; an empty one is no beginning of an answer."""
    assert render(OPENED, USER, Message("assistant", content), rendering=rendering).endswith(end)
