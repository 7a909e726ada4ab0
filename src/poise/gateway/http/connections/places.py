"""Who holds how many connections and how many bytes of bodies. Pure bookkeeping: connections tell it what happens to them.

A connection takes a place when it is accepted, and says under whose account it works as soon as that is known. Three bounds: all
connections together, those of an address, and those of an account. Connections of this machine and of trusted proxies have no
bound by their address, because that says nothing about who is behind it. Nobody gets all of anything
(`poise.scheduler.fairness.thresholds`): whoever holds something may take a share of what is still free, so that the next one
always finds some.

Full does not mean deaf. A place whose connection is at work for no account is given to the next who comes in: first those that
never worked for one (silent ones, files that are not read), the oldest first; then idle ones, of the account that has most.
Where there is none, a newcomer gets a place of a small reserve: it may say what it wants, and is answered where that is for
operators, else refused with a time to come back. The reserve itself gives up its oldest one, so that there is always a way in."""

from collections.abc import Callable
from dataclasses import dataclass

from poise.scheduler.fairness.thresholds import may_take

STRANGERS = ""
"""The one name of all whose name is not known: together they may have what one may."""


class Shares:
    def __init__(self, total: int) -> None:
        self.total = total
        self.used = 0
        self._held: dict[str, int] = {}

    def held(self, holder: str) -> int:
        return self._held.get(holder, 0)

    @property
    def holders(self) -> int:
        """How many holders have some."""
        return len(self._held)

    def may_take(self, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """`share` and `least` as in poise.scheduler.fairness.thresholds."""
        held = self.held(holder)
        return may_take(amount, held=held, used=self.used, total=self.total, share=share, least=least)

    def take(self, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """Take an amount if the holder may have it; returns whether it was given."""
        if not self.may_take(holder, amount, share=share, least=least):
            return False
        self.add(holder, amount)
        return True

    def add(self, holder: str, amount: int) -> None:
        """Count an amount without a check: for holders that are bounded in another way."""
        if amount:
            self._held[holder] = self.held(holder) + amount
            self.used += amount

    def give(self, holder: str, amount: int) -> None:
        """Give an amount back."""
        left = self.held(holder) - amount
        assert left >= 0, (holder, amount, left)
        self.used -= amount
        if left:
            self._held[holder] = left
        else:
            self._held.pop(holder, None)

    def move(self, giver: str, holder: str, amount: int, *, share: float = 1.0, least: int = 0) -> bool:
        """Move an amount to another holder if that one may have it, else change nothing. Returns whether it moved."""
        self.give(giver, amount)
        if self.take(holder, amount, share=share, least=least):
            return True
        self.add(giver, amount)
        return False


ACCOUNT_SHARE = 8.0
"""A lone account may have eight ninths of what there is: it is mostly the only one."""
ADDRESS_SHARE = STRANGERS_SHARE = 1.0
"""A lone address may have half, and so may all who have no account."""
RESERVE_MAX, RESERVE_MIN = 32, 4
RESERVE_OF = 8
"""Of few places the reserve is an eighth as many."""
FULL, ADDRESS_FULL = "full", "address"
"""Why a connection has a place of the reserve only."""

_KEPT = ("/health", "/health/live", "/metrics", "/status", "/status/history")


def is_always_answered(path: str) -> bool:
    """An operator must be able to look at a server that is full, and to act on what fills it."""
    return path in _KEPT or path.startswith("/admin/")


@dataclass(eq=False, slots=True)
class Place:
    """What is counted for one connection."""

    address: str
    """Whose bound counts; empty: nobody's."""
    dismiss: Callable[[], object]
    """Ends the connection at once."""
    counted: bool = False
    account: str | None = None
    """Who used it last; None before the first request of somebody known."""
    refused: str = ""
    """FULL or ADDRESS_FULL for one of the reserve."""


class Places:
    def __init__(self, connections: int, body_bytes: int, body_least: int = 0) -> None:
        """`connections` and `body_bytes`: of all together. `body_least`: what an account may have as long as there is any."""
        self.connections = connections
        self.reserve = max(RESERVE_MIN, min(RESERVE_MAX, connections // RESERVE_OF))
        self.bodies = Shares(body_bytes)
        self._body_least = body_least
        self._by_address = Shares(connections)
        self._by_account = Shares(connections)
        self._spare: dict[str | None, dict[Place, None]] = {}
        """Those that are not at work, by whose they were last, in the order in which they began not to be."""
        self._reserved: dict[Place, None] = {}

    @property
    def _n_regular(self) -> int:
        return self._by_address.used

    @property
    def n_open(self) -> int:
        return self._n_regular + len(self._reserved)

    def enter(self, address: str, dismiss: Callable[[], object]) -> Place:
        """A connection has come in; `address` is empty where it has no bound of its own.

        Another one may lose its place for it. It has to ask its Place whether it was refused itself, and by what."""
        place = Place(address, dismiss)
        place.refused = self._refusal(address)
        if place.refused:
            if len(self._reserved) >= self.reserve:
                self._dismiss(next(iter(self._reserved)))
            self._reserved[place] = None
            return place
        if self._n_regular >= self.connections:
            self._dismiss(self._next_spare())
        place.counted = True
        self._by_address.add(address, 1)
        self.rest(place)
        return place

    def _refusal(self, address: str) -> str:
        is_full = self._n_regular >= self.connections
        if is_full and not self._spare:
            return FULL
        if address:
            # One that is given up for it counts as free; nobody else's is given up for an address that has its share.
            used, held = self._n_regular - is_full, self._by_address.held(address)
            if not may_take(1, held=held, used=used, total=self.connections, share=ADDRESS_SHARE, least=1):
                return ADDRESS_FULL
        return ""

    def leave(self, place: Place) -> None:
        """Its connection is gone. May be called more than once."""
        self._reserved.pop(place, None)
        if place.counted:
            place.counted = False
            self._take_up(place)
            self._by_address.give(place.address, 1)
            if place.account is not None:
                self._by_account.give(place.account, 1)

    def is_open(self, place: Place) -> bool:
        return place.counted or place in self._reserved

    def claim(self, place: Place, account: str) -> bool:
        """Count the connection for an account, if that may have one more. One of the reserve is counted for nobody."""
        if not place.counted:
            return True
        if place.account != account:
            if not self._by_account.take(account, 1, share=ACCOUNT_SHARE, least=1):
                return False
            self._take_up(place)
            if place.account is not None:
                self._by_account.give(place.account, 1)
            place.account = account
        self._take_up(place)
        return True

    def rest(self, place: Place) -> None:
        """The connection is idle: the next one that comes in may have its place, after those that have been idle for longer."""
        if place.counted:
            self._take_up(place)
            self._spare.setdefault(place.account, {})[place] = None

    def serve_address(self, place: Place, address: str) -> bool:
        """A trusted proxy sends a request of another client. Returns whether that client's address may have the connection;
        `address` is empty where it has no bound."""
        if not place.counted or place.address == address:
            return True
        if address and not self._by_address.move(place.address, address, 1, share=ADDRESS_SHARE, least=1):
            return False
        if not address:
            self._by_address.give(place.address, 1)
            self._by_address.add(address, 1)
        place.address = address
        return True

    def take_body(self, account: str, n_bytes: int) -> bool:
        """Whether a request of this account may have so many more bytes of body."""
        return self.bodies.take(account, n_bytes, share=share_of(account), least=self._least(account))

    def move_body(self, giver: str, account: str, n_bytes: int) -> bool:
        """Whether the account could take over what is counted for another one."""
        share, least = share_of(account), self._least(account)
        return n_bytes == 0 or self.bodies.move(giver, account, n_bytes, share=share, least=least)

    def _least(self, account: str) -> int:
        return 0 if account == STRANGERS else self._body_least

    def spare_one(self) -> bool:
        """Dismiss a connection that works for no account, because something else than places is used up."""
        if not self._spare and not self._reserved:
            return False
        self._dismiss(self._next_spare() if self._spare else next(iter(self._reserved)))
        return True

    def held_by(self, account: str) -> int:
        return self._by_account.held(account)

    def held_at(self, address: str) -> int:
        return self._by_address.held(address)

    def _next_spare(self) -> Place:
        """The connection that is dismissed first."""
        most = max(self._spare, key=lambda account: self._by_account.held(account or ""))
        return next(iter(self._spare[None if None in self._spare else most]))

    def _take_up(self, place: Place) -> None:
        """Remove the connection from those that are not at work."""
        group = self._spare.get(place.account)
        if group is not None:
            group.pop(place, None)
            if not group:
                del self._spare[place.account]

    def _dismiss(self, place: Place) -> None:
        self.leave(place)
        place.dismiss()


def share_of(account: str) -> float:
    """What one account may have, as a multiple of what stays free; see poise.scheduler.fairness.thresholds."""
    return STRANGERS_SHARE if account == STRANGERS else ACCOUNT_SHARE
