"""Which pool a request belongs to, and whether it can ever run.

What can never fit is rejected on arrival (invariant 4): a request that is accepted and cannot run would block its queue for
ever (vLLM issue 39734 describes that failure)."""

from collections.abc import Mapping
from dataclasses import replace

from poise.scheduler.fairness.thresholds import may_take
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request, RequestClass

QUEUE_SHARE = 4.0
"""What an account may have of a class's queue, in what is free without it: alone, four fifths of the places."""
FIRST_PLACES_MAX = 8
"""Places at a queue's end that only accounts get which have none yet: an eighth of them, and no more than this."""


def route(request: Request, policy: SchedulerPolicy, cached: Mapping[str, int], n_likely: int) -> str | None:
    """The pool the request will run in, or None when it fits in none: when no slot holds more than it comes with.

    `cached`: by pool, prompt tokens it need not compute. `n_likely`: output that it will probably have; what no slot holds beside
    its prompt goes where it gets most of it.

    A prompt of which more than its class's `heavy_tokens` must be computed is a heavy job (rule R5) and runs in the long
    pool; so does what a short slot cannot hold, and what continues a sequence that ran there. Output that a readmitted request
    comes with makes no job heavy: a dozen streams that go on after a crash would find two slots."""
    holding = {name: pool.slot_cells for name, pool in policy.pools.items() if request.n_known <= pool.slot_cells}
    if request.pool:
        return request.pool if request.pool in holding else None
    fitting = [name for name, cells in holding.items() if request.n_cells(n_likely) <= cells]
    fitting = fitting or [name for name, cells in holding.items() if cells == max(holding.values())]
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


def shortest_for(pools: Mapping[str, PoolPolicy], n_tokens: int) -> str | None:
    """The pool with the shortest slots that hold so many tokens; None: there is none."""
    holding = [(pool.slot_cells, name) for name, pool in pools.items() if n_tokens <= pool.slot_cells]
    return min(holding)[1] if holding else None


def slots_max(pools: Mapping[str, PoolPolicy], pool: str, policy: ClassPolicy) -> int:
    """Slots of a pool that a class may hold: the part of it that its `slots_max` is of the short one, at least one."""
    n_slots = pools[pool].n_slots
    return max(1, policy.slots_max * n_slots // pools[SHORT_POOL].n_slots) if SHORT_POOL in pools else n_slots


def shared_places(limit: int) -> int:
    """Places of a class's queue that accounts get which have one already."""
    return limit - min(FIRST_PLACES_MAX, limit // 8)


def queue_places(held: int, waiting: int, limit: int, *, declared: bool) -> int:
    """How many places of a class's queue an account that has `held` of them may have now; `waiting` are all that are taken.

    One alone gets most of them, and leaves room for the next one, who leaves room for the one after. The last places go to
    accounts that have none. An account that the operator declared has its first place whatever the others have."""
    if held == 0 and (declared or waiting < limit):
        return 1
    may_have = may_take(1, held=held, used=waiting, total=limit, share=QUEUE_SHARE, least=1)
    return held + (may_have and waiting < shared_places(limit))


def lowered(
    classes: Mapping[RequestClass, ClassPolicy], queue_share: float, slots_share: float, row_limit: int = 0
) -> dict[RequestClass, ClassPolicy]:
    """The classes with these shares of their `queue_max` and `slots_max`, at least 1 of each, and no more than `row_limit` slots
    of a pool; 0: no limit."""
    lower = {}
    for c, limits in classes.items():
        slots, heavy = _part(limits.slots_max, slots_share), limits.heavy_max
        slots, heavy = (min(slots, row_limit), min(heavy, row_limit)) if row_limit else (slots, heavy)
        lower[c] = replace(limits, queue_max=_part(limits.queue_max, queue_share), slots_max=slots, heavy_max=heavy)
    return lower


def _part(limit: int, share: float) -> int:
    """That share of a limit, and at least 1. (A share such as 0.29 of 100 must not come out as 28.)"""
    return max(1, int(limit * share + 1e-9))
