"""Which response template a model's answers are read by: by marks in its chat template, by what that renders, or generic."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from poise.gateway.text.reading.templates import Template, read_template

_FAMILIES = tomllib.loads(Path(__file__).with_name("families.toml").read_text("utf-8"))
GENERIC = {"content": "generic", "bare": True}
"""For models whose template knows no functions: `{"tool_calls": [...]}` or `{"content": "..."}`."""


def choose(chat_template: str, rendered: Mapping[str, Any], control: Mapping[str, int], *, knows_tools: bool = True) -> Template:
    """`rendered`: fields that the chat template's renderings show, where no family is known. `control`: see `read_template`.
    `knows_tools`: the chat template tells the model of functions; else it is told of them in words of our own."""
    fields: dict[str, Any] = {}
    for name, families in _FAMILIES.items():
        known = (family for family in families if all(text in chat_template for text in family["seen"]))
        found = next(known, None) or rendered.get(name)
        if found and (knows_tools or name != "tool_calls"):
            fields[name] = found
    fields.setdefault("tool_calls", GENERIC)
    fields["content"] = {"open": fields["tool_calls"].get("around", [])}
    try:
        return read_template({"fields": fields}, control)
    except ValueError:
        if not rendered:
            raise
        return choose(chat_template, {}, control, knows_tools=knows_tools)  # what was rendered has marks that cannot be read by
