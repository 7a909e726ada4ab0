"""The states of a request as a record has them, and what each change of a running one means to who follows it."""

from __future__ import annotations

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


class Meaning(NamedTuple):
    """`leads_to`: the choice's state from then on; None: what it would be if nothing kept it. `comment`: the word in streams."""

    comment: bytes
    leads_to: RequestState | None


# One whose cells are gone is in the queue again.
MEANINGS: Mapping[str, Meaning] = {
    ChangeKind.PAUSE: Meaning(b"paused", RequestState.PAUSED),
    ChangeKind.STALL: Meaning(b"stalled", RequestState.PAUSED),
    ChangeKind.SWAP: Meaning(b"swapped", RequestState.SWAPPED),
    ChangeKind.DROP: Meaning(b"dropped", RequestState.QUEUED),
    ChangeKind.LOST: Meaning(b"recovering", RequestState.QUEUED),
    ChangeKind.RESUME: Meaning(b"resumed", None),
    ChangeKind.RECOVER: Meaning(b"recovered", None),
}
"""Of all that stop a choice or let it go on. A downgrade does neither."""
DOWNGRADED = b"downgraded"
