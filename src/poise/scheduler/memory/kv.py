"""The books of KV cells: which slot of which pool belongs to whom, and how many cells it uses.

A slot is a stream of its own, so cells cannot fragment across sequences; what matters is that the busy slots are dense
(rule R8): llama.cpp batches only runs of consecutive slot ids, and a badly split batch costs up to 1.7 times as much.
Which slot is taken, and which hole is closed, is decided in `planning/slots`.

A slot is held by a sequence, or free. A free slot can be warm: it still has the cells of a finished sequence, for requests
that begin alike, until a sequence takes it."""

from bisect import insort
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass, field
from typing import NamedTuple

from poise.scheduler.memory.prefix import Prefix
from poise.scheduler.policy import PoolPolicy
from poise.scheduler.request import RequestClass
from poise.scheduler.sequence import Sequence

WARM = "warm"


class SlotStatus(NamedTuple):
    """A slot that is not empty: held by a running or a paused sequence, or warm."""

    slot: int
    state: str
    """A State, or "warm"."""
    request_class: str
    """A RequestClass, of who holds it; "" for a warm one, which nobody holds."""
    cells: int


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """How a pool stands, in slots and cells. Warm slots hold a finished sequence's cells and are free to be taken; `cells_used`
    leaves theirs out."""

    name: str
    slots_held: int
    slots: int
    cells_used: int
    cells: int
    slots_warm: int = 0
    cells_warm: int = 0
    slots_peak: int = 0
    cells_peak: int = 0
    cells_by_class: dict[RequestClass, int] = field(default_factory=dict)
    cells_by_tenant: dict[str, int] = field(default_factory=dict)
    """Used cells; the engine reports those of the tenants that hold most, and the rest under ""."""
    cells_held: int = 0
    """All cells of the slots that are held, whether they hold a token or not."""
    holes: int = 0
    """Free slots below the highest one that is held: batches that are split cost more (rule R8)."""
    occupied: tuple[SlotStatus, ...] = ()
    """The slots that are not empty, in the order of their numbers."""


class KvPool:
    """The slots of one pool."""

    def __init__(self, name: str, policy: PoolPolicy) -> None:
        self.name = name
        self.policy = policy
        self.holders: dict[int, Sequence] = {}
        """Slot to sequence, for the slots that are held."""
        self.warm: dict[int, Prefix] = {}
        """Slot to what a finished sequence left there, for free slots that are not empty."""
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

    def held_by_tenant(self, tenant: str) -> int:
        return self._held_by_tenant.get(tenant, 0)

    def may_take(self, request_class: RequestClass, class_slots_max: int) -> bool:
        """Whether a sequence of this class may have a slot now."""
        return bool(self._free) and self._held_by_class[request_class] < class_slots_max

    @property
    def free(self) -> SequenceOf[int]:
        """The slots that nobody holds, in the order of their numbers."""
        return self._free

    def take(self, sequence: Sequence, slot: int) -> None:
        """Give the sequence a free slot. Whether it is warm is for the caller to see to."""
        assert sequence.n_tokens <= self.policy.slot_cells, f"request {sequence.request.request_id} cannot fit"
        self._free.remove(slot)
        sequence.slot = slot
        self.holders[slot] = sequence
        self._count(sequence, +1)
        self._slots_peak = max(self._slots_peak, len(self.holders))

    def release(self, sequence: Sequence) -> int:
        """Take the sequence's slot back and return its number. The runner does not know of it yet."""
        slot = sequence.slot
        assert self.holders.get(slot) is sequence, f"slot {slot} is not held by request {sequence.request.request_id}"
        del self.holders[slot]
        insort(self._free, slot)
        self._count(sequence, -1)
        sequence.slot = -1
        return slot

    def has_held_holes(self, persist_steps: int) -> bool:
        """Whether there have been free slots below the highest held one for more than so many calls; then not for as many."""
        if not self.holders or not self._free or self._free[0] > max(self.holders):
            self._hole_age = 0
            return False
        self._hole_age += 1
        if self._hole_age <= persist_steps:
            return False
        self._hole_age = 0  # most of what is not worth closing now is not in the next step, either
        return True

    def move(self, source: int, target: int) -> Sequence:
        """The sequence of a slot goes to a free one, which the caller has emptied, and its state with it. Returns it."""
        sequence = self.holders.pop(source)
        self._free.remove(target)
        insort(self._free, source)
        self.holders[target] = sequence
        sequence.slot = target
        self._hole_age = 0
        return sequence

    def change_class(self, sequence: Sequence, request_class: RequestClass) -> None:
        """The sequence, which holds a slot, is of another class from now on."""
        self._held_by_class[sequence.request_class] -= 1
        self._held_by_class[request_class] += 1

    def books(self) -> PoolStatus:
        used = sum(s.n_computed for s in self.holders.values())
        by_class = dict.fromkeys(RequestClass, 0)
        by_tenant: dict[str, int] = {}
        for sequence in self.holders.values():
            tenant = sequence.request.tenant
            by_class[sequence.request_class] += sequence.n_computed
            by_tenant[tenant] = by_tenant.get(tenant, 0) + sequence.n_computed
        self._cells_peak = max(self._cells_peak, used)
        return PoolStatus(
            name=self.name,
            slots_held=len(self.holders),
            slots=self.policy.n_slots,
            cells_held=len(self.holders) * self.policy.slot_cells,
            cells_used=used,
            cells=self.policy.n_slots * self.policy.slot_cells,
            slots_peak=self._slots_peak,
            cells_peak=self._cells_peak,
            slots_warm=len(self.warm),
            cells_warm=sum(prefix.n_cells for prefix in self.warm.values()),
            cells_by_class=by_class,
            cells_by_tenant=by_tenant,
            holes=max(self.holders, default=-1) + 1 - len(self.holders),
            occupied=self._occupied(),
        )

    def _occupied(self) -> tuple[SlotStatus, ...]:
        held = [SlotStatus(slot, s.state, s.request_class, s.n_computed) for slot, s in self.holders.items()]
        warm = [SlotStatus(slot, WARM, "", prefix.n_cells) for slot, prefix in self.warm.items()]
        return tuple(sorted(held + warm))

    def _count(self, sequence: Sequence, change: int) -> None:
        self._held_by_class[sequence.request_class] += change
        tenant = sequence.request.account
        held = self._held_by_tenant.get(tenant, 0) + change
        if held:
            self._held_by_tenant[tenant] = held
        else:
            del self._held_by_tenant[tenant]
