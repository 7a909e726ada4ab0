"""What an answer must be: every form in which that is asked for, as one grammar.

A `Structure` is text and nothing else here: what strangers wrote is read by llguidance in a text worker, which can be killed.
White space between the parts of JSON is left out unless it is asked for: small models write it until their tokens are used up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Structure:
    """kind   schema, json_object, regex, choice, lark, gbnf or structural_tag: what metrics count by
    text   the grammar in llguidance's JSON form; GBNF as it came
    param  where its user wrote it, for errors to name
    after_reasoning  it is of what comes after the reasoning, where the model reasons
    """

    kind: str
    text: str
    param: str
    after_reasoning: bool = True


@dataclass(frozen=True, slots=True)
class Whitespace:
    """Between the parts of JSON: a pattern; or any ("flexible"); or none."""

    pattern: str = ""
    flexible: bool = False

    def options(self) -> dict[str, Any]:
        if self.pattern:
            return {"whitespace_pattern": self.pattern}
        return {"whitespace_flexible": self.flexible}


COMPACT = Whitespace()


def of_schema(schema: dict[str, Any], param: str, whitespace: Whitespace = COMPACT, kind: str = "schema") -> Structure:
    """JSON that a JSON Schema has."""
    return Structure(kind, _grammar(json_schema=_with_options(schema, whitespace)), param)


def of_json_object(param: str, whitespace: Whitespace = COMPACT) -> Structure:
    """Any JSON object."""
    return of_schema({"type": "object"}, param, whitespace, "json_object")


def of_regex(pattern: str, param: str) -> Structure:
    """A text that the whole pattern matches."""
    return Structure("regex", _grammar(lark_grammar=f"start: {_regex(pattern)}"), param)


def of_choice(choices: list[str], param: str) -> Structure:
    """One of these texts."""
    return Structure("choice", _grammar(lark_grammar="start: " + " | ".join(map(_json, choices))), param)


def of_grammar(text: str, param: str) -> Structure:
    """GBNF, as llama.cpp has it, where it has a rule with `::=`; else Lark, as llguidance has it."""
    return Structure("gbnf", text, param) if "::=" in text else Structure("lark", _grammar(lark_grammar=text), param)


def of_tags(
    tags: list[tuple[str, str, dict[str, Any], str]], param: str, whitespace: Whitespace = COMPACT
) -> Structure:
    """Free text in which what begins with a tag's trigger goes on as the tag says: (trigger, begin, schema, end) of each."""
    lines = [f"start: ({' | '.join(f'tag_{i}' for i in range(len(tags)))})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    for i, (trigger, begin, schema, end) in enumerate(tags):
        after = " ".join(_json(text) for text in (begin[len(trigger) :],) if text)
        ends = _json(end) if end else ""
        lines.append(f"tag_{i}_trigger[lazy]: TEXT {_json(trigger)}")
        lines.append(f"tag_{i}: tag_{i}_trigger {after} %json {_json(_with_options(schema, whitespace))} {ends}")
    return Structure("structural_tag", _grammar(lark_grammar="\n".join(lines)), param)


def _with_options(schema: dict[str, Any], whitespace: Whitespace) -> dict[str, Any]:
    """Whatever options the schema brings itself."""
    return schema | {"x-guidance": whitespace.options()}


def _grammar(**of: Any) -> str:
    return _json({"grammars": [of]})


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()


def _regex(pattern: str) -> str:
    """As Lark writes it: between slashes."""
    escaped, is_escaped = [], False
    for char in pattern:
        escaped.append("\\/" if char == "/" and not is_escaped else "\\n" if char == "\n" else char)
        is_escaped = char == "\\" and not is_escaped
    return f"/{''.join(escaped)}/"
