"""What an answer must be: every form in which that is asked for, as one grammar.

A `Structure` is text and nothing else here: what strangers wrote is read by llguidance in a text worker, which can be killed.
White space between the parts of JSON is left out unless it is asked for: small models write it until their tokens are used up."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec


@dataclass(frozen=True, slots=True)
class Structure:
    """kind   schema, json_object, regex, choice, lark, gbnf or structural_tag: what metrics count by
    text   the grammar in llguidance's JSON form; GBNF as it came
    param  where its user wrote it, for errors to name
    after_reasoning  it is of what comes after the reasoning, where the model reasons"""

    kind: str
    text: str
    param: str
    after_reasoning: bool = True


Whitespace = Mapping[str, str | bool]
"""Between the parts of JSON, as llguidance has it."""
COMPACT: Whitespace = {"whitespace_flexible": False}
FLEXIBLE: Whitespace = {"whitespace_flexible": True}


def whitespace_like(pattern: str) -> Whitespace:
    return {"whitespace_pattern": pattern}


def of_schema(schema: dict[str, Any], param: str, whitespace: Whitespace = COMPACT, kind: str = "schema") -> Structure:
    """JSON that a JSON Schema has, whatever options of llguidance it brings itself."""
    return Structure(kind, _grammar(json_schema=schema | {"x-guidance": whitespace}), param)


def of_json_object(param: str, whitespace: Whitespace = COMPACT) -> Structure:
    """Any JSON object."""
    return of_schema({"type": "object"}, param, whitespace, "json_object")


def of_regex(pattern: str, param: str) -> Structure:
    """A text that the whole pattern matches, which Lark has between slashes."""
    escaped = re.sub(r"(\\.)|/|\n", lambda found: found[1] or {"/": "\\/", "\n": "\\n"}[found[0]], pattern)
    return Structure("regex", _grammar(lark_grammar=f"start: /{escaped}/"), param)


def of_choice(choices: list[str], param: str) -> Structure:
    """One of these texts."""
    return Structure("choice", _grammar(lark_grammar="start: " + " | ".join(map(_json, choices))), param)


def of_grammar(text: str, param: str) -> Structure:
    """GBNF, as llama.cpp has it, where it has a rule with `::=`; else Lark, as llguidance has it."""
    return Structure("gbnf", text, param) if "::=" in text else Structure("lark", _grammar(lark_grammar=text), param)


def of_tags(tags: list[tuple[str, str, dict[str, Any], str]], param: str, whitespace: Whitespace = COMPACT) -> Structure:
    """Free text in which what begins with a tag's trigger goes on as the tag says: (trigger, begin, schema, end) of each."""
    lines = [f"start: ({' | '.join(f'tag_{i}' for i in range(len(tags)))})* rest", "rest: TEXT", r"TEXT: /(.|\n)*/"]
    for i, (trigger, begin, schema, end) in enumerate(tags):
        rest, ends = (_json(text) if text else "" for text in (begin[len(trigger) :], end))
        lines.append(f"tag_{i}_trigger[lazy]: TEXT {_json(trigger)}")
        lines.append(f"tag_{i}: tag_{i}_trigger {rest} %json {_json(schema | {'x-guidance': whitespace})} {ends}")
    return Structure("structural_tag", _grammar(lark_grammar="\n".join(lines)), param)


def _grammar(**of: Any) -> str:
    return _json({"grammars": [of]})


def _json(value: object) -> str:
    return msgspec.json.encode(value).decode()
