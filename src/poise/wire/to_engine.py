"""Messages from the gateway to the engine: what is to be computed, held, changed or dropped. Token ids and counts, never text;
but for the grammar of an answer, which is in no log, journal or black box."""

import msgspec

from poise.scheduler.fairness.accounts import Account
from poise.scheduler.power import PowerLimits


class Thinking(msgspec.Struct, frozen=True, array_like=True):
    """How long a model may reason before the tokens of `end` are forced. `start`: those that begin it; none: the prompt has."""

    tokens: int
    end: tuple[int, ...]
    start: tuple[int, ...] = ()


class SamplingParams(msgspec.Struct, frozen=True, array_like=True):
    """How tokens are drawn. All values are validated by the gateway.

    temperature 0 is greedy. top_k 0 and top_p 1 and min_p 0 switch those filters off. repetition_penalty counts prompt and
    output tokens; presence and frequency penalties count output tokens only. logit_bias holds (token id, bias) pairs.
    n_logprobs -1 asks for none, 0 for the chosen token's, k for the k most likely ones besides. n_prompt_logprobs: the same for
    the tokens of the prompt, all but the first, none of which is then taken from a prefix that was computed before.
    min_output: end-of-generation tokens cannot be drawn before that many tokens."""

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
    n_prompt_logprobs: int = -1
    thinking: Thinking | None = None


class Grammar(msgspec.Struct, frozen=True, array_like=True):
    """What an output must be, as a text worker has found it to be usable.

    text  a grammar in the JSON form that llguidance takes: {"grammars": [{"json_schema": ...}]} and the like
    closes  text that ends the reasoning: the grammar is of what comes after it. Empty: it is of the whole output
    opens  the token with which an output may begin to reason, where `closes` ends it; None: it begins in the midst of it
    until  the output's length in tokens at which it has to be complete: what is open then is closed. 0: it may be cut anywhere"""

    text: str
    closes: str = ""
    opens: int | None = None
    until: int = 0


class Configure(msgspec.Struct, frozen=True, array_like=True, tag="configure"):
    """Gateway to engine, first of all: the effective settings as JSON, and the model file.

    `fingerprint` of the file whose vocabulary the gateway speaks: another one is not loaded. Empty: any will do.
    `weights` of the engine before this one, as its Ready named them: streams wait, so they are loaded again, without measuring.
    `secret` of the keys of blocks: the same for all engines of a gateway, so that one finds what another has stored."""

    settings: str
    model_path: str
    fingerprint: str = ""
    weights: str = ""
    secret: bytes = b""


class Accounts(msgspec.Struct, frozen=True, array_like=True, tag="accounts"):
    """What is owed and left on accounts: the gateway keeps it and does not look into it.

    Gateway to engine, before any Submit, as the one before it left them; then engine to gateway, with each Status.

    `at_ns`: when it was so, by the monotonic clock that all processes of a host share."""

    at_ns: int
    accounts: list[Account]

    def without(self, name: str) -> "Accounts":
        return Accounts(self.at_ns, [account for account in self.accounts if account.name != name])


class Inherit(msgspec.Struct, frozen=True, array_like=True, tag="inherit"):
    """Gateway to engine, before any Submit: the host store's memory is the engine's now, with what others have left in it.

    Without `keep` all of that is to be dropped: perhaps engines die of it."""

    keep: bool = True


class Submit(msgspec.Struct, frozen=True, array_like=True, tag="submit"):
    """Gateway to engine: compute this request. `request_id` 0: it has no number yet."""

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
    grammar: Grammar | None = None
    prediction: list[int] = []
    """What its output will probably be, or be like, as its caller says: guesses are looked for there too."""


class Hold(msgspec.Struct, frozen=True, array_like=True, tag="hold"):
    """Gateway to engine: the reader of a request is behind, or has caught up. Unknown ids are ignored; there is no answer.

    `hold` is a scheduler Hold. An operator's pause is another matter: a request runs only when neither holds it."""

    request_id: int
    hold: str


class Adjust(msgspec.Struct, frozen=True, array_like=True, tag="adjust"):
    """Gateway to engine: shares, above 0 to 1, of each class's `queue_max` and `slots_max` that may be used from now on."""

    queue_share: float
    slots_share: float


class Power(msgspec.Struct, frozen=True, array_like=True, tag="power"):
    """Gateway to engine: what may be used from now on, and at most so many compute threads, 0: as many as there are."""

    limits: PowerLimits
    threads: int = 0


class Release(msgspec.Struct, frozen=True, array_like=True, tag="release"):
    """Gateway to engine: nothing was asked for in a long time. The model's pages go back to the system, if nothing runs."""


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

    `begins`: the first one, of a copy made now, which takes the place of another one that was being read. `ends`: no more."""

    read_id: int
    begins: bool = False
    ends: bool = False


class Shutdown(msgspec.Struct, frozen=True, array_like=True, tag="shutdown"):
    """Gateway to engine: stop after this step."""


_Limiting = Adjust | Power | Release
_First = Configure | Inherit | Accounts
ToEngine = _First | Submit | Abort | Hold | _Limiting | Template | Control | Forget | Erase | ReadJournal | Shutdown
