"""Texts that wait for a worker: the account that was served least goes first, and none may fill the queue.

Pure bookkeeping. Served is measured time of workers, in microseconds, by `poise.scheduler.fairness.fairness`; room is bytes of
text, by `poise.scheduler.fairness.thresholds`. An account's own texts keep their order, except that a small one need not wait
for a large one where workers are kept free for small ones."""

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.thresholds import may_take
from poise.wire.text import LARGE_BYTES

JOB_BYTES = 512
"""What a job takes beside its text."""


@dataclass(eq=False, slots=True)
class Entry:
    """A job in the queue or with a worker. `what` is the owner's."""

    account: str
    n_bytes: int
    what: Any = None
    order: int = 0

    @property
    def is_large(self) -> bool:
        return self.n_bytes > LARGE_BYTES

    @property
    def takes_bytes(self) -> int:
        return self.n_bytes + JOB_BYTES


@dataclass(slots=True)
class _Account:
    """What one account has here. `held`: bytes, waiting or being worked on."""

    held: int = 0
    small: deque[Entry] = field(default_factory=deque)
    large: deque[Entry] = field(default_factory=deque)


class TextQueue:
    """Entries that wait, by account."""

    def __init__(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._used = 0
        self._orders = 0
        self._accounts: dict[str, _Account] = {}
        self._served = ServedCost()
        self.n_waiting = 0

    @property
    def n_bytes(self) -> int:
        """Bytes of what waits and of what is being worked on."""
        return self._used

    def add(self, entry: Entry, now_ns: int) -> bool:
        """Add an entry if there is room; returns whether there was. Each one that was added has to be ended."""
        self._served.roll(now_ns)
        account = self._accounts.get(entry.account)
        held = account.held if account is not None else 0
        if not may_take(entry.takes_bytes, held=held, used=self._used, total=self._total):
            return False
        account = self._accounts.setdefault(entry.account, _Account())
        account.held += entry.takes_bytes
        self._used += entry.takes_bytes
        self._served.enter(entry.account)
        self._orders += 1
        entry.order = self._orders
        self._lane(entry).append(entry)
        self.n_waiting += 1
        return True

    def take(self, *, only_small: bool = False) -> Entry | None:
        """Take the next entry to work on."""
        best: Entry | None = None
        best_rank = (0, 0)
        for name, account in self._accounts.items():
            lanes = (account.small,) if only_small else (account.small, account.large)
            heads = [lane[0] for lane in lanes if lane]
            if not heads:
                continue
            head = min(heads, key=lambda entry: entry.order)
            rank = (self._served.rank(name), head.order)
            if best is None or rank < best_rank:
                best, best_rank = head, rank
        if best is not None:
            self._lane(best).popleft()
            self.n_waiting -= 1
        return best

    def put_back(self, entry: Entry) -> None:
        """Put an entry back that was taken: it is worked on again, as the first of its account."""
        self._lane(entry).appendleft(entry)
        self.n_waiting += 1

    def drop(self, entry: Entry) -> bool:
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
        self._used -= entry.takes_bytes
        self._served.leave(entry.account)
        if not account.held:
            del self._accounts[entry.account]

    def _lane(self, entry: Entry) -> deque[Entry]:
        account = self._accounts[entry.account]
        return account.large if entry.is_large else account.small
