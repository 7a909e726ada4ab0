"""How far a record has come, and what its request does while somebody reads it, or nobody: a table, without a record.

readers    goes on without    the last one    the request
some       yes, no                            is held as far as the one who is least behind
none       yes                                runs
none       no                 has left        is stopped: LEFT
none       no                 was stuck       is stopped: READER_TIMEOUT"""

from collections.abc import Iterable
from enum import Enum, StrEnum

from poise.metrics.story import Outcome
from poise.scheduler.request import Hold

_BY_LAG = tuple(Hold)


class Stage(Enum):
    """How far a record has come."""

    NEW = "new"
    STARTED = "started"
    """Somebody works for it, and nothing of it is shown."""
    OPEN = "open"
    """Every choice was taken: what comes is shown as it comes."""
    REFUSED = "refused"
    """It ended with an error before it was open."""
    ENDED = "ended"


class Stop(StrEnum):
    """Why a request is ended before its answer is."""

    CANCELLED = Outcome.CANCELLED.value
    """Somebody said so."""
    LEFT = "left"
    """Its last reader has left."""
    READER_TIMEOUT = Outcome.READER_TIMEOUT.value
    """Its last reader was behind for as long as it may be."""


def consequence(lags: Iterable[int], *, goes_on: bool, stuck: bool) -> Hold | Stop:
    """What a request does whose readers are so far behind (0: they keep up; 1, 2: they are held back, and for long).

    goes_on   it does so without readers
    stuck     the last reader left because it was behind for too long"""
    least = min(lags, default=None)
    if least is not None:
        return _BY_LAG[least]
    if goes_on:
        return Hold.RUN
    return Stop.READER_TIMEOUT if stuck else Stop.LEFT
