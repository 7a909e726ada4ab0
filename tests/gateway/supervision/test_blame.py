"""Blame: who becomes a suspect, who is acquitted, who is quarantined."""

from __future__ import annotations

import signal

import pytest

from poise.gateway.supervision.blame import DEATHS, DEATHS_WITH_SIGKILL, Blame, Cause, Death

SEGV = Death(Cause.CRASH, -signal.SIGSEGV, "")
KILL = Death(Cause.CRASH, -signal.SIGKILL, "")
TERM = Death(Cause.CRASH, -signal.SIGTERM, "")
INT = Death(Cause.CRASH, -signal.SIGINT, "")
HANG = Death(Cause.HANG, -signal.SIGKILL, "")
BUG = Death(Cause.EXIT, 1, "")
IN_ORDER = Death(Cause.EXIT, 0, "")


def in_pass(death: Death, *ids: int) -> Death:
    return Death(death.cause, death.code, death.detail, ids)


def verdicts(*deaths: Death) -> list[int | None]:
    blame = Blame()
    return [blame.judge(death) for death in deaths]


@pytest.mark.parametrize("death", [SEGV, HANG, BUG])
def test_alone_and_seen_before_is_quarantined(death: Death) -> None:
    """Rule 4: once among others, then alone."""
    assert verdicts(in_pass(SEGV, 1, 2), in_pass(death, 2)) == [None, 2]


def test_who_dies_alone_twice_is_quarantined() -> None:
    """The first time it might have been chance."""
    assert verdicts(in_pass(BUG, 1), in_pass(BUG, 1)) == [None, 1]


def test_nobody_is_quarantined_in_company() -> None:
    """Only a pass of its own tells who it was, however often."""
    assert verdicts(*[in_pass(SEGV, 1, 2)] * 5) == [None] * 5


@pytest.mark.parametrize(
    ("deaths", "expected"),
    [
        ([KILL, KILL], [None, None]),
        ([KILL, KILL, KILL], [None, None, 1]),
        ([SEGV, KILL], [None, None]),
        ([KILL, SEGV], [None, None]),
        ([KILL, SEGV, SEGV], [None, None, 1]),
        ([SEGV, KILL, KILL], [None, None, 1]),
        ([HANG, HANG], [None, 1]),
    ],
)
def test_sigkill_takes_one_more(deaths: list[Death], expected: list[int | None]) -> None:
    """Rule 5. The watchdog's own SIGKILL is a hang, and no chance."""
    assert (DEATHS, DEATHS_WITH_SIGKILL) == (2, 3)
    assert verdicts(*(in_pass(death, 1) for death in deaths)) == expected


@pytest.mark.parametrize("death", [TERM, INT, IN_ORDER])
def test_nobody_is_to_blame_for_an_end_on_purpose(death: Death) -> None:
    """Rule 1: not even a suspect comes of it."""
    blame = Blame()
    for _ in range(5):
        assert blame.judge(in_pass(death, 1)) is None
    assert not blame.is_suspect(1)


def test_nobody_is_to_blame_who_was_not_computed() -> None:
    """An engine that died between two passes, or while it loaded."""
    blame = Blame()
    assert blame.judge(SEGV) is None
    blame.judge(in_pass(SEGV, 2))
    assert [blame.is_suspect(request_id) for request_id in (1, 2)] == [False, True]


def test_an_acquitted_suspect_starts_anew() -> None:
    """Rule 3."""
    blame = Blame()
    blame.judge(in_pass(SEGV, 1))
    assert blame.deaths(1) == 1
    blame.acquit(1)
    assert not blame.is_suspect(1)
    assert blame.judge(in_pass(SEGV, 1)) is None
    assert blame.judge(in_pass(SEGV, 1)) == 1


def test_a_death_is_named() -> None:
    """As the report tells it."""
    assert [d.how for d in (SEGV, KILL, HANG, BUG, Death(Cause.EXIT, None, ""))] == [
        "SIGSEGV",
        "SIGKILL",
        "hang",
        "exit code 1",
        "not started",
    ]
