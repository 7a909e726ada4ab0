"""The flight recorder: the last steps' inputs, plans and results, without prompts or tokens.

It holds what `Scheduler` was called with, in order, so that a dump shows what the scheduler knew and decided.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Any

CAPACITY = 4096


class Journal:
    """A ring of the last `capacity` entries (None: all of them).

    Recording keeps references to immutable values and formats nothing.
    """

    def __init__(self, capacity: int | None = CAPACITY) -> None:
        self._entries: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=capacity)
        self._n_recorded = 0

    def record(self, now_ns: int, kind: str, *values: object) -> None:
        self._entries.append((now_ns, kind, values))
        self._n_recorded += 1

    def lines(self) -> Iterable[str]:
        """JSON objects, oldest first; the first says how many older entries the ring has let go."""
        dropped = self._n_recorded - len(self._entries)
        yield json.dumps({"kind": "journal", "recorded": self._n_recorded, "dropped": dropped})
        for now_ns, kind, values in self._entries:
            yield json.dumps({"now_ns": now_ns, "kind": kind, "values": [_plain(v) for v in values]})


def _plain(value: object) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        values = {field.name: getattr(value, field.name) for field in fields(value)}
        return {"type": type(value).__name__, **_plain_fields(values)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return _plain_fields(value._asdict())
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _plain_fields(values: dict[str, object]) -> dict[str, Any]:
    return {name: _plain(value) for name, value in values.items()}
