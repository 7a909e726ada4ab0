"""A TOML table that is read key by key and strictly: what is missing, wrong or unknown is one line for who wrote the file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ScenarioError(ValueError):
    """A scenario or trace that cannot be used; the message is one line for the person who wrote the file."""


class Table:
    """A TOML table that is read key by key. Each read marks its key; `reject_unknown` complains about the others."""

    def __init__(self, source: str, path: str, values: Mapping[str, Any]) -> None:
        self.values = values
        self._source = source
        self._path = path
        self._known: list[str] = []

    def text(self, key: str) -> str:
        return str(self._get(key, "a string", lambda value: isinstance(value, str)))

    def name(self, key: str) -> str:
        """A string that may stand in a header and in a table: lower-case letters, digits, '-' and '_'."""
        expected = "1 to 64 of a-z, 0-9, '-' and '_', the first a letter or digit"
        return str(self._get(key, expected, lambda value: isinstance(value, str) and _NAME.fullmatch(value)))

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        expected = " or ".join(f'"{option}"' for option in allowed)
        return str(self._get(key, expected, lambda value: isinstance(value, str) and value in allowed))

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        expected = f"an integer from {low} to {high}"
        return int(self._get(key, expected, lambda value: type(value) is int and low <= value <= high, default))

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        # A comparison with nan is false, so nan is out of range like any other.
        expected = f"a number from {low:g} to {high:g}"
        return float(
            self._get(key, expected, lambda value: type(value) in (int, float) and low <= value <= high, default)
        )

    def boolean(self, key: str, default: bool) -> bool:
        return bool(self._get(key, "true or false", lambda value: isinstance(value, bool), default))

    def table(self, key: str) -> Table:
        value = self._get(key, "a table", lambda value: isinstance(value, dict))
        return Table(self._source, f"{self._path}{key}.", value)

    def tables(self, key: str) -> list[Table]:
        def is_right(value: Any) -> bool:
            return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)

        rows = self._get(key, "one or more [[tables]]", is_right)
        return [Table(self._source, f"{self._path}{key}[{index}].", row) for index, row in enumerate(rows)]

    def optional_table(self, key: str) -> Table | None:
        if key in self.values:
            return self.table(key)
        self.optional(key)
        return None

    def optional(self, key: str) -> None:
        """`key` may stand here: it is not unknown, and it is named to those who look for the right one."""
        if key not in self._known:
            self._known.append(key)

    def reject_unknown(self) -> None:
        """Call it after the last read."""
        for key in self.values:
            if key not in self._known:
                raise self.error(key, f"unknown key; known here: {', '.join(self._known)}")

    def error(self, key: str, expected: str) -> ScenarioError:
        """What to raise for a value that cannot be used."""
        value = repr(self.values.get(key))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return ScenarioError(f"{self._source}: {self._path}{key} = {shown}: {expected}")

    def missing(self, expected: str) -> ScenarioError:
        """What to raise for a table that lacks something."""
        given = ", ".join(self.values) or "nothing"
        return ScenarioError(f"{self._source}: {self._path.rstrip('.')}: expected {expected}; given here: {given}")

    def _get(self, key: str, expected: str, is_right: Callable[[Any], object], default: object = None) -> Any:
        self._known.append(key)
        value = self.values.get(key, default)
        if value is None:
            # A misspelt key is the likeliest reason for a missing one: both are in the message.
            given = ", ".join(self.values) or "nothing"
            problem = f"{self._path}{key} is missing: expected {expected}; given here: {given}"
            raise ScenarioError(f"{self._source}: {problem}")
        if not is_right(value):
            raise self.error(key, f"expected {expected}")
        return value
