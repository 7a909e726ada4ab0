"""Messages from the engine to the gateway: what became of requests, step by step. Token ids and counts, never text.

Encoded as tagged msgpack arrays (msgspec). The two sides always come from one installation, so there is no versioning."""

import msgspec

from poise.scheduler.request import Started
from poise.wire.status import Status
from poise.wire.to_engine import Accounts

STRUCTURE_FAILED = "structured output failed"
"""How the detail of a Finish begins that failed over its grammar."""


class Loading(msgspec.Struct, frozen=True, array_like=True, tag="loading"):
    """Engine to gateway: start-up progress, 0 to 1, and what is being done."""

    progress: float
    stage: str


class PoolInfo(msgspec.Struct, frozen=True, array_like=True):
    """A KV pool as it was built. `cell_bytes` is what one cell takes in the host store."""

    name: str
    n_slots: int
    slot_cells: int
    flash_attention: bool
    kv_bytes: int
    cell_bytes: int = 0


class Ready(msgspec.Struct, frozen=True, array_like=True, tag="ready"):
    """Engine to gateway: the model is loaded."""

    model_description: str
    model_bytes: int
    n_vocab: int
    context_train: int
    pools: list[PoolInfo]
    pid: int
    weights: str = "as-is"
    """The format that the weights were converted to, or that they were not; and why."""
    weights_reason: str = ""


class Fatal(msgspec.Struct, frozen=True, array_like=True, tag="fatal"):
    """Engine to gateway: it cannot go on. `permanent` means that a restart would end the same way (a bad model file, say), as
    long as nobody changes anything; `short_of_memory` that this host does not have what the configuration needs now."""

    message: str
    permanent: bool
    short_of_memory: bool = False


class Accepted(msgspec.Struct, frozen=True, array_like=True, tag="accepted"):
    """Engine to gateway: the request waits at `position` (from 1) for about `eta_us`; its prompt then takes about `prompt_us`."""

    request_id: int
    position: int
    eta_us: int
    prompt_us: int = 0


class Refused(msgspec.Struct, frozen=True, array_like=True, tag="refused"):
    """Engine to gateway: the request was rejected on arrival. `reason` is a scheduler RejectReason."""

    request_id: int
    reason: str
    value: int
    limit: int
    retry_after_us: int


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token id and its log probability under the model's own distribution."""

    token: int
    logprob: float


class Token(msgspec.Struct, frozen=True, array_like=True):
    """One generated token. `logprob` and `top` are set when the request asked for them."""

    request_id: int
    token: int
    logprob: float | None = None
    top: list[TokenLogprob] = []


class PromptLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """How likely the tokens of a request's prompt from the one at `start` on were, each after those before it, and which tokens
    were the likeliest there. They come in order; what is computed again comes again."""

    request_id: int
    start: int
    logprobs: list[float]
    top: list[list[TokenLogprob]]


class Prefill(msgspec.Struct, frozen=True, array_like=True):
    """`n_tokens` tokens of a request's prompt were computed (or computed again, after its cells were given up), in a forward
    pass that took `pass_us` and computed `n_beside` tokens of other requests as well."""

    request_id: int
    n_tokens: int
    pass_us: int
    n_beside: int


class Drafted(msgspec.Struct, frozen=True, array_like=True):
    """Guesses of a request's next tokens were computed, and so many of them came true."""

    request_id: int
    n_drafted: int
    n_accepted: int


class Change(msgspec.Struct, frozen=True, array_like=True):
    """Something became of a running request: `what` is a ChangeKind. LOST and RECOVER are the gateway's own.

    `why` says what for: of a downgrade a DowngradeReason of the scheduler, of a slot that was lost a PreemptionReason."""

    request_id: int
    what: str
    why: str = ""


class Finish(msgspec.Struct, frozen=True, array_like=True):
    """A request ended. `reason` is a scheduler FinishReason. A token that ended it (end of generation) is not sent."""

    request_id: int
    reason: str
    n_prompt: int
    n_output: int
    served_us: int
    detail: str = ""
    n_cached: int = 0
    n_preempted: int = 0
    n_recomputed: int = 0


class Step(msgspec.Struct, frozen=True, array_like=True, tag="step"):
    """Engine to gateway: everything one step brought, in order: starts, changes, prefills, scores, drafts, tokens, finishes."""

    step: int
    starts: list[Started]
    tokens: list[Token]
    finishes: list[Finish]
    changes: list[Change] = []
    prefills: list[Prefill] = []
    scores: list[PromptLogprobs] = []
    drafts: list[Drafted] = []


class Controlled(msgspec.Struct, frozen=True, array_like=True, tag="controlled"):
    """Engine to gateway: what an operator's Control did. `state` is the request's state now, "" when it is not known."""

    request_id: int
    action: str
    state: str
    detail: str = ""


class Forgotten(msgspec.Struct, frozen=True, array_like=True, tag="forgotten"):
    """Engine to gateway: what a Forget freed."""

    forget_id: int
    entries: int
    cells: int


class Erased(msgspec.Struct, frozen=True, array_like=True, tag="erased"):
    """Engine to gateway: what an Erase freed and overwrote."""

    erase_id: int
    entries: int
    cells: int
    n_bytes: int
    journal_entries: int


class JournalPage(msgspec.Struct, frozen=True, array_like=True, tag="journal"):
    """Engine to gateway: some lines of the flight recorder (JSON, oldest first). The last page has none.

    `is_lost`: the copy is not there any more, or was another engine's."""

    read_id: int
    lines: list[str]
    is_last: bool = False
    is_lost: bool = False


Reply = Controlled | Forgotten | Erased | JournalPage
ToGateway = Loading | Ready | Fatal | Accepted | Refused | Step | Status | Accounts | Reply
