"""What limits progress: for each step, or rest, the one resource of which there was not enough.

    host_memory    a sequence computes again what it lost because the host store was full
    compute        somebody who has a slot did not get all that it could use, or waits for one while the step is full all the
                   same, so that a slot would not have helped
    kv_cells       somebody waits for a slot, and the step had time to spare
    tenant_limits  all who wait do so because their tenants run as many requests as they may
    power          the host's power, heat or quota: it pauses between steps, or background has to wait
    readers        nobody waits, but requests are held because whoever reads them is behind
    none           it computes, and nobody waits for anything
    idle           there is nothing to compute

The first that applies, in this order. The time from one plan to the next goes to what limited the first of them, so all time
is accounted for, and the shares add up to one."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from poise.scheduler import admission
from poise.scheduler.planning.books import Books
from poise.scheduler.planning.plan import Batch
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence

FULL_SHARE = 0.8
"""A step is full when its plan is predicted to take this share of its time budget, or more."""


class Limit(StrEnum):
    HOST_MEMORY = "host_memory"
    COMPUTE = "compute"
    KV_CELLS = "kv_cells"
    TENANT_LIMITS = "tenant_limits"
    POWER = "power"
    READERS = "readers"
    NONE = "none"
    IDLE = "idle"


@dataclass(slots=True)
class Bottleneck:
    """Adds up for how long each resource was the limit. `limit` is the present one, since `since_ns`."""

    limit: Limit = Limit.IDLE
    since_ns: int | None = None
    """None before the first plan."""
    limited_ns: dict[Limit, int] = field(default_factory=lambda: dict.fromkeys(Limit, 0))
    """Until `since_ns`."""

    def note(self, limit: Limit, now_ns: int) -> None:
        """From now on it is `limit`."""
        if self.since_ns is not None:
            self.limited_ns[self.limit] += max(0, now_ns - self.since_ns)
        self.limit, self.since_ns = limit, now_ns


def is_full(batches: tuple[Batch, ...], budget_us: int) -> bool:
    """Whether a step spends most of its time budget."""
    return sum(batch.predicted_us for batch in batches) >= FULL_SHARE * budget_us


def limit_of(books: Books, batches: tuple[Batch, ...], sequences: Mapping[int, Sequence], budget_us: int, n_held: int) -> Limit:
    """What limits a step that was just planned. `n_held`: requests that only their readers hold up. Modifies nothing."""
    n_sampled, refills = 0, False
    for batch in batches:
        for chunk in batch.chunks:
            n_sampled += chunk.sample
            if chunk.is_prompt and sequences[chunk.request_id].refill > chunk.start:
                refills = True
    if refills:
        return Limit.HOST_MEMORY
    n_running = sum(len(running) for owner, running in books.running.items() if books.runs(owner))
    if n_sampled < n_running:
        return Limit.COMPUTE
    if any(queue.n_queued and books.runs(owner) for (owner, _), queue in books.queues.items()):
        return Limit.COMPUTE if is_full(batches, budget_us) else _queues_wait_for(books)
    if not books.runs(RequestClass.BACKGROUND) and books.is_live(RequestClass.BACKGROUND):
        return Limit.POWER
    if n_held:
        return Limit.READERS
    return Limit.NONE if n_running else Limit.IDLE


def _queues_wait_for(books: Books) -> Limit:
    """What the first of the queues that may run lacks, in a step that is not full."""
    for (request_class, pool), queue in books.queues.items():
        if not (books.runs(request_class) and books.has_rows(request_class)):
            if queue.n_queued:
                return Limit.POWER
        elif queue.n_queued and any(books.first_waiting(request_class, pool, heavy=heavy) for heavy in (False, True)):
            slots_max = admission.slots_max(books.policy.pools, pool, books.limits[request_class])
            # With a slot to be had, it was the rest of the step that was too small for it, or heavy prompts have no place.
            return Limit.COMPUTE if books.pools[pool].may_take(request_class, slots_max) else Limit.KV_CELLS
    return Limit.TENANT_LIMITS
