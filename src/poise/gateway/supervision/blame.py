"""Which request is to blame for the death of an engine: suspects, probation and quarantine, on facts that are passed in.

1. A forward pass that an engine died in is held against every request in it, unless somebody ended the engine on purpose
   (SIGTERM, SIGINT) or it was in no pass at all. An engine that died while it dealt with one request's message, or opened it,
   died with that one alone.
2. Whoever was in such a pass is a suspect: it is computed in passes of its own from then on, so that the next death names one.
3. A suspect is acquitted by PROBATION_TOKENS new tokens, and everything that was held against it is forgotten.
4. Who is found alone in a pass that killed an engine, and was in such a pass before, is quarantined: it is ended, and a report is
   kept, which names whose request it was and how large, how the engines ended and when. Neither text nor token ids are in it.
5. SIGKILL may be the kernel short of memory, or an operator: as soon as one of the deaths was by SIGKILL it takes three."""

import logging
import signal
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import msgspec
from msgspec import structs

log = logging.getLogger(__name__)


PROBATION_TOKENS = 8
DEATHS = 2
DEATHS_WITH_SIGKILL = 3
_ON_PURPOSE = (-signal.SIGTERM, -signal.SIGINT)


class Cause(StrEnum):
    """How an engine was lost."""

    CRASH = "crash"
    """Ended by a signal."""
    HANG = "hang"
    """Ended by the watchdog."""
    EXIT = "exit"
    """It exited, with last words or without."""


@dataclass(frozen=True, slots=True)
class Death:
    """An engine's end. `code` as of a process that was waited for: negative is a signal; None: it could not be started.

    `pass_ids`: the requests in the forward pass that it died in, or the one that it was given or opened; empty: none.
    `is_permanent`: it said that another one would end the same way; `is_short`: that memory does not suffice now."""

    cause: Cause
    code: int | None
    detail: str
    pass_ids: Sequence[int] = ()
    is_permanent: bool = False
    is_short: bool = False

    @property
    def is_on_purpose(self) -> bool:
        """It was stopped, or ended in order: what it computed is not to blame."""
        return self.cause is not Cause.HANG and (self.code in _ON_PURPOSE or self.code == 0)

    @property
    def is_lasting(self) -> bool:
        """Trying again soon is of no use. With too little memory it is: the fallback configuration needs less."""
        return self.is_permanent and not self.is_short

    @property
    def is_sigkill(self) -> bool:
        return self.cause is Cause.CRASH and self.code == -signal.SIGKILL

    @property
    def how(self) -> str:
        """For a report: a signal's name, an exit code, or that it hung."""
        if self.cause is Cause.HANG:
            return "hang"
        if self.code is None:
            return "not started"
        return ending(self.code)


def ending(code: int) -> str:
    """How a process ended: a signal's name, or its exit code."""
    return signal.Signals(-code).name if -code in list(signal.Signals) else f"exit code {code}"


def obituary(code: int) -> str:
    """How an engine ended that said nothing itself, from its code as of a process that was waited for."""
    if code == -signal.SIGILL:
        return "the engine hit an instruction that this CPU lacks; build it here again with `make engine-rebuild`"
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
    return f"the engine {how}"


class Blame:
    """What is held against which request."""

    def __init__(self) -> None:
        self._held: dict[int, list[Death]] = {}

    def judge(self, death: Death) -> int | None:
        """Hold a death against the requests that were in its pass; returns the one that is to be quarantined, if any."""
        if death.is_on_purpose:
            return None
        for request_id in death.pass_ids:
            self._held.setdefault(request_id, []).append(death)
        if len(death.pass_ids) != 1:
            return None
        (alone,) = death.pass_ids
        by_other = sum(not held.is_sigkill for held in self._held[alone])
        return alone if by_other >= DEATHS or self.deaths(alone) >= DEATHS_WITH_SIGKILL else None

    def is_suspect(self, request_id: int) -> bool:
        return request_id in self._held

    def deaths(self, request_id: int) -> int:
        """How many deaths are held against the request."""
        return len(self._held.get(request_id, ()))

    def acquit(self, request_id: int) -> None:
        """Hold nothing against the request any more: it has proved harmless, or has ended."""
        self._held.pop(request_id, None)


REPORTS_KEPT = 100
ERASED = "(erased)"
"""Stands where the name of an erased tenant was."""


class QuarantineReport(msgspec.Struct, frozen=True, kw_only=True, rename={"request_class": "class"}):
    """`request_id` is the X-Request-Id, `ended_by` how the last of the `deaths` came about. Times are UTC."""

    request_id: str
    request_class: str
    engine_request: int
    tenant: str
    prompt_tokens: int
    output_tokens: int
    deaths: int
    ended_by: str
    accepted_at: str
    quarantined_at: str


class Quarantine:
    """The newest reports."""

    def __init__(self) -> None:
        self._reports: deque[QuarantineReport] = deque(maxlen=REPORTS_KEPT)

    def add(self, report: QuarantineReport) -> None:
        self._reports.append(report)
        log.error("quarantined: %s", msgspec.json.encode(report).decode())

    def erase(self, tenant: str) -> int:
        """Take a tenant's name out of every report; returns how many had it."""
        n_named = 0
        for i, report in enumerate(self._reports):
            if report.tenant == tenant:
                self._reports[i] = structs.replace(report, tenant=ERASED)
                n_named += 1
        return n_named

    def all(self) -> list[QuarantineReport]:
        """Oldest first."""
        return list(self._reports)


def utc(seconds: float | None = None) -> str:
    """A moment of the wall clock (default: now), to the millisecond."""
    moment = datetime.fromtimestamp(time.time() if seconds is None else seconds, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
