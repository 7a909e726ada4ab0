"""Which pool a request belongs to, and whether it can ever run.

What can never fit is rejected on arrival (invariant 4): a request that is accepted and cannot run would block its queue for
ever (vLLM issue 39734 describes that failure).
"""

from __future__ import annotations

from collections.abc import Mapping

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request


def route(request: Request, policy: SchedulerPolicy) -> str | None:
    """The pool the request will run in, or None when it fits in none.

    A prompt over its class's `heavy_tokens` is a heavy job (rule R5); so is what a short slot cannot hold.
    """
    if request.pool:
        return request.pool if request.n_cells <= policy.pools[request.pool].slot_cells else None
    heavy = request.n_prompt > policy.classes[request.request_class].heavy_tokens
    for name in (LONG_POOL,) if heavy else (SHORT_POOL, LONG_POOL):
        pool = policy.pools.get(name)
        if pool is not None and request.n_cells <= pool.slot_cells:
            return name
    return None


def cells_max(pools: Mapping[str, PoolPolicy]) -> int:
    """Cells of the largest slot: the limit that a TOO_LONG rejection names."""
    return max(pool.slot_cells for pool in pools.values())


def slots_max(pool: str, policy: ClassPolicy) -> int:
    """Slots of a pool that a class may hold."""
    return policy.heavy_max if pool == LONG_POOL else policy.slots_max
