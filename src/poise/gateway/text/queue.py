"""Texts that wait for a worker: the account that was served least goes first, and none may fill the queue.

Pure bookkeeping. Served is measured time of workers, in microseconds, by `poise.scheduler.fairness.fairness`; room is bytes of
text, by `poise.scheduler.fairness.thresholds`. An account's own texts keep their order, except that a small one need not wait
for a large one where workers are kept free for small ones."""

from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Generic, TypeVar

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.thresholds import may_take
from poise.wire.text import LARGE_BYTES

JOB_BYTES = 512
"""What a job takes beside its text."""


@dataclass(eq=False, slots=True)
class Entry:
    """A job in the queue or with a worker."""

    account: str
    n_bytes: int
    order: int = field(default=0, init=False)

    @property
    def is_large(self) -> bool:
        return self.n_bytes > LARGE_BYTES

    @property
    def takes_bytes(self) -> int:
        return self.n_bytes + JOB_BYTES


E = TypeVar("E", bound=Entry)


@dataclass(slots=True)
class _Account:
    """What one account has here. `held`: bytes, waiting or being worked on. `lanes`: of small texts, of large ones."""

    held: int = 0
    lanes: tuple[deque[Any], deque[Any]] = field(default_factory=lambda: (deque(), deque()))


class TextQueue(Generic[E]):
    """Entries that wait, by account."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._orders = count()
        self._accounts: dict[str, _Account] = {}
        self._served = ServedCost()
        self.n_waiting = 0
        self.n_bytes = 0
        """Bytes of what waits and of what is being worked on."""

    def add(self, entry: E, now_ns: int) -> bool:
        """Add an entry if there is room; returns whether there was. Each one that was added has to be ended."""
        self._served.roll(now_ns)
        account = self._accounts.get(entry.account)
        held = account.held if account is not None else 0
        if not may_take(entry.takes_bytes, held=held, used=self.n_bytes, total=self._total):
            return False
        account = self._accounts.setdefault(entry.account, _Account())
        account.held += entry.takes_bytes
        self.n_bytes += entry.takes_bytes
        self._served.enter(entry.account)
        entry.order = next(self._orders)
        self._lane(entry).append(entry)
        self.n_waiting += 1
        return True

    def take(self, *, only_small: bool = False) -> E | None:
        """Take the next entry to work on."""
        lanes = [lane for account in self._accounts.values() for lane in account.lanes[: 1 if only_small else 2] if lane]
        if not lanes:
            return None
        best: deque[E] = min(lanes, key=lambda lane: (self._served.rank(lane[0].account), lane[0].order))
        self.n_waiting -= 1
        return best.popleft()

    def put_back(self, entry: E) -> None:
        """Put an entry back that was taken: it is worked on again, as the first of its account."""
        self._lane(entry).appendleft(entry)
        self.n_waiting += 1

    def drop(self, entry: E) -> bool:
        """Remove an entry from those that wait, if it is there."""
        try:
            self._lane(entry).remove(entry)
        except ValueError:
            return False
        self.n_waiting -= 1
        return True

    def charge(self, entry: Entry, worked_us: int) -> None:
        """Charge an entry's account with the time that a worker spent on it."""
        self._served.charge(entry.account, worked_us)

    def end(self, entry: Entry) -> None:
        """The entry has ended: its bytes count no more."""
        account = self._accounts[entry.account]
        account.held -= entry.takes_bytes
        self.n_bytes -= entry.takes_bytes
        self._served.leave(entry.account)
        if not account.held:
            del self._accounts[entry.account]

    def _lane(self, entry: E) -> deque[E]:
        return self._accounts[entry.account].lanes[entry.is_large]
