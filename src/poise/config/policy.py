"""From settings and what was measured on this host to the scheduler's parameters."""

from collections.abc import Mapping

import msgspec

from poise.config.settings import ClassSettings, Settings
from poise.scheduler import policy
from poise.scheduler.request import RequestClass


def to_policy(
    settings: Settings,
    *,
    slot_cells: Mapping[str, int] | None = None,
    cell_bytes: Mapping[str, int] | None = None,
    chunk_tokens: Mapping[str, int] | None = None,
    priors: Mapping[str, policy.CostPrior] | None = None,
    n_drawn: int = 32,
    lasts: bool = True,
) -> policy.SchedulerPolicy:
    """The scheduler's parameters.

    slot_cells     per pool: cells that a slot really got (a model's trained context can be shorter than the settings ask)
    cell_bytes     per pool: what one cell takes in the host store
    chunk_tokens   per pool: the chunk at which prompt tokens get cheap, measured
    priors         per pool: first guess of the cost model, measured
    n_drawn        tokens of a pass that can be drawn after; 0: the model cannot forget what it was fed, so nobody drafts
    lasts          the host store outlives the engine
    What is not given comes from the settings or from the scheduler's own defaults."""
    pools = {
        name: policy.PoolPolicy(
            settings.n_slots(name), (slot_cells or {}).get(name, pool.slot_tokens), (cell_bytes or {}).get(name, 0)
        )
        for name, pool in settings.pools
    }
    return policy.SchedulerPolicy(
        pools=pools,
        classes={RequestClass(name): _class(limits, pools[policy.SHORT_POOL]) for name, limits in settings.classes},
        step_max_us=settings.scheduler.step_max_ms * 1000,
        fill_share=settings.scheduler.fill_share,
        grain_us=settings.scheduler.fairness_grain_ms * 1000,
        quantum_tokens=settings.scheduler.quantum_tokens,
        chunk_tokens=dict(chunk_tokens or {}),
        batch_tokens=settings.engine.batch_tokens,
        ageing=settings.scheduler.ageing,
        hole_steps=settings.scheduler.hole_steps,
        turn_us=settings.scheduler.turn_ms * 1000,
        preemptions_max=settings.scheduler.preemptions_max,
        store=_store(settings, lasts),
        tenants=msgspec.convert(settings.tenants, dict[str, policy.TenantPolicy], from_attributes=True),
        tenant_default=msgspec.convert(settings.tenant_defaults, policy.TenantPolicy, from_attributes=True),
        priors=dict(priors or {}),
        drafts=_drafts(settings, n_drawn),
    )


def _drafts(settings: Settings, n_drawn: int) -> policy.DraftPolicy:
    """Every stream is drawn after once, and after each of its guesses."""
    streams = settings.speculation.max_streams
    most = min(settings.speculation.max_tokens, n_drawn - streams)
    return policy.DraftPolicy(streams, most) if most > 0 else policy.DraftPolicy()


def _store(settings: Settings, lasts: bool) -> policy.StorePolicy:
    store = settings.store
    shares = {name: tenant.cache_share for name, tenant in settings.tenants.items() if tenant.cache_share}
    return policy.StorePolicy(
        budget_bytes=settings.store_mb << 20,
        tenant_share=settings.tenant_defaults.cache_share or store.tenant_share,
        prefix_reuse=store.prefix_reuse,
        prefix_min_cells=store.prefix_min_tokens,
        tenant_shares=shares,
        write_through=store.write_through and lasts,
    )


def _class(settings: ClassSettings, short: policy.PoolPolicy) -> policy.ClassPolicy:
    return policy.ClassPolicy(
        queue_max=settings.queue_max,
        itl_target_us=settings.itl_target_ms * 1000,
        min_share=settings.min_share,
        slots_max=settings.slots_max,
        # Loading made sure of this for the declared slots; slots cut to a short model's context need it again.
        heavy_tokens=max(1, min(settings.heavy_tokens, short.slot_cells - 1)),
        heavy_max=settings.heavy_max,
        downgrade_output_tokens=settings.downgrade_output_tokens,
        downgrade_served_us=settings.downgrade_served_ms * 1000,
    )
