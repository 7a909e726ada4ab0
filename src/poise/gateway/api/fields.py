"""Typed request parameters: one object each that reads a value, refuses a wrong one, and publishes its JSON schema.

The same objects check requests and write the OpenAPI document, so the two cannot disagree. Types are JSON's own and strict:
true is not a number and "5" is not 5. null is the same as leaving the parameter out, as OpenAI has it.

Clients send many fields that change no answer: labels, hints for caches, marks of their own in messages. A server that refuses
them is of no use to these clients; one that says nothing leaves the others in the dark. So they are taken, counted within bounds,
and named to the caller."""

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from poise.gateway.http.body import JsonObject
from poise.gateway.request import refusals
from poise.gateway.request.refusals import ApiError, invalid_type, invalid_value, shown, unsupported_parameter

NAMES_MAX, TAKEN_MAX = 256, 32_768
"""Different names, and fields in all, of one request: each one is looked at while every stream waits."""
_CHARS_MAX = 100
_INDEX = re.compile(r"\[[0-9]+\]")


class Ignored:
    """The fields of one request that have no effect. `strict`: there are to be none but those that ask for nothing."""

    def __init__(self, *, strict: bool) -> None:
        self.strict = strict
        self._names: dict[str, None] = {}
        self._n_taken = 0

    @property
    def names(self) -> tuple[str, ...]:
        """Paths, each once: those of all entries of a list are one, as in `messages[].id`."""
        return tuple(self._names)

    def take(self, param: str) -> None:
        """A field was found. Raises ApiError when there are too many."""
        if self.strict:
            return
        self._names[_INDEX.sub("[]", param[:_CHARS_MAX])] = None
        self._n_taken += 1
        if len(self._names) > NAMES_MAX or self._n_taken > TAKEN_MAX:
            message = (
                f"The request has more fields without effect than are taken ({NAMES_MAX} names, {TAKEN_MAX} fields in all). "
                "Send only what /openapi.json lists."
            )
            raise ApiError(400, "too_many_unknown", message)


STRICT = Ignored(strict=True)


T = TypeVar("T")
D = TypeVar("D")
Schema = dict[str, Any]

INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1


@dataclass(frozen=True)
class Field(ABC, Generic[T]):
    """A parameter that is supported. `read` returns the checked value or raises ApiError.

    `aliases`: what others call the same thing. Errors name it as the caller did."""

    name: str
    description: str
    aliases: tuple[str, ...] = field(default=(), kw_only=True)

    @abstractmethod
    def read(self, value: object, param: str) -> T: ...

    @abstractmethod
    def json_type(self) -> Schema: ...

    def schema(self) -> Schema:
        return {"anyOf": [self.json_type(), {"type": "null"}], "description": self.description}

    @property
    def names(self) -> tuple[str, ...]:
        return (self.name, *self.aliases)

    def written(self, values: Mapping[str, Any]) -> str:
        """The name that a request has it under."""
        return next((name for name in self.names if values.get(name) is not None), self.name)

    def get(self, values: Mapping[str, Any], default: D, prefix: str = "") -> T | D:
        """The parameter's value in a request; `default` where it is left out or null. Under two names it must be the same.
        `prefix`: of the object that it is in, for errors."""
        found = [(name, self.read(values[name], prefix + name)) for name in self.names if values.get(name) is not None]
        for name, value in found[1:]:
            if value != found[0][1]:
                raise refusals.conflicting_parameters(found[0][0], values[found[0][0]], name, values[name])
        return found[0][1] if found else default


