"""Who arrives or returns starts at a floor that only grows: arrivals by the hundred cost one that waits its fair turn, no more.

First the counters alone, on a made-up server that always serves the least served; then the scheduler, with the bounds that
docs/scheduler.md derives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.scheduler.fairness.fairness import DEPARTED_MAX, ServedCost
from poise.scheduler.request import RequestClass
from tests.scheduler.books import check_scheduler, check_served
from tests.scheduler.driver import INTERACTIVE
from tests.scheduler.test_fairness import GRAIN_US, LOADS, MINUTE_NS, Competition

PIECE_US = 20_000
"""The most that the made-up server computes at a time."""


def wait(served: ServedCost, *tenants: str) -> None:
    for tenant in tenants:
        served.enter(tenant)
        served.queue(tenant)


def go(served: ServedCost, tenant: str) -> None:
    served.unqueue(tenant)
    served.leave(tenant)


def serve_until_first(served: ServedCost, tenant: str, *, piece_us: int = PIECE_US) -> dict[str, int]:
    """Always the one with the lowest rank, others before the tenant that waits; what each of them was served until it is
    first."""
    taken: dict[str, int] = {}
    while True:
        first = min((t for t in served.tenants if t != tenant), key=served.rank)
        if served.rank(tenant) <= served.rank(first):
            return taken
        served.charge(first, piece_us)
        taken[first] = taken.get(first, 0) + piece_us


@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("k", [1, 20, 500])
def test_k_arrivals_take_a_grain_each_before_one_that_waits(k: int, known: bool) -> None:
    """Not the second one two and the third one three. The same for k that were here before and come back."""
    served = ServedCost(GRAIN_US)
    names = [f"n{i}" for i in range(k)]
    if known:
        wait(served, *names)
        for name in names:
            go(served, name)
    wait(served, "there")
    served.charge("there", 100_000_000)
    wait(served, *names)
    assert {served[name] for name in names} == {served["there"] - GRAIN_US}
    taken = serve_until_first(served, "there")
    assert max(taken.values()) <= GRAIN_US + PIECE_US
    assert sum(taken.values()) <= k * (GRAIN_US + PIECE_US)


@pytest.mark.parametrize("n_others", [1, 7, 40])
def test_arrivals_without_an_end_cost_a_fair_turn(n_others: int) -> None:
    """A key for each request, so many at a time: one that waits gets its part of what those alive are served, from the start."""
    served = ServedCost(GRAIN_US)
    wait(served, "there")
    served.charge("there", 3 * GRAIN_US)
    before_us, n_fresh, alive = served["there"], 0, list[str]()
    total_before_us = served.total_us
    for _ in range(20_000):
        while len(alive) < n_others:
            n_fresh += 1
            alive.append(f"fresh-{n_fresh}")
            wait(served, alive[-1])
        first = min(alive, key=served.rank)
        if served.rank("there") <= served.rank(first):
            first = "there"
        served.charge(first, PIECE_US)
        if first != "there":  # one piece is all that it came for
            alive.remove(first)
            go(served, first)
    fair_us = (served.total_us - total_before_us) / (n_others + 1)
    assert served["there"] - before_us == pytest.approx(fair_us, abs=4 * GRAIN_US)


def test_a_slow_one_that_is_always_there_holds_the_floor_back_for_nobody() -> None:
    """It wants little, and waits for nothing. Who arrives starts near the one that waits, not where the slow one stands."""
    served = ServedCost(GRAIN_US)
    served.enter("slow")
    wait(served, "busy")
    for _ in range(1000):
        served.charge("busy", 9 * PIECE_US)
        served.charge("slow", PIECE_US)
    wait(served, "new")
    assert served["busy"] - served["new"] == GRAIN_US


def test_where_nobody_waits_nobody_is_owed_anything() -> None:
    """Who had less because it wanted less has saved nothing up when it wants more."""
    served = ServedCost(GRAIN_US)
    served.enter("much")
    served.enter("little")
    for _ in range(1000):
        served.charge("much", PIECE_US)
    wait(served, "little")
    assert served["much"] - served["little"] == GRAIN_US
    served.unqueue("little")
    served.leave("little")
    served.leave("little")
    served.leave("much")
    wait(served, "new")
    assert served["new"] == 1000 * PIECE_US - GRAIN_US


def test_names_by_the_thousand_wipe_no_memory_of_who_was_served_more() -> None:
    """Who leaves ahead of the floor comes back ahead of it, whoever came and went meanwhile; the others start as newcomers do."""
    served = ServedCost(GRAIN_US)
    wait(served, "waits", "ahead")
    served.charge("ahead", 40 * GRAIN_US)
    go(served, "ahead")
    for i in range(3 * DEPARTED_MAX):
        wait(served, f"n{i}")
        served.charge(f"n{i}", 1000)
        go(served, f"n{i}")
        check_served(served)
    for i in (0, 3 * DEPARTED_MAX - 1):
        wait(served, f"n{i}")
        assert served[f"n{i}"] >= served.floor_us - GRAIN_US
    wait(served, "ahead")
    assert served["ahead"] == 40 * GRAIN_US


@dataclass
class Server:
    """Serves the least-served account that waits, a piece at a time, while others come, go and return. One waits all the time."""

    random: Random
    piece_us: int
    weights: dict[str, float] = field(default_factory=dict)
    served: ServedCost = field(init=False)
    alive: list[str] = field(default_factory=list)
    most_alive: int = 1
    before_us: int = 0
    """What others were served since the one that waits was last."""
    most_before_us: int = 0

    def __post_init__(self) -> None:
        self.served = ServedCost(GRAIN_US, lambda tenant: self.weights.get(tenant, 1.0))
        wait(self.served, "there")

    def come(self, names: list[str]) -> None:
        floor_us = self.served.floor_us
        for name in names:
            if name not in self.alive:
                wait(self.served, name)
                self.alive.append(name)
                assert self.served[name] >= self.served.floor_us - GRAIN_US
        assert self.served.floor_us >= floor_us, "the floor fell"
        self.most_alive = max(self.most_alive, len(self.alive) + 1)

    def leave(self, n: int) -> None:
        for _ in range(min(n, len(self.alive))):
            go(self.served, self.alive.pop(self.random.randrange(len(self.alive))))

    def serve(self, n: int) -> None:
        for _ in range(n):
            first = min(self.alive, key=self.served.rank, default="there")
            # Where both rank alike it may be either: the worse for the one that waits.
            if self.served.rank("there") < self.served.rank(first):
                first = "there"
            floor_us = self.served.floor_us
            self.served.charge(first, self.piece_us)
            assert self.served.floor_us >= floor_us, "the floor fell"
            self.before_us = 0 if first == "there" else self.before_us + self.piece_us
            self.most_before_us = max(self.most_before_us, self.before_us)
        check_served(self.served)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 1 << 20),
    piece_us=st.sampled_from([1000, 20_000, 150_000]),
    most=st.integers(1, 300),
    n_known=st.sampled_from([0, 0, 10, 600]),
)
def test_any_arrivals_leave_one_that_waits_its_turn(seed: int, piece_us: int, most: int, n_known: int) -> None:
    """Arrivals, returns and leavings of hundreds, at any moment, served or not: between two pieces of the one that waits others
    get
    a few grains for each that is alive at a time, and over all it has its share of them."""
    random = Random(seed)
    server = Server(random, piece_us)
    n_names = 0
    for _ in range(120):
        names = []
        for _ in range(random.randint(0, most - len(server.alive))):
            n_names += 1
            names.append(f"known-{random.randrange(n_known)}" if n_known else f"fresh-{n_names}")
        server.come(list(dict.fromkeys(names)))
        server.serve(random.randint(0, 60))
        server.leave(random.choice([0, 1, most // 2, most]))
    served = server.served
    slack_us = 4 * GRAIN_US + 2 * piece_us
    assert server.most_before_us <= server.most_alive * slack_us
    assert served["there"] >= served.total_us / server.most_alive - slack_us


@dataclass
class Crowd:
    """Accounts that come with one request each, so many at a time, beside the two of a Competition that always wait.

    `n_known`: so many names that come again and again; 0: each request has a name of its own.
    """

    competition: Competition
    at_a_time: int
    sizes: Callable[[Random], tuple[int, int]]
    n_known: int = 0
    n_came: int = 0
    most_us: int = 0
    """What the dearest of their requests was served."""
    worst_us: int = 0
    """The furthest that one of the two was below the floor."""
    _random: Random = field(default_factory=lambda: Random(7))

    def step(self) -> None:
        d, request_class = self.competition.driver, self.competition.request_class
        sequences = d.scheduler._life.sequences.values()
        own = [s for s in sequences if s.request.tenant.startswith("crowd")]
        self.most_us = max([self.most_us, *(s.served_us for s in own)])
        for _ in range(self.at_a_time - len(own)):
            number = self._random.randrange(self.n_known) if self.n_known else self.n_came
            self.n_came += 1
            d.add(*self.sizes(self._random), f"crowd-{number}", request_class)
        self.competition.step()
        if self.competition.backlogged:
            served = d.scheduler._books.served[request_class]
            self.worst_us = max([self.worst_us, *(served.floor_us - served[t] for t in self.competition.waiting)])

    def run(self, duration_ns: int, steps_max: int = 10_000) -> None:
        """docs/scheduler.md, "How far apart two tenants can be": the bounds beside arrivals hold after every step."""
        competition = self.competition
        until_ns = competition.driver.now_ns + duration_ns
        for _ in range(steps_max):
            if competition.driver.now_ns >= until_ns or not competition.backlogged:
                break
            self.step()
            bound_us = competition.bound_us(competition.step_us) + 4 * GRAIN_US + self.most_us
            assert competition.worst_us <= bound_us
            assert self.worst_us <= bound_us
        check_scheduler(competition.driver.scheduler)

    def share(self, tenant: str) -> float:
        """What the tenant was served, in fair shares of those alive at a time."""
        served = self.competition.driver.scheduler._books.served[self.competition.request_class]
        return served[tenant] * (self.at_a_time + len(self.competition.waiting)) / served.total_us


@pytest.mark.parametrize("request_class", list(RequestClass))
@pytest.mark.parametrize("at_a_time", [8, 40])
@pytest.mark.parametrize("n_known", [0, 300])
def test_a_key_for_each_request_wins_no_more_than_one_key_would(
    at_a_time: int, n_known: int, request_class: RequestClass
) -> None:
    """Two that play fair beside a crowd of newcomers: each is served at least four fifths of a fair share of those alive at a
    time."""
    crowd = Crowd(Competition(request_class, LOADS["alike"]), at_a_time, lambda random: (40, 48), n_known)
    crowd.run(4 * MINUTE_NS)
    assert crowd.n_came > 300
    assert min(crowd.share(tenant) for tenant in "ab") >= 0.8
    assert crowd.worst_us <= 4 * GRAIN_US, "what this load was measured to stay within"


def test_one_request_at_a_time_beside_a_crowd_starts_soon() -> None:
    """The polite client: it has nothing queued between two answers, and no first token waits for more than its turn."""
    d = (competition := Competition(INTERACTIVE, LOADS["alike"], waiting={})).driver
    crowd, waits = Crowd(competition, 8, lambda random: (40, 48)), list[int]()
    polite, since_ns = d.add(40, 24, "polite"), d.now_ns
    while d.now_ns < 2 * MINUTE_NS:
        n_output = d.scheduler._life.sequences[polite].n_output
        crowd.step()
        if not n_output and (live := d.scheduler._life.sequences.get(polite)) and live.n_output:
            waits.append((d.now_ns - since_ns) // 1000)
        if polite not in d.scheduler._life.sequences:
            polite, since_ns = d.add(40, 24, "polite"), d.now_ns
    assert len(waits) > 30
    assert max(waits) <= 9 * (GRAIN_US + crowd.competition.step_us)


SIZE = st.tuples(st.integers(1, 1000), st.integers(1, 300))


@settings(max_examples=15)
@given(
    request_class=st.sampled_from(list(RequestClass)),
    sizes=st.fixed_dictionaries({t: st.lists(SIZE, min_size=1, max_size=4) for t in "ab"}),
    crowd_sizes=st.lists(st.tuples(st.integers(1, 200), st.integers(1, 40)), min_size=1, max_size=4),
    waiting=st.fixed_dictionaries({t: st.integers(5, 40) for t in "ab"}),
    weights=st.fixed_dictionaries({t: st.sampled_from([1.0, 1.5, 2.0]) for t in "ab"}),
    at_a_time=st.integers(1, 120),
    n_known=st.sampled_from([0, 20, 400]),
    seed=st.integers(0, 1000),
)
def test_the_bounds_hold_beside_any_crowd(
    request_class: RequestClass,
    sizes: dict[str, list[tuple[int, int]]],
    crowd_sizes: list[tuple[int, int]],
    waiting: dict[str, int],
    weights: dict[str, float],
    at_a_time: int,
    n_known: int,
    seed: int,
) -> None:
    """Any lengths, however many come or return: between two that always wait, and between each of them and the floor."""
    competition = Competition(
        request_class, lambda random, tenant: random.choice(sizes[tenant]), seed, weights, waiting, preemptions_max=1_000_000
    )
    Crowd(competition, at_a_time, lambda random: random.choice(crowd_sizes), n_known).run(MINUTE_NS // 6, steps_max=150)
