"""A runner without a model, exact enough to catch a scheduler that cheats; `poise_lab.sim.runner` only counts.

Its "model" is a hash chain: the state after a token depends on every token before it, and the next greedy token is a
function of that state. So a sequence whose KV cells were lost, mixed up or computed twice gives other tokens, and greedy
output must be the same whatever chunks, slots, neighbours, swaps and copies the scheduler chose. A step costs what the given
cost weights say, and cells that are carried cost their time too, on the virtual clock."""

from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import msgspec

from poise.engine.arena import Arena
from poise.engine.drafting import draw_along
from poise.engine.ports import NO_TOKEN, Row, RunnerError, Sampled, check_known
from poise.engine.thinking import Budget
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.budget import BatchShape, CostModel
from poise.scheduler.planning.plan import KvOperation
from poise.scheduler.policy import CostPrior
from poise.wire.figures import StructureFigures
from poise.wire.messages import STRUCTURE_FAILED, PoolInfo, PromptLogprobs, Token, TokenLogprob
from poise.wire.to_engine import Grammar, SamplingParams
from poise_lab.sim.costs import Pace
from poise_lab.sim.runner import VirtualClock

END_TOKEN = 0
"""The simulated vocabulary's end-of-generation token."""

CELL_BYTES = 64
"""What a stored cell takes where the pool's description does not say."""

ECHO_TOKENS, ECHO_VOCAB = 3, 7
_STATE = 0xFFFFFFFF
"""The bits of a cell that are its state; above them is its token."""

TOKENS = 1 << 30
"""Ids that may be in a prompt. Only the first `n_vocab` of them are drawn."""

LOGIT_MAX = 3.4e38
"""What a bias may be: more, or what is no number, makes a row that no token can be drawn from."""

Fault = Callable[[str, object], bool]
"""Asked before each forward pass ("execute", pool) and each operation that carries cells ("apply", operation): does it fail?"""


@dataclass(slots=True)
class _Open:
    sampling: SamplingParams
    n_output: int = 0
    places: list[list[int]] | None = None
    """What the grammar has for each place of the output."""
    budget: Budget | None = None


@dataclass(slots=True)
class _Entry:
    pool: str
    cells: list[int] | memoryview
    """States, or the shared memory in which they are."""


