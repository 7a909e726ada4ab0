"""Messages that cross the socket between gateway and engine: token ids and counts, never text.

Encoded as tagged msgpack arrays (msgspec). The two sides always come from one installation, so there is no versioning.
"""

from __future__ import annotations

import msgspec

from poise.wire.accounts import Accounts
from poise.wire.figures import Bottleneck, Equity, StepFigures, Totals


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are drawn. All values are validated by the gateway.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 switch those filters off. repetition_penalty counts prompt and
    output tokens; presence and frequency penalties count output tokens only. logit_bias holds (token id, bias) pairs.
    n_logprobs -1 asks for none, 0 for the chosen token's, k for the k most likely ones besides.
    min_output: end-of-generation tokens cannot be drawn before that many tokens.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int = 0
    n_logprobs: int = -1
    ignore_eos: bool = False
    min_output: int = 0


class Configure(msgspec.Struct, frozen=True, array_like=True, tag="configure"):
    """Gateway to engine, first of all: the effective settings as JSON, and the model file.

    `fingerprint` of the file whose vocabulary the gateway speaks: another one is not loaded. Empty: any will do.
    `weights` of the engine before this one, as its Ready named them: streams wait, so they are loaded again, without measuring.
    """

    settings: str
    model_path: str
    fingerprint: str = ""
    weights: str = ""


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """Gateway to engine: compute this request."""

    request_id: int
    tenant: str
    request_class: str
    prompt: list[int]
    max_output: int
    sampling: SamplingParams
    template: str = ""
    """A declared template whose tokens the prompt begins with."""
    queue_timeout_ms: int = 0
    """How long it may wait for its first slot; 0: for ever."""
    output: list[int] = []
    """Tokens that an engine before this one generated: it goes on after them. `max_output` counts them too."""
    readmitted: bool = False
    """It was accepted before: neither a full queue nor a limit of its tenant refuses it now."""
    suspect: bool = False
    """It was being computed when an engine died: its rows are computed in a forward pass of their own."""
    erased: bool = False
    """Its tenant was erased while it was live: nothing of it is kept at its end."""
    account: str = ""
    """Under what name admission and fair shares are counted; empty: the tenant's."""
    declared: bool = False
    """The operator made that account: the queue has a place for its first request, always."""


class Hold(msgspec.Struct, frozen=True, array_like=True, tag="hold"):
    """Gateway to engine: the reader of a request is behind, or has caught up. Unknown ids are ignored; there is no answer.

    `level`: "run", "pause" (nothing is computed for it) or "swap" (its KV cells make room, too). An operator's pause is another
    matter: a request runs only when neither holds it.
    """

    request_id: int
    level: str


class Adjust(msgspec.Struct, frozen=True, array_like=True, tag="adjust"):
    """Gateway to engine: shares, above 0 to 1, of each class's `queue_max` and `slots_max` that may be used from now on."""

    queue_share: float
    slots_share: float


class Erase(msgspec.Struct, frozen=True, array_like=True, tag="erase"):
    """Gateway to engine: as Forget, and the tenant's entries in the journal go as well, and what its live requests hold is kept
    no longer than they live. Answered by Erased."""

    erase_id: int
    tenant: str


class Template(msgspec.Struct, frozen=True, array_like=True, tag="template"):
    """Gateway to engine: compute these tokens once, as background work, and keep them for requests that name the template. Sent
    again after a restart. A name that is known already is replaced."""

    name: str
    tokens: list[int]


class Control(msgspec.Struct, frozen=True, array_like=True, tag="control"):
    """Gateway to engine, from an operator: `action` is a scheduler Control. Answered by Controlled."""

    request_id: int
    action: str


class Forget(msgspec.Struct, frozen=True, array_like=True, tag="forget"):
    """Gateway to engine: drop every cached prefix of a tenant. Its live requests go on. Answered by Forgotten."""

    forget_id: int
    tenant: str


class Abort(msgspec.Struct, frozen=True, array_like=True, tag="abort"):
    """Gateway to engine: the request is no longer wanted. Unknown ids are ignored (it may just have finished)."""

    request_id: int


class ReadJournal(msgspec.Struct, frozen=True, array_like=True, tag="read_journal"):
    """Gateway to engine: send the next page of the flight recorder.

    `begins`: the first one, of a copy made now, which takes the place of another one that was being read. `ends`: no more.
    """

    read_id: int
    begins: bool = False
    ends: bool = False


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag="shutdown"):
    """Gateway to engine: stop after this step."""


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
    """Engine to gateway: the request waits at `position` (from 1) for about `eta_us`."""

    request_id: int
    position: int
    eta_us: int


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


class Start(msgspec.Struct, frozen=True, array_like=True):
    """A request left the queue after `wait_us`; `n_cached` of the tokens that it came with need not be computed."""

    request_id: int
    wait_us: int
    pool: str
    n_cached: int = 0


