"""Requests that were ended because engines died computing them: a report of each, without anything of what it said.

A report names whose request it was and how large, how the engines ended and when. Neither text nor token ids are in it."""

import logging
import time
from collections import deque
from datetime import UTC, datetime

import msgspec
from msgspec import structs

log = logging.getLogger(__name__)

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
