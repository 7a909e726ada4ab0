"""Which pool a request belongs to, and whether it can ever run.

What can never fit is rejected on arrival (invariant 4): a request that is accepted and cannot run would block its queue for
ever (vLLM issue 39734 describes that failure).
"""

from __future__ import annotations

from collections.abc import Mapping

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request


def route(request: Request, policy: SchedulerPolicy, cached: Mapping[str, int]) -> str | None:
    """The pool the request will run in, or None when it fits in none. `cached`: by pool, prompt tokens it need not compute.

    A prompt of which more than its class's `heavy_tokens` must be computed is a heavy job (rule R5) and runs in the long
    pool; so does what a short slot cannot hold, and what continues a sequence that ran there. Output that a readmitted request
    comes with makes no job heavy: a dozen streams that go on after a crash would find two slots.
    """
    fitting = [name for name, pool in policy.pools.items() if request.n_cells <= pool.slot_cells]
    if request.pool:
        return request.pool if request.pool in fitting else None
    if SHORT_POOL in fitting and LONG_POOL in fitting:
        to_compute = request.n_prompt - cached[SHORT_POOL]
        heavy = to_compute > policy.classes[request.request_class].heavy_tokens
        continues_long = cached[LONG_POOL] > cached[SHORT_POOL] + policy.quantum_tokens
        return LONG_POOL if heavy or continues_long else SHORT_POOL
    # A heavy prompt that only a short slot could hold is refused: the pools are not made for it. One that was accepted before
    # had a prefix there that this scheduler does not know of.
    heavy = not request.readmitted and request.n_prompt > policy.classes[request.request_class].heavy_tokens
    return next((name for name in fitting if name == LONG_POOL or not heavy), None)


def cells_max(pools: Mapping[str, PoolPolicy]) -> int:
    """Cells of the largest slot: the limit that a TOO_LONG rejection names."""
    return max(pool.slot_cells for pool in pools.values())


def slots_max(pool: str, policy: ClassPolicy) -> int:
    """Slots of a pool that a class may hold."""
    return policy.heavy_max if pool == LONG_POOL else policy.slots_max
