"""Slots before another server, on virtual time: whoever asks, everybody ends once, nobody is starved, shares are kept."""

from __future__ import annotations

import heapq
from collections import defaultdict
from dataclasses import dataclass, field, replace
from itertools import count, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.config import Settings
from poise.config.policy import to_policy
from poise.gateway.models.remote.queue import BACKGROUND, DEBT_US, INTERACTIVE, PROMPT_TOKEN_US, SlotQueue, Ticket
from poise.scheduler.policy import SchedulerPolicy, TenantPolicy
from poise.scheduler.request import Rejected, RejectReason, RequestClass
from tests.scheduler.books import check_served

SECOND = 1_000_000_000
POLICY = to_policy(Settings())
GRAIN_NS = POLICY.grain_us * 1000


def with_share(share: float, **tenants: TenantPolicy) -> SchedulerPolicy:
    classes = dict(POLICY.classes) | {BACKGROUND: replace(POLICY.classes[BACKGROUND], min_share=share)}
    return replace(POLICY, classes=classes, tenants=tenants)


def check_slots(queue: SlotQueue) -> None:
    """What must be so at any time."""
    assert queue.n_busy <= queue.n_slots, "more run than there are slots"
    for line in queue._lines.values():
        check_served(line.served)
        assert all(line.waiting.values()), "an account is listed that does not wait"
        assert sum(map(len, line.waiting.values())) == line.n_waiting, "waiting miscounted"
        assert sum(line.holds.values()) == line.n_held, "slots miscounted"
        assert all(t.waits for waiting in line.waiting.values() for _, _, t in waiting), "one waits that does not"


@dataclass
class Server:
    """A queue whose requests hold their slots for as long as they were made to; time passes from event to event."""

    queue: SlotQueue
    now_ns: int = 0
    lasts: dict[Ticket, int] = field(default_factory=dict)
    begun: list[Ticket] = field(default_factory=list)
    ended: list[Ticket] = field(default_factory=list)
    refused: list[Rejected] = field(default_factory=list)
    held_ns: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    """Slot time by class and account, as it passes."""
    always: list[tuple[str, RequestClass, list[int]]] = field(default_factory=list)
    """Accounts of which some wait at any time, and how long theirs last."""
    _ends: list[tuple[int, int, Ticket]] = field(default_factory=list)
    _numbers: count[int] = field(default_factory=count)

    def enter(self, ticket: Ticket, lasts_ns: int = SECOND) -> Rejected | None:
        self.lasts[ticket] = lasts_ns
        refusal = self.queue.enter(ticket, self.now_ns)
        if refusal is not None:
            self.refused.append(refusal)
        self._begin()
        return refusal

    def end(self, ticket: Ticket) -> None:
        if not ticket.is_over:
            self.queue.leave(ticket, self.now_ns)
            self.ended.append(ticket)
        self._begin()

    def to(self, when_ns: int) -> None:
        """Let time pass, with all ends on the way."""
        while self._ends and self._ends[0][0] <= when_ns:
            self._pass(self._ends[0][0])
            self.end(heapq.heappop(self._ends)[2])
        self._pass(when_ns)
        self.ended += self.queue.expire(self.now_ns)
        self._begin()

    def drain(self) -> None:
        while self._ends:
            self.to(self._ends[0][0])

    def _pass(self, when_ns: int) -> None:
        for _, _, ticket in self._ends:
            if not ticket.is_over:
                self.held_ns[ticket.request_class, ticket.account] += when_ns - self.now_ns
        self.now_ns = when_ns

    def _refill(self) -> None:
        for account, request_class, lasts in self.always:
            while len(self.queue._lines[request_class].waiting.get(account, ())) < 2:
                ticket = Ticket(account, request_class)
                self.lasts[ticket] = lasts[len(self.lasts) % len(lasts)]
                assert self.queue.enter(ticket, self.now_ns) is None

    def _begin(self) -> None:
        self._refill()
        while begun := self.queue.begin(self.now_ns):
            self._start(begun)
            self._refill()
        check_slots(self.queue)

    def _start(self, begun: list[Ticket]) -> None:
        for ticket in begun:
            assert not ticket.is_over
            self.begun.append(ticket)
            heapq.heappush(self._ends, (self.now_ns + self.lasts[ticket], next(self._numbers), ticket))


