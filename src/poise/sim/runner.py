"""A runner without a model, exact enough to catch a scheduler that cheats.

Its "model" is a hash chain: the state after a token depends on every token before it, and the next greedy token is a
function of that state. So a sequence whose KV cells were lost, mixed up or computed twice gives other tokens, and greedy
output must be the same whatever chunks, slots and neighbours the scheduler chose. A step costs what the given cost weights
say, on the virtual clock.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from poise.engine.ports import Row, RunnerError, Sampled
from poise.scheduler.budget import BatchShape, CostModel
from poise.scheduler.plan import (
    CopySlot,
    DropEntry,
    KvOperation,
    LoadSlot,
    MoveSlot,
    ReleaseSlot,
    StoreSlot,
    TrimSlot,
)
from poise.scheduler.policy import CostPrior
from poise.sim.clock import VirtualClock
from poise.sim.costs import Pace
from poise.wire.messages import PoolInfo, SamplingParams, Token, TokenLogprob

END_TOKEN = 0
"""The simulated vocabulary's end-of-generation token."""
CELL_BYTES = 64
"""What a cell takes in the host store, where the pool does not say."""
Fault = Callable[[str, object], bool]


@dataclass(slots=True)
class _Open:
    sampling: SamplingParams
    n_output: int = 0


