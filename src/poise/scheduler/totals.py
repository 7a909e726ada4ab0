"""What is counted since the scheduler was made, by whoever does it."""

from dataclasses import dataclass, field
from enum import StrEnum

from poise.scheduler.request import PreemptionKind


class DraftOutcome(StrEnum):
    """What became of a guess of a token: it came true, or was computed for nothing."""

    ACCEPTED = "accepted"
    REJECTED = "rejected"


@dataclass(slots=True)
class Totals:
    """Counters; whoever keeps them copies them."""

    preemptions: dict[PreemptionKind, int] = field(default_factory=lambda: dict.fromkeys(PreemptionKind, 0))
    resumes: int = 0
    downgrades: int = 0
    expired: int = 0
    prefix_hits: int = 0
    cached_tokens: int = 0
    recomputed_tokens: int = 0
    evicted_entries: int = 0
    stored_bytes: int = 0
    loaded_bytes: int = 0
    inherited_entries: int = 0
    unstored: int = 0
    """Sequences whose cells were dropped because the host store was full."""
    draft_tokens: dict[DraftOutcome, int] = field(default_factory=lambda: dict.fromkeys(DraftOutcome, 0))
