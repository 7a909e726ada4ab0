"""Who may ask another server next: bounded slots, and in front of them a queue by class and account, as before a pool.

Pure: time comes in as nanoseconds of one clock, and what is decided follows from the calls alone. A slot that is taken cannot be
taken back, so all is decided when one is free:

class    interactive work first. Background work has an account of slot time: it grows by `min_share` of all slots, and pays for
         the slots that background work holds while interactive work waits. What is left on it while both wait is owed, and
         goes first, in one slot more than its share at most, so that an old debt does not take them all
account  the least served of the class, by slot time that is charged as it passes: who fills all slots falls behind at once
request  the shortest prompt first, with ageing, as in `poise.scheduler.queues`
the last slot is kept for interactive work of accounts that hold less than their share, where such were here in the last minute:
who comes again beside a flood of long answers would else wait for the end of one

A request that finds a free slot starts; one that does not needs a place in the queue, by the same rules as an engine's."""

from bisect import insort
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from math import exp, log

from poise.scheduler.admission import queue_places
from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.tenants import TenantBooks
from poise.scheduler.policy import SchedulerPolicy
from poise.scheduler.queues import order_key
from poise.scheduler.request import Rejected, RejectReason, RequestClass

PROMPT_TOKEN_US = 500
"""What a token of a prompt is taken to cost there, for the order inside an account alone."""
FIRST_US = 5_000_000
"""How long a request is taken to hold its slot before one has ended."""
MEMORY = 0.9
"""How much of what was learnt of times in slots, and of estimates, survives one more."""
GRACE_US = 100_000
KEPT_FROM = 4
"""With fewer slots, one that is kept free would cost more than it gives."""
DEBT_US = 60_000_000
"""Background work that held more than its share is owed something again after this time, at the latest."""
RETRY_MIN_US = 1_000_000
INTERACTIVE, BACKGROUND = RequestClass.INTERACTIVE, RequestClass.BACKGROUND


@dataclass(eq=False, slots=True)
class Ticket:
    """One request before, or in, a slot. `timeout_us`: how long it may wait; 0: for ever."""

    account: str
    request_class: RequestClass
    n_prompt: int = 0
    is_declared: bool = False
    timeout_us: int = 0
    number: int = 0
    entered_ns: int = 0
    began_ns: int | None = None
    is_over: bool = False
    eta_us: int = 0
    """The wait as it was estimated on arrival."""
    key: float = 0.0

    @property
    def waits(self) -> bool:
        return bool(self.number) and self.began_ns is None and not self.is_over

    @property
    def wait_us(self) -> int:
        """How long it has waited for its slot."""
        return 0 if self.began_ns is None else (self.began_ns - self.entered_ns) // 1000


@dataclass(frozen=True, slots=True)
class Place:
    """Where a ticket stands in its class's queue, from 1, and its further wait, estimated."""

    ticket: Ticket
    position: int
    eta_us: int


@dataclass(eq=False, slots=True)
class _Line:
    """One class: who waits, by account in order, and how many slots each account holds."""

    served: ServedCost
    waiting: dict[str, list[tuple[float, int, Ticket]]] = field(default_factory=dict)
    n_waiting: int = 0
    holds: Counter[str] = field(default_factory=Counter)
    n_held: int = 0
    mean_us: float = FIRST_US
    """Time in a slot."""
    off: float = 0.0
    """By how much estimates of the wait were wrong, in the mean of the logarithm."""


