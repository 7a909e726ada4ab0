"""The engine's ports: what the loop needs from the world.

Live adapters: `poise.llama.running.runner.LlamaRunner`, `poise.worker.engine.process` (socket, monotonic clock).
Simulated adapters: `poise_lab.sim`. Both runners pass one contract suite (tests/contract)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.planning.plan import KvOperation
from poise.wire.figures import StructureFigures
from poise.wire.messages import PoolInfo, PromptLogprobs, ToGateway, Token
from poise.wire.to_engine import Grammar, SamplingParams, ToEngine


@dataclass(frozen=True, slots=True)
class Row:
    """Tokens of one sequence to compute: `tokens` stand at positions [start, start + len(tokens)) of `slot`.

    With `sample`, a token is drawn from the last position's logits. The last `n_guessed` of `tokens` are guesses of what will
    be drawn: draws begin before them, and go on as long as they come true (`poise.engine.drafting.draw_along`)."""

    request_id: int
    slot: int
    start: int
    tokens: Sequence[int]
    sample: bool
    n_guessed: int = 0


NO_TOKEN = -1
Wake = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A drawn token; `ends` is true when it is an end-of-generation token (and not ignored).

    further     tokens that follow it: a grammar makes them, or they were drawn after guesses that came true
    closes      nothing can come after these tokens, by the grammar, or because the end was drawn
    cut         they close what was open, because the output's allowance ends
    cost_ns     what drawing took
    failed      why none could be drawn for this row, while those of the other rows could: `token.token` is then NO_TOKEN
    n_accepted  the row's guesses that came true: so many of these tokens are computed already"""

    token: Token
    ends: bool
    cost_ns: int = 0
    failed: str = ""
    further: tuple[Token, ...] = ()
    closes: bool = False
    cut: bool = False
    n_accepted: int = 0


class RunnerError(Exception):
    """Something could not be computed or drawn. Of a whole batch: its sequences are lost. The runner can go on with others."""


def words_of(error: Exception) -> str:
    """What is said of an error. Only a RunnerError's text is known not to quote a request, which the journal must not hold."""
    words = str(error) if isinstance(error, RunnerError) else ""
    return words or f"an unforeseen error: {type(error).__name__}"


def check_known(tokens: Sequence[int], n_vocab: int) -> None:
    """Raises RunnerError when one of the ids is no token of a vocabulary of that size."""
    if tokens and not 0 <= min(tokens) <= max(tokens) < n_vocab:
        # The error goes into the journal, which holds no token of a prompt.
        raise RunnerError(f"the request has a token that the model has not: ids go from 0 to {n_vocab - 1}")


class Runner(Protocol):
    """Computes batches on a model. Not thread-safe; every call is made by the engine's one compute thread."""

    @property
    def pools(self) -> Sequence[PoolInfo]: ...

    @property
    def threads(self) -> int:
        """Threads that compute the next pass; 0 where nothing is computed."""

    def limit_threads(self, most: int) -> None:
        """Compute with no more threads than these from now on; 0: with as many as there are."""

    def release(self) -> None:
        """Give memory back to the system that can be had again: the next pass takes longer."""

    @property
    def stored_bytes(self) -> int:
        """Bytes that all entries of the host store take."""

    @property
    def structure(self) -> StructureFigures:
        """What constrained output has cost so far."""

    def prepare(self, request_id: int, account: str, grammar: Grammar, output: Sequence[int], wake: Wake) -> None:
        """Begin to make what a constrained request needs, beside the steps; accounts take turns. `open` comes when `prepared`
        has said that it is made, after `wake` was called, from any thread. What failed is raised by `open`.

        `output` is that of `open`: from there on its grammar goes on."""

    def prepared(self) -> Sequence[tuple[int, int]]:
        """Requests whose preparation has ended since the last call, and what it took, in microseconds."""

    def open(self, request_id: int, prompt: Sequence[int], sampling: SamplingParams, output: Sequence[int] = ()) -> None:
        """Prepare sampling for a request. Called once, before its first row. It outlives preemptions.

        With `output`, tokens that were generated elsewhere, it goes on after them exactly as it would have there: a draw
        depends on logits, parameters, seed and the tokens before it, and on nothing that a runner remembers.

        Raises RunnerError when the request names tokens that the model does not have: computed, they would fail a whole batch.
        So it does when its grammar could not be prepared."""

    def close(self, request_id: int) -> None:
        """Free what `open` made. Unknown ids are ignored."""

    def apply(self, operation: KvOperation) -> int:
        """Carry out one KV operation. Returns the bytes that an entry takes in the host store for StoreSlot, else 0.

        A ScrubPool leaves what slots hold as it is, and of all else that was ever in the pool's cells nothing.

        Raises RunnerError when a StoreSlot, LoadSlot, CopySlot or MoveSlot failed: then there is no such entry, or the target
        slot is empty (and a move's source too). A TrimSlot fails only with a model whose memory cannot be shortened (a
        recurrent one): then the slot is empty. A ScrubPool that fails leaves the pool unusable."""

    def inherit(self, entries: Sequence[StoredPrefix]) -> None:
        """These entries of the host store are there: another engine has left them. Before any operation."""

    def score(self, pool: str, row: Row, targets: Sequence[int]) -> PromptLogprobs:
        """Compute a row of a prompt in passes of its own. Nothing is drawn: the logits of each of its tokens say how likely the
        one of `targets` is that stands at the next position.

        Raises RunnerError when that failed; then the slot is not usable until it was released."""

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        """Compute rows (ascending slots) in one forward pass and sample.

        Returns one Sampled per row with `sample`, in row order. One whose drawing failed says so and harms no other; its cells
        are computed, and may hold what is not a number. Of guesses that did not come true no cell is left. Raises RunnerError
        when the pass failed; then no slot of `rows` is usable until it was released."""


class Clock(Protocol):
    def now_ns(self) -> int:
        """Monotonic time in nanoseconds."""


class Inbox(Protocol):
    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[ToEngine]:
        """Messages that have arrived, in order. With `block`, wait for one until `wait_until_ns` (None: for ever).

        Raises EOFError when the gateway is gone."""

    def wake(self) -> None:
        """`drain` waits no longer, if it does. From any thread."""


class Outbox(Protocol):
    def send(self, message: ToGateway) -> None:
        """Queue a message and send what the socket takes without waiting. From any thread."""
