"""The states of a request as a record has them, and what each change of a running one means to who follows it.

A new kind of change is a row here: streams, states, spans, explanations and the page follow the table."""

from collections.abc import Mapping
from enum import StrEnum
from typing import NamedTuple

from poise.wire.changes import ChangeKind


class RequestState(StrEnum):
    """Of a request or of one of its choices, while the engine has it and after."""

    QUEUED = "queued"
    RUNNING = "running"
    PAUSED = "paused"
    SWAPPED = "swapped"
    ENDED = "ended"


class KeptBy(StrEnum):
    """Who stopped a choice."""

    OPERATOR = "operator"
    READER = "reader"
    ENGINE = "engine"
    """It was lost."""
    SCHEDULER = "scheduler"
    """Its slot was given to others, or was taken because it was kept already."""


class Meaning(NamedTuple):
    """What a change does to a choice, and the words for it. All but `comment` are of changes that stop one."""

    comment: bytes
    """The word in streams, and for the state on the page."""
    leads_to: RequestState | None = None
    """The choice's state from then on; None: what it would be if nothing kept it."""
    span: str = ""
    """The state in spans and in what is added up of them."""
    keeps_slot: bool = False
    kept_by: KeptBy = KeptBy.SCHEDULER
    stopped: str = ""
    """"It ... 2 s after its arrival"."""
    meanwhile: str = ""
    """"For 2 s ..."."""
    label: str = ""
    """On the page."""

    @property
    def stops(self) -> bool:
        """The choice is not computed from then on; otherwise it goes on."""
        return self.leads_to is not None

    @property
    def gives_up_slot(self) -> bool:
        """Somebody else may have had use for its slot."""
        return self.kept_by is KeptBy.SCHEDULER and not self.keeps_slot


# One whose cells are gone is in the queue again.
MEANINGS: Mapping[str, Meaning] = {
    ChangeKind.PAUSE: Meaning(
        b"paused",
        RequestState.PAUSED,
        span="paused",
        keeps_slot=True,
        kept_by=KeptBy.OPERATOR,
        stopped="was paused by an operator",
        meanwhile="an operator had paused it",
        label="paused",
    ),
    ChangeKind.STALL: Meaning(
        b"stalled",
        RequestState.PAUSED,
        span="stalled",
        keeps_slot=True,
        kept_by=KeptBy.READER,
        stopped="was held, because its reader was behind",
        meanwhile="it was held because its reader was behind",
        label="its reader is behind",
    ),
    ChangeKind.SWAP: Meaning(
        b"swapped",
        RequestState.SWAPPED,
        span="swapped",
        stopped="was swapped to host memory",
        meanwhile="its KV cells were in host memory and it had no slot",
        label="swapped out",
    ),
    ChangeKind.DROP: Meaning(
        b"dropped",
        RequestState.QUEUED,
        span="dropped",
        stopped="had its KV cells given up",
        meanwhile="its KV cells had been given up and it had no slot",
        label="waiting again",
    ),
    ChangeKind.LOST: Meaning(
        b"recovering",
        RequestState.QUEUED,
        span="lost",
        kept_by=KeptBy.ENGINE,
        stopped="lost its engine, which died",
        meanwhile="its engine had died and no other one had it yet",
        label="recovering",
    ),
    ChangeKind.RESUME: Meaning(b"resumed"),
    ChangeKind.RECOVER: Meaning(b"recovered"),
}
"""Of all that stop a choice or let it go on. A downgrade does neither."""
DOWNGRADED = b"downgraded"
STOPS: Mapping[str, Meaning] = {kind: meaning for kind, meaning in MEANINGS.items() if meaning.stops}
GOES_ON = tuple(kind for kind, meaning in MEANINGS.items() if not meaning.stops)
