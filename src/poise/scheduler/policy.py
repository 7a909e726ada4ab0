"""The scheduler's parameters. Configuration builds these; the scheduler takes nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from poise.scheduler.request import RequestClass


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """A KV pool: one llama_context whose slots are separate streams of `slot_cells` cells each.

    The last `reserved_slots` free slots go only to interactive requests of a tenant that holds none in the pool, so that
    a tenant which fills the pool cannot keep a newcomer waiting for one of its requests to end.
    """

    n_slots: int
    slot_cells: int
    reserved_slots: int = 0


@dataclass(frozen=True, slots=True)
class ClassPolicy:
    """How one class of requests is treated.

    queue_max        requests that may wait
    itl_target_us    inter-token latency that a step must keep while this class decodes
    min_share        share of compute guaranteed while other classes compete, 0 to 1 (interactive work needs none: it is first)
    slots_max        slots of the short pool that the class may hold
    heavy_tokens     prompts longer than this are heavy jobs and run in the long pool
    heavy_max        heavy jobs of the class that may run at once
    """

    queue_max: int
    itl_target_us: int
    min_share: float
    slots_max: int
    heavy_tokens: int
    heavy_max: int


@dataclass(frozen=True, slots=True)
class CostPrior:
    """First guess of a pool's cost model, until steps have been measured (microseconds)."""

    fixed_us: float = 2000.0
    decode_us: float = 5000.0
    prompt_us: float = 4000.0
    attended_us: float = 1.0


@dataclass(frozen=True, slots=True)
class SchedulerPolicy:
    """All of the scheduler's parameters.

    quantum_tokens   least chunk of a prompt that is planned whatever the budget says
    chunk_tokens     per pool: the chunk at which prompt tokens get cheap; a heavy prompt saves up budget for one
    step_max_us      a step's time budget while no sequence decodes
    fill_share       share of a step's budget that background may fill up while interactive sequences decode
    batch_tokens     most tokens in one batch
    grain_us         tenants whose served cost differs by less rank alike
    ageing           share of waited time that is taken off a prompt's predicted cost when prompts are ordered
    hole_steps       steps a hole in a pool's slots may persist before it is closed by a move
    """

    pools: Mapping[str, PoolPolicy]
    classes: Mapping[RequestClass, ClassPolicy]
    quantum_tokens: int = 16
    step_max_us: int = 250_000
    fill_share: float = 0.6
    chunk_tokens: Mapping[str, int] = field(default_factory=dict)
    batch_tokens: int = 512
    grain_us: int = 500_000
    ageing: float = 0.1
    hole_steps: int = 2
    priors: Mapping[str, CostPrior] = field(default_factory=dict)


SHORT_POOL = "short"
LONG_POOL = "long"
