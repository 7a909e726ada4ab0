"""Dynamic thresholds: what one may take of something shared."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poise.scheduler.fairness.thresholds import may_take


def fill(total: int, holders: int, share: float = 1.0, least: int = 0) -> list[int]:
    """What each holds when all of them take one after the other for as long as anybody may."""
    held = [0] * holders
    while True:
        before = sum(held)
        for i in range(holders):
            if may_take(1, held=held[i], used=sum(held), total=total, share=share, least=least):
                held[i] += 1
        if sum(held) == before:
            return held


def test_a_lone_holder_gets_half_and_two_get_a_third_each() -> None:
    assert fill(60, 1) == [30]
    assert fill(60, 2) == [20, 20]
    assert fill(60, 5) == [10] * 5


def test_a_larger_share_leaves_less_for_the_next_one() -> None:
    assert fill(60, 1, share=4.0) == [48]
    assert fill(60, 1, share=0.25) == [12]


def test_the_least_is_had_whatever_others_hold_but_never_more_than_there_is() -> None:
    assert may_take(1, held=0, used=63, total=64, least=1)
    assert not may_take(1, held=0, used=64, total=64, least=1)


@given(st.integers(2, 500), st.integers(1, 40), st.floats(0.25, 4.0))
def test_the_next_one_always_finds_room_where_all_others_have_taken_all_they_may(total: int, holders: int, share: float) -> None:
    """As long as there are fewer holders than a share of the whole allows one each."""
    held = fill(total, holders, share)
    assert sum(held) <= total
    if (1 + share * holders) * (1 + 1 / share) <= total:
        assert may_take(1, held=0, used=sum(held), total=total, share=share)