class ExactRunner:
    """Implements `poise.engine.ports.Runner` over hash chains.

    cost               what the machine costs: one for all pools, or one for each
    pace               what time a batch of a predicted cost takes (default: just that)
    end_rate           one in so many tokens ends a sequence, 0 for none
    echo               0, or: but for one token in so many, what follows is decided by the last ECHO_TOKENS tokens alone, and is
                       one of ECHO_VOCAB. Texts then repeat themselves, as answers that quote do
    carry_us_per_cell  virtual time of storing, loading, copying and moving one cell; a state is always carried whole
    fault              makes operations fail; a failure is noticed at the end, so it takes as long as success
    arena              where entries lie, eight bytes for each cell; they outlive the runner then"""

    def __init__(
        self,
        pools: Sequence[PoolInfo],
        *,
        n_vocab: int = 1000,
        clock: VirtualClock | None = None,
        cost: CostPrior | Mapping[str, CostPrior] | None = None,
        pace: Pace | None = None,
        end_rate: int = 0,
        echo: int = 0,
        carry_us_per_cell: float = 3.0,
        fault: Fault | None = None,
        arena: Arena | None = None,
    ) -> None:
        self._pools = list(pools)
        self._n_vocab = min(n_vocab, ECHO_VOCAB) if echo else n_vocab
        self._clock = clock or VirtualClock()
        costs = cost if isinstance(cost, Mapping) else {p.name: cost or CostPrior() for p in pools}
        self._costs = {name: CostModel(prior) for name, prior in costs.items()}
        self._pace = pace or (lambda _, predicted_us: int(predicted_us * 1000))
        self._end_rate = end_rate
        self._echo = echo
        self._carry_us_per_cell = carry_us_per_cell
        self._fault = fault or (lambda what, detail: False)
        # One hash state after each computed token, per pool and slot; its length is the number of cells used.
        self._cells: dict[str, list[list[int]]] = {p.name: [[] for _ in range(p.n_slots)] for p in pools}
        self._entries: dict[int, _Entry] = {}
        self._arena = arena
        self._capacity = {p.name: p.slot_cells for p in pools}
        self._cell_bytes = {p.name: p.cell_bytes or CELL_BYTES for p in pools}
        self._open: dict[int, _Open] = {}
        self._grammars: dict[int, Grammar] = {}
        self._prepared: list[tuple[int, int]] = []

    @property
    def pools(self) -> Sequence[PoolInfo]:
        return self._pools

    @property
    def threads(self) -> int:
        return 0

    def limit_threads(self, most: int) -> None:
        """It has one, whatever is said."""

    def release(self) -> None:
        """It has nothing to give."""

    @property
    def stored_bytes(self) -> int:
        """Bytes of all entries of the host store: their cells times `cell_bytes`."""
        return sum(len(stored.cells) * self._cell_bytes[stored.pool] for stored in self._entries.values())

    def cell_bytes(self, pool: str) -> int:
        """Bytes of one KV cell of the pool in the host store."""
        return self._cell_bytes[pool]

    def slot_positions(self, pool: str, slot: int) -> int:
        """The highest position in the slot, -1 when it is empty (as llama_memory_seq_pos_max)."""
        return len(self._cells[pool][slot]) - 1

    @property
    def structure(self) -> StructureFigures:
        return StructureFigures()

    def prepare(self, request_id: int, account: str, grammar: Grammar, output: Sequence[int], wake: Callable[[], None]) -> None:
        """A grammar here is a list in JSON: for each place of the output, the tokens that may stand there."""
        self._grammars[request_id] = grammar
        self._prepared.append((request_id, 0))

    def prepared(self) -> Sequence[tuple[int, int]]:
        prepared, self._prepared = self._prepared, []
        return prepared

    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, output: Sequence[int] = ()) -> None:
        check_known([*prompt, *output, *(token for token, _ in sampling.logit_bias)], TOKENS)
        places = None
        if (grammar := self._grammars.pop(request_id, None)) is not None:
            try:
                places = msgspec.json.decode(grammar.text, type=list[list[int]])
            except msgspec.DecodeError as error:
                raise RunnerError(f"{STRUCTURE_FAILED}: it is none") from error
        budget = Budget(sampling.thinking, lambda _: b"", output) if sampling.thinking is not None else None
        self._open[request_id] = _Open(sampling, len(output), places, budget)

    def close(self, request_id: int) -> None:
        self._open.pop(request_id, None)
        self._grammars.pop(request_id, None)

    def apply(self, operation: KvOperation) -> int:
        match operation:
            case kv.ReleaseSlot(pool, slot):
                self._cells[pool][slot] = []
            case kv.TrimSlot(pool, slot, n_cells):
                cells = self._cells[pool][slot]
                assert 0 <= n_cells <= len(cells), f"slot {slot} of pool {pool} holds {len(cells)} cells, not {n_cells}"
                del cells[n_cells:]
            case kv.MoveSlot(pool, source, target):
                self._check_empty(pool, target)
                cells, self._cells[pool][source] = self._cells[pool][source], []
                self._carry(operation, len(cells))
                self._cells[pool][target] = cells
            case kv.CopySlot(pool, source, target, n_cells):
                cells = self._cells[pool][source]
                n_held = len(cells)
                assert 0 < n_cells <= n_held, f"slot {source} of pool {pool} holds {n_held} cells, not {n_cells}"
                self._check_empty(pool, target)
                self._carry(operation, len(cells))
                self._cells[pool][target] = cells[:n_cells]
            case kv.StoreSlot():
                return self._store(operation)
            case kv.LoadSlot():
                self._load(operation)
            case kv.DropEntry(entry):
                assert entry in self._entries, f"there is no entry {entry}"
                kept = self._entries.pop(entry).cells
                if isinstance(kept, list):
                    kept.clear()
                elif self._arena is not None:
                    self._arena.drop(entry)
            case kv.ScrubPool():
                pass  # A released slot has no cells here.
        return 0

    def _store(self, operation: kv.StoreSlot) -> int:
        pool, cells = operation.pool, self._cells[operation.pool][operation.slot]
        assert 0 < operation.n_cells == len(cells), f"{operation}, and the slot holds {len(cells)} cells"
        assert operation.entry not in self._entries, f"entry {operation.entry} is stored already"
        self._carry(operation, len(cells))
        kept: list[int] | memoryview = cells.copy()
        if self._arena is not None:
            kept = self._arena.reserve(operation.entry, 8 * len(cells), len(cells)).cast("Q")
            kept[:] = array("Q", cells)
        self._entries[operation.entry] = _Entry(pool, kept)
        return len(cells) * self._cell_bytes[pool]

    def inherit(self, entries: Sequence[StoredPrefix]) -> None:
        for entry in entries:
            assert self._arena is not None
            self._entries[entry.number] = _Entry(entry.pool, self._arena.memory(entry.number).cast("Q"))

    def _load(self, operation: kv.LoadSlot) -> None:
        assert operation.entry in self._entries, f"there is no entry {operation.entry}"
        stored = self._entries[operation.entry]
        assert stored.pool == operation.pool, f"{operation}, and the entry comes from pool {stored.pool}"
        assert 0 < operation.n_cells <= len(stored.cells), f"{operation}, and the entry holds {len(stored.cells)} cells"
        self._check_empty(operation.pool, operation.slot)
        self._carry(operation, len(stored.cells))
        self._cells[operation.pool][operation.slot] = list(stored.cells[: operation.n_cells])

    def _check_empty(self, pool: str, slot: int) -> None:
        assert not self._cells[pool][slot], f"slot {slot} of pool {pool} is to be filled and is not empty"

    def _carry(self, operation: KvOperation, n_cells: int) -> None:
        """Take the time of carrying cells, and fail if that is what the test wants."""
        fails = self._fault("apply", operation)
        self._clock.advance(int(n_cells * self._carry_us_per_cell * 1000))
        if fails:
            raise RunnerError(f"a fault was asked for: {operation}")

    def score(self, pool: str, row: Row, targets: Sequence[int]) -> PromptLogprobs:
        self.execute(pool, [row])
        states, n_top = (
            [cell & _STATE for cell in self._cells[pool][row.slot][row.start :]],
            self._open[row.request_id].sampling.n_prompt_logprobs,
        )
        logprobs = [-(_mix(state, target) % 1000) / 100 for state, target in zip(states, targets, strict=True)]
        top = [[TokenLogprob((t + k) % self._n_vocab, -1.0 - k) for k in range(max(0, n_top))] for t in targets]
        return PromptLogprobs(row.request_id, row.start + 1, logprobs, top)

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
            shape.add(is_prompt=len(row.tokens) > 1 + row.n_guessed, start=row.start, n_tokens=len(row.tokens))
        fails = self._fault("execute", pool)
        self._clock.advance(self._pace(pool, self._costs[pool].predict_us(shape)))
        if fails:
            for row in rows:
                self._cells[pool][row.slot] = []
            raise RunnerError(f"a fault was asked for: a pass in pool {pool}")
        sampled = []
        for row in rows:
            cells = self._cells[pool][row.slot]
            for token in row.tokens:
                cells.append(token << 32 | _mix(cells[-1] & _STATE if cells else 0, token))
            if row.sample:
                sampled.append(self._draw(row, cells))
        return sampled

    def _draw(self, row: Row, cells: list[int]) -> Sampled:
        guesses = row.tokens[len(row.tokens) - row.n_guessed :]
        end = len(cells) - row.n_guessed
        drawn = draw_along(guesses, lambda i: self._sample(row.request_id, self._state(cells, end + i)))
        del cells[end + drawn.n_accepted :]
        return drawn

    def _state(self, cells: list[int], end: int) -> int:
        """What the next token after `end` cells follows from: all of them, or, with `echo`, mostly the last tokens only."""
        state = cells[end - 1] & _STATE
        if not self._echo or state % self._echo == 0:
            return state
        last = 0
        for cell in cells[max(0, end - ECHO_TOKENS) : end]:
            last = _mix(last, cell >> 32)
        return last

    def _sample(self, request_id: int, state: int) -> Sampled:
        opened = self._open[request_id]
        sampling = opened.sampling
        if not all(bias <= LOGIT_MAX for _, bias in sampling.logit_bias):
            return Sampled(Token(request_id, NO_TOKEN), ends=False, failed="the model's logits are not numbers")
        if opened.places is not None:
            return _by_grammar(request_id, opened, opened.places, state)
        forced = opened.budget.forced if opened.budget is not None else None
        draw = state if sampling.temperature == 0 else _mix(_mix(state, sampling.seed), 0 if self._echo else opened.n_output)
        may_end = not sampling.ignore_eos and opened.n_output >= sampling.min_output
        if forced is None and may_end and self._end_rate and draw % self._end_rate == 0:
            token = END_TOKEN
        else:
            token = 1 + draw % (self._n_vocab - 1) if forced is None else forced
            opened.n_output += 1
            if opened.budget is not None:
                opened.budget.take(token)
        logprob = -1.0 if sampling.n_logprobs >= 0 else None
        top = [TokenLogprob((token + k) % self._n_vocab, -1.0 - k) for k in range(max(0, sampling.n_logprobs))]
        return Sampled(Token(request_id, token, logprob, top), ends=token == END_TOKEN)


def _by_grammar(request_id: int, opened: _Open, places: list[list[int]], state: int) -> Sampled:
    """One of the tokens of a place, and those of all the places after it that have no other."""
    if opened.n_output >= len(places):
        return Sampled(Token(request_id, END_TOKEN), ends=True)
    choices = places[opened.n_output]
    end = next((i for i in range(opened.n_output + 1, len(places)) if len(places[i]) > 1), len(places))
    further = tuple([Token(request_id, places[i][0]) for i in range(opened.n_output + 1, end)])
    opened.n_output = end
    token = Token(request_id, choices[state % len(choices)])
    return Sampled(token, ends=False, further=further, closes=end == len(places))


def _mix(state: int, token: int) -> int:
    return crc32(token.to_bytes(8, "little", signed=True), state)
