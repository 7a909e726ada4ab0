"""Every setting as one flat entry, read from the models: what error messages, environment and documentation have in common.

A table holds entries whose names the operator chooses: values (`auth.keys`) or sections (`tenants`). The catalogue has them
once, with NAME in the place of an entry's name: `auth.keys.NAME`, `tenants.NAME.weight`. `pattern` leads from a path there."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache, lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from poise.config.kinds import Section
from poise.config.settings import Settings

Kind = Literal["integer", "number", "switch", "choice", "text", "names"]

VARIABLE_PREFIX = "POISE_"
NAME = "NAME"
"""Stands for the name of an entry of a table. In capitals, so that it is no entry's name."""
_BARE = re.compile(r"[A-Za-z0-9_-]+")
_KINDS: dict[Any, Kind] = {int: "integer", float: "number", bool: "switch", Literal: "choice", str: "text", list: "names"}
"""By a setting's type, or what that is of."""
_KINDS[Union] = "integer"  # or a word in its place
_WHAT = {"integer": "a whole number", "number": "a number", "switch": "true or false", "names": "a list of names"}
_SWITCH_WORDS = dict.fromkeys(("true", "on", "yes", "1"), True) | dict.fromkeys(("false", "off", "no", "0"), False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting. `limits` is its range in words, empty where the type alone decides. A `required` one has no default."""

    key: str
    kind: Kind
    default: Any
    limits: str
    choices: tuple[str | bool, ...]
    description: str
    required: bool = False

    @property
    def variable(self) -> str:
        """Its environment variable."""
        return variable(self.key)

    @property
    def allowed(self) -> str:
        """What it may be, to follow "must be"."""
        what, choices = _WHAT.get(self.kind, "text"), ", ".join(map(json.dumps, self.choices))
        if choices:
            what = f"{choices} or {what}" if self.kind == "integer" else f"one of {choices}"
        return f"{what} {self.limits}".rstrip()

    def parse(self, text: str) -> object:
        """Read text as the setting's type. Text that is not of the type comes back as it is, for validation to report."""
        try:
            match self.kind:
                case "integer":
                    return int(text)
                case "number":
                    return float(text)
                case "switch" | "choice" if self.kind == "switch" or True in self.choices:
                    return _SWITCH_WORDS.get(text.strip().lower(), text)
                case "names":
                    return [name.strip() for name in text.split(",") if name.strip()]
        except ValueError:
            pass
        return text


@cache
def catalogue() -> Mapping[str, Setting]:
    """All settings by dotted key, in the order of the models."""
    return {setting.key: setting for setting in _walk(Settings, Settings(), ())}


@cache
def section_keys() -> tuple[str, ...]:
    """Dotted keys of all sections, in the order of the models."""
    parents = (key.split(".")[:-1] for key in catalogue())
    return tuple(dict.fromkeys(".".join(path[:depth]) for path in parents for depth in range(1, len(path) + 1)))


@cache
def tables() -> Mapping[tuple[str, ...], bool]:
    """The paths of all tables; True where the entries are sections."""
    paths = [key.split(".") for key in catalogue()]
    return {tuple(path[: path.index(NAME)]): path[-1] != NAME for path in paths if NAME in path}


def pattern(path: Sequence[str]) -> str:
    """The catalogue's key for a path: an entry's own name becomes NAME."""
    parts = list(path)
    for depth in range(1, len(parts)):
        if tuple(parts[:depth]) in tables():
            parts[depth] = NAME
    return dotted(parts)


@lru_cache(maxsize=1024)
def split(key: str) -> tuple[str, ...]:
    """The path of a dotted key. An entry's name takes in what dots it has, quoted or not, for validation to refuse."""
    for table, of_sections in tables().items():
        prefix = ".".join(table) + "."
        if key.startswith(prefix):
            entry, dot, field = key.removeprefix(prefix).rpartition(".")
            if of_sections and dot:
                return (*table, entry, field)
            name = key.removeprefix(prefix)
            return (*table, json.loads(name) if re.fullmatch(r'"(?:[^"\\]|\\.)*"', name) else name)
    return tuple(key.split("."))


def find(key: str) -> Setting | None:
    """The setting that a dotted key names, also inside a table."""
    return catalogue().get(pattern(split(key)))


def variable(key: str) -> str:
    """The environment variable of a dotted key."""
    return VARIABLE_PREFIX + key.upper().replace(".", "__")


def dotted(path: Iterable[str | int]) -> str:
    """A path as TOML writes it: parts that are not bare keys are quoted."""
    return ".".join(part if _BARE.fullmatch(part) else quoted(part) for part in map(str, path))


def quoted(value: object) -> str:
    """A value as in TOML and in messages, text between double quotes: JSON's escapes, and DEL, which TOML refuses as it is."""
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def printable(text: str) -> str:
    """Text that stays on its line and can be encoded. Names of files and variables may hold anything."""
    return "".join(character if character.isprintable() else "?" for character in text)


def closest_keys(key: str) -> list[str]:
    """The known keys, at most two, that were probably meant.

    A key put into the wrong section is the likeliest; then a slip in the name; then a slip in the section."""
    path = split(key)
    general = pattern(path)
    for table in tables():
        if path[: len(table)] == table and len(path) > len(table):
            # What is meant inside an entry is meant for this one.
            here, entry = ".".join((*table, NAME)), dotted((*table, path[len(table)] or NAME))
            return [near.replace(here, entry) for near in _closest(general)]
    return _closest(general)


def _closest(key: str) -> list[str]:
    known = [*catalogue(), *section_keys()]
    section, _, name = key.rpartition(".")
    elsewhere = [candidate for candidate in catalogue() if _name(candidate) == name != NAME]
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


def _walk(model: type[Section], section: Section | None, path: tuple[str, ...]) -> Iterator[Setting]:
    # The instance, not the class, holds the defaults: two pools of one class have different ones. An entry has no instance.
    for name, field in model.model_fields.items():
        here = (*path, name)
        value = getattr(section, name) if section is not None else field.default
        if isinstance(value, Section):
            yield from _walk(type(value), value, here)
        elif get_origin(field.annotation) is dict:
            entry = get_args(field.annotation)[1]
            if isinstance(entry, type):
                yield from _walk(entry, None, (*here, NAME))
            else:
                description = field.description or ""
                yield Setting(".".join((*here, NAME)), "text", None, "", (), description, required=True)
        else:
            yield _setting(".".join(here), field, value)


def _setting(key: str, field: FieldInfo, default: object) -> Setting:
    kind = _KINDS[get_origin(field.annotation) or field.annotation]
    choices = get_args(field.annotation) if kind == "choice" else ()
    if get_origin(field.annotation) is Union:
        choices = tuple(word for part in get_args(field.annotation) for word in get_args(part))
    assert field.description, f"{key} has no description"
    required = default is PydanticUndefined
    default = None if required else default
    return Setting(key, kind, default, _limits(field), choices, field.description, required=required)


def _limits(field: FieldInfo) -> str:
    words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    constraints = ((type(constraint).__name__.lower(), constraint) for constraint in field.metadata)
    bounds = {name: f"{getattr(constraint, name):.15g}" for name, constraint in constraints if name in words}
    if bounds.keys() == {"ge", "le"}:
        return f"between {bounds['ge']} and {bounds['le']}"
    return " and ".join(f"{words[name]} {bound}" for name, bound in bounds.items())


def _name(key: str) -> str:
    return key.rpartition(".")[2]