def server(n_slots: int = 2, queue_max: int = 100, policy: SchedulerPolicy = POLICY) -> Server:
    return Server(SlotQueue(policy, n_slots, queue_max))


def is_last_kept(shop: Server) -> bool:
    """Whether one slot is free, and all that wait are background work, or of accounts that have their share of the others."""
    queue, line = shop.queue, shop.queue._lines[INTERACTIVE]
    share = queue.n_slots / max(1, len(line.served.recent.by_tenant()))
    return queue.n_busy == queue.n_slots - 1 >= 3 and all(line.holds[account] >= share for account in line.waiting)


ARRIVALS = st.tuples(
    st.integers(0, 3 * SECOND),  # after the one before
    st.sampled_from("abc"),
    st.sampled_from([INTERACTIVE, BACKGROUND]),
    st.integers(1, 20_000),
    st.integers(0, 10 * SECOND),
    st.one_of(st.none(), st.integers(0, 10 * SECOND)),  # cancelled after
    st.sampled_from([0, 0, 1_000_000]),
)


@settings(max_examples=150)
@given(st.lists(ARRIVALS, max_size=40), st.integers(1, 4), st.integers(0, 8), st.sampled_from([0, 1, 2]))
def test_everybody_ends_once_and_slots_are_never_exceeded(
    arrivals: list[tuple[int, str, object, int, int, int | None, int]], n_slots: int, queue_max: int, running_max: int
) -> None:
    """Whoever was let in, however it goes: begun at most once, ended once; free slots are by limits of tenants, else one."""
    shop = server(n_slots, queue_max, replace(POLICY, tenants={"a": TenantPolicy(running_max=running_max, queue_max=3)}))
    cancels: list[tuple[int, int, Ticket]] = []
    at_ns, let_in = 0, []
    for i, (gap_ns, account, request_class, n_prompt, lasts_ns, cancel_ns, timeout_us) in enumerate(arrivals):
        at_ns += gap_ns
        while cancels and cancels[0][0] <= at_ns:
            when_ns, _, ticket = heapq.heappop(cancels)
            shop.to(when_ns)
            shop.end(ticket)
        shop.to(at_ns)
        ticket = Ticket(account, request_class, n_prompt, timeout_us=timeout_us)  # type: ignore[arg-type]
        if shop.enter(ticket, lasts_ns) is None:
            let_in.append(ticket)
            if cancel_ns is not None:
                heapq.heappush(cancels, (at_ns + cancel_ns, i, ticket))
        counts = [sum(t.waits and t.request_class is c for t in let_in) for c in (INTERACTIVE, BACKGROUND)]
        assert max(counts) <= queue_max
        if shop.queue.n_busy < n_slots and not is_last_kept(shop):
            assert {t.account for t in let_in if t.waits} <= {"a"}
            assert running_max or not any(t.waits for t in let_in)
    shop.drain()
    assert len(shop.begun) == len(set(shop.begun))
    assert sorted(t.number for t in shop.ended) == sorted(t.number for t in let_in)
    assert (shop.queue.n_busy, sum(shop.queue.n_waiting.values())) == (0, 0)
    for line in shop.queue._lines.values():
        assert not line.served.tenants
        assert not line.holds


