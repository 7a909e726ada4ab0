"""Where every KV cell is, worked out again from the operations and batches that were carried out, and from nothing else.

The scheduler's books are one account of the cells, the runner's real cells another; this is a third, kept by somebody who
trusts neither. It knows whose cells they are, so it sees a tenant's cells reach another (invariant 12)."""

from collections.abc import Container
from dataclasses import dataclass, replace
from typing import Protocol

from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.plan import Chunk, KvOperation, StepPlan, StepResult

OPERATOR = ""
"""The tenant of declared templates, which any other may use."""


class RealCells(Protocol):
    """The part of a simulated runner that tells what is really there."""

    @property
    def stored_bytes(self) -> int:
        """What the host store takes."""

    def slot_positions(self, pool: str, slot: int) -> int:
        """The highest position in the slot, -1 when it is empty."""


@dataclass(frozen=True, slots=True)
class Cells:
    """`n` cells of one tenant; None: its batch or its row failed, and what is left can only be released."""

    tenant: str
    request_id: int
    n: int | None


class Mirror:
    """Slots and entries. Every method asserts that what it is given can be."""

    def __init__(self) -> None:
        self.slots: dict[tuple[str, int], Cells] = {}
        self.entries: dict[int, tuple[str, Cells]] = {}
        """Entry to the pool that it came from and its cells."""
        self._tenants: dict[int, str] = {}

    def add(self, request_id: int, tenant: str) -> None:
        self._tenants[request_id] = tenant

    def forget(self, request_id: int) -> None:
        """The request has ended. Its cells may stay."""
        self._tenants.pop(request_id, None)

    def carry_out(self, plan: StepPlan, result: StepResult) -> None:
        """A step as the runner carried it out."""
        unstored, lost = set(result.unstored), set(result.lost)
        for operation in plan.operations:
            self._apply(operation, unstored, lost)
        for batch, batch_result in zip(plan.batches, result.batches, strict=True):
            failed = {request_id for request_id, _ in batch_result.row_errors}
            accepted = {request_id: n_accepted for request_id, _, n_accepted in batch_result.drafted}
            for chunk in batch.chunks:
                if chunk.request_id not in lost:
                    n_cells = chunk.start + chunk.n_tokens + accepted.get(chunk.request_id, 0)
                    is_lost = bool(batch_result.failed) or chunk.request_id in failed
                    self._compute(batch.pool, chunk, None if is_lost else n_cells)

    def used_by(self, pool: str, live: Container[int]) -> int:
        """Cells of a pool that belong to live requests."""
        return sum(c.n or 0 for (name, _), c in self.slots.items() if name == pool and c.request_id in live)

    def stored_cells(self) -> dict[str, int]:
        """Cells in the host store, by the pool that they came from."""
        found: dict[str, int] = {}
        for pool, cells in self.entries.values():
            found[pool] = found.get(pool, 0) + (cells.n or 0)
        return found

    def compare(self, real: RealCells) -> None:
        """Assert that the runner holds exactly these cells (invariant 3). What a failed batch left is unknown."""
        for (pool, slot), cells in self.slots.items():
            n_real = real.slot_positions(pool, slot) + 1
            assert cells.n is None or n_real == cells.n, f"slot {slot} of {pool} holds {n_real} cells, not {cells.n}"

    def compare_empty(self, real: RealCells, pools: dict[str, int]) -> None:
        """Assert that slots which should be empty are. `pools`: slots by pool."""
        for pool, n_slots in pools.items():
            for slot in range(n_slots):
                if (pool, slot) not in self.slots:
                    n_real = real.slot_positions(pool, slot) + 1
                    assert n_real == 0, f"slot {slot} of {pool} should be empty and holds {n_real} cells"

    def _apply(self, operation: KvOperation, unstored: set[int], lost: set[int]) -> None:
        match operation:
            case kv.ReleaseSlot(pool, slot, _):
                self.slots.pop((pool, slot), None)
            case kv.TrimSlot(pool, slot, n_cells):
                cells = self._known(pool, slot, n_cells, "trimmed")
                if n_cells:
                    self.slots[pool, slot] = replace(cells, n=n_cells)
                else:
                    del self.slots[pool, slot]
            case kv.MoveSlot(pool, source, target, request_id):
                self._assert_empty(pool, target, operation)
                moved = self.slots.pop((pool, source), None)  # None: its load was lost, and it has yet to begin again
                if moved is not None and request_id not in lost:
                    self.slots[pool, target] = moved
            case kv.CopySlot(pool, source, target, n_cells, request_id):
                self._assert_empty(pool, target, operation)
                if request_id not in lost:
                    cells = self._known(pool, source, n_cells, "copied")
                    self._take_over(pool, target, cells, n_cells, request_id)
            case kv.StoreSlot(pool, slot, entry, n_cells):
                assert entry not in self.entries, f"{operation}: the entry is there already"
                if entry not in unstored:
                    cells = self._known(pool, slot, n_cells, "stored")
                    self.entries[entry] = (pool, replace(cells, n=n_cells))
            case kv.LoadSlot(pool, slot, entry, n_cells, request_id):
                self._assert_empty(pool, slot, operation)
                if entry in unstored:
                    assert request_id in lost, f"{operation}: a request goes on from cells that were never stored"
                    return
                assert entry in self.entries, f"{operation}: there is no such entry"
                home, cells = self.entries[entry]
                assert home == pool, f"{operation}: the entry is of pool {home}"
                assert n_cells <= (cells.n or 0), f"{operation}: the entry has {cells.n} cells"
                if request_id not in lost:
                    self._take_over(pool, slot, cells, n_cells, request_id)
            case kv.DropEntry(entry):
                # An entry whose store failed in the same step is dropped in vain.
                assert entry in self.entries or entry in unstored, f"{operation}: there is no such entry"
                self.entries.pop(entry, None)
            case kv.ScrubPool():
                pass  # What slots hold stays.

    def _take_over(self, pool: str, slot: int, cells: Cells, n_cells: int, request_id: int) -> None:
        """Cells of `cells.tenant` become part of a request's sequence."""
        tenant = self._tenants.get(request_id)
        assert tenant is not None, f"cells are given to request {request_id}, which is not live"
        allowed = cells.tenant in (tenant, OPERATOR)
        assert allowed, f"request {request_id} of tenant {tenant} is given cells of {cells.tenant} (invariant 12)"
        if n_cells:
            self.slots[pool, slot] = Cells(tenant, request_id, n_cells)

    def _compute(self, pool: str, chunk: Chunk, n_cells: int | None) -> None:
        tenant = self._tenants[chunk.request_id]
        cells = self.slots.get((pool, chunk.slot), Cells(tenant, chunk.request_id, 0))
        assert cells.n == chunk.start, f"{chunk} in {pool}: the slot holds {cells.n} cells"
        goes_on = f"{chunk} in {pool}: tenant {tenant} goes on from cells of {cells.tenant} (invariant 12)"
        assert cells.tenant == tenant or not cells.n, goes_on
        self.slots[pool, chunk.slot] = Cells(tenant, chunk.request_id, n_cells)

    def _known(self, pool: str, slot: int, n_cells: int, what: str) -> Cells:
        cells = self.slots.get((pool, slot))
        assert cells is not None, f"slot {slot} of {pool} is {what} and empty"
        assert n_cells <= (cells.n or 0), f"slot {slot} of {pool} holds {cells.n} cells; {n_cells} are {what}"
        return cells

    def _assert_empty(self, pool: str, slot: int, operation: KvOperation) -> None:
        assert (pool, slot) not in self.slots, f"{operation}: the target holds {self.slots[pool, slot]}"
