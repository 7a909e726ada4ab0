"""What the scheduler knows of a request, and what it answers.

Everything here is a value: no text, no token ids, no clock. Times are integer nanoseconds, costs integer microseconds."""

from dataclasses import dataclass
from enum import StrEnum


class RequestClass(StrEnum):
    """A class of service. Order of declaration is order of precedence."""

    INTERACTIVE = "interactive"
    BACKGROUND = "background"


class RejectReason(StrEnum):
    """Why a request was not accepted."""

    TOO_LONG = "too_long"
    """It can never fit: what it comes with exceeds the largest slot it may use."""
    QUEUE_FULL = "queue_full"
    """The queue of its class is at its bound."""
    QUEUE_SHARE = "queue_share"
    """Its account has as many requests in the queue of the class as it may while others may come."""
    TENANT_QUEUE_FULL = "tenant_queue_full"
    """Its tenant has as many requests waiting as it may."""
    TENANT_RATE = "tenant_rate"
    """Its tenant has used up its tokens per minute for now."""


class FinishReason(StrEnum):
    """Why an accepted request ended. Every accepted request ends with exactly one of these."""

    STOP = "stop"
    """The model ended its answer."""
    LENGTH = "length"
    """The request's output allowance is used up, or the largest slot is full."""
    ABORTED = "aborted"
    """The caller no longer wants it (cancelled, gone, or a stop string was found)."""
    EXPIRED = "expired"
    """It was still queued when its queue timeout had passed; nothing of it was computed."""
    FAILED = "failed"
    """The runner could not compute it."""


class PreemptionKind(StrEnum):
    """The rungs of the preemption ladder (rule R6), from the cheapest to the dearest."""

    PAUSE = "pause"
    """In place: the KV cells stay in the slot, nothing is computed."""
    SWAP = "swap"
    """The KV cells go to the host store and the slot is free for another sequence."""
    DROP = "drop"
    """The KV cells are given up; the tokens known so far are computed again later."""
    STALL = "stall"
    """As a pause, but because nobody reads what is generated; not a rung, a word for what happened."""


class PreemptionReason(StrEnum):
    """Why a sequence gave up its slot."""

    IDLE = "idle"
    """Nothing was computed for it: an operator paused it, or its reader was behind; somebody else had use for the slot."""
    CLASS = "class"
    """Interactive work came before background."""
    TENANT = "tenant"
    """Its tenant had been served more than the tenant that waited for a slot."""
    COMPUTE = "compute"
    """Its tenant had been served far more than one that waited for compute; slots were free."""
    TURN = "turn"
    """Background work takes turns."""
    LIMIT = "limit"
    """It was to go on, and its tenant ran as many as it may, or its class computed as many heavy prompts."""
    OUTGROWN = "outgrown"
    """Its answer has filled its slot; it goes on in a longer one."""
    POWER = "power"
    """Background work is put away: the host is short of power, or too warm."""


class DowngradeReason(StrEnum):
    """Why a request goes on as background work."""

    OPERATOR = "operator"
    """An operator wanted it."""
    OUTPUT = "output"
    """Its class's allowance of output is used up."""
    TIME = "time"
    """Its class's allowance of compute is used up."""


class Control(StrEnum):
    """What an operator can do with a live request."""

    PAUSE = "pause"
    RESUME = "resume"
    DOWNGRADE = "downgrade"


class Hold(StrEnum):
    """What a request may do while its reader is behind; see `Scheduler.hold`."""

    RUN = "run"
    """All that it would: its reader keeps up."""
    PAUSE = "pause"
    """Nothing. Its cells stay in its slot as long as nobody needs that."""
    SWAP = "swap"
    """Nothing, and it gives up its slot at once."""


BLOCK_TOKENS = 8
"""Tokens of one block of a prefix. A block's key stands for all tokens from the sequence's start to the block's end."""

SUSPECT_TOKENS = 8
"""Tokens that a suspect must give by itself before it is none any more."""


