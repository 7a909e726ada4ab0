"""Every setting as one flat entry, read from the models: what error messages, environment and documentation have in common."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from poise.config.settings import Section, Settings

Kind = Literal["integer", "number", "switch", "choice", "text", "table"]

VARIABLE_PREFIX = "POISE_"
_SWITCH_WORDS = dict.fromkeys(("true", "on", "yes", "1"), True) | dict.fromkeys(("false", "off", "no", "0"), False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `limits` is its range in words, empty where the type alone decides."""

    key: str
    kind: Kind
    default: Any
    limits: str
    choices: tuple[str, ...]
    description: str

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return VARIABLE_PREFIX + self.key.upper().replace(".", "__")

    @property
    def allowed(self) -> str:
        """What it may be, to follow "must be"."""
        match self.kind:
            case "integer":
                return f"a whole number {self.limits}".rstrip()
            case "number":
                return f"a number {self.limits}".rstrip()
            case "switch":
                return "true or false"
            case "choice":
                return "one of " + ", ".join(f'"{choice}"' for choice in self.choices)
            case "table":
                return "a table of tenant names and keys"
            case "text":
                return "text"

    def parse(self, text: str) -> object:
        """Read text as the setting's type. Text that is not of the type comes back as it is, for validation to report."""
        try:
            match self.kind:
                case "integer":
                    return int(text)
                case "number":
                    return float(text)
                case "switch":
                    return _SWITCH_WORDS.get(text.strip().lower(), text)
        except ValueError:
            pass
        return text


@cache
def catalogue() -> Mapping[str, Setting]:
    """All settings by dotted key, in the order of the models."""
    return {setting.key: setting for setting in _walk(Settings(), ())}


@cache
def section_keys() -> tuple[str, ...]:
    """Dotted keys of all sections, in the order of the models."""
    parents = (key.split(".")[:-1] for key in catalogue())
    return tuple(dict.fromkeys(".".join(path[:depth]) for path in parents for depth in range(1, len(path) + 1)))


def dotted(path: Iterable[str | int]) -> str:
    """A path as TOML writes it: parts that are not bare keys are quoted."""
    return ".".join(part if _is_bare(part) else quoted(part) for part in map(str, path))


def quoted(text: str) -> str:
    """Text between double quotes, valid in TOML and in messages: JSON's escapes, and DEL, which TOML refuses as it is."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def printable(text: str) -> str:
    """Text that stays on its line and can be encoded. Names of files and variables may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)


def closest_keys(key: str) -> list[str]:
    """The known keys, at most two, that were probably meant.

    A key put into the wrong section is the likeliest; then a slip in the name; then a slip in the section.
    """
    known = [*catalogue(), *section_keys()]
    section, _, name = key.rpartition(".")
    elsewhere = [candidate for candidate in catalogue() if _name(candidate) == name]
    # Siblings are compared by name: with a long section in front, any two of them would look alike.
    siblings = {_name(candidate): candidate for candidate in known if candidate.rpartition(".")[0] == section}
    slips = [siblings[match] for match in get_close_matches(name, siblings, n=1, cutoff=0.65)]
    if elsewhere or slips or section in section_keys():
        return (elsewhere or slips)[:2]
    return get_close_matches(key, known, n=1, cutoff=0.75)


def meant(suggestions: Iterable[str]) -> str:
    """The end of a message about an unknown name."""
    names = " or ".join(suggestions)
    return f"; did you mean {names}?" if names else ""


def _walk(section: Section, path: tuple[str, ...]) -> Iterator[Setting]:
    # The instance, not the class, holds the defaults: two pools of one class have different ones.
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            yield from _walk(value, (*path, name))
        else:
            yield _setting(".".join((*path, name)), field, value)


def _setting(key: str, field: FieldInfo, default: object) -> Setting:
    annotation = field.annotation
    kind: Kind
    choices: tuple[str, ...] = ()
    if get_origin(annotation) is Literal:
        kind, choices = "choice", get_args(annotation)
    elif get_origin(annotation) is dict:
        kind = "table"
    else:
        kinds: dict[Any, Kind] = {int: "integer", float: "number", bool: "switch", str: "text"}
        kind = kinds[annotation]
    assert field.description, f"{key} has no description"
    return Setting(key, kind, default, _limits(field), choices, field.description)


def _limits(field: FieldInfo) -> str:
    bounds = {
        name: f"{getattr(constraint, name):.15g}"
        for constraint in field.metadata
        for name in ("ge", "gt", "le", "lt")
        if getattr(constraint, name, None) is not None
    }
    if bounds.keys() == {"ge", "le"}:
        return f"between {bounds['ge']} and {bounds['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " and ".join(f"{words[name]} {bound}" for name, bound in bounds.items())


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def _is_bare(part: str) -> bool:
    return part != "" and part.isascii() and all(character.isalnum() or character in "_-" for character in part)
