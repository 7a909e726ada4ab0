"""The engine as metrics read it."""

from __future__ import annotations

from poise.gateway.supervision.engine import EnginePhase, EngineView
from poise.metrics.engine import EngineReading


def read_engine(engine: EngineView) -> EngineReading:
    """The engine as /metrics shows it."""
    state = engine.state
    return EngineReading(state.phase is EnginePhase.READY, state.restarts, state.status)
