"""How families of models write: of each a chat template's marks, its control tokens, and answers with what they come to.

Written here, in the manner of each family's own chat template.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "days": {"type": "integer"},
            "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
            "where": {"type": "object"},
        },
    },
    "now": {"type": "object", "properties": {}},
}


@dataclass(frozen=True)
class Family:
    chat_template: str
    """What of it tells the family."""
    answers: dict[str, list[tuple[str, str]]]
    """Text to what it comes to: `think`, `say`, `call` and `with`."""
    control: tuple[str, ...] = field(default=())


_CITY = '{"city": "Aix \\"en\\" P", "days": 3}'
_HERMES = {
    f'<tool_call>\n{{"name": "get_weather", "arguments": {_CITY}}}\n</tool_call>': [("call", "get_weather"), ("with", _CITY)],
    f'I look.\n<tool_call>\n{{"name": "get_weather", "arguments": {_CITY}}}\n</tool_call>\n<tool_call>\n'
    '{"name": "now", "arguments": {}}\n</tool_call>': [
        ("say", "I look."), ("call", "get_weather"), ("with", _CITY), ("call", "now"), ("with", "{}"),
    ],
    '<think>\nWhat < is </thin it?\n</think>\n\nA <b> tag.\n\nAnd more.': [
        ("think", "What < is </thin it?"), ("say", "A <b> tag.\n\nAnd more."),
    ],
    '<think>\n\n</think>\n\n{"no": "call"}': [("say", '{"no": "call"}')],
    '<tool_call>{"name": "now", "arguments": {"s": "</tool_call>"}}</tool_call>done': [
        ("call", "now"), ("with", '{"s": "</tool_call>"}'), ("say", "done"),
    ],
    '<tool_call>{"arguments": {"a": [1, {}]}, "id": 7, "name": "now"}</tool_call>': [("call", "now"), ("with", '{"a": [1, {}]}')],
    '<tool_call>{"name": "now", "arguments": "{\\"a\\": \\"\\ud83d\\ude00\\"}"}</tool_call>': [
        ("call", "now"), ("with", '{"a": "\U0001f600"}'),
    ],
    '<tool_call>{"name": "now"}</tool_call>': [("call", "now"), ("with", "{}")],
    '<tool_call>{"name": "now", "arguments": null}</tool_call>': [("call", "now"), ("with", "{}")],
    "Say <tool_call> to call, \n<tool_call>nothing</tool_call>": [
        ("say", "Say <tool_call> to call, \n<tool_call>nothing</tool_call>"),
    ],
    '<tool_call>{"name": 7}</tool_call> <tool_call>{"name": "now"}</tool_call>': [
        ("say", '<tool_call>{"name": 7}</tool_call>'), ("call", "now"), ("with", "{}"),
    ],
    '<tool_call>{"name": "now", "arguments": {"a": }}</tool_call>sorry': [("call", "now"), ("with", '{"a": }'), ("say", "sorry")],
    '<tool_call>{"name": "now", "arguments": {"a": 1</tool_call>': [("call", "now"), ("with", '{"a": 1')],
    '<tool_call>{"name": "now", "arguments": {"a": "b': [("call", "now"), ("with", '{"a": "b')],
    '<tool_call>{"name": "no': [("say", '<tool_call>{"name": "no')],
}  # fmt: skip
_XML = {
    "<tool_call>\n<function=get_weather>\n<parameter=city>\nAix\n\"en\" P\n</parameter>\n<parameter=days>\n3\n</parameter>\n"
    "</function>\n</tool_call>": [("call", "get_weather"), ("with", '{"city": "Aix\\n\\"en\\" P", "days": 3}')],
    "<function=get_weather>\n<parameter=city>\n12\n</parameter>\n<parameter=unit>\n12\n</parameter>\n<parameter=where>\n"
    '{"x":  1}\n</parameter>\n<parameter=other>\nTrue\n</parameter>\n</function>': [
        ("call", "get_weather"), ("with", '{"city": "12", "unit": "12", "where": {"x": 1}, "other": true}'),
    ],
    "So:\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>": [
        ("say", "So:"), ("call", "now"), ("with", "{}"), ("call", "now"), ("with", "{}"),
    ],
    "<tool_call>\n<fun>\n</tool_call>": [("say", "<tool_call>\n<fun>\n</tool_call>")],
}  # fmt: skip
_CALLS = [("call", "get_weather"), ("with", '{"city": "Aix"}'), ("call", "now"), ("with", "{}")]

# fmt: off
FAMILIES = {
    "hermes": Family("<tool_call>  </think>", _HERMES),
    "qwen-xml": Family("<tool_call><function=  </think>", _XML | {"<think>a</think>b": [("think", "a"), ("say", "b")]}),
    "llama": Family(
        "<|python_tag|>",
        {
            '{"name": "get_weather", "parameters": {"city": "Aix"}}; {"name": "now", "parameters": {}}': _CALLS,
            ' \n{"type": "function", "name": "now", "parameters": {}}': [("call", "now"), ("with", "{}")],
            '<|python_tag|>{"name": "now", "parameters": {}}': [("call", "now"), ("with", "{}")],
            '{"name": "Aix", "parameters": {}}': [("say", '{"name": "Aix", "parameters": {}}')],
            '{"city": "Aix"} is it.': [("say", '{"city": "Aix"} is it.')],
            'It is {"name": "now"}.': [("say", 'It is {"name": "now"}.')],
            "<|python_tag|>print(1)": [("say", "<|python_tag|>print(1)")],
        },
        ("<|python_tag|>", "<|eot_id|>"),
    ),
    "mistral": Family(
        "[TOOL_CALLS] [THINK]",
        {
            '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Aix"}, "id": "abcdefghi"}, '
            '{"name": "now", "arguments": {}}]': _CALLS,
            '[TOOL_CALLS]get_weather[ARGS]{"city": "Aix"}[TOOL_CALLS]now[ARGS]{}': _CALLS,
            '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Aix"}[TOOL_CALLS]now[CALL_ID]1[ARGS]{}': _CALLS,
            "[THINK]Hm.[/THINK]Yes.": [("think", "Hm."), ("say", "Yes.")],
            "[TOOL_CALLS][]": [("say", "[TOOL_CALLS][]")],
        },
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]"),
    ),
    "deepseek-v3.1": Family(
        "<｜tool▁sep｜> </think>",
        {
            'Ok.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Aix"}<｜tool▁call▁end｜>'
            "<｜tool▁call▁begin｜>now<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>": [
                ("say", "Ok."),
                *_CALLS,
            ],
            "<think>a</think>b": [("think", "a"), ("say", "b")],
        },
    ),
    "deepseek-v3": Family(
        "<｜tool▁sep｜> ```json",
        {
            "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
            '{"city": "Aix"}\n```<｜tool▁call▁end｜>'
            "\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>now\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>": _CALLS,
        },
        (
            "<｜tool▁calls▁begin｜>",
            "<｜tool▁call▁begin｜>",
            "<｜tool▁call▁end｜>",
            "<｜tool▁calls▁end｜>",
            "<｜tool▁sep｜>",
        ),
    ),
    "gpt-oss": Family(
        "<|channel|> to=functions.",
        {
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes, <|end|> is spelled.": [
                ("think", "Hm."),
                ("say", "Yes,is spelled."),
            ],
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|>"
            '<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{"city": "Aix"}': [
                ("think", "Hm."),
                ("say", "I look."),
                *_CALLS[:2],
            ],
            '<|start|>assistant to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Aix"}<|call|>'
            "<|start|>assistant<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}<|call|>": _CALLS,
        },
        ("<|channel|>", "<|message|>", "<|end|>", "<|start|>", "<|constrain|>", "<|call|>", "<|return|>"),
    ),
    "gemma": Family(
        "<|tool_call> <|channel>thought",
        {
            "<|channel>thought\nHm.<channel|>Yes."
            '<|tool_call>call:get_weather{city:<|"|>A "x" {y}, z<|"|>,days:3,where:{a:[1,true,'
            '<|"|>b<|"|>],c:{}}}<tool_call|><|tool_call>call:now{}<tool_call|>': [
                ("think", "Hm."),
                ("say", "Yes."),
                ("call", "get_weather"),
                ("with", '{"city": "A \\"x\\" {y}, z", "days": 3, "where": {"a": [1, true, "b"], "c": {}}}'),
                ("call", "now"),
                ("with", "{}"),
            ],
            "<|tool_call>call:now<tool_call|>": [("say", "<|tool_call>call:now<tool_call|>")],
        },
        ("<|tool_call>", "<tool_call|>", '<|"|>', "<|channel>", "<channel|>"),
    ),
    "glm": Family(
        "<arg_key>",
        {
            "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Aix</arg_value>\n</tool_call>\n"
            "<tool_call>now\n</tool_call>": _CALLS,
        },
    ),
    "minimax": Family(
        "<invoke name=",
        {
            '<minimax:tool_call>\n<invoke name="get_weather">\n<parameter name="city">Aix</parameter>\n</invoke>\n'
            '<invoke name="now">\n</invoke>\n</minimax:tool_call>': _CALLS,
        },
    ),
    "lfm2": Family(
        "<|tool_call_start|>",
        {
            '<|tool_call_start|>[get_weather(city="Aix"), now()]<|tool_call_end|>So.': [*_CALLS, ("say", "So.")],
            "<|tool_call_start|>[1 + (]<|tool_call_end|>": [("say", "<|tool_call_start|>[1 + (]<|tool_call_end|>")],
        },
        ("<|tool_call_start|>", "<|tool_call_end|>"),
    ),
    "generic": Family(
        "no word of functions",
        {
            '{"tool_calls": [{"name": "get_weather", "arguments": {"city": "Aix"}}, {"name": "now", "arguments": {}}]}': _CALLS,
            '{"content": "It is \\"so\\".\\n"}': [("say", 'It is "so".\n')],
            '{"content": "cut \\u00': [("say", "cut \\u00")],
            "Plain text.": [("say", "Plain text.")],
            '{"a": 1}': [("say", '{"a": 1}')],
        },
    ),
}
