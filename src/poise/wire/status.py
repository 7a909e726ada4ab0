"""How the engine stands, as it reports once in a while: queues, slots, cells and counters. No text, and no token ids."""

import msgspec

from poise.wire.figures import Bottleneck, Equity, StepFigures, StructureFigures, Totals


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """A queued request's place in its class's queue, from 1, and how long it is still expected to wait."""

    request_id: int
    position: int
    eta_us: int


class ClassStatus(msgspec.Struct, frozen=True, array_like=True):
    """How a class stands: requests by state, and the estimated wait of a new arrival. `paused` stand still: an operator has
    paused them, or their reader is behind."""

    queued: int
    running: int
    wait_estimate_us: int
    paused: int = 0
    swapped: int = 0
    wait_error: float = 0.0
    """Estimates of the wait against what then happened: mean of |log(estimated / waited)| over recent starts that waited."""


class SlotStatus(msgspec.Struct, frozen=True, array_like=True):
    """A slot that is not empty. `state`: "running", "paused" or "warm"; `request_class` is "" where nobody holds it."""

    slot: int
    state: str
    request_class: str
    cells: int


class PoolStatus(msgspec.Struct, frozen=True, array_like=True):
    """How a pool stands, in slots and KV cells. Warm slots hold a finished sequence's cells and are free to be taken."""

    name: str
    slots_held: int
    slots: int
    cells_used: int
    cells: int
    slots_warm: int = 0
    cells_warm: int = 0
    slots_peak: int = 0
    cells_peak: int = 0
    cells_by_class: dict[str, int] = {}
    cells_by_tenant: dict[str, int] = {}
    """Used cells of the tenants that hold most, at most 20 of them; the rest under ""."""
    cells_held: int = 0
    """All cells of the slots that are held, whether they hold a token or not."""
    holes: int = 0
    """Free slots below the highest one that is held."""
    occupied: list[SlotStatus] = []
    """The slots that are not empty, in the order of their numbers."""


class StoreStatus(msgspec.Struct, frozen=True, array_like=True):
    """How the host store stands. `bytes_by_purpose`: "swap", "prefix", "template"."""

    budget_bytes: int
    bytes_by_purpose: dict[str, int]
    entries_by_purpose: dict[str, int]
    peak_bytes: int


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Engine to gateway, a few times a second while anything happens: counters since start, and gauges."""

    step: int
    classes: dict[str, ClassStatus]
    pools: list[PoolStatus]
    prompt_tokens: int
    output_tokens: int
    moves: int
    rss_bytes: int
    store: StoreStatus | None = None
    totals: Totals = Totals()
    waiting: list[Waiting] = []
    """Queued requests with their places, in order, at most once a second; empty in between."""
    threads: int = 0
    """Threads that compute now."""
    unaccounted_bytes: int = 0
    """Resident memory minus weights, KV cells and host store: compute buffers, the interpreter, and what nobody counts."""
    steps: StepFigures = StepFigures()
    bottleneck: Bottleneck = Bottleneck()
    equity: dict[str, Equity] = {}
    """By class."""
    structure: StructureFigures = msgspec.field(default_factory=StructureFigures)
