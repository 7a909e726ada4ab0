"""What may become of a request between its start and its end: the words in which that is sent, counted, kept and shown."""

from enum import StrEnum

from poise.scheduler.request import Control, PreemptionKind


class ChangeKind(StrEnum):
    """The scheduler's words, and two of the gateway's own: the engine under a request died, and another one has it."""

    PAUSE = PreemptionKind.PAUSE.value
    STALL = PreemptionKind.STALL.value
    SWAP = PreemptionKind.SWAP.value
    DROP = PreemptionKind.DROP.value
    RESUME = Control.RESUME.value
    DOWNGRADE = Control.DOWNGRADE.value
    LOST = "lost"
    RECOVER = "recover"