class SlotQueue:
    """The slots of one server. After `enter` and `leave` whoever may begin is told by `begin`."""

    def __init__(self, policy: SchedulerPolicy, n_slots: int, queue_max: int) -> None:
        """`queue_max`: of each class."""
        self.n_slots, self.queue_max = n_slots, queue_max
        self._policy = policy
        self._books = TenantBooks(policy)
        self._lines: dict[RequestClass, _Line] = {c: _Line(ServedCost(policy.grain_us, self._books.weight)) for c in RequestClass}
        self._n_tickets = 0
        self._at_us: int | None = None
        self._share = policy.classes[BACKGROUND].min_share
        self._owed_us = 0.0
        self._weights = 0.0
        """Of all accounts that had interactive work here in the last minute."""

    @property
    def n_busy(self) -> int:
        return sum(line.n_held for line in self._lines.values())

    @property
    def n_waiting(self) -> Mapping[RequestClass, int]:
        return {c: line.n_waiting for c, line in self._lines.items()}

    def enter(self, ticket: Ticket, now_ns: int) -> Rejected | None:
        """Take it into the queue, also where it begins at once; or say why not."""
        assert not ticket.number, "it was here"
        self._advance(now_ns)
        if (refusal := self._refusal(ticket, now_ns)) is not None:
            return refusal
        self._n_tickets += 1
        ticket.number, ticket.entered_ns = self._n_tickets, now_ns
        ticket.key = order_key(ticket.n_prompt * PROMPT_TOKEN_US, now_ns, self._policy.ageing)
        ticket.eta_us = self.wait_us(ticket.request_class, ticket.account)
        line = self._lines[ticket.request_class]
        self._books.enter(ticket.account, now_ns)
        line.served.enter(ticket.account)
        line.served.queue(ticket.account)
        insort(line.waiting.setdefault(ticket.account, []), (ticket.key, ticket.number, ticket))
        line.n_waiting += 1
        return None

    def begin(self, now_ns: int) -> list[Ticket]:
        """Those that have a slot from now on."""
        self._advance(now_ns)
        self._weights = sum(map(self._books.weight, self._lines[INTERACTIVE].served.recent.by_tenant()))
        begun = []
        while self.n_busy < self.n_slots and (ticket := self._next()) is not None:
            self._unqueue(ticket)
            line = self._lines[ticket.request_class]
            ticket.began_ns = now_ns
            line.holds[ticket.account] += 1
            line.n_held += 1
            self._books[ticket.account].n_running += 1
            self._learn_wait(line, ticket)
            begun.append(ticket)
        return begun

    def leave(self, ticket: Ticket, now_ns: int, n_tokens: int = 0) -> None:
        """It is over, in its slot or before. `n_tokens`: of prompt and output, for limits of tokens per minute. Any number of
        times."""
        self._advance(now_ns)
        if ticket.is_over or not ticket.number:
            return
        line = self._lines[ticket.request_class]
        if ticket.began_ns is None:
            self._unqueue(ticket)
        else:
            line.holds[ticket.account] -= 1
            if not line.holds[ticket.account]:
                del line.holds[ticket.account]
            line.n_held -= 1
            self._books[ticket.account].n_running -= 1
            line.mean_us = MEMORY * line.mean_us + (1 - MEMORY) * ((now_ns - ticket.began_ns) // 1000)
        ticket.is_over = True
        self._books.charge(ticket.account, n_tokens, now_ns)
        line.served.leave(ticket.account)
        self._books[ticket.account].n_live -= 1
        self._books.tidy(now_ns)

    def expire(self, now_ns: int) -> list[Ticket]:
        """End those that have waited as long as they may."""
        expired = [t for t in self._waiting() if t.timeout_us and now_ns - t.entered_ns >= t.timeout_us * 1000]
        for ticket in expired:
            self.leave(ticket, now_ns)
        return expired

    def next_expiry_ns(self) -> int | None:
        """When the next one has waited as long as it may."""
        return min((t.entered_ns + t.timeout_us * 1000 for t in self._waiting() if t.timeout_us), default=None)

    def places(self) -> list[Place]:
        """Of all that wait: their order as it would be if all of a class stayed as it is, and nobody came."""
        places, ahead_us = [], 0.0
        for line in self._lines.values():
            ordered = sorted(
                (line.served.rank(account), key, number, ticket)
                for account, waiting in line.waiting.items()
                for key, number, ticket in waiting
            )
            own: Counter[str] = Counter()
            for position, (*_, ticket) in enumerate(ordered, start=1):
                own[ticket.account] += 1
                most = self._policy.tenant(ticket.account).running_max
                alone_us = own[ticket.account] * line.mean_us / most if most else 0.0
                eta_us = max(self._wait_us(line, ahead_us + position * line.mean_us), alone_us)
                places.append(Place(ticket, position, int(eta_us)))
            ahead_us += len(ordered) * line.mean_us
        return places

    def wait_us(self, request_class: RequestClass, account: str = "") -> int:
        """Estimated wait of a request of the class that came now; without an account, of one that holds nothing."""
        line = self._lines[request_class]
        if self.n_busy < self.n_slots and not line.n_waiting and self._may_begin(line, account):
            return 0
        before = [line] if request_class is INTERACTIVE else list(self._lines.values())
        return int(self._wait_us(line, sum(one.n_waiting * one.mean_us for one in before) + line.mean_us))

    def _waiting(self) -> Iterator[Ticket]:
        return (ticket for line in self._lines.values() for waiting in line.waiting.values() for _, _, ticket in waiting)

    def _refusal(self, ticket: Ticket, now_ns: int) -> Rejected | None:
        """As `Scheduler` refuses. What begins at once needs no place."""
        line, account = self._lines[ticket.request_class], ticket.account
        retry_us = max(self.wait_us(ticket.request_class), RETRY_MIN_US)
        if (overdrawn_us := self._books.overdrawn_us(account, now_ns)) > 0:
            limit = self._policy.tenant(account).tokens_per_minute
            return Rejected(0, RejectReason.TENANT_RATE, ticket.n_prompt, limit, retry_after_us=overdrawn_us)
        if self.n_busy < self.n_slots and self._may_begin(line, account):
            return None
        if (full := self._books.may_queue(account)) is not None:
            return Rejected(0, RejectReason.TENANT_QUEUE_FULL, *full, retry_after_us=retry_us)
        held = len(line.waiting.get(account, ()))
        most = queue_places(held, line.n_waiting, self.queue_max, declared=ticket.is_declared)
        if held < most and self.queue_max:
            return None
        if line.n_waiting >= self.queue_max:
            return Rejected(0, RejectReason.QUEUE_FULL, line.n_waiting, self.queue_max, retry_after_us=retry_us)
        return Rejected(0, RejectReason.QUEUE_SHARE, held, most, retry_after_us=retry_us)

    def _may_run(self, account: str) -> bool:
        most = self._policy.tenant(account).running_max
        return not most or sum(line.holds[account] for line in self._lines.values()) < most

    def _may_begin(self, line: _Line, account: str) -> bool:
        is_last = self.n_busy + 1 == self.n_slots >= KEPT_FROM
        return self._may_run(account) and not (is_last and self._leaves_one(line, account))

    def _leaves_one(self, line: _Line, account: str) -> bool:
        if line is self._lines[BACKGROUND]:
            return self._weights > 0 and self._owed_us <= 0
        weight = self._books.weight(account)
        return self._weights > weight and line.holds[account] * self._weights >= self.n_slots * weight

    def _next(self) -> Ticket | None:
        background = self._lines[BACKGROUND]
        most = int(self._share * self.n_slots) + 1
        is_owed = self._owed_us > 0 and background.n_held < most
        order = (BACKGROUND, INTERACTIVE) if is_owed else (INTERACTIVE, BACKGROUND)
        return next((found for c in order if (found := self._first(self._lines[c])) is not None), None)

    def _first(self, line: _Line) -> Ticket | None:
        """The next one of the least-served account that may begin; of accounts that rank alike, the one with fewer slots."""
        firsts = [
            (line.served.rank(account), line.holds[account] / self._books.weight(account), *waiting[0])
            for account, waiting in line.waiting.items()
            if self._may_begin(line, account)
        ]
        return min(firsts)[-1] if firsts else None

    def _unqueue(self, ticket: Ticket) -> None:
        line = self._lines[ticket.request_class]
        waiting = line.waiting[ticket.account]
        waiting.remove((ticket.key, ticket.number, ticket))
        if not waiting:
            del line.waiting[ticket.account]
        line.n_waiting -= 1
        line.served.unqueue(ticket.account)
        self._books[ticket.account].n_queued -= 1

    def _advance(self, now_ns: int) -> None:
        """Charge the time since the last call: every account for its slots, background work's for its own."""
        now_us = now_ns // 1000
        past_us = 0 if self._at_us is None else max(0, now_us - self._at_us)
        self._at_us = now_us if self._at_us is None else self._at_us + past_us
        if not past_us:
            return
        for line in self._lines.values():
            for account, n_held in line.holds.items():
                line.served.charge(account, n_held * past_us)
            line.served.roll(now_ns)
        interactive, background = self._lines[INTERACTIVE], self._lines[BACKGROUND]
        gain_us = self._share * self.n_slots * past_us
        used_us = background.n_held * past_us if interactive.n_waiting else 0
        most_us = self._owed_us + gain_us if interactive.n_waiting and background.n_waiting else 0.0
        least_us = -self._share * self.n_slots * DEBT_US
        self._owed_us = max(least_us, min(most_us, self._owed_us + gain_us - used_us))

    def _learn_wait(self, line: _Line, ticket: Ticket) -> None:
        """What the estimate was worth, as `poise.scheduler.waits` learns it."""
        if ticket.eta_us >= GRACE_US or ticket.wait_us >= GRACE_US:
            off = log((ticket.wait_us + GRACE_US) / (ticket.eta_us + GRACE_US))
            line.off += (1 - MEMORY) * off

    def _wait_us(self, line: _Line, ahead_us: float) -> float:
        """`ahead_us`: time in slots of all that end before it begins, itself included: somebody has to make room for it."""
        return ahead_us / self.n_slots * exp(line.off)
