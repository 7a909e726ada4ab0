"""Which pool a request belongs to, whether it can ever run, and how long it would wait.

What can never fit is rejected on arrival (invariant 4): a request that is accepted and cannot run would block its queue for
ever (vLLM issue 39734 describes that failure).
"""

from __future__ import annotations

from collections.abc import Mapping

from poise.scheduler.budget import CostModel
from poise.scheduler.policy import LONG_POOL, SHORT_POOL, ClassPolicy, PoolPolicy, SchedulerPolicy
from poise.scheduler.request import Request, RequestClass

OUTPUT_RATIO_FIRST = 0.5
OUTPUT_RATIO_MEMORY = 0.95


def route(request: Request, policy: SchedulerPolicy) -> str | None:
    """The pool the request will run in, or None when it fits in none.

    A prompt over its class's `heavy_tokens` is a heavy job (rule R5); so is what a short slot cannot hold.
    """
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


class WaitEstimator:
    """Estimates the wait of a new arrival from the cost models and the backlog.

    With every slot busy, each request ahead must first be computed whole; requests rarely use all the output they ask for,
    so the used share is learnt from those that ended.
    """

    def __init__(self, models: Mapping[str, CostModel]) -> None:
        self._models = models
        self._output_ratio = dict.fromkeys(RequestClass, OUTPUT_RATIO_FIRST)

    def learn(self, request: Request, n_output: int) -> None:
        """A request ended by itself with `n_output` tokens."""
        used = n_output / request.max_output
        old = self._output_ratio[request.request_class]
        self._output_ratio[request.request_class] = OUTPUT_RATIO_MEMORY * old + (1 - OUTPUT_RATIO_MEMORY) * used

    def work_us(self, request_class: RequestClass, pool: str, prompt_tokens: int, output_tokens: int) -> float:
        """Predicted compute of that many prompt and output tokens, attention apart."""
        model = self._models[pool]
        output = output_tokens * self._output_ratio[request_class]
        return prompt_tokens * model.prompt_us + output * model.decode_us
