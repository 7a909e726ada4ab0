"""What a step's events become in its message: starts are read first, and take with them what is over."""

from __future__ import annotations

import pytest

from poise.engine.report import news_of
from poise.scheduler.request import (
    Downgraded,
    DowngradeReason,
    Event,
    Finished,
    FinishReason,
    Preempted,
    PreemptionKind,
    PreemptionReason,
    Resumed,
    Started,
)

PAUSED = Preempted(1, PreemptionKind.PAUSE)
SWAPPED = Preempted(1, PreemptionKind.SWAP, PreemptionReason.TURN)
DROPPED = Preempted(1, PreemptionKind.DROP, PreemptionReason.CLASS)
RESUMED, DOWNGRADED, STARTED = Resumed(1, 5, 0), Downgraded(1, DowngradeReason.OUTPUT), Started(1, 7, "short", 3)
FINISHED = Finished(1, FinishReason.STOP, 10, 2, 99, n_cached=3)


def said(events: list[Event]) -> str:
    """Ids and words, in the order in which the gateway reads them."""
    starts, changes, finishes = news_of(events)
    words = [f"{start.request_id} start" for start in starts]
    words += [f"{change.request_id} {change.what}{change.why and ' ' + change.why}" for change in changes]
    return ", ".join(words + [f"{finish.request_id} {finish.reason}" for finish in finishes])


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], ""),
        ([STARTED], "1 start"),
        ([PAUSED], "1 pause"),
        ([SWAPPED], "1 swap turn"),
        ([DROPPED], "1 drop class"),
        ([RESUMED], "1 resume"),
        ([DOWNGRADED], "1 downgrade output"),
        ([FINISHED], "1 stop"),
        # What came before the start is over, but for a downgrade.
        ([PAUSED, STARTED], "1 start"),
        ([PAUSED, RESUMED, STARTED], "1 start"),
        ([DOWNGRADED, STARTED], "1 start, 1 downgrade output"),
        ([PAUSED, DOWNGRADED, RESUMED, STARTED], "1 start, 1 downgrade output"),
        # What came after it is not.
        ([STARTED, PAUSED], "1 start, 1 pause"),
        ([PAUSED, STARTED, SWAPPED, RESUMED], "1 start, 1 swap turn, 1 resume"),
        ([STARTED, DOWNGRADED, FINISHED], "1 start, 1 downgrade output, 1 stop"),
        # Without a start, all are said in their order.
        ([PAUSED, RESUMED, DROPPED], "1 pause, 1 resume, 1 drop class"),
        ([DROPPED, FINISHED], "1 drop class, 1 stop"),
        # A start concerns nobody else.
        ([Preempted(2, PreemptionKind.PAUSE), PAUSED, STARTED, Resumed(3, 1, 1)], "1 start, 2 pause, 3 resume"),
        # The engine's own requests stay with it.
        ([Started(-1, 1, "short"), Preempted(-1, PreemptionKind.PAUSE), Finished(-1, FinishReason.LENGTH, 9, 0, 1)], ""),
    ],
)
def test_what_is_said_of_the_events_of_a_step(events: list[Event], expected: str) -> None:
    """Every kind, and every order of a start and something else."""
    assert said(events) == expected


def test_figures_go_with_them() -> None:
    """As the scheduler gave them."""
    ((start,), _, (finish,)) = news_of([STARTED, FINISHED])
    assert (start.wait_us, start.pool, start.n_cached) == (7, "short", 3)
    assert (finish.n_prompt, finish.n_output, finish.served_us, finish.n_cached) == (10, 2, 99, 3)
