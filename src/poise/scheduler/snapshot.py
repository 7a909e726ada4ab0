"""The scheduler's gauges and counters at one moment, as values that never change afterwards."""

from dataclasses import dataclass, field

from poise.scheduler.bottleneck import Limit
from poise.scheduler.memory.kv import PoolBooks
from poise.scheduler.memory.store import StoreBooks
from poise.scheduler.request import PreemptionKind, RequestClass


@dataclass(frozen=True, slots=True)
class ClassSnapshot:
    """One class. `n_waiting`: new requests without a slot; `served_us`: virtual counters of its active tenants."""

    n_waiting: int
    n_running: int
    n_paused: int
    n_swapped: int
    wait_estimate_us: int
    wait_error: float
    served_us: dict[str, int]
    total_us: int
    """Compute that the class was served since the start."""
    jain: float
    """Jain's index over the tenants of the last minute; see `equity`."""
    gap_us: int
    """How far apart the served costs of tenants are that both have something waiting now."""


@dataclass(slots=True)
class Counters:
    """Totals since the scheduler was made."""

    accepted: int = 0
    finished: int = 0
    expired: int = 0
    resumed: int = 0
    downgraded: int = 0
    prefix_hits: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    preempted: dict[PreemptionKind, int] = field(default_factory=lambda: dict.fromkeys(PreemptionKind, 0))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Levels at one moment."""

    step: int
    n_moves: int
    counters: Counters
    classes: dict[RequestClass, ClassSnapshot]
    pools: dict[str, PoolBooks]
    store: StoreBooks
    carry_us: float
    """Measured cost of carrying one cell between a slot and the host store."""
    n_unstored: int
    """Sequences whose cells were dropped because the host store was full."""
    limit: Limit
    """What limits progress now, since `limit_since_ns`; and for how long each resource did before."""
    limit_since_ns: int
    limited_ns: dict[Limit, int]
