"""The flight recorder: the last steps' inputs, plans and results, without prompts or tokens.

It holds what `Scheduler` was called with and what it answered, in order, and the policy it was built from. So a dump shows what
the scheduler knew and decided; and one that has lost nothing can be run again (`poise_lab.sim.replay`), as a scheduler depends
on nothing else.

The keys of blocks are what is large in it: one for each eight tokens of a prompt. So many are kept as a budget allows; of a
request beyond it the first few are, and such a journal cannot be run again.

What it holds of a tenant can be erased: its name and its blocks' keys go, and the journal cannot be run again from then on.

An entry is (time, kind, values). The kinds, and the call of the scheduler that each stands for:

    add       Request, Queued or Rejected   add
    abort     request id                    abort
    control   request id, action            control
    hold      request id, hold              hold
    adjust    queue share, slots share      adjust
    limit     PowerLimits                   limit
    inherit   StoredPrefixes                placement.inherit
    restore   Accounts, their time          restore
    forget    tenant                        forget
    erase     ERASED                        erase
    retract   template                      retract
    expire    how many requests ended       expire, where it ended any
    plan      StepPlan                      plan, which gave a step to carry out
    rest      StepPlan                      plan, which found nothing to do
    result    StepResult                    complete"""

import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

from poise.scheduler.planning.plan import StepResult
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.request import Request

ENTRIES_MAX = 4096
BLOCKS_MAX = 1 << 16
"""Keys of blocks in the ring, some 3 MB: enough for a thousand prompts of 500 tokens."""
BLOCKS_CUT = 32
"""Keys of a request for which there is no room."""
COUNTS = ("recorded", "dropped", "erased", "cut")
ERASED = "(erased)"
"""Stands where the name of an erased tenant was."""


class Journal:
    """A ring of the last `entries_max` entries (None: all of them, whole), and the policy, which the ring never lets go.

    Recording keeps references to immutable values and formats nothing."""

    def __init__(self, entries_max: int | None = ENTRIES_MAX) -> None:
        self._entries: deque[tuple[int, str, tuple[object, ...]]] = deque(maxlen=entries_max)
        self._n_recorded = 0
        self._n_erased = 0
        self._n_cut = 0
        self._n_blocks = 0
        self._policy: SchedulerPolicy | None = None

    def record_policy(self, policy: SchedulerPolicy) -> None:
        """What the scheduler was built from. It comes before every entry of a dump, whatever the ring has let go."""
        self._policy = policy

    def record(self, now_ns: int, kind: str, *values: object) -> None:
        entries = self._entries
        if entries.maxlen is not None:
            if len(entries) == entries.maxlen:
                self._n_blocks -= _n_blocks(entries[0])
            values = self._within_budget(values)
        entries.append((now_ns, kind, values))
        self._n_recorded += 1

    def copy(self) -> "Journal":
        """As it stands. Of the entries only references are copied."""
        other = Journal(None)
        other._entries = self._entries.copy()
        other._n_recorded, other._n_erased, other._n_cut = self._n_recorded, self._n_erased, self._n_cut
        other._policy = self._policy
        return other

    def _within_budget(self, values: tuple[object, ...]) -> tuple[object, ...]:
        if not values or not isinstance(request := values[0], Request):
            return values
        if self._n_blocks + len(request.blocks) > BLOCKS_MAX and len(request.blocks) > BLOCKS_CUT:
            request = replace(request, blocks=request.blocks[:BLOCKS_CUT])
            self._n_cut += 1
        self._n_blocks += len(request.blocks)
        return (request, *values[1:])

    def erase(self, tenant: str) -> int:
        """Take a tenant's name and the keys of its blocks out of every entry; returns how many entries named it.

        Keys in results whose request's arrival the ring has let go are anybody's, and go too. (The policy keeps the names of
        tenants that the operator has configured.)"""
        others: set[int] = set()
        n_named = 0
        for i, (now_ns, kind, values) in enumerate(self._entries):
            match kind, values:
                case "add", (Request() as request, answer):
                    if request.tenant == tenant:
                        n_named += 1
                        self._n_blocks -= len(request.blocks)
                        nameless = replace(request, tenant=ERASED, account=ERASED, blocks=())
                        self._entries[i] = (now_ns, kind, (nameless, answer))
                    else:
                        others.add(request.request_id)
                case "result", (StepResult(blocks=blocks) as result,) if blocks:
                    kept = tuple(block for block in blocks if block[0] in others)
                    self._entries[i] = (now_ns, kind, (replace(result, blocks=kept),))
                case "restore", (list() as accounts, at_ns) if any(a.name == tenant for a in accounts):
                    n_named += 1
                    renamed = [replace(a, name=ERASED) if a.name == tenant else a for a in accounts]
                    self._entries[i] = (now_ns, kind, (renamed, at_ns))
                case "inherit", (list() as entries,) if any(e.tenant == tenant for e in entries):
                    n_named += 1
                    left = [replace(e, tenant=ERASED, blocks=()) if e.tenant == tenant else e for e in entries]
                    self._entries[i] = (now_ns, kind, (left,))
                case "forget", (name,) if name == tenant:
                    n_named += 1
                    self._entries[i] = (now_ns, kind, (ERASED,))
        self._n_erased += n_named
        return n_named

    def lines(self) -> Iterator[str]:
        """JSON objects: how many older entries the ring has let go, how many were erased or have lost keys, the policy, then the
        entries, oldest first."""
        dropped = self._n_recorded - len(self._entries)
        counts = {"recorded": self._n_recorded, "dropped": dropped, "erased": self._n_erased, "cut": self._n_cut}
        yield json.dumps({"kind": "journal"} | counts)
        if self._policy is not None:
            yield json.dumps({"now_ns": 0, "kind": "policy", "values": [plain(self._policy)]})
        for now_ns, kind, values in self._entries:
            yield json.dumps({"now_ns": now_ns, "kind": kind, "values": [plain(v) for v in values]})


def _n_blocks(entry: tuple[int, str, tuple[object, ...]]) -> int:
    values = entry[2]
    return len(values[0].blocks) if values and isinstance(values[0], Request) else 0


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

    n_recorded: int
    n_dropped: int
    n_erased: int
    n_cut: int
    policy: dict[str, Any] | None
    entries: list[Entry]


def read_journal(lines: Iterable[str]) -> Dump:
    """The inverse of `Journal.lines`. Raises JournalError."""
    header: dict[str, int] | None = None
    policy: dict[str, Any] | None = None
    entries: list[Entry] = []
    for number, text in enumerate(lines, 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            if header is None:
                is_header = line["kind"] == "journal"
                counts = dict.fromkeys(COUNTS, 0) | line
                header = {k: int(counts[k]) for k in COUNTS} if is_header else {}
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
    return Dump(header["recorded"], header["dropped"], header["erased"], header["cut"], policy, entries)


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
