"""The state of one request inside the scheduler.

Rule 1: every change of state goes through `Sequence.to`, which knows the table below; anything else is a bug and asserts.
Rule 2: there is no prefill phase and no decode phase. A sequence has `n_tokens` known tokens and `n_computed` of them in
the KV cells; whatever is planned for it makes `n_computed` catch up. (After the comment in vLLM's v1 scheduler.)

    [0, n_computed)         in the KV cells of its slot
    [n_computed, n_tokens)  known, to be computed; sampling happens at n_tokens - 1
    [0, n_prompt)           the prompt
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from poise.scheduler.request import Request


class State(StrEnum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


TRANSITIONS: dict[State, tuple[State, ...]] = {
    State.WAITING: (State.RUNNING, State.FINISHED),
    State.RUNNING: (State.FINISHED,),
    State.FINISHED: (),
}


@dataclass(slots=True, eq=False)
class Sequence:
    """A request on its way through the scheduler. `slot` is -1 unless it is running."""

    request: Request
    pool: str
    arrived_ns: int
    order_key: float
    """Place among its tenant's waiting prompts; see `queues.order_key`."""
    state: State = State.WAITING
    slot: int = -1
    n_computed: int = 0
    n_tokens: int = field(init=False)
    served_us: int = 0

    def __post_init__(self) -> None:
        self.n_tokens = self.request.n_prompt

    def to(self, state: State) -> None:
        assert state in TRANSITIONS[self.state], f"request {self.request.request_id}: {self.state} -> {state}"
        self.state = state

    @property
    def n_output(self) -> int:
        return self.n_tokens - self.request.n_prompt

    @property
    def n_pending(self) -> int:
        """Known tokens that are not computed yet."""
        return self.n_tokens - self.n_computed

    @property
    def is_decoding(self) -> bool:
        """It needs one token computed to give the next one."""
        return self.n_output > 0
