"""How the engine stands, as it reports once in a while: queues, slots, cells and counters. No text, and no token ids."""

import msgspec

from poise.scheduler.memory.kv import PoolStatus
from poise.scheduler.memory.store import StoreStatus
from poise.scheduler.request import Queued, RequestClass
from poise.scheduler.snapshot import ClassStatus
from poise.scheduler.totals import Totals
from poise.wire.figures import Bottleneck, StepFigures, StructureFigures


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Engine to gateway, a few times a second while anything happens: counters since start, and gauges."""

    step: int
    classes: dict[RequestClass, ClassStatus]
    pools: list[PoolStatus]
    prompt_tokens: int
    output_tokens: int
    moves: int
    rss_bytes: int
    store: StoreStatus | None = None
    totals: Totals = msgspec.field(default_factory=Totals)
    waiting: list[Queued] = []
    """Queued requests with their places, in order, at most once a second; empty in between."""
    threads: int = 0
    """Threads that compute now."""
    unaccounted_bytes: int = 0
    """Resident memory minus weights, KV cells and host store: compute buffers, the interpreter, and what nobody counts."""
    steps: StepFigures = StepFigures()
    bottleneck: Bottleneck = Bottleneck()
    structure: StructureFigures = msgspec.field(default_factory=StructureFigures)
