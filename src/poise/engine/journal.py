"""The flight recorder: the last steps' inputs, plans and results, without prompts or tokens.

It holds what `Scheduler` was called with and what it answered, in order, and the policy it was built from. So a dump shows what
the scheduler knew and decided; and one that has lost nothing can be run again (`poise.sim.replay`), as a scheduler depends
on nothing else.

An entry is (time, kind, values). The kinds, and the call of the scheduler that each stands for:

    add       Request, Queued or Rejected   add
    abort     request id                    abort
    control   request id, action            control
    forget    tenant                        forget
    retract   template                      retract
    expire    how many requests ended       expire, where it ended any
    plan      StepPlan                      plan, which gave a step to carry out
    rest      StepPlan                      plan, which found nothing to do
    result    StepResult                    complete
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from poise.scheduler.policy import SchedulerPolicy

CAPACITY = 4096


class Journal:
    """A ring of the last `capacity` entries (None: all of them), and the policy, which the ring never lets go.

    Recording keeps references to immutable values and formats nothing.
    """

    def __init__(self, capacity: int | None = CAPACITY) -> None:
        self._entries: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=capacity)
        self._n_recorded = 0
        self._policy: SchedulerPolicy | None = None

    def record_policy(self, policy: SchedulerPolicy) -> None:
        """What the scheduler was built from. It comes before every entry of a dump, whatever the ring has let go."""
        self._policy = policy

    def record(self, now_ns: int, kind: str, *values: object) -> None:
        self._entries.append((now_ns, kind, values))
        self._n_recorded += 1

    def lines(self) -> Iterable[str]:
        """JSON objects: how many older entries the ring has let go, the policy, then the entries, oldest first."""
        dropped = self._n_recorded - len(self._entries)
        yield json.dumps({"kind": "journal", "recorded": self._n_recorded, "dropped": dropped})
        if self._policy is not None:
            yield json.dumps({"now_ns": 0, "kind": "policy", "values": [plain(self._policy)]})
        for now_ns, kind, values in self._entries:
            yield json.dumps({"now_ns": now_ns, "kind": kind, "values": [plain(v) for v in values]})


class JournalError(ValueError):
    """Lines that are not a journal; the message is one line and says which."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a dump. `values` are plain JSON values: dataclasses are objects that carry their name as "type"."""

    line: int
    now_ns: int
    kind: str
    values: list[Any]


@dataclass(frozen=True, slots=True)
class Dump:
    """A journal that was read back. `policy` is None in a dump that was made without one."""

    n_dropped: int
    policy: dict[str, Any] | None
    entries: list[Entry]


def read_journal(lines: Iterable[str]) -> Dump:
    """The inverse of `Journal.lines`. Raises JournalError."""
    header: dict[str, Any] | None = None
    policy: dict[str, Any] | None = None
    entries: list[Entry] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if header is None:
                header = {"dropped": int(line["dropped"])} if line["kind"] == "journal" else {}
            elif line["kind"] == "policy":
                (policy,) = line["values"]
            else:
                entries.append(Entry(number, int(line["now_ns"]), str(line["kind"]), list(line["values"])))
        except (ValueError, KeyError, TypeError) as error:
            raise JournalError(f"line {number} is not a journal's: {error!r}") from error
        if not header:
            raise JournalError(f"line {number} is not the beginning of a journal")
    if header is None:
        raise JournalError("the journal is empty")
    return Dump(header["dropped"], policy, entries)


def plain(value: object) -> Any:
    """A recorded value as JSON knows it. Dataclasses become objects that carry their name as "type"."""
    if is_dataclass(value) and not isinstance(value, type):
        return {"type": type(value).__name__, **{f.name: plain(getattr(value, f.name)) for f in fields(value)}}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {name: plain(item) for name, item in value._asdict().items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    return value
