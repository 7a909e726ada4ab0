"""From settings and what was measured on this host to the scheduler's parameters."""

from __future__ import annotations

from collections.abc import Mapping

from poise.config.settings import ClassSettings, PoolSettings, Settings
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, CostPrior, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import RequestClass


def to_policy(
    settings: Settings,
    *,
    slot_cells: Mapping[str, int] | None = None,
    chunk_tokens: Mapping[str, int] | None = None,
    priors: Mapping[str, CostPrior] | None = None,
) -> SchedulerPolicy:
    """The scheduler's parameters.

    slot_cells     per pool: cells that a slot really got (a model's trained context can be shorter than the settings ask)
    chunk_tokens   per pool: the chunk at which prompt tokens get cheap, measured
    priors         per pool: first guess of the cost model, measured
    What is not given comes from the settings or from the scheduler's own defaults.
    """
    declared = {SHORT_POOL: settings.pools.short, LONG_POOL: settings.pools.long}
    pools = {name: _pool(pool, (slot_cells or {}).get(name)) for name, pool in declared.items()}
    return SchedulerPolicy(
        pools=pools,
        classes={
            RequestClass.INTERACTIVE: _class(settings.classes.interactive, pools[SHORT_POOL]),
            RequestClass.BACKGROUND: _class(settings.classes.background, pools[SHORT_POOL]),
        },
        step_max_us=settings.scheduler.step_max_ms * 1000,
        fill_share=settings.scheduler.fill_share,
        grain_us=settings.scheduler.fairness_grain_ms * 1000,
        quantum_tokens=settings.scheduler.quantum_tokens,
        chunk_tokens=dict(chunk_tokens or {}),
        batch_tokens=settings.engine.batch_tokens,
        ageing=settings.scheduler.ageing,
        hole_steps=settings.scheduler.hole_steps,
        priors=dict(priors or {}),
    )


def _pool(pool: PoolSettings, slot_cells: int | None) -> PoolPolicy:
    return PoolPolicy(
        n_slots=pool.slots,
        slot_cells=pool.slot_tokens if slot_cells is None else slot_cells,
    )


def _class(settings: ClassSettings, short: PoolPolicy) -> ClassPolicy:
    return ClassPolicy(
        queue_max=settings.queue_max,
        itl_target_us=settings.itl_target_ms * 1000,
        min_share=settings.min_share,
        slots_max=settings.slots_max,
        # Loading made sure of this for the declared slots; slots cut to a short model's context need it again.
        heavy_tokens=max(1, min(settings.heavy_tokens, short.slot_cells - 1)),
        heavy_max=settings.heavy_max,
    )