LASTS = st.lists(st.integers(SECOND // 4, 5 * SECOND), min_size=1, max_size=4)


@settings(max_examples=60)
@given(LASTS, LASTS, st.integers(1, 5), st.sampled_from([0.5, 1.0, 3.0]))
def test_two_that_always_wait_are_served_by_their_weights(of_a: list[int], of_b: list[int], n_slots: int, weight: float) -> None:
    """However long their requests last: what is between them is what all slots hold, for one request, and a grain."""
    shop = server(n_slots, policy=replace(POLICY, tenants={"b": TenantPolicy(weight=weight)}))
    shop.always = [("a", INTERACTIVE, of_a), ("b", INTERACTIVE, of_b)]
    shop.to(0)
    for step in range(60):
        shop.to((step + 1) * SECOND)
        served_a, served_b = shop.held_ns[INTERACTIVE, "a"], shop.held_ns[INTERACTIVE, "b"] / weight
        assert abs(served_a - served_b) <= n_slots * max(of_a + of_b) / min(1.0, weight) + 2 * GRAIN_NS


@settings(max_examples=60)
@given(LASTS, LASTS, st.integers(1, 6), st.sampled_from([0.05, 0.15, 0.5]))
def test_background_has_its_share_while_both_wait_and_not_more(
    interactive: list[int], background: list[int], n_slots: int, share: float
) -> None:
    """Of all slot time; what it is off by is what slots that cannot be taken back hold."""
    shop = server(n_slots, policy=with_share(share))
    shop.always = [("i", INTERACTIVE, interactive), ("b", BACKGROUND, background)]
    shop.to(0)
    n_owed, longest_ns = int(share * n_slots) + 1, max(interactive + background)
    for step in range(10):
        shop.to((step + 1) * 10 * SECOND)
        off_ns = shop.held_ns[BACKGROUND, "b"] - share * n_slots * shop.now_ns
        assert -n_owed * longest_ns <= off_ns <= (n_owed + 1) * longest_ns


def test_background_that_held_all_slots_is_owed_something_again_within_a_minute() -> None:
    """It took them while nobody else was there: that is no reason to let it wait for ever."""
    shop = server(8)
    for _ in range(16):
        shop.enter(Ticket("b", BACKGROUND), 300 * SECOND)
    shop.always = [("i", INTERACTIVE, [SECOND])]
    shop.to(0)
    shop.to(300 * SECOND)
    assert len([t for t in shop.begun if t.account == "b"]) == 8
    shop.to(301 * SECOND + DEBT_US * 1000)
    assert len([t for t in shop.begun if t.account == "b"]) > 8


@settings(max_examples=60)
@given(st.lists(st.tuples(st.integers(0, SECOND), st.integers(1, 5000)), min_size=2, max_size=30))
def test_a_long_prompt_is_passed_by_those_only_that_come_soon_behind_it(arrivals: list[tuple[int, int]]) -> None:
    """By shorter ones of its own account, in the time that their difference in cost takes at the rate of ageing."""
    shop = server(1)
    shop.enter(Ticket("z", INTERACTIVE), 40 * SECOND)
    tickets = []
    for gap_ns, n_prompt in arrivals:
        shop.to(shop.now_ns + gap_ns)
        tickets.append(Ticket("a", INTERACTIVE, n_prompt))
        assert shop.enter(tickets[-1]) is None
    shop.drain()
    order = [t for t in shop.begun if t.account == "a"]
    assert len(order) == len(tickets)
    keys = [t.n_prompt * PROMPT_TOKEN_US + POLICY.ageing * t.entered_ns / 1000 for t in order]
    assert keys == sorted(keys)
    for before, after in pairwise(order):
        if after.entered_ns < before.entered_ns:
            saved_us = (after.n_prompt - before.n_prompt) * PROMPT_TOKEN_US
            assert before.entered_ns - after.entered_ns <= saved_us / POLICY.ageing * 1000


@pytest.mark.parametrize("n_slots", [1, 8])
def test_who_comes_beside_a_flood_has_the_next_slot(n_slots: int) -> None:
    """What runs of the flood counts while it runs: the newcomer need not wait until something of it has ended."""
    shop = server(n_slots)
    for i in range(60):
        shop.enter(Ticket("flood", INTERACTIVE), (i % n_slots + 5) * SECOND)
    shop.to(2 * SECOND)
    polite = Ticket("polite", INTERACTIVE)
    assert shop.enter(polite) is None
    (place,) = [place for place in shop.queue.places() if place.ticket is polite]
    assert place.position == 1
    shop.to(5 * SECOND)
    assert shop.begun[n_slots] is polite


@pytest.mark.parametrize("n_slots", [4, 8])
def test_who_comes_beside_a_flood_again_begins_at_once(n_slots: int) -> None:
    """It is known to come, so a slot is kept for it; hardly any slot time is lost."""
    shop = server(n_slots)
    shop.always.append(("flood", INTERACTIVE, [8 * SECOND]))
    guests = [Ticket("polite", INTERACTIVE) for _ in range(60)]
    shop.to(0)
    for i, guest in enumerate(guests):
        shop.to((i * 3 + 1) * SECOND)
        shop.enter(guest)
    assert guests[0].wait_us > 6_000_000, "nobody knew of it"
    assert max(guest.wait_us for guest in guests[5:]) == 0


def test_for_whom_the_last_slot_is_not_the_estimate_is_a_wait() -> None:
    """Which it is told, and by which a router goes."""
    shop = server(4)
    shop.enter(Ticket("other", INTERACTIVE))
    shop.to(2 * SECOND)
    for _ in range(3):
        shop.enter(Ticket("only", INTERACTIVE), 30 * SECOND)
    shop.enter(waits := Ticket("only", INTERACTIVE))
    assert (waits.waits, waits.eta_us > 0) == (True, True)
    shop.end(waits)
    assert shop.queue.wait_us(INTERACTIVE, "other") == 0


def test_who_is_alone_has_all_slots_and_again_when_the_other_is_forgotten() -> None:
    """Nothing is kept for nobody."""
    shop = server(4)
    shop.enter(Ticket("other", INTERACTIVE))
    shop.to(10 * SECOND)
    for _ in range(20):
        shop.enter(Ticket("only", INTERACTIVE), 30 * SECOND)
    assert len(shop.begun) == 4
    shop.to(100 * SECOND)
    assert shop.queue.n_busy == 4


def test_background_work_leaves_a_slot_for_chats_of_its_own_account() -> None:
    """Where there have been some."""
    shop = server(4)
    shop.enter(Ticket("one", INTERACTIVE))
    shop.to(2 * SECOND)
    for _ in range(9):
        shop.enter(Ticket("one", BACKGROUND), 30 * SECOND)
    assert shop.queue.n_busy == 3
    shop.enter(chat := Ticket("one", INTERACTIVE))
    assert chat.began_ns == shop.now_ns


def test_arrivals_without_an_end_do_not_starve_who_waits() -> None:
    """A new account every second, each of which has been served nothing: who waits has its turn all the same."""
    shop = server(1)
    shop.enter(Ticket("there", INTERACTIVE), 30 * SECOND)
    waits = Ticket("there", INTERACTIVE)
    shop.to(20 * SECOND)
    shop.enter(waits)
    for i in range(200):
        shop.enter(Ticket(f"new-{i}", INTERACTIVE), SECOND)
        shop.to(shop.now_ns + SECOND)
    assert waits.is_over


def full(shop: Server, *, account: str = "a", n: int = 1) -> None:
    for _ in range(n):
        assert shop.enter(Ticket(account, INTERACTIVE), 60 * SECOND) is None


def test_a_full_queue_says_so_with_the_time_that_a_place_takes() -> None:
    """The numbers are those of the class's queue; another class has its own."""
    shop = server(1, 2)
    for account in "abc":
        full(shop, account=account)
    refusal = shop.enter(Ticket("d", INTERACTIVE))
    assert refusal is not None
    assert (refusal.reason, refusal.value, refusal.limit) == (RejectReason.QUEUE_FULL, 2, 2)
    assert refusal.retry_after_us == shop.queue.wait_us(INTERACTIVE) > 10_000_000
    assert shop.enter(Ticket("d", BACKGROUND)) is None


def test_one_account_cannot_fill_the_queue() -> None:
    """It leaves room for others, who leave room for the next one; a declared account has its first place always."""
    shop = server(1, 64)
    full(shop, account="flood", n=1 + 51)
    refusal = shop.enter(Ticket("flood", INTERACTIVE))
    assert refusal is not None
    assert (refusal.reason, refusal.value, refusal.limit) == (RejectReason.QUEUE_SHARE, 51, 51)
    for i in range(13):
        full(shop, account=f"n{i}")
    assert shop.enter(Ticket("late", INTERACTIVE)) is not None
    assert shop.enter(Ticket("named", INTERACTIVE, is_declared=True)) is None


def test_limits_of_tenants_hold_here_too() -> None:
    """How many run and wait, and how many tokens a minute."""
    limits = {"r": TenantPolicy(running_max=1, queue_max=1), "t": TenantPolicy(tokens_per_minute=60)}
    shop = server(4, policy=replace(POLICY, tenants=limits))
    full(shop, account="r", n=2)
    assert (shop.queue.n_busy, shop.queue.n_waiting[INTERACTIVE]) == (1, 1)
    refusal = shop.enter(Ticket("r", INTERACTIVE))
    assert refusal is not None
    assert refusal.reason is RejectReason.TENANT_QUEUE_FULL
    eta_us = shop.queue.places()[0].eta_us
    assert eta_us >= 4_000_000  # its own one must end first, though slots are free
    ticket = Ticket("t", INTERACTIVE)
    shop.enter(ticket)
    shop.queue.leave(ticket, shop.now_ns, n_tokens=90)
    refusal = shop.enter(Ticket("t", INTERACTIVE, n_prompt=5))
    assert refusal is not None
    assert (refusal.reason, refusal.limit) == (RejectReason.TENANT_RATE, 60)
    assert refusal.retry_after_us == 31_000_000
    shop.to(32 * SECOND)
    assert shop.enter(Ticket("t", INTERACTIVE)) is None


def test_without_a_queue_a_free_slot_is_taken_and_nothing_waits() -> None:
    shop = server(1, 0)
    assert shop.enter(Ticket("a", INTERACTIVE)) is None
    refusal = shop.enter(Ticket("b", INTERACTIVE, is_declared=True))
    assert refusal is not None
    assert refusal.reason is RejectReason.QUEUE_FULL


def test_who_has_waited_as_long_as_it_may_is_told() -> None:
    """By its own time; one that has begun does not expire."""
    shop = server(1)
    first, second = (Ticket(name, INTERACTIVE, timeout_us=1_500_000) for name in "ab")
    shop.enter(first, 10 * SECOND)
    shop.enter(second)
    assert shop.queue.next_expiry_ns() == 1_500_000_000
    shop.to(SECOND)
    assert second.waits
    shop.to(1_500_000_000)
    assert (second.is_over, second.began_ns, first.is_over) == (True, None, False)
    assert shop.queue.next_expiry_ns() is None


def test_places_count_from_one_in_each_class_and_background_stands_behind() -> None:
    """Places move up as others begin or give up; the estimates grow with them."""
    shop = server(1)
    full(shop)
    tickets = [Ticket(name, INTERACTIVE) for name in "bcd"] + [Ticket("e", BACKGROUND)]
    for ticket in tickets:
        shop.enter(ticket)
    places = {place.ticket: place for place in shop.queue.places()}
    assert [places[t].position for t in tickets] == [1, 2, 3, 1]
    etas = [places[t].eta_us for t in tickets]
    assert etas == sorted(etas)
    shop.end(tickets[0])
    assert {place.ticket: place.position for place in shop.queue.places()} == dict(zip(tickets[1:], [1, 2, 1], strict=True))


def test_estimates_follow_what_happens() -> None:
    """Requests that hold their slots for two seconds each: after some of them, a wait is known within a third."""
    shop = server(2)
    for _ in range(120):
        shop.enter(Ticket("a", INTERACTIVE), 2 * SECOND)
        shop.to(shop.now_ns + SECOND * 9 // 10)
    assert shop.queue.n_waiting[INTERACTIVE] >= 8
    last = Ticket("a", INTERACTIVE)
    shop.enter(last)
    shop.drain()
    assert last.wait_us * 2 / 3 < last.eta_us < last.wait_us * 3 / 2


def test_a_free_slot_means_no_wait() -> None:
    shop = server(2)
    full(shop)
    assert shop.queue.wait_us(INTERACTIVE) == shop.queue.wait_us(BACKGROUND) == 0