@dataclass(frozen=True, slots=True)
class Request:
    """One sequence to compute.

    n_prompt           at least 1
    max_output         the most tokens that may be generated, at least 1; a ceiling, which no slot has to hold
    blocks             keys of the known tokens' whole blocks (BLOCK_TOKENS each), for finding a prefix that was computed before
    template           a declared template that the prompt begins with ("": none), `template_cells` tokens long
    queue_timeout_us   how long it may wait for its first slot (0: for ever)
    pins               the template whose cells this request computes ("": it is an ordinary one), in the pool `pool`
    n_output           output tokens that are known already, because another scheduler had it before; `max_output` counts them
    readmitted         it was accepted before: queue bounds, tenants' limits and `queue_timeout_us` do not apply any more
    account            under what name admission and fair shares are counted ("": the tenant's); what is kept is the tenant's
    declared           its account was made by the operator: the queue has a place for the account's first request, always
    suspect            it may be what broke an engine: what it computes is a batch of its own, until it has computed what it
                       came with and SUSPECT_TOKENS more
    prepares           what it needs beside cells is still being made: it has no slot before `Scheduler.prepared`
    scores             the log probabilities of its prompt's tokens are wanted: all of it is computed, whatever was before
    erased             what its tenant had left was erased while it was live: it leaves nothing either"""

    request_id: int
    tenant: str
    request_class: RequestClass
    n_prompt: int
    max_output: int
    blocks: tuple[int, ...] = ()
    template: str = ""
    template_cells: int = 0
    queue_timeout_us: int = 0
    pins: str = ""
    pool: str = ""
    n_output: int = 0
    readmitted: bool = False
    suspect: bool = False
    erased: bool = False
    account: str = ""
    declared: bool = False
    prepares: bool = False
    scores: bool = False

    def __post_init__(self) -> None:
        if not self.account:
            object.__setattr__(self, "account", self.tenant)
        assert self.n_prompt >= 1, f"request {self.request_id}: n_prompt = {self.n_prompt}"
        assert 0 <= self.n_output < self.max_output, (
            f"request {self.request_id}: {self.n_output} of max_output = {self.max_output} tokens are known"
        )

    @property
    def n_known(self) -> int:
        """Tokens that it comes with."""
        return self.n_prompt + self.n_output

    def n_cells(self, n_output: int) -> int:
        """KV cells that it needs for so much output in all: the last generated token is never fed back."""
        return self.n_prompt + n_output - 1


@dataclass(frozen=True, slots=True)
class Queued:
    """The request was accepted and waits. `position` in its queue counts from 1; `eta_us`: the further wait, estimated;
    `prompt_us`: the compute of what is not cached of its prompt, where that is known."""

    request_id: int
    position: int
    eta_us: int
    prompt_us: int = 0


@dataclass(frozen=True, slots=True)
class Rejected:
    """The request was refused at once; nothing of it is kept.

    `value` is what was asked, `limit` what is allowed (tokens for TOO_LONG, queue places for QUEUE_FULL)."""

    request_id: int
    reason: RejectReason
    value: int
    limit: int
    retry_after_us: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The request got its first slot; `wait_us` is the time it spent queued, `n_cached` the tokens it need not compute."""

    request_id: int
    wait_us: int
    pool: str
    n_cached: int = 0


@dataclass(frozen=True, slots=True)
class Preempted:
    """The request stops for a while; it will go on by itself, or when an operator says so. `why`: unless it kept its slot."""

    request_id: int
    kind: PreemptionKind
    why: PreemptionReason | None = None


@dataclass(frozen=True, slots=True)
class Resumed:
    """The request goes on after `away_us`; `n_recomputed` of its tokens have to be computed again."""

    request_id: int
    away_us: int
    n_recomputed: int


@dataclass(frozen=True, slots=True)
class Downgraded:
    """The request goes on as background work."""

    request_id: int
    why: DowngradeReason


@dataclass(frozen=True, slots=True)
class Finished:
    """The one terminal event of an accepted request. `n_output` counts what it came with, too.

    `served_us` is the measured compute charged to it; `n_recomputed` counts tokens computed again after drops."""

    request_id: int
    reason: FinishReason
    n_prompt: int
    n_output: int
    served_us: int
    detail: str = ""
    n_cached: int = 0
    n_preempted: int = 0
    n_recomputed: int = 0


Event = Started | Preempted | Resumed | Downgraded | Finished