class Prefill(msgspec.Struct, frozen=True, array_like=True):
    """`n_tokens` tokens of a request's prompt were computed (or computed again, after its cells were given up), in a forward
    pass that took `pass_us` and computed `n_beside` tokens of other requests as well."""

    request_id: int
    n_tokens: int
    pass_us: int
    n_beside: int


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A running request was preempted ("pause", "swap", "drop"), is held because its reader is behind ("stall"), goes on
    ("resume") or was downgraded ("downgrade"). The gateway itself says "lost" when the engine died under it and "recover" when
    another one has it.

    `why` says what for: of a downgrade "operator", "output" or "time"; of a slot that was lost ("swap", "drop") a
    PreemptionReason of the scheduler.
    """

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
    """Engine to gateway: everything one step brought, in order: starts, changes, prefills, tokens, finishes."""

    step: int
    starts: list[Start]
    tokens: list[Token]
    finishes: list[Finish]
    changes: list[Change] = []
    prefills: list[Prefill] = []


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


class Waiting(msgspec.Struct, frozen=True, array_like=True):
    """A queued request's place in its class's queue, from 1, and how long it is still expected to wait."""

    request_id: int
    position: int
    eta_us: int


class ClassStatus(msgspec.Struct, frozen=True, array_like=True):
    """How a class stands: requests by state, and the estimated wait of a new arrival. `paused` stand still: an operator has
    paused them, or their reader is behind."""

    queued: int
    running: int
    wait_estimate_us: int
    paused: int = 0
    swapped: int = 0
    wait_error: float = 0.0
    """Estimates of the wait against what then happened: mean of |log(estimated / waited)| over recent starts that waited."""


class SlotStatus(msgspec.Struct, frozen=True, array_like=True):
    """A slot that is not empty. `state`: "running", "paused" or "warm"; `request_class` is "" where nobody holds it."""

    slot: int
    state: str
    request_class: str
    cells: int


class PoolStatus(msgspec.Struct, frozen=True, array_like=True):
    """How a pool stands, in slots and KV cells. Warm slots hold a finished sequence's cells and are free to be taken."""

    name: str
    slots_held: int
    slots: int
    cells_used: int
    cells: int
    slots_warm: int = 0
    cells_warm: int = 0
    slots_peak: int = 0
    cells_peak: int = 0
    cells_by_class: dict[str, int] = {}
    cells_by_tenant: dict[str, int] = {}
    """Used cells of the tenants that hold most, at most 20 of them; the rest under ""."""
    cells_held: int = 0
    """All cells of the slots that are held, whether they hold a token or not."""
    holes: int = 0
    """Free slots below the highest one that is held."""
    occupied: list[SlotStatus] = []
    """The slots that are not empty, in the order of their numbers."""


class StoreStatus(msgspec.Struct, frozen=True, array_like=True):
    """How the host store stands. `bytes_by_purpose`: "swap", "prefix", "template"."""

    budget_bytes: int
    bytes_by_purpose: dict[str, int]
    entries_by_purpose: dict[str, int]
    peak_bytes: int


class Status(msgspec.Struct, frozen=True, array_like=True, tag="status"):
    """Engine to gateway, a few times a second while anything happens: counters since start and present levels."""

    step: int
    classes: dict[str, ClassStatus]
    pools: list[PoolStatus]
    prompt_tokens: int
    output_tokens: int
    moves: int
    rss_bytes: int
    store: StoreStatus | None = None
    totals: Totals = Totals()
    waiting: list[Waiting] = []
    """Queued requests with their places, in order, at most once a second; empty in between."""
    threads: int = 0
    """Threads that compute now."""
    unaccounted_bytes: int = 0
    """Resident memory minus weights, KV cells and host store: compute buffers, the interpreter, and what nobody counts."""
    steps: StepFigures = StepFigures()
    bottleneck: Bottleneck = Bottleneck()
    equity: dict[str, Equity] = {}
    """By class."""


class JournalPage(msgspec.Struct, frozen=True, array_like=True, tag="journal"):
    """Engine to gateway: some lines of the flight recorder (JSON, oldest first). The last page has none.

    `is_lost`: the copy is not there any more, or was another engine's.
    """

    read_id: int
    lines: list[str]
    is_last: bool = False
    is_lost: bool = False


ToEngine = (
    Configure | Accounts | Submit | Abort | Hold | Adjust | Template | Control | Forget | Erase | ReadJournal | Shutdown
)
ToGateway = (
    Loading
    | Ready
    | Fatal
    | Accepted
    | Refused
    | Step
    | Status
    | Accounts
    | Controlled
    | Forgotten
    | Erased
    | JournalPage
)