@dataclass(frozen=True)
class Real(Field[float]):
    minimum: float
    maximum: float
    above_minimum: bool = False

    def read(self, value: object, param: str) -> float:
        if type(value) is not int and type(value) is not float:
            raise invalid_type(param, "a number", value)
        low = self.minimum < value if self.above_minimum else self.minimum <= value
        if not (low and value <= self.maximum):
            bound = "greater than" if self.above_minimum else "at least"
            raise invalid_value(param, f"be {bound} {self.minimum:g} and at most {self.maximum:g}", value)
        return float(value)

    def json_type(self) -> Schema:
        key = "exclusiveMinimum" if self.above_minimum else "minimum"
        return {"type": "number", key: self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class Integer(Field[int]):
    minimum: int = INT64_MIN
    maximum: int = INT64_MAX

    def read(self, value: object, param: str) -> int:
        if type(value) is float and value.is_integer():
            value = int(value)  # 5.0 is an integer to JSON Schema, and to JavaScript clients
        if type(value) is not int:
            raise invalid_type(param, "an integer", value)
        if not self.minimum <= value <= self.maximum:
            raise invalid_value(param, f"be between {self.minimum} and {self.maximum}", value)
        return value

    def json_type(self) -> Schema:
        return {"type": "integer", "minimum": self.minimum, "maximum": self.maximum}


@dataclass(frozen=True)
class Flag(Field[bool]):
    def read(self, value: object, param: str) -> bool:
        if type(value) is not bool:
            raise invalid_type(param, "true or false", value)
        return value

    def json_type(self) -> Schema:
        return {"type": "boolean"}


@dataclass(frozen=True)
class Text(Field[str]):
    """A string. With `choices`, one of them."""

    choices: tuple[str, ...] = ()
    min_chars: int = 0
    max_chars: int = 1 << 30

    def read(self, value: object, param: str) -> str:
        if type(value) is not str:
            raise invalid_type(param, "a string", value)
        if self.choices and value not in self.choices:
            raise invalid_value(param, f"be one of {', '.join(map(shown, self.choices))}", value)
        if not self.min_chars <= len(value) <= self.max_chars:
            rule = f"have between {self.min_chars} and {self.max_chars} characters"
            raise invalid_value(param, rule, value, f"has {len(value)}")
        return value

    def json_type(self) -> Schema:
        if self.choices:
            return {"type": "string", "enum": list(self.choices)}
        bounds = {"minLength": self.min_chars} if self.min_chars else {}
        return {"type": "string", **bounds, **({"maxLength": self.max_chars} if self.max_chars < 1 << 30 else {})}


@dataclass(frozen=True)
class Custom(Field[T]):
    """A parameter with a shape of its own, read by a function."""

    reader: Callable[[object, str], T]
    shape: Schema

    def read(self, value: object, param: str) -> T:
        return self.reader(value, param)

    def json_type(self) -> Schema:
        return self.shape


@dataclass(frozen=True)
class Unsupported:
    """A parameter that other servers know. `neutral` values ask for nothing; of one that is `harmless`, no value changes an
    answer. These are taken and named, others are refused by name."""

    name: str
    hint: str
    neutral: tuple[Any, ...] = ()
    harmless: bool = False

    def check(self, value: object, param: str, ignored: Ignored) -> None:
        if value is None:
            return
        asks = not any(same_json(value, neutral) for neutral in self.neutral)
        if asks and (ignored.strict or not self.harmless):
            raise unsupported_parameter(param, value, self.hint)
        ignored.take(param)


def check_names(
    values: Mapping[str, Any],
    fields: Iterable[Field[Any]],
    unsupported: Mapping[str, Unsupported],
    *,
    prefix: str = "",
    elsewhere: Mapping[str, str] | None = None,
    ignored: Ignored = STRICT,
) -> None:
    """What is neither known nor harmless is refused, so that nothing a client asked for is ignored in silence.

    `elsewhere` has a hint for each name that belongs to another endpoint, and would change an answer there. Any other unknown
    name is taken and goes to `ignored`, unless that is strict."""
    known = {name for field in fields for name in field.names}
    elsewhere = elsewhere or {}
    for name, value in values.items():
        if name in known:
            continue
        if name in unsupported:
            unsupported[name].check(value, prefix + name, ignored)
        elif ignored.strict or name in elsewhere:
            raise refusals.unknown_parameter(prefix + name, name, known, elsewhere.get(name, ""))
        elif value is not None:
            ignored.take(prefix + name)


def object_schema(fields: Iterable[Field[Any]], required: Iterable[str]) -> Schema:
    fields, required = list(fields), list(required)
    properties = {
        field.name: field.json_type() | {"description": field.description} if field.name in required else field.schema()
        for field in fields
    }
    for one in fields:
        about = {"description": f"Another name of `{one.name}`."}
        properties |= {alias: one.schema() | about for alias in one.aliases}
    return {"type": "object", "additionalProperties": False, "properties": properties, "required": required}


def read_object(value: object, param: str) -> JsonObject:
    if type(value) is not dict:
        raise invalid_type(param, "an object", value)
    return value


def read_list(value: object, param: str, what: str, limit: int) -> list[Any]:
    """A list of 1 to `limit` entries; `what` names the list in the error."""
    if type(value) is not list:
        raise invalid_type(param, what, value)
    if not 1 <= len(value) <= limit:
        raise invalid_value(param, f"have between 1 and {limit} entries", value, f"has {len(value)}")
    return value


def same_json(one: object, other: object) -> bool:
    """Equality as JSON has it: Python's 0 == False is not."""
    return type(one) is type(other) and one == other
