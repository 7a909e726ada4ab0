"""Carries the level out: looks at the server once a second, holds back what the level says, and tells of it once.

What is held back: background work first, then queues and slots, then the engine's fast and less proven ways. Interactive
requests are refused by the scheduler's own bounds only, and by a server that is stopping."""

import logging
import time
from collections.abc import Callable
from typing import Any

from poise.config import Settings
from poise.config.sources import merge
from poise.gateway.condition import levels
from poise.gateway.condition.levels import INTERACTIVE, Level, LevelInputs, Levels
from poise.gateway.condition.memory import free_bytes
from poise.gateway.request.refusals import draining, shed_background
from poise.gateway.supervision.blame import Death
from poise.gateway.supervision.engine import EnginePhase, EngineProcess
from poise.llama.files.cgroups import usable_threads
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.admission import shared_places
from poise.scheduler.request import RequestClass

log = logging.getLogger(__name__)

FALLBACK_BATCH_TOKENS = 128


class Degradation:
    """The level of one server. `free` tells the memory that this process may still use."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineProcess,
        metrics: RecoveryMetrics,
        free: Callable[[], int] = free_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._engine, self._metrics = settings, engine, metrics
        self._free, self._clock = free, clock
        self._places = {name: shared_places(limits.queue_max) for name, limits in settings.classes}
        self._levels = Levels(settings.levels, self._places)
        self._logged = Level.NORMAL
        self._held_back = False
        self._drained_s = 0.0
        self.on_change: Callable[[str, str, list[str]], None] = lambda *_: None
        """Told of the level, the former one and the reasons."""
        engine.on_death(self._on_death)

    @property
    def level(self) -> Level:
        return self._levels.level

    @property
    def reasons(self) -> list[str]:
        return self._levels.reasons

    def check(self, request_class: RequestClass) -> None:
        """Raises ApiError if the level has no place for a new request of the class."""
        if self._levels.level is Level.DRAINING:
            raise draining(max(1.0, self._drained_s - self._clock()))
        load = self._levels.load
        if request_class is not RequestClass.BACKGROUND or load is Level.NORMAL:
            return
        most = levels.background_limit(self._settings.levels, self._settings.classes.background.queue_max, load)
        n_queued = sum(self._engine.queued_by_account(RequestClass.BACKGROUND).values())
        if n_queued >= most:
            status = self._engine.state.status
            figures = status.classes.get(RequestClass.BACKGROUND) if status is not None else None
            wait_s = figures.wait_estimate_us / 1e6 if figures is not None else 0.0
            why = f"{n_queued} wait, {most} may" if most else "; ".join(self._levels.reasons)
            raise shed_background(load.value, why, max(wait_s, self._settings.levels.calm_s))

    def drain(self) -> float:
        """No new requests from now on; returns when the time for those that run is over, by the same clock."""
        now_s = self._clock()
        self._drained_s = self._drained_s or now_s + self._settings.server.drain_s
        self._levels.drain(now_s)
        self._tell()
        return self._drained_s

    def look(self) -> None:
        """Judge the present moment and act on it."""
        state, engine = self._engine.state, self._engine
        status = state.status
        ready = state.phase is EnginePhase.READY
        interactive = status.classes.get(RequestClass.INTERACTIVE) if status is not None else None
        queued = {name.value: engine.queued_by_account(name) for name in RequestClass}
        several = len(queued[INTERACTIVE]) > 1  # who waits for its own requests alone is held up by nobody
        inputs = LevelInputs(
            queued={name: levels.crowding(queued[name], most) for name, most in self._places.items()} if ready else {},
            wait_s=interactive.wait_estimate_us / 1e6 * several if interactive is not None else None,
            free_bytes=self._free() if self._settings.levels.memory_low_mb else None,
            rss_bytes=status.rss_bytes if status is not None else None,
            n_live=engine.n_live,
        )
        self._levels.look(self._clock(), inputs)
        if ready and self._levels.recovers and self._levels.level is not Level.DRAINING:
            self._levels.recovered()
            engine.use(self._settings)
            engine.restart("the normal configuration is tried again")
        self._hold_back(constrained=self._levels.load is Level.CONSTRAINED)
        self._tell()

    def _on_death(self, death: Death) -> None:
        if death.is_on_purpose:
            return
        if death.is_short:
            self._levels.too_large(self._clock())
        elif not death.is_permanent and death.code is not None:  # else a smaller configuration would gain nothing
            self._levels.crashed(self._clock())
        if self._levels.degraded:
            self._engine.use(fallback(self._settings))
        self._tell()

    def _hold_back(self, *, constrained: bool) -> None:
        if constrained != self._held_back:
            self._held_back = constrained
            limits = self._settings.levels
            self._engine.adjust(*((limits.queue_share, limits.slots_share) if constrained else (1.0, 1.0)))

    def _tell(self) -> None:
        """Report each transition once: in the log, with the numbers, and in the metrics."""
        level, former = self._levels.level, self._logged
        if level is not former:
            self._logged = level
            self._metrics.came_to(level.value, former.value)
            self.on_change(level.value, former.value, self.reasons)
            log.warning("level %s, was %s: %s", level, former, "; ".join(self.reasons) or "all conditions are over")


def fallback(settings: Settings) -> Settings:
    """The conservative configuration: half the slots, one thread fewer and not adapted, small batches, no reuse of prefixes, no
    flash attention unless the type of the KV cells needs it. Every limit of a request is as before: what was accepted still fits.
    """
    engine = settings.engine
    threads = engine.threads or usable_threads()
    flash = "off" if engine.kv_type == "f16" else "on"
    short, long = (max(1, settings.n_slots(name) // 2) for name in ("short", "long"))
    batch = max(min(engine.batch_tokens, FALLBACK_BATCH_TOKENS), short, long, settings.scheduler.quantum_tokens)
    changes: dict[str, Any] = {
        "engine": {"threads": max(1, threads - 1), "adapt_threads": False, "batch_tokens": batch},
        "pools": {name: {"slots": n, "flash_attention": flash} for name, n in (("short", short), ("long", long))},
        "classes": {
            name: {"slots_max": min(limits.slots_max, short), "heavy_max": min(limits.heavy_max, long)}
            for name, limits in settings.classes
        },
        "store": {"prefix_reuse": False},
    }
    return Settings.model_validate(merge(settings.model_dump(), changes))
