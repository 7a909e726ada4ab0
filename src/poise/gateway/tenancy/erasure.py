"""Erasing what the server holds of a tenant, in every place that holds any.

Each place is an eraser, which erases and says how much. Live requests go on unless they are to end as well: what they hold is
the tenant's work in progress. Each place marks what is live of the tenant, so that nothing of it is kept when it ends."""

from collections.abc import Mapping, Sequence
from typing import Protocol

from poise.gateway.supervision.engine import EnginePhase, EngineProcess, EngineUnavailable

_COUNTS = ("entries", "cells", "bytes", "journal_entries")
"""Of what an engine held, as the answer names them."""


class Eraser(Protocol):
    """A place that holds a tenant's data."""

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Erase a tenant's data here; returns how much there was, by kind. Kinds of different places differ."""


async def erase_everywhere(erasers: Sequence[Eraser], tenant: str) -> dict[str, int]:
    """Erase in each place, in their order. Raises what an eraser raises; erasing again is safe."""
    erased: dict[str, int] = {}
    for eraser in erasers:
        erased |= await eraser.erase(tenant)
    return erased


class EngineEraser:
    """KV cells, stored prefixes, and the tenant's name in the flight recorder and in reports of quarantined requests.

    An engine that is not there holds nothing of these but the reports."""

    def __init__(self, engine: EngineProcess) -> None:
        self._engine = engine

    async def erase(self, tenant: str) -> Mapping[str, int]:
        counts, n_reports = dict.fromkeys(_COUNTS, 0), self._engine.disown(tenant)
        if self._is_there:
            try:
                erased = await self._engine.erase(tenant)
            except EngineUnavailable:  # it may have ended, perhaps because it had no memory for it: all went with it
                if self._is_there:
                    raise
            else:
                found = (erased.entries, erased.cells, erased.n_bytes, erased.journal_entries)
                counts = dict(zip(_COUNTS, found, strict=True))
        return counts | {"quarantine_reports": n_reports}

    @property
    def _is_there(self) -> bool:
        return self._engine.state.phase is EnginePhase.READY
