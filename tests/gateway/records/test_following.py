"""The life of a record and what its readers do to its request: every row of the table, and that a record follows them."""

from __future__ import annotations

import pytest

from poise.gateway.records.following import Stage, Stop, consequence
from poise.gateway.records.record import Follower, Origin, Record
from poise.gateway.records.values import Heading
from poise.gateway.request.refusals import internal_error
from poise.scheduler.request import Hold, RequestClass
from tests.gateway.fakes import NoWork, opened


@pytest.mark.parametrize(
    ("lags", "goes_on", "stuck", "expected"),
    [
        ([0], False, False, Hold.RUN),
        ([1], False, False, Hold.PAUSE),
        ([2], False, False, Hold.SWAP),
        ([2, 1], False, False, Hold.PAUSE),
        ([2, 1, 0], False, False, Hold.RUN),
        ([2, 2], True, False, Hold.SWAP),
        # Another one has left, however it did.
        ([2], False, True, Hold.SWAP),
        ([0], True, True, Hold.RUN),
        # Nobody is left.
        ([], True, False, Hold.RUN),
        ([], True, True, Hold.RUN),
        ([], False, False, Stop.LEFT),
        ([], False, True, Stop.READER_TIMEOUT),
    ],
)
def test_what_follows(lags: list[int], goes_on: bool, stuck: bool, expected: Hold | Stop) -> None:
    """The least behind decides how far a request is held; the last to leave, whether it is stopped, and why."""
    assert consequence(lags, goes_on=goes_on, stuck=stuck) is expected


def record(*, detached: bool = False) -> Record:
    origin = Origin("req", "a", RequestClass.INTERACTIVE, "messages", 0.0)
    return Record(origin, Heading("r", 0, "toy", "fp"), 1, detached=detached)


def test_nothing_is_stopped_before_it_starts_or_after_it_has_ended() -> None:
    """Followers may come and go."""
    made, work = record(), NoWork()
    Follower(made).leave()
    opened(made, work)
    follower = Follower(made)
    made.end()
    follower.leave()
    assert (work.stops, work.holds, made.stage) == ([], [], Stage.ENDED)


def test_a_request_follows_its_readers() -> None:
    """It is held when all are behind, told once of each level, and stopped by the last to leave."""
    work = NoWork()
    made = opened(record(), work)
    first, second = Follower(made), Follower(made)
    for follower, lag in ((first, 1), (second, 1), (second, 2), (first, 2)):
        follower.lag = lag
        made.review()
    assert work.holds == [Hold.PAUSE, Hold.SWAP]
    third = Follower(made)
    assert work.holds[2:] == [Hold.RUN]
    for follower in (third, second):
        follower.leave()
    assert (work.holds[3:], work.stops) == ([Hold.SWAP], [])
    first.leave(stuck=True)
    assert work.stops == [Stop.READER_TIMEOUT]


def test_who_is_detached_goes_on() -> None:
    """And runs, however far behind its last reader was."""
    work = NoWork()
    made = opened(record(detached=True), work)
    reader = Follower(made)
    reader.lag = 2
    made.review()
    reader.leave(stuck=True)
    assert (work.holds, work.stops) == ([Hold.SWAP, Hold.RUN], [])


def test_a_record_is_refused_or_fails_and_ends_once() -> None:
    """Whether it was open says which."""
    refused, failed = record(), opened(record())
    refused.start(NoWork())
    for made in (refused, failed):
        made.end(internal_error("err-1"))
        with pytest.raises(AssertionError):
            made.end()
    assert (refused.stage, failed.stage) == (Stage.REFUSED, Stage.ENDED)


def test_a_record_is_started_and_opened_once_and_in_that_order() -> None:
    """Anything else is a bug in who writes it."""
    made = record()
    assert made.stage.value == "new"
    for too_early in (made.open, made.end):
        with pytest.raises(AssertionError):
            too_early()
    made.start(NoWork())
    assert made.stage.value == "started"
    made.start(NoWork())  # somebody else is asked in the place of the first
    made.open()
    assert made.stage is Stage.OPEN
    for again in (made.open, lambda: made.start(NoWork())):
        with pytest.raises(AssertionError):
            again()
