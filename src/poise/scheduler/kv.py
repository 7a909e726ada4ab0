"""The books of KV cells: which slot of which pool belongs to whom, and how many cells it uses.

A slot is a stream of its own, so cells cannot fragment across sequences; what matters is that the busy slots are dense
(rule R8): llama.cpp batches only runs of consecutive slot ids, and a badly split batch costs up to 1.7 times as much.
Hence a sequence takes the lowest free slot, and a hole that persists is closed by moving the highest sequence down.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from poise.scheduler.policy import PoolPolicy
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence, State


@dataclass(frozen=True, slots=True)
class PoolBooks:
    """A pool's figures at one moment, in slots and cells."""

    slots_held: int
    slots: int
    cells_held: int
    cells_used: int
    cells: int
    slots_peak: int
    cells_used_peak: int


class KvPool:
    """The slots of one pool. Deterministic: the lowest free slot is taken first."""

    def __init__(self, name: str, policy: PoolPolicy) -> None:
        self.name = name
        self.policy = policy
        self.holders: dict[int, Sequence] = {}
        """Slot to sequence, for the slots that are held."""
        self._free = list(range(policy.n_slots))
        self._held_by_class: dict[RequestClass, int] = dict.fromkeys(RequestClass, 0)
        self._held_by_tenant: dict[str, int] = {}
        self._hole_age = 0
        self._slots_peak = 0
        self._cells_peak = 0

    @property
    def n_free(self) -> int:
        return len(self._free)

    def held_by(self, request_class: RequestClass) -> int:
        return self._held_by_class[request_class]

    def may_take(self, request_class: RequestClass, tenant: str, class_slots_max: int) -> bool:
        """Whether a request of this class and tenant may have a slot now. Modifies nothing."""
        if not self._free or self._held_by_class[request_class] >= class_slots_max:
            return False
        if len(self._free) > self.policy.reserved_slots:
            return True
        return request_class is RequestClass.INTERACTIVE and tenant not in self._held_by_tenant

    def take(self, sequence: Sequence) -> None:
        """Give the sequence the lowest free slot. There must be one."""
        assert sequence.request.n_cells <= self.policy.slot_cells, f"request {sequence.request.request_id} cannot fit"
        slot = heapq.heappop(self._free)
        sequence.slot = slot
        self.holders[slot] = sequence
        self._count(sequence, +1)
        self._slots_peak = max(self._slots_peak, len(self.holders))

    def release(self, sequence: Sequence) -> int:
        """Take the sequence's slot back and return its number. The runner must still be told."""
        slot = sequence.slot
        assert self.holders.get(slot) is sequence, f"slot {slot} is not held by request {sequence.request.request_id}"
        del self.holders[slot]
        heapq.heappush(self._free, slot)
        self._count(sequence, -1)
        sequence.slot = -1
        return slot

    def close_hole(self, persist_steps: int) -> tuple[Sequence, int, int] | None:
        """Move the highest sequence into the lowest hole once holes have persisted for `persist_steps` calls.

        Modifies the books at once and returns (sequence, source slot, target slot); the caller must have the state moved.
        """
        if not self.holders or not self._free or self._free[0] > max(self.holders):
            self._hole_age = 0
            return None
        self._hole_age += 1
        if self._hole_age <= persist_steps:
            return None
        self._hole_age = 0
        source = max(self.holders)
        sequence = self.holders.pop(source)
        target = heapq.heapreplace(self._free, source)
        self.holders[target] = sequence
        sequence.slot = target
        return sequence, source, target

    def books(self) -> PoolBooks:
        used = sum(s.n_computed for s in self.holders.values())
        self._cells_peak = max(self._cells_peak, used)
        return PoolBooks(
            slots_held=len(self.holders),
            slots=self.policy.n_slots,
            cells_held=len(self.holders) * self.policy.slot_cells,
            cells_used=used,
            cells=self.policy.n_slots * self.policy.slot_cells,
            slots_peak=self._slots_peak,
            cells_used_peak=self._cells_peak,
        )

    def check(self) -> None:
        """Assert that the books balance (invariant 3)."""
        assert sorted([*self._free, *self.holders]) == list(range(self.policy.n_slots)), f"{self.name}: slots lost"
        for slot, sequence in self.holders.items():
            assert sequence.slot == slot, f"{self.name}: slot {slot} is out of step with its sequence"
            assert sequence.pool == self.name, f"{self.name}: slot {slot} is held by a sequence of {sequence.pool}"
            assert sequence.state is State.RUNNING, f"{self.name}: slot {slot} is held by a {sequence.state} sequence"
            assert sequence.n_computed <= self.policy.slot_cells, f"{self.name}: slot {slot} overflows"
        by_class = {c: sum(s.request.request_class is c for s in self.holders.values()) for c in RequestClass}
        assert by_class == self._held_by_class, f"{self.name}: class books are wrong"
        assert sum(self._held_by_tenant.values()) == len(self.holders), f"{self.name}: tenant books are wrong"
        assert all(n > 0 for n in self._held_by_tenant.values()), f"{self.name}: a tenant holds nothing"

    def _count(self, sequence: Sequence, change: int) -> None:
        self._held_by_class[sequence.request.request_class] += change
        tenant = sequence.request.tenant
        held = self._held_by_tenant.get(tenant, 0) + change
        if held:
            self._held_by_tenant[tenant] = held
        else:
            del self._held_by_tenant[tenant]
