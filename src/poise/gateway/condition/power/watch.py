"""Looks at power once a second: has the sources read, carries out what the governor says, and tells of it.

While the server is idle it looks less often at what is read, so that the process sleeps."""

import logging
import time
from collections.abc import Callable

import msgspec

from poise.config import Settings
from poise.gateway.condition.power.governor import Governor, Limits, Moment, PowerState, Takes, power
from poise.gateway.condition.power.sampling import Sampling
from poise.gateway.condition.power.sources import Kind, Reading, Sources
from poise.gateway.request.refusals import later
from poise.gateway.supervision.engine import EnginePhase, EngineProcess
from poise.metrics.power import PowerMetrics
from poise.scheduler.power import FULL_PPM, PowerLimits
from poise.scheduler.request import RequestClass
from poise.wire.to_engine import Power

log = logging.getLogger(__name__)

IDLE_EVERY_S = 5.0
"""How often the sources are read while nothing is asked for."""
GAP_S = 20.0
"""A longer time between two looks is no time of which the power is known."""
_WATTS = (Kind.PACKAGE_POWER, Kind.GPU_POWER, Kind.BATTERY_POWER)


class ReadingRow(msgspec.Struct, frozen=True):
    kind: str
    value: float | None
    unit: str
    quality: str
    age_s: float


class PowerBody(msgspec.Struct, frozen=True, kw_only=True):
    enabled: bool
    state: str
    reasons: list[str]
    limits: PowerLimits
    threads: int
    takes: str
    joules: dict[str, float]
    watts_busy: float | None
    released: bool
    readings: list[ReadingRow]


def _local_minute() -> int:
    now = time.localtime()
    return now.tm_hour * 60 + now.tm_min


class PowerWatch:
    """Of one server. `sampling`, clock and minute of the day are a test's own, if it likes."""

    def __init__(
        self,
        settings: Settings,
        engine: EngineProcess,
        metrics: PowerMetrics,
        sampling: Sampling | None = None,
        clock: Callable[[], float] = time.monotonic,
        minute: Callable[[], int] = _local_minute,
    ) -> None:
        self._settings, self._engine, self._metrics = settings.power, engine, metrics
        self._sampling = sampling or Sampling(Sources().probes() if settings.power.enabled else [])
        self._clock, self._minute = clock, minute
        self._governor = Governor(settings.power)
        self._readings: dict[Kind, Reading] = {}
        self._looked_s, self._asked_s = clock(), -IDLE_EVERY_S
        self._spent_us = 0
        self._attributed = (0.0, 0.0)
        """Joules of busy time, and the seconds of it."""
        self._last_live_s = clock()
        self.joules: dict[tuple[str, str], float] = {}
        """By source and quality, of the times in which it was known."""
        self.limits = Limits()

    @property
    def watts_busy(self) -> float | None:
        """Mean power while steps were computed: what a second of computing is taken to cost. None: it is not known."""
        joules, seconds = self._attributed
        return joules / seconds if seconds else None

    def check(self, request_class: RequestClass) -> None:
        """Raises ApiError where a new request of the class is not taken now."""
        takes = self.limits.takes
        if takes is Takes.NONE or (takes is Takes.INTERACTIVE and request_class is RequestClass.BACKGROUND):
            what = "No work" if takes is Takes.NONE else "No background work"
            why = f"{what} is taken now, the host saves power: {'; '.join(self.limits.reasons)}. Try again"
            raise later(503, "power_saving", why, self.limits.retry_after_s)

    def look(self) -> None:
        """Judge the present moment and act on it."""
        now_s, n_live = self._clock(), self._engine.n_live
        elapsed_s, self._looked_s = now_s - self._looked_s, now_s
        busy_ppm = self._busy_ppm(elapsed_s)
        if n_live or self._engine.state.phase is not EnginePhase.READY:
            self._last_live_s = now_s
        if self._settings.enabled:
            self._govern(now_s, elapsed_s, busy_ppm)
            if n_live or now_s - self._asked_s >= IDLE_EVERY_S:
                self._asked_s = now_s
                self._sampling.ask()
        self._release(now_s)

    def body(self) -> PowerBody:
        """As /status shows it."""
        now = self.limits
        joules = {f"{source}, {quality}": round(spent, 1) for (source, quality), spent in self.joules.items()}
        rows = [
            ReadingRow(r.kind.value, None if r.value is None else round(r.value, 3), r.unit, r.quality.value, round(r.age_s, 1))
            for r in self._readings.values()
        ]
        return PowerBody(
            enabled=self._settings.enabled, state=now.state.value, reasons=list(now.reasons), limits=now.engine,
            threads=now.threads, takes=now.takes.value, joules=joules, watts_busy=self.watts_busy,
            released=self._engine.state.is_released, readings=rows,
        )  # fmt: skip

    def _govern(self, now_s: float, elapsed_s: float, busy_ppm: int) -> None:
        readings = self._sampling.readings()
        status = self._engine.state.status
        figures = status.classes.get(RequestClass.INTERACTIVE) if status is not None else None
        runs = figures is not None and figures.running > 0
        interactive = runs or bool(self._engine.queued_by_account(RequestClass.INTERACTIVE))
        n_threads = status.threads if status is not None else 1
        seen = Moment(now_s, readings, self._minute(), interactive, busy_ppm, n_threads)
        readings[Kind.PACKAGE_POWER] = power(seen, self._settings)
        self._readings = readings
        before, self.limits = self.limits, self._governor.look(seen)
        engine = self.limits.engine
        if (engine, self.limits.threads) != (before.engine, before.threads):
            self._engine.limit(Power(engine, self.limits.threads))
        if self.limits.state is not before.state:
            known = log.info if self.limits.state is PowerState.FULL else log.warning
            known("power state %s, was %s: %s", self.limits.state, before.state, "; ".join(self.limits.reasons) or "it is over")
        self._count(elapsed_s, busy_ppm)

    def _count(self, elapsed_s: float, busy_ppm: int) -> None:
        """Energy is added up while power is known; a request's part of it by how long it was computed for."""
        watts_by = {kind.value: (self._readings[kind].value, self._readings[kind].quality.value) for kind in _WATTS}
        self._metrics.stands(self.limits.state.value, self.limits.engine.duty_ppm / FULL_PPM, watts_by)
        if not 0 < elapsed_s <= GAP_S:
            return
        whole = 0.0
        for kind in _WATTS:
            if (watts := self._readings[kind].value) is not None:
                key = (kind.value, self._readings[kind].quality.value)
                self.joules[key] = self.joules.get(key, 0.0) + watts * elapsed_s
                self._metrics.spent(*key, watts * elapsed_s)
                whole += watts if kind is not Kind.BATTERY_POWER else 0.0
        if whole and busy_ppm:
            joules, seconds = self._attributed
            busy_s = elapsed_s * busy_ppm / FULL_PPM
            self._attributed = joules + whole * busy_s, seconds + busy_s

    def _busy_ppm(self, elapsed_s: float) -> int:
        """Part of the time in which the engine computed, as it said last."""
        status = self._engine.state.status
        spent_us = sum(status.steps.parts_us.values()) if status is not None else 0
        grown_us, self._spent_us = max(0, spent_us - self._spent_us), spent_us
        return min(FULL_PPM, int(grown_us / elapsed_s)) if elapsed_s > 0 else 0

    def _release(self, now_s: float) -> None:
        """Once in each idle time."""
        after_s, state = self._settings.idle_release_s, self._engine.state
        if after_s and state.phase is EnginePhase.READY and not state.is_released and now_s - self._last_live_s >= after_s:
            self._engine.release()
            self._metrics.released()
