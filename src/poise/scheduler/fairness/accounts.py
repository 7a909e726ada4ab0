"""What an engine after this one has to know of accounts: how far ahead of the others each is, and its tokens.

Else whoever can make engines die would make its own debts and limits new with them. The list is bounded: those that owe most
come first, and who is left out starts in the next engine like anybody."""

import heapq
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.fairness.tenants import TenantBooks
from poise.scheduler.request import RequestClass

ACCOUNTS_MAX = 256


@dataclass(frozen=True, slots=True)
class Account:
    """One account. `above_us`: by class, how far its served cost is above the floor, in microseconds at weight 1; below 0: it is
    owed so much. `tokens`: what it has left of its tokens per minute, below 0 when it is overdrawn; None: no limit, or all."""

    name: str
    above_us: dict[RequestClass, int]
    tokens: float | None = None


def remembered_accounts(
    served: Mapping[RequestClass, ServedCost], tenants: TenantBooks, left_out: Collection[str], now_ns: int
) -> list[Account]:
    """The accounts that must not be forgotten, at most ACCOUNTS_MAX: overdrawn ones before those that are alive or have used
    tokens, and those before the others; among alike the most served. Modifies nothing."""
    above = {c: costs.above_us() for c, costs in served.items()}
    balances = tenants.balances(now_ns)
    alive = {name for costs in served.values() for name in costs.tenants}
    names = dict.fromkeys(name for part in above.values() for name in part) | dict.fromkeys(balances)
    accounts = [
        Account(name, {c: part[name] for c, part in above.items() if name in part}, balances.get(name))
        for name in names
        if name not in left_out
    ]

    def weight(account: Account) -> tuple[bool, bool, int]:
        overdrawn = account.tokens is not None and account.tokens <= 0
        return overdrawn, account.tokens is not None or account.name in alive, max(account.above_us.values(), default=0)

    return heapq.nlargest(ACCOUNTS_MAX, accounts, weight)


def restore_accounts(
    served: Mapping[RequestClass, ServedCost], tenants: TenantBooks, accounts: Iterable[Account], at_ns: int
) -> None:
    """Go on with the accounts of another engine as they were at `at_ns`."""
    known = list(accounts)
    for request_class, costs in served.items():
        costs.restore({a.name: a.above_us[request_class] for a in known if request_class in a.above_us})
    tenants.restore({a.name: a.tokens for a in known if a.tokens is not None}, at_ns)


def forget_account(served: Mapping[RequestClass, ServedCost], tenants: TenantBooks, name: str) -> None:
    """Keep nothing of an account that is not alive."""
    for costs in served.values():
        costs.forget(name)
    tenants.forget(name)
