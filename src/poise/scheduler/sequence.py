"""The state of one request inside the scheduler.

Rule 1: every change of state goes through `Sequence.to`, which knows the table below; anything else is a bug and asserts.
Rule 2: there is no prefill phase and no decode phase. A sequence has `n_tokens` known tokens and `n_computed` of them in
KV cells; whatever is planned for it makes `n_computed` catch up. (After the comment in vLLM's v1 scheduler.)
Rule 3: the state says what may happen to a sequence, `slot` and `entry` say where its cells are.

    [0, n_computed)         in the KV cells of its slot, or in its entry of the host store
    [n_computed, n_tokens)  known, to be computed; sampling happens at n_tokens - 1
    [0, n_prompt)           the prompt

    WAITING    queued, without cells: it is new, or its cells were dropped
    RUNNING    has a slot and may be given tokens in every step
    PAUSED     stands still: an operator paused it, its reader is behind, or it is not prepared. Its cells are in its slot, in
               the store, or nowhere
    SWAPPED    queued again, its cells in the host store"""

from dataclasses import dataclass, field
from enum import StrEnum

from poise.scheduler.request import SUSPECT_TOKENS, Hold, Request, RequestClass


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    SWAPPED = "swapped"
    FINISHED = "finished"


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.WAITING: (State.RUNNING, State.PAUSED, State.FINISHED),
    State.RUNNING: (State.PAUSED, State.SWAPPED, State.WAITING, State.FINISHED),
    State.PAUSED: (State.RUNNING, State.SWAPPED, State.WAITING, State.FINISHED),
    State.SWAPPED: (State.RUNNING, State.PAUSED, State.WAITING, State.FINISHED),
    State.FINISHED: (),
}


SAMPLING_MEMORY = 0.25
"""Weight of the newest draw in a sequence's mean cost of one."""


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the scheduler. `slot` and `entry` are -1 where there is none."""

    request: Request
    pool: str
    arrived_ns: int
    order_key: float
    """Place among its tenant's queued sequences; see `queues.order_key`."""
    eta_us: int = 0
    """The wait that was estimated on arrival."""
    n_likely: int = 0
    """Output tokens that it will probably have, as was thought on arrival; 0: all that it may have."""
    request_class: RequestClass = field(init=False)
    """The class it is treated as now; a downgrade changes it."""
    state: State = State.WAITING
    slot: int = -1
    entry: int = -1
    n_computed: int = 0
    n_tokens: int = field(init=False)
    n_forced: int = 0
    """Tokens that its grammar added to the one that was drawn last, without a draw."""
    blocks: list[int] = field(init=False)
    """Keys of the whole blocks of the known tokens; see `Request.blocks`."""
    served_us: int = 0
    started: bool = False
    """It has had a slot."""
    n_cached: int = 0
    n_preempted: int = 0
    n_recomputed: int = 0
    refill: int = 0
    """Cells that it lost because the host store was full; until it has as many again, it computes what it had."""
    placed_ns: int = 0
    """When it got its present slot."""
    n_chunks: int = 0
    """Chunks computed since then."""
    sample_us: float = 0.0
    """What drawing one of its tokens takes, as a running mean; 0 before the first."""
    away_ns: int = 0
    """When it was preempted last."""
    n_pushes: int = 0
    """Times it was queued: tells its present place in a queue from older ones."""
    heavy: bool = False
    """Where it is queued, it is among the heavy ones."""
    spared: bool = False
    """Where it is queued: a running request has computed so much of its prompt that it is not heavy."""
    gap_ns: int = 0
    """The mean time between the turns of its conversation; 0: this is the first that was seen."""
    paused: bool = False
    """An operator has paused it."""
    preparing: bool = False
    """What it needs beside cells is still being made."""
    hold: Hold = Hold.RUN
    held_ns: int = 0
    """Since when its reader has been behind."""
    erased: bool = field(init=False)
    """What its tenant had left was erased: its cells are overwritten at its end, and none are kept."""
    deadline_ns: int = 0
    """When it has waited too long for its first slot; 0: never."""

    def __post_init__(self) -> None:
        self.request_class = self.request.request_class
        self.n_likely = self.n_likely or self.request.max_output
        self.n_tokens = self.request.n_known
        self.blocks = list(self.request.blocks)
        self.erased = self.request.erased

    def learn_sampling(self, cost_us: int) -> None:
        """A token was drawn."""
        self.sample_us += (cost_us - self.sample_us) * SAMPLING_MEMORY if self.sample_us else cost_us

    def to(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"request {self.request.request_id}: {self.state} -> {state}"
        self.state = state

    @property
    def is_queued(self) -> bool:
        return self.state is State.WAITING or self.state is State.SWAPPED

    @property
    def may_run(self) -> bool:
        """It is prepared, and neither an operator nor its reader keeps it from it."""
        return not self.paused and not self.preparing and self.hold is Hold.RUN

    @property
    def is_suspect(self) -> bool:
        """What it computes is a batch of its own; see `Request.suspect`."""
        request = self.request
        return request.suspect and self.n_tokens < request.n_known + SUSPECT_TOKENS

    @property
    def n_output(self) -> int:
        return self.n_tokens - self.request.n_prompt

    @property
    def n_pending(self) -> int:
        """Known tokens that are not computed yet."""
        return self.n_tokens - self.n_computed

    @property
    def is_decoding(self) -> bool:
        """It needs no more computed to give its next token than what its last draw has brought."""
        return self.n_tokens - self.n_computed <= 1 + self.n_forced and self.n_tokens > self.request.n_prompt
