"""The scheduler's gauges and counters at one moment, as values that never change afterwards."""

from dataclasses import dataclass

from poise.scheduler.bottleneck import Limit
from poise.scheduler.memory.kv import PoolStatus
from poise.scheduler.memory.store import StoreStatus
from poise.scheduler.request import RequestClass
from poise.scheduler.totals import Totals


@dataclass(frozen=True, slots=True)
class ClassStatus:
    """How a class stands: requests by state, and the estimated wait of a new arrival. `queued` never had a slot; `paused` stand
    still: an operator has paused them, their reader is behind, or they are not prepared."""

    queued: int
    running: int
    wait_estimate_us: int
    paused: int = 0
    swapped: int = 0
    wait_error: float = 0.0
    """Estimates of the wait against what then happened: mean of |log(estimated / waited)| over recent starts that waited."""
    served_us: int = 0
    """Compute that the class was served since the start."""
    jain: float = 1.0
    """Jain's index over the tenants of the last minute; see `equity`."""
    gap_us: int = 0
    """How far apart the served costs of tenants are that both have something waiting now."""
    prompt_us: float = 0.0
    """Compute of a prompt token in the slowest pool, its attention apart."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Levels at one moment."""

    step: int
    n_moves: int
    totals: Totals
    classes: dict[RequestClass, ClassStatus]
    pools: dict[str, PoolStatus]
    store: StoreStatus
    limit: Limit
    """What limits progress now, since `limit_since_ns`; and for how long each resource did before."""
    limit_since_ns: int
    limited_ns: dict[Limit, int]
