"""Erasing what the server holds of a tenant, in every place that holds any.

Each place has an eraser, which erases and says how much. Live requests go on unless they are to end as well: what they hold is
the tenant's work in progress. Each place marks what is live of the tenant, so that nothing of it is kept when it ends.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from poise.gateway.engine_client import EngineClient, EnginePhase, EngineUnavailable
from poise.gateway.records import Records
from poise.metrics.gateway import GatewayMetrics

Eraser = Callable[[str], Awaitable[Mapping[str, int]]]
"""Erases a tenant's data in one place; returns how much there was, by kind. Kinds of different places differ."""


class Erasure:
    """The places, in the order in which they are erased."""

    def __init__(self, erasers: Sequence[Eraser]) -> None:
        self._erasers = erasers

    async def erase(self, tenant: str) -> dict[str, int]:
        """Erase everywhere. Raises what an eraser raises; erasing again is safe."""
        erased: dict[str, int] = {}
        for eraser in self._erasers:
            erased |= await eraser(tenant)
        return erased


def records_eraser(records: Records) -> Eraser:
    """Results that are kept for those who come back for them."""

    async def erase(tenant: str) -> Mapping[str, int]:
        erased = records.erase(tenant)
        return {"results": erased.records, "result_tokens": erased.tokens, "result_bytes": erased.n_bytes}

    return erase


def metrics_eraser(metrics: GatewayMetrics) -> Eraser:
    """The tenant's name in /metrics. What was counted under it goes to the others', because sums must not go back."""

    async def erase(tenant: str) -> Mapping[str, int]:
        return {"counted_choices": metrics.forget(tenant)}

    return erase


def engine_eraser(engine: EngineClient) -> Eraser:
    """KV cells, stored prefixes, and the tenant's name in the flight recorder and in reports of quarantined requests.

    An engine that is not there holds nothing of these but the reports.
    """

    async def erase(tenant: str) -> Mapping[str, int]:
        reports = {"quarantine_reports": engine.disown(tenant)}
        names = ("entries", "cells", "bytes", "journal_entries")
        if not _is_there(engine):
            return dict.fromkeys(names, 0) | reports
        try:
            erased = await engine.erase(tenant)
        except EngineUnavailable:
            if _is_there(engine):
                raise
            return (
                dict.fromkeys(names, 0) | reports
            )  # it ended, perhaps because it had no memory for it: all went with it
        counts = (erased.entries, erased.cells, erased.n_bytes, erased.journal_entries)
        return dict(zip(names, counts, strict=True)) | reports

    return erase


def _is_there(engine: EngineClient) -> bool:
    return engine.state.phase is EnginePhase.READY
