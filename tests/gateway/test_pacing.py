"""The playout schedule: bounded, in order, first token at once; and it does even out what comes in bursts."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.pacing import Pacer

GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.3), st.floats(0.0, 5.0)), min_size=1, max_size=60)
DELAYS = st.floats(0.001, 1.0)


def arrivals_of(gaps: Sequence[float]) -> list[float]:
    return [sum(gaps[: i + 1]) for i in range(len(gaps))]


def schedule(arrivals: Sequence[float], delay_s: float) -> list[float]:
    pacer = Pacer(delay_s, 1)
    return [pacer.due_s(0, arrival) for arrival in arrivals]


@given(GAPS, DELAYS)
def test_no_token_is_early_or_held_for_longer_than_the_delay(gaps: list[float], delay_s: float) -> None:
    """The first one is not held at all, and the order is kept."""
    arrivals = arrivals_of(gaps)
    dues = schedule(arrivals, delay_s)
    assert dues[0] == arrivals[0]
    assert all(arrival <= due <= arrival + delay_s + 1e-9 for arrival, due in zip(arrivals, dues, strict=True))
    assert all(before <= after for before, after in pairwise(dues))


@given(GAPS, GAPS, DELAYS)
def test_choices_have_schedules_of_their_own(one: list[float], other: list[float], delay_s: float) -> None:
    """What comes for one does not hold up the other."""
    pacer = Pacer(delay_s, 2)
    events = sorted([(at, 0) for at in arrivals_of(one)] + [(at, 1) for at in arrivals_of(other)])
    dues: list[list[float]] = [[], []]
    for at, choice in events:
        dues[choice].append(pacer.due_s(choice, at))
    assert dues == [schedule(arrivals_of(one), delay_s), schedule(arrivals_of(other), delay_s)]


def test_an_even_stream_is_not_held() -> None:
    """Tokens at an even pace go out when they come."""
    arrivals = [0.02 * i for i in range(100)]
    held = [due - arrival for due, arrival in zip(schedule(arrivals, 0.1), arrivals, strict=True)]
    assert max(held) < 1e-6


def test_a_burst_is_spread() -> None:
    """After a stall of a few tokens' time, what comes at once is told at the pace of before."""
    arrivals = [0.02 * i for i in range(50)] + [1.06] * 4
    dues = schedule(arrivals, 0.2)
    gaps = [after - before for before, after in pairwise(dues[50:])]
    assert all(0.01 < gap < 0.03 for gap in gaps)


def ratio(times: Sequence[float]) -> float:
    """Jitter: the 99th percentile of the gaps against their median."""
    gaps = sorted(after - before for before, after in pairwise(times))
    return gaps[int(0.99 * len(gaps))] / gaps[len(gaps) // 2]


def test_pacing_lowers_the_jitter_of_bursty_arrivals() -> None:
    """Steps of about 20 ms; now and then one takes three to five times as long, and what was late then comes at once."""
    draw = random.Random(5)
    for _ in range(5):
        arrivals, now, late = [], 0.0, 0
        for _ in range(2000):
            if late:
                late -= 1
                now += 0.001
            elif draw.random() < 0.05:
                late = draw.randint(2, 4)
                now += 0.02 * (late + 1)
            else:
                now += draw.uniform(0.016, 0.024)
            arrivals.append(now)
        dues = schedule(arrivals, 0.1)
        assert dues[0] == arrivals[0]
        assert ratio(arrivals) > 3
        assert ratio(dues) < 0.75 * ratio(arrivals)
        assert dues[-1] - arrivals[-1] <= 0.1, "no throughput is lost"
