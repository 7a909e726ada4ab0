"""The playout schedule: bounded, in order, first token at once; and it does even out what comes in bursts."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.records.pacing import TICK_S, Pacer, Playout, Wake

GAPS = st.lists(st.one_of(st.just(0.0), st.floats(0.0, 0.3), st.floats(0.0, 5.0)), min_size=1, max_size=60)
DELAYS = st.floats(0.001, 1.0)


def arrivals_of(gaps: Sequence[float]) -> list[float]:
    return [sum(gaps[: i + 1]) for i in range(len(gaps))]


def schedule(arrivals: Sequence[float], delay_s: float) -> list[float]:
    pacer = Pacer(delay_s)
    return [pacer.due_s(arrival) for arrival in arrivals]


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
    events = sorted([(at, 0) for at in arrivals_of(one)] + [(at, 1) for at in arrivals_of(other)])
    playout = Playout([choice for _, choice in events], [at for at, _ in events], delay_s, 2)
    own = [iter(schedule(arrivals_of(gaps), delay_s)) for gaps in (one, other)]
    dues = [due - due % TICK_S for due in (next(own[choice]) for _, choice in events)]
    for now_s in sorted(dues):
        assert playout.free(now_s) == next((i for i, due in enumerate(dues) if due > now_s), len(dues))


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


class Stream:
    """A stream of one choice. Of tokens that come at 0, 1 and 1 s, the last one is held for 0.5 s."""

    def __init__(self, delay_s: float) -> None:
        self.owners: list[int] = []
        self.arrivals: list[float] = []
        self.playout = Playout(self.owners, self.arrivals, delay_s, 1)
        self.n_sent = 0
        self.now_s = 0.0

    def comes(self, *arrivals: float) -> Wake:
        self.arrivals += arrivals
        self.owners += [0] * len(arrivals)
        self.now_s = max([self.now_s, *arrivals])
        return self.changes()

    def changes(self) -> Wake:
        return self.playout.news(self.n_sent, self.now_s)

    def looks(self, now_s: float = 0.0) -> int:
        """Sends what is free; returns how many that were."""
        self.playout.has_news, before, self.now_s = False, self.n_sent, max(self.now_s, now_s)
        self.n_sent = self.playout.free(self.now_s)
        return self.n_sent - before

    def rings(self) -> None:
        self.playout.is_timer_set = False


def new(stream: Stream) -> None:
    pass


def all_sent(stream: Stream) -> None:
    stream.comes(0.0, 1.0)
    stream.looks()


def held(stream: Stream) -> None:
    """Two are sent, the third one is held, and the stream has looked."""
    all_sent(stream)
    stream.owners.append(0)
    stream.arrivals.append(1.0)
    stream.looks()


def held_and_timed(stream: Stream) -> None:
    held(stream)
    assert stream.playout.rest() is Wake.SET_TIMER


def held_after_one_that_is_unsent(stream: Stream) -> None:
    held(stream)
    stream.n_sent -= 1


def sent_before_the_timer_rang(stream: Stream) -> None:
    held_and_timed(stream)
    assert stream.looks(1.5) == 1


@pytest.mark.parametrize(
    ("state", "news", "rest", "rest_after_news"),
    [
        (new, Wake.NOW, Wake.NOW, Wake.NOW),
        (all_sent, Wake.NOW, Wake.LATER, Wake.NOW),
        (held, Wake.SET_TIMER, Wake.SET_TIMER, Wake.LATER),
        (held_and_timed, Wake.LATER, Wake.LATER, Wake.LATER),
        (held_after_one_that_is_unsent, Wake.NOW, Wake.SET_TIMER, Wake.SET_TIMER),
        (sent_before_the_timer_rang, Wake.LATER, Wake.LATER, Wake.NOW),
    ],
)
def test_when_a_stream_wakes(state: Callable[[Stream], None], news: Wake, rest: Wake, rest_after_news: Wake) -> None:
    """A change of the record, and a look that found nothing, in every state; a timer is set at most once."""
    changed, resting = Stream(0.5), Stream(0.5)
    state(changed)
    state(resting)
    assert changed.changes() is news
    assert changed.playout.rest() is rest_after_news
    assert resting.playout.rest() is rest
    for stream in (changed, resting):
        if stream.playout.is_timer_set and state is not sent_before_the_timer_rang:
            assert stream.playout.next_s is not None
            assert 1.5 - TICK_S <= stream.playout.next_s <= 1.5
            stream.rings()
            assert stream.playout.rest() is Wake.SET_TIMER, "it rang too early"


def test_a_token_that_comes_to_be_held_wakes_nobody_before_its_time() -> None:
    """One whose turn it is wakes the stream at once; and so does a timer that has rung when something is free."""
    stream = Stream(0.5)
    assert stream.comes(0.0, 1.0) is Wake.NOW
    assert stream.looks() == 2
    assert stream.comes(1.0) is Wake.SET_TIMER
    assert stream.comes(1.2) is Wake.LATER
    stream.rings()
    assert stream.looks(1.5) == 1
    assert stream.playout.rest() is Wake.SET_TIMER


def test_without_a_delay_nothing_is_held() -> None:
    """News wakes the stream, and no timer is ever set."""
    stream = Stream(0.0)
    for at_s in (0.0, 1.0, 1.0, 1.001):
        assert stream.comes(at_s) is Wake.NOW
    assert stream.looks() == 4
    assert stream.playout.rest() is Wake.LATER


def test_what_came_before_a_client_came_back_is_not_held() -> None:
    """However it had come; what comes then has a schedule that begins with it."""
    assert Playout([0, 0, 0], [0.0, 1.0, 1.0], 0.5, 1).free(1.0) == 2
    assert Playout([0, 0, 0], [0.0, 1.0, 1.0], 0.5, 1, n_free=2).free(1.0) == 3
