"""The scheduler's decision for one step, and what came of it.

A plan holds KV operations, which are applied first and in order, then at most one batch per pool, and one for each suspect."""

from dataclasses import dataclass
from typing import NamedTuple


class Chunk(NamedTuple):
    """`n_tokens` tokens of one sequence, at positions [start, start + n_tokens).

    `sample` is true when the chunk reaches the sequence's last known token, so that one new token is sampled from it.
    `n_drafted` tokens more may be computed with it, after its end: guesses, of which only those stay that come true.
    A named tuple, because there is one for every sequence in every step."""

    request_id: int
    slot: int
    start: int
    n_tokens: int
    sample: bool
    is_prompt: bool
    n_drafted: int = 0

    @property
    def n_computed(self) -> int:
        """Tokens that are computed, guesses included."""
        return self.n_tokens + self.n_drafted


@dataclass(frozen=True, slots=True)
class Batch:
    """One `llama_decode` call: chunks of different sequences of one pool, in ascending slot order."""

    pool: str
    chunks: tuple[Chunk, ...]
    predicted_us: int


@dataclass(frozen=True, slots=True)
class ReleaseSlot:
    """Forget everything a slot holds."""

    pool: str
    slot: int
    request_id: int


@dataclass(frozen=True, slots=True)
class MoveSlot:
    """Carry a sequence's state from one slot to a free one of the same pool; the source is empty afterwards."""

    pool: str
    source: int
    target: int
    request_id: int


@dataclass(frozen=True, slots=True)
class TrimSlot:
    """Forget what a slot holds from position `n_cells` on."""

    pool: str
    slot: int
    n_cells: int


@dataclass(frozen=True, slots=True)
class CopySlot:
    """Put the first `n_cells` cells of one slot into an empty one of the same pool; the source stays as it is."""

    pool: str
    source: int
    target: int
    n_cells: int
    request_id: int


@dataclass(frozen=True, slots=True)
class StoreSlot:
    """Keep a copy of a slot's `n_cells` cells in the host store as `entry`; the slot stays as it is."""

    pool: str
    slot: int
    entry: int
    n_cells: int


@dataclass(frozen=True, slots=True)
class LoadSlot:
    """Put the first `n_cells` cells of a stored entry into an empty slot; the entry stays as it is."""

    pool: str
    slot: int
    entry: int
    n_cells: int
    request_id: int


@dataclass(frozen=True, slots=True)
class DropEntry:
    """Forget a stored entry, and overwrite its memory."""

    entry: int


@dataclass(frozen=True, slots=True)
class ScrubPool:
    """Overwrite every cell of a pool that no slot holds. (Forgetting a cell leaves its contents until the next one comes.)"""

    pool: str


KvOperation = ReleaseSlot | MoveSlot | TrimSlot | CopySlot | StoreSlot | LoadSlot | DropEntry | ScrubPool


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step does. An empty plan is legal; `wake_at_ns` then says when to ask again (None: on the next message)."""

    step: int
    operations: tuple[KvOperation, ...]
    batches: tuple[Batch, ...]
    wake_at_ns: int | None = None

    @property
    def is_empty(self) -> bool:
        return not self.operations and not self.batches


class Given(NamedTuple):
    """What the draw of one sequence brought: so many tokens. `n_accepted` of them were guessed, and are computed; of the others
    all but the first were forced by its grammar.

    `ends`: it has ended. Where an end-of-generation token was drawn, that is no token of the output, so there may be none.
    `cut`: it ends because its allowance does, and was closed for that."""

    n_tokens: int = 1
    ends: bool = False
    cut: bool = False
    n_accepted: int = 0


ENDED = Given(0, ends=True)
DRAWN = Given()


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What one batch did: its measured cost, and which sequences' sampled token ended them.

    cost_us      of the whole batch, drawing tokens included
    failed       empty when every chunk was computed; otherwise it names the error and nothing of the batch counts
    sampled_us   (request id, cost) of each token that was drawn, or could not be
    given        (request id, tokens, whether it has ended, whether it was cut) of each whose draw brought other than one token
    row_errors   (request id, why) of each sequence that failed by itself: it was not computed, or no token could be drawn for
                 it. The others are not touched by that
    scored_us    (request id, cost) of each row of a prompt whose log probabilities were computed
    drafted      (request id, guesses computed, guesses that came true) of each sequence that drafted"""

    cost_us: int
    ended: tuple[int, ...] = ()
    failed: str = ""
    sampled_us: tuple[tuple[int, int], ...] = ()
    row_errors: tuple[tuple[int, str], ...] = ()
    given: tuple[tuple[int, int, bool, bool], ...] = ()
    scored_us: tuple[tuple[int, int], ...] = ()
    drafted: tuple[tuple[int, int, int], ...] = ()


@dataclass(frozen=True, slots=True)
class StepResult:
    """Results of a plan's batches, in the plan's order.

    stored       (entry, bytes) of each StoreSlot: what the state really takes
    unstored     entries whose StoreSlot failed: there is no such entry
    lost         requests whose LoadSlot or CopySlot failed: their slot is empty and their chunk was not computed
    blocks       (request id, key) of each block that a sampled token completed; see `Request.blocks`
    carried_us   measured cost of the plan's store, load and copy operations together, of those that succeeded
    carried_cells  the cells that they carried
    busy_ns      processor time of the step, by thread, where it is known; 0: all the time that it took counts as such
    guesses      (request id, tokens, of how many equal ones before them) of each sequence whose next tokens can be guessed"""

    batches: tuple[BatchResult, ...]
    stored: tuple[tuple[int, int], ...] = ()
    unstored: tuple[int, ...] = ()
    lost: tuple[int, ...] = ()
    blocks: tuple[tuple[int, int], ...] = ()
    carried_us: int = 0
    carried_cells: int = 0
    busy_ns: int = 0
    guesses: tuple[tuple[int, int, int], ...] = ()
