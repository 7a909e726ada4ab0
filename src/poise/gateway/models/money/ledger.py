"""Money: what requests at other servers may cost is reserved before anything is sent, and settled when it is known.

    reservation = await ledger.reserve(tenant, backend, request_id, n_prompt_max, n_output_max)   # raises ApiError
    cost_nano = await ledger.settle(reservation, used)      # None: it is not known, so all that was reserved is charged
    ledger.release(reservation)                             # nothing was sent

Budgets are looked at and reserved from in one go of the event loop, so that of many requests at the edge of a budget none goes
beyond it. A request counts in the hour, day and month in which it was reserved, whenever it ends. What costs nothing is counted
only: a front for servers of one's own does not write to the disk for each request.

Anybody can make undeclared keys, so these have one budget together."""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import count
from pathlib import Path
from typing import NamedTuple

from poise.config import Settings
from poise.config.hybrid import BackendSettings, amount_of, nano_of
from poise.config.serving import TenantSettings
from poise.gateway.models.money.books import ERASED, Books, Reserved, Spent
from poise.gateway.models.money.prices import NANO_MAX, Prices, Tokens
from poise.gateway.models.money.windows import PERIODS, end_of, start_of
from poise.gateway.request.refusals import ApiError, later, retry_after
from poise.gateway.tenancy.tenants import SHARED
from poise.metrics.egress import BudgetLeft

WINDOWS_MAX = 24
"""Windows of each period of which there are books in memory: the newest ones."""
_UNDECLARED = "key-"
_RETRY_RESERVED_S, _RETRY_WRITE_S = 5.0, 10.0


class BudgetExhausted(ApiError):
    """A budget has no room for what a request may cost."""

    code = "budget_exhausted"

    def __init__(self, scope: str, period: str, limit_nano: int, retry_after_s: float, message: str) -> None:
        super().__init__(429, self.code, message, headers=retry_after(retry_after_s))
        self.scope, self.period, self.limit_nano, self.retry_after_s = scope, period, limit_nano, retry_after_s


@dataclass(eq=False, slots=True)
class Reservation:
    """Money that is set aside for one request at one backend."""

    number: int
    tenant: str
    backend: str
    at: int
    nano: int
    cost_nano: int | None = None
    """What it came to, once that is known."""
    is_known: bool = True
    """Its server has told what it took; else all of it was charged."""


class _Budget(NamedTuple):
    scope: str
    name: str
    period: str
    limit_nano: int


@dataclass(slots=True)
class _Window:
    """Books of one hour, day or month, by scope and name."""

    charged: Counter[tuple[str, str]] = field(default_factory=Counter)
    reserved: Counter[tuple[str, str]] = field(default_factory=Counter)


