"""A runner without a model: it takes time on the virtual clock, as cost weights say, and counts cells.

What it draws means nothing, but that two requests draw otherwise: a conversation goes on from answers. A scheduler that cheats
is caught by the tests' runner (tests/sim/exact_runner.py), which takes the same time and computes something."""

from collections.abc import Sequence
from dataclasses import dataclass
from zlib import crc32

from poise.engine.drafting import draw_along
from poise.engine.ports import Row, Sampled, Wake
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning import plan as kv
from poise.scheduler.planning.budget import BatchShape, CostModel
from poise.scheduler.planning.plan import KvOperation
from poise.wire.figures import StructureFigures
from poise.wire.messages import PoolInfo, PromptLogprobs, Token
from poise.wire.to_engine import Grammar, SamplingParams
from poise_lab.sim.costs import Costs, Pace

N_VOCAB = 1000


class VirtualClock:
    """A Clock whose time moves only when the simulated runner, or the simulation that waits, says how long something took."""

    def __init__(self, start_ns: int = 0) -> None:
        self._now_ns = start_ns

    def now_ns(self) -> int:
        return self._now_ns

    def advance(self, duration_ns: int) -> None:
        assert duration_ns >= 0, f"time cannot go back by {duration_ns} ns"
        self._now_ns += duration_ns

    def advance_to(self, when_ns: int) -> None:
        """Move to `when_ns`; a moment that has passed already changes nothing."""
        self._now_ns = max(self._now_ns, when_ns)


@dataclass(slots=True)
class _Drawing:
    seed: int
    n_output: int


class SimRunner:
    """Implements `poise.engine.ports.Runner`, without grammars and scores: no scenario asks for them.

    `pace`: what time a batch of a predicted cost takes. A state is always carried whole."""

    def __init__(self, pools: Sequence[PoolInfo], clock: VirtualClock, costs: Costs, pace: Pace) -> None:
        self.pools = pools
        self.threads = 0
        self.structure = StructureFigures()
        self._clock = clock
        self._models = {name: CostModel(prior) for name, prior in costs.pools.items()}
        self._pace = pace
        self._carry_us_per_cell = costs.carry_us_per_cell
        self._cell_bytes = {pool.name: pool.cell_bytes for pool in pools}
        self._cells: dict[tuple[str, int], int] = {}
        """How many a slot of a pool holds."""
        self._entries: dict[int, tuple[str, int]] = {}
        """The pool that an entry comes from, and its cells."""
        self._open: dict[int, _Drawing] = {}

    def limit_threads(self, most: int) -> None:
        """It has one, whatever is said."""

    def release(self) -> None:
        """It has nothing to give."""

    @property
    def stored_bytes(self) -> int:
        return sum(n_cells * self._cell_bytes[pool] for pool, n_cells in self._entries.values())

    def prepare(self, request_id: int, account: str, grammar: Grammar, output: Sequence[int], wake: Wake) -> None:
        raise NotImplementedError

    def prepared(self) -> Sequence[tuple[int, int]]:
        return []

    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, output: Sequence[int] = ()) -> None:
        self._open[request_id] = _Drawing(sampling.seed, len(output))

    def close(self, request_id: int) -> None:
        self._open.pop(request_id, None)

    def apply(self, operation: KvOperation) -> int:
        match operation:
            case kv.ReleaseSlot(pool, slot):
                self._cells.pop((pool, slot), None)
            case kv.TrimSlot(pool, slot, n_cells):
                self._cells[pool, slot] = n_cells
            case kv.MoveSlot(pool, source, target):
                self._cells[pool, target] = self._carry(self._cells.pop((pool, source), 0))
            case kv.CopySlot(pool, source, target, n_cells):
                self._carry(self._cells[pool, source])
                self._cells[pool, target] = n_cells
            case kv.StoreSlot(pool, slot, entry):
                self._entries[entry] = (pool, self._carry(self._cells[pool, slot]))
                return self._cells[pool, slot] * self._cell_bytes[pool]
            case kv.LoadSlot(pool, slot, entry, n_cells):
                self._carry(self._entries[entry][1])
                self._cells[pool, slot] = n_cells
            case kv.DropEntry(entry):
                del self._entries[entry]
        return 0

    def inherit(self, entries: Sequence[StoredPrefix]) -> None:
        raise NotImplementedError

    def _carry(self, n_cells: int) -> int:
        """Take the time of carrying so many cells."""
        self._clock.advance(int(n_cells * self._carry_us_per_cell * 1000))
        return n_cells

    def score(self, pool: str, row: Row, targets: Sequence[int]) -> PromptLogprobs:
        raise NotImplementedError

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        shape = BatchShape()
        for row in rows:
            shape.add(is_prompt=len(row.tokens) > 1 + row.n_guessed, start=row.start, n_tokens=len(row.tokens))
            self._cells[pool, row.slot] = row.start + len(row.tokens)
        self._clock.advance(self._pace(pool, self._models[pool].predict_us(shape)))
        return [self._draw(pool, row) for row in rows if row.sample]

    def _draw(self, pool: str, row: Row) -> Sampled:
        guesses = row.tokens[len(row.tokens) - row.n_guessed :]
        drawn = draw_along(guesses, lambda _: self._sample(row.request_id))
        self._cells[pool, row.slot] -= row.n_guessed - drawn.n_accepted
        return drawn

    def _sample(self, request_id: int) -> Sampled:
        drawing = self._open[request_id]
        token = 1 + crc32(b"%d %d" % (drawing.seed, drawing.n_output)) % (N_VOCAB - 1)
        drawing.n_output += 1
        return Sampled(Token(request_id, token), ends=False)
