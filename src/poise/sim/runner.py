"""A runner without a model, exact enough to catch a scheduler that cheats.

Its "model" is a hash chain: the state after a token depends on every token before it, and the next greedy token is a
function of that state. So a sequence whose KV cells were lost, mixed up or computed twice gives other tokens, and greedy
output must be the same whatever chunks, slots and neighbours the scheduler chose. A step costs what the given cost weights
say, on the virtual clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

from poise.engine.ports import Row, RunnerError, Sampled
from poise.scheduler.budget import BatchShape, CostModel
from poise.scheduler.plan import KvOperation, ReleaseSlot
from poise.scheduler.policy import CostPrior
from poise.sim.clock import VirtualClock
from poise.sim.costs import Pace
from poise.wire.messages import PoolInfo, SamplingParams, Token, TokenLogprob

END_TOKEN = 0
"""The simulated vocabulary's end-of-generation token."""


@dataclass(slots=True)
class _Open:
    sampling: SamplingParams
    n_output: int = 0


class SimRunner:
    """Implements `poise.engine.ports.Runner` over hash chains.

    `cost` is one for all pools or one for each; `pace` says what time a batch of a predicted cost takes (default: just that).
    `end_rate`: one in so many tokens ends a sequence, 0 for none.
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

    def apply(self, operation: KvOperation) -> None:
        cells = self._cells[operation.pool]
        if isinstance(operation, ReleaseSlot):
            cells[operation.slot] = []
            return
        assert not cells[operation.target], f"move into slot {operation.target}, which is not empty"
        cells[operation.target], cells[operation.source] = cells[operation.source], []

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