class Ledger:
    """Used in one event loop. `path` None: nothing is kept."""

    def __init__(self, settings: Settings, path: Path | None, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        """Goes on with what the file says. Raises LedgerError."""
        self._settings, self._now = settings, now
        self._prices = {name: Prices.of(backend) for name, backend in settings.backends.items()}
        self._numbers = count(1)
        self._windows: dict[tuple[str, int], _Window] = {}
        self._open: dict[int, Reservation] = {}
        """Those that are neither settled nor released."""
        self._oldest = dict.fromkeys(PERIODS, 0)
        """Of each period, the first window of which there are whole books."""
        self._books = Books(path)
        for line in self._books.lines():
            charged = self._window(line.period, line.start).charged
            for of in (("tenant", line.tenant), ("backend", line.backend)):
                charged[of] = min(charged[of] + line.spent.nano, NANO_MAX)
        self._forget()

    def price(self, backend: str) -> Prices:
        return self._prices[backend]

    def has_room(self, tenant: str, backend: str) -> bool:
        """Whether anything can be spent."""
        return self.exhausted(tenant, backend) is None

    def exhausted(self, tenant: str, backend: str, nano: int = 1) -> BudgetExhausted | None:
        """Which budget has no room for that, if any: the one that has none for the longest."""
        prices, at = self._prices[backend], self._at()
        if not (nano and (prices.prompt or prices.cached or prices.output)):
            return None
        tight = [budget for budget in self._budgets(_account(tenant), backend) if nano > self._left(budget, at)]
        return self._refusal(tight[-1], nano, at) if tight else None

    async def reserve(self, tenant: str, backend: str, request_id: str, n_prompt_max: int, n_output_max: int) -> Reservation:
        """Nothing may be sent before. Raises BudgetExhausted, or ApiError when that cannot be put down."""
        nano, at, account = self._prices[backend].most(n_prompt_max, n_output_max), self._at(), _account(tenant)
        reservation = Reservation(next(self._numbers), account, backend, at, nano)
        if not nano:
            return reservation
        if any(start_of(period, at) < self._oldest[period] for period in PERIODS):
            raise ledger_unavailable("the clock is before the time that its books reach back to")
        if refusal := self.exhausted(tenant, backend, nano):
            raise refusal
        self._open[reservation.number] = reservation
        self._hold(reservation, nano)
        written = self._books.reserve(reservation.number, Reserved(at, account, backend, request_id, nano))
        try:
            await asyncio.shield(asyncio.wrap_future(written))
        except BaseException as error:
            self.release(reservation)
            if isinstance(error, Exception):
                raise ledger_unavailable("it cannot be written") from error
            raise
        return reservation

    async def settle(self, reservation: Reservation, used: Tokens | None) -> int:
        """What it has cost. Once: later calls say the same."""
        if reservation.cost_nano is not None:
            return reservation.cost_nano
        nano, tenant, backend, at = reservation.nano, reservation.tenant, reservation.backend, reservation.at
        cost = nano if used is None else self._prices[backend].cost(used)
        reservation.cost_nano, reservation.is_known = cost, used is not None
        told = (
            Spent(1, used.prompt, used.cached, used.output, cost) if used else Spent(1, nano=cost, unknown=1, unknown_nano=cost)
        )
        spent = Spent(*(min(max(0, n), NANO_MAX) for n in told))
        if self._open.pop(reservation.number, None) is not None:
            self._hold(reservation, -nano)
        if not (nano or cost):
            self._books.count(at, tenant, backend, spent)
            return cost
        for period in PERIODS:
            charged = self._window(period, start_of(period, at)).charged
            for of in (("tenant", tenant), ("backend", backend)):
                charged[of] = min(charged[of] + cost, NANO_MAX)
        self._books.end(reservation.number, at, tenant, backend, spent)
        return cost

    def release(self, reservation: Reservation) -> None:
        """Nothing was sent. Without effect on one that is settled."""
        if self._open.pop(reservation.number, None) is not None:
            reservation.cost_nano = 0
            self._hold(reservation, -reservation.nano)
            self._books.end(reservation.number, reservation.at, reservation.tenant, reservation.backend, None)

    def budgets_left(self) -> list[BudgetLeft]:
        """Of all budgets whose owner is in the settings or has spent something in the present month."""
        at, month = self._at(), self._windows.get(("month", start_of("month", self._at())))
        names = {*self._settings.tenants, *(name for scope, name in (month.charged if month else ()) if scope == "tenant")}
        budgets = [
            *(
                budget
                for name in sorted(names)
                if not name.startswith(ERASED)
                for budget in _of("tenant", name, self._settings.tenant(name))
            ),
            *(budget for name, backend in self._settings.backends.items() for budget in _of("backend", name, backend)),
        ]
        return [BudgetLeft(b.scope, b.name, b.period, self._left(b, at), b.limit_nano) for b in budgets]

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Name a tenant no longer. Sums stay; where it has a budget they stay its own, under a digest of its name."""
        alias = _alias(tenant) if list(_of("tenant", tenant, self._settings.tenant(tenant))) else ERASED
        for window in self._windows.values():
            for counts in (window.charged, window.reserved):
                if nano := counts.pop(("tenant", tenant), 0):
                    counts["tenant", alias] += nano
        for reservation in self._open.values():
            if reservation.tenant == tenant:
                reservation.tenant = alias
        return {"spend_lines": await asyncio.wrap_future(self._books.rename(tenant, alias))}

    def close(self) -> None:
        """Write what is left. What is still reserved will be charged whole."""
        self._books.close()

    def _at(self) -> int:
        return int(self._now().timestamp())

    def _budgets(self, tenant: str, backend: str) -> Iterator[_Budget]:
        """Those that a request must fit, hours first."""
        of_both = [
            *_of("tenant", tenant, self._settings.tenant(tenant)),
            *_of("backend", backend, self._settings.backends[backend]),
        ]
        yield from sorted(of_both, key=lambda budget: PERIODS.index(budget.period))

    def _left(self, budget: _Budget, at: int) -> int:
        window = self._windows.get((budget.period, start_of(budget.period, at)))
        return budget.limit_nano - sum(_taken(window, budget)) if window is not None else budget.limit_nano

    def _refusal(self, budget: _Budget, nano: int, at: int) -> BudgetExhausted:
        scope, name, period, limit = budget
        start = start_of(period, at)
        charged, reserved = _taken(self._windows.get((period, start), _Window()), budget)
        begins = end_of(period, start)
        is_soon = nano + charged <= limit
        hint = "Ask for less output, or wait until then"
        if is_soon or nano > limit:
            hint = "Try again when other requests have ended" if is_soon else "Ask for less output, or send less"
        message = (
            f"{'Your budget' if scope == 'tenant' else f'The budget of backend {name!r}'} for this {period} has no room: "
            f"{amount_of(charged)} of {amount_of(limit)} are spent and {amount_of(reserved)} reserved, and this request could "
            f"cost {amount_of(nano)}. It begins anew at {datetime.fromtimestamp(begins, UTC):%Y-%m-%d %H:%M} UTC. {hint}."
        )
        return BudgetExhausted(scope, period, limit, _RETRY_RESERVED_S if is_soon else begins - at, message)

    def _hold(self, reservation: Reservation, nano: int) -> None:
        for period in PERIODS:
            reserved = self._window(period, start_of(period, reservation.at)).reserved
            for of in (("tenant", reservation.tenant), ("backend", reservation.backend)):
                reserved[of] += nano

    def _window(self, period: str, start: int) -> _Window:
        window = self._windows.get((period, start))
        if window is None:
            window = self._windows[period, start] = _Window()
            if len(self._windows) > 2 * WINDOWS_MAX * len(PERIODS):
                self._forget()
        return window

    def _forget(self) -> None:
        """Keep the newest windows, and those in which something is reserved."""
        for period in PERIODS:
            starts = sorted((start for kind, start in self._windows if kind == period), reverse=True)
            for start in starts[WINDOWS_MAX:]:
                self._oldest[period] = max(self._oldest[period], start + 1)
                if not any(self._windows[period, start].reserved.values()):
                    del self._windows[period, start]
        self._books.prune()


def ledger_unavailable(why: str) -> ApiError:
    """What may cost money is not sent unless it can be put down."""
    message = f"This request would cost money, and the server's ledger cannot take it down: {why}. Try again"
    return later(503, "ledger_unavailable", message, _RETRY_WRITE_S)


def _of(scope: str, name: str, settings: TenantSettings | BackendSettings) -> Iterator[_Budget]:
    for period in PERIODS:
        if amount := getattr(settings, f"budget_{period}"):
            yield _Budget(scope, name, period, nano_of(amount))


def _taken(window: _Window, budget: _Budget) -> tuple[int, int]:
    """What is charged and what is reserved, an erased tenant's included."""
    names = (budget.name, _alias(budget.name)) if budget.scope == "tenant" else (budget.name,)
    return sum(window.charged[budget.scope, n] for n in names), sum(window.reserved[budget.scope, n] for n in names)


def _account(tenant: str) -> str:
    return SHARED if tenant.startswith(_UNDECLARED) else tenant


def _alias(tenant: str) -> str:
    return ERASED + blake2b(tenant.encode(), digest_size=6).hexdigest()
