"""Answers the question why a request was slow: gathers what is known around its record."""

import time
from collections.abc import Callable
from functools import partial
from itertools import groupby

from poise.config import Settings
from poise.config.classes import class_settings
from poise.gateway.condition.history import History
from poise.gateway.explain.facts import Facts, Surroundings, Weather, facts_of
from poise.gateway.explain.neighbours import Neighbours, SlotLimits
from poise.gateway.records.kept import Records
from poise.gateway.records.record import Record
from poise.gateway.supervision.engine import EngineView
from poise.scheduler.policy import SHORT_POOL


class Explainer:
    """Explains records that are kept."""

    def __init__(
        self, settings: Settings, engine: EngineView, records: Records, history: History, watts: Callable[[], float | None]
    ) -> None:
        self._settings, self._engine, self._records, self._history = settings, engine, records, history
        self._watts = watts

    def explain(self, record: Record, tenant: str | None) -> Facts:
        """For a caller of `tenant`, or for an operator (None). Only an operator is shown ids of other tenants' requests."""
        now_s = time.perf_counter()
        self._records.purge()
        others = self._records.newest()
        neighbours = Neighbours(record, others, lambda other: tenant in (None, other.origin.tenant), now_s)
        limits, weather = partial(self._slot_limits, record), partial(self._weather, now_s)
        around = Surroundings(neighbours, limits, weather, self._records.forgotten_s, self._watts())
        return facts_of(record, around, now_s)

    def _slot_limits(self, record: Record, pool: str) -> SlotLimits:
        """`pool` is empty before it is known."""
        ready, origin = self._engine.state.ready, record.origin
        slots = {built.name: built.n_slots for built in ready.pools} if ready is not None else {}
        if not pool and len(slots) == 1:
            (pool,) = slots
        limits = class_settings(self._settings, origin.request_class)
        running_max = self._settings.tenant(origin.tenant).running_max or None
        if pool not in slots:
            return SlotLimits("", tenant_running=running_max)
        class_slots = max(1, limits.slots_max * slots[pool] // slots.get(SHORT_POOL, limits.slots_max))
        return SlotLimits(pool, slots[pool], min(class_slots, slots[pool]), running_max)

    def _weather(self, now_s: float, begin_s: float, end_s: float) -> Weather:
        """The samples are dated, the records are not: their clock counts from any moment."""
        offset_s = time.time() - now_s
        samples = self._history.between(begin_s + offset_s, end_s + offset_s)
        whole_s = sum(seconds for seconds, _ in samples)
        limited: dict[str, float] = {}
        for seconds, sample in samples:
            for name, part in sample.limited.items():
                if part and whole_s:
                    limited[name] = limited.get(name, 0.0) + part * seconds / whole_s
        levels = tuple(level for level, _ in groupby(sample.level for _, sample in samples))
        ratios = [sample.steps.cost_ratio for _, sample in samples if sample.steps is not None]
        return Weather(limited, levels, max((ratio for ratio in ratios if ratio is not None), default=0.0))
