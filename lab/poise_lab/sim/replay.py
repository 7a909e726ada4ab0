"""Run a recorded scheduler again: the same policy, the same calls, and so the same plans.

A scheduler depends on what it is called with and on nothing else, so a journal that has its beginning tells whether the code at
hand decides as the recorded one did. The first difference is where a change of behaviour begins."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec

from poise.engine.journal import Entry, JournalError, plain, read_journal
from poise.scheduler.fairness.accounts import Account
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning.plan import StepPlan, StepResult
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.power import PowerLimits
from poise.scheduler.request import Control, Hold, Request
from poise.scheduler.scheduler import Scheduler

T = TypeVar("T")
SHOWN_MAX = 400


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found. `difference` is empty when every answer and plan was the recorded one."""

    n_entries: int
    n_plans: int
    difference: str = ""


def replay(lines: Iterable[str], watch: Callable[[int, Scheduler], None] | None = None) -> Replayed:
    """Raises JournalError when the journal cannot be replayed. `watch` sees the scheduler after each plan was completed."""
    dump = read_journal(lines)
    if dump.n_dropped:
        raise JournalError(
            f"the journal has let go of its first {dump.n_dropped} entries, so the scheduler's state is not known; "
            "record with a larger engine.journal_entries"
        )
    if dump.n_erased:
        raise JournalError(
            f"a tenant was erased: {dump.n_erased} entries of the journal do not say any more what the scheduler was asked"
        )
    if dump.n_cut:
        raise JournalError(
            f"{dump.n_cut} requests of the journal have lost keys of their blocks, for which it had no room: what they shared "
            "with others is not known; record less, or shorter prompts"
        )
    if dump.policy is None:
        raise JournalError("the journal does not say which policy its scheduler had")
    run = _Replay(Scheduler(_convert(dump.policy, SchedulerPolicy, 2)))
    for entry in dump.entries:
        try:
            difference = run.repeat(entry)
        except (AssertionError, KeyError) as error:
            difference = f"the scheduler broke off: {error!r}"
        if difference:
            at = f"line {entry.line}, {entry.now_ns / 1e9:.6f} s, after {run.n_plans} equal plans: "
            return Replayed(len(dump.entries), run.n_plans, at + difference)
        if watch is not None and entry.kind == "result":
            watch(entry.now_ns, run.scheduler)
    return Replayed(len(dump.entries), run.n_plans)


class _Replay:
    def __init__(self, scheduler: Scheduler) -> None:
        self.n_plans = 0
        self.scheduler = scheduler
        self._plan: StepPlan | None = None

    def repeat(self, entry: Entry) -> str:
        """Repeat one call; returns what is different, or nothing."""
        scheduler, now_ns, line = self.scheduler, entry.now_ns, entry.line
        match entry.kind, entry.values:
            case "add", [request, answer]:
                return _compare("answer", answer, scheduler.add(_convert(request, Request, entry.line), now_ns))
            case "abort", [int(request_id)]:
                scheduler.abort(request_id, now_ns)
            case "control", [int(request_id), str(action)]:
                scheduler.control(request_id, Control(action), now_ns)
            case "prepared", [int(request_id), str(), int()]:
                scheduler.prepared(request_id, now_ns)
            case "hold", [int(request_id), str(hold)]:
                scheduler.hold(request_id, Hold(hold), now_ns)
            case "adjust", [int() | float() as queue_share, int() | float() as slots_share]:
                scheduler.adjust(queue_share, slots_share)
            case "limit", [dict() as limits]:
                scheduler.limit(_convert(limits, PowerLimits, entry.line))
            case "inherit", [list() as entries]:
                scheduler.placement.inherit([_convert(entry, StoredPrefix, line) for entry in entries], now_ns)
            case "restore", [list() as accounts, int(at_ns)]:
                scheduler.restore([_convert(account, Account, entry.line) for account in accounts], at_ns)
            case "forget" | "retract" | "erase", [str(name)]:
                # An erased tenant's requests never were in the journal: else it is refused.
                getattr(scheduler, entry.kind)(name)
            case "expire", [int(n_expired)]:
                return _compare("expired", n_expired, len(scheduler.expire(now_ns)))
            case "plan" | "rest", [recorded]:
                # The engine asks before every plan and records only what it finds; asking twice finds nothing more.
                if expired := scheduler.expire(now_ns):
                    return f"{len(expired)} requests expired that had not"
                plan = scheduler.plan(now_ns)
                if difference := _compare("plan", recorded, plan):
                    return difference
                if entry.kind == "plan":
                    self._plan = plan
                    self.n_plans += 1
            case "result", [result]:
                if self._plan is None:
                    raise JournalError(f"line {entry.line}: a result without its plan")
                scheduler.complete(self._plan, _convert(result, StepResult, entry.line), now_ns)
                self._plan = None
            case _:
                raise JournalError(f"line {entry.line}: a call that is not known here: {entry.kind}")
        return ""


def _compare(what: str, recorded: object, now: object) -> str:
    """The first place where two plain values differ, in one line."""
    return _difference(what, recorded, plain(now))


def _difference(path: str, a: Any, b: Any) -> str:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in dict.fromkeys([*a, *b]):
            if found := _difference(f"{path}.{key}", a.get(key), b.get(key)):
                return found
        return ""
    if isinstance(a, list) and isinstance(b, list):
        for i in range(max(len(a), len(b))):
            one, other = (x[i] if i < len(x) else None for x in (a, b))
            if found := _difference(f"{path}[{i}]", one, other):
                return found
        return ""
    return "" if a == b else f"{path} was {_shown(a)}, is {_shown(b)}"


def _shown(value: object) -> str:
    text = "nothing" if value is None else str(value)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 3] + "..."


def _convert(value: object, type_: type[T], line: int) -> T:
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError as error:
        raise JournalError(f"line {line}: not a {type_.__name__}: {error}") from error