class SimRunner:
    """Implements `poise.engine.ports.Runner` over hash chains.

    cost       what the machine costs: one for all pools, or one for each
    pace       what time a batch of a predicted cost takes (default: just that)
    end_rate   one in so many tokens ends a sequence, 0 for none
    carry_us   what storing, loading, copying or moving a cell costs
    fault      asked before each ("execute", pool) and each ("apply", operation that carries cells); True makes it fail
    """

    def __init__(
        self,
        pools: Sequence[PoolInfo],
        *,
        n_vocab: int = 1000,
        clock: VirtualClock | None = None,
        cost: CostPrior | Mapping[str, CostPrior] | None = None,
        pace: Pace | None = None,
        end_rate: int = 0,
        carry_us: float = 3.0,
        fault: Fault = lambda what, subject: False,
    ) -> None:
        self._pools = list(pools)
        self._n_vocab = n_vocab
        self._clock = clock or VirtualClock()
        costs = cost if isinstance(cost, Mapping) else {p.name: cost or CostPrior() for p in pools}
        self._costs = {name: CostModel(prior) for name, prior in costs.items()}
        self._pace = pace or (lambda _, predicted_us: int(predicted_us * 1000))
        self._end_rate = end_rate
        # One hash state after each computed token, per pool and slot; its length is the number of cells used.
        self._cells: dict[str, list[list[int]]] = {p.name: [[] for _ in range(p.n_slots)] for p in pools}
        self._capacity = {p.name: p.slot_cells for p in pools}
        self._open: dict[int, _Open] = {}
        self._cell_bytes = {p.name: p.cell_bytes or CELL_BYTES for p in pools}
        self._entries: dict[int, tuple[str, list[int]]] = {}
        self._carry_us = carry_us
        self._fault = fault

    @property
    def pools(self) -> Sequence[PoolInfo]:
        return self._pools

    def slot_positions(self, pool: str, slot: int) -> int:
        """The highest position in the slot, -1 when it is empty (as llama_memory_seq_pos_max)."""
        return len(self._cells[pool][slot]) - 1

    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self._open[request_id] = _Open(sampling)

    def close(self, request_id: int) -> None:
        self._open.pop(request_id, None)

    @property
    def threads(self) -> int:
        return 0

    @property
    def stored_bytes(self) -> int:
        """What the host store takes."""
        return sum(self._cell_bytes[pool] * len(cells) for pool, cells in self._entries.values())

    def apply(self, operation: KvOperation) -> int:
        if isinstance(operation, DropEntry):
            del self._entries[operation.entry]
            return 0
        cells = self._cells[operation.pool]
        match operation:
            case ReleaseSlot():
                cells[operation.slot] = []
            case TrimSlot():
                held = len(cells[operation.slot])
                assert operation.n_cells <= held, f"{operation}, but the slot has {held} cells"
                del cells[operation.slot][operation.n_cells :]
            case MoveSlot():
                moved, cells[operation.source] = cells[operation.source], []
                self._fill(operation, operation.target, moved)
            case CopySlot():
                held = len(cells[operation.source])
                assert operation.n_cells <= held, f"{operation}, but the slot has {held} cells"
                self._fill(operation, operation.target, cells[operation.source][: operation.n_cells])
            case StoreSlot():
                return self._keep(operation)
            case LoadSlot():
                pool, stored = self._entries[operation.entry]
                assert pool == operation.pool, f"entry {operation.entry} is of pool {pool}, not {operation.pool}"
                assert operation.n_cells <= len(stored), f"entry {operation.entry} has {len(stored)} cells"
                self._fill(operation, operation.slot, stored[: operation.n_cells])
        return 0

    def _fill(self, operation: MoveSlot | CopySlot | LoadSlot, slot: int, carried: list[int]) -> None:
        """Put carried cells into an empty slot."""
        cells = self._cells[operation.pool]
        assert not cells[slot], f"{operation} into slot {slot}, which is not empty"
        self._carry(len(carried), operation)
        cells[slot] = list(carried)

    def _keep(self, operation: StoreSlot) -> int:
        assert operation.entry not in self._entries, f"entry {operation.entry} is there already"
        cells = self._cells[operation.pool][operation.slot]
        assert len(cells) == operation.n_cells, f"{operation}, but the slot has {len(cells)} cells"
        self._carry(len(cells), operation)
        self._entries[operation.entry] = (operation.pool, list(cells))
        return self._cell_bytes[operation.pool] * len(cells)

    def _carry(self, n_cells: int, operation: KvOperation) -> None:
        self._clock.advance(int(self._carry_us * n_cells * 1000))
        if self._fault("apply", operation):
            raise RunnerError("a fault was asked for")

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        shape = BatchShape()
        slots = [row.slot for row in rows]
        assert slots == sorted(set(slots)), f"rows are not in ascending slot order: {slots}"
        for row in rows:
            cells = self._cells[pool][row.slot]
            if row.start != len(cells):
                raise RunnerError(f"slot {row.slot} of pool {pool} holds {len(cells)} cells, row starts at {row.start}")
            if row.start + len(row.tokens) > self._capacity[pool]:
                raise RunnerError(f"slot {row.slot} of pool {pool} has no room for {len(row.tokens)} more tokens")
            shape.add(is_prompt=len(row.tokens) > 1, start=row.start, n_tokens=len(row.tokens))
        self._clock.advance(self._pace(pool, self._costs[pool].predict_us(shape)))
        if self._fault("execute", pool):
            for row in rows:
                self._cells[pool][row.slot] = []
            raise RunnerError("a fault was asked for")
        sampled = []
        for row in rows:
            cells = self._cells[pool][row.slot]
            for token in row.tokens:
                cells.append(_mix(cells[-1] if cells else 0, token))
            if row.sample:
                sampled.append(self._sample(row.request_id, cells[-1]))
        return sampled

    def _sample(self, request_id: int, state: int) -> Sampled:
        opened = self._open[request_id]
        sampling = opened.sampling
        draw = state if sampling.temperature == 0 else _mix(state, sampling.seed)
        may_end = not sampling.ignore_eos and opened.n_output >= sampling.min_output
        if may_end and self._end_rate and draw % self._end_rate == 0:
            token = END_TOKEN
        else:
            token = 1 + draw % (self._n_vocab - 1)
            opened.n_output += 1
        logprob = -1.0 if sampling.n_logprobs >= 0 else None
        top = [TokenLogprob((token + k) % self._n_vocab, -1.0 - k) for k in range(max(0, sampling.n_logprobs))]
        return Sampled(Token(request_id, token, logprob, top), ends=token == END_TOKEN)


def _mix(state: int, token: int) -> int:
    return crc32(token.to_bytes(8, "little", signed=True), state)
