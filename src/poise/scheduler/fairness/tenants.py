"""What each tenant has here, against its limits: requests queued and running, and its account of tokens per minute.

The account fills evenly, up to one minute's worth, and is charged with what is really computed: the prompt when the request is
accepted, each output token when it exists. It may be overdrawn by requests that run; until it is above zero again, new
ones are refused. (A token bucket; charging what happened rather than what was asked needs no refunds.)"""

from collections.abc import Mapping
from dataclasses import dataclass

from poise.scheduler.policy import SchedulerPolicy, TenantPolicy

MINUTE_NS = 60_000_000_000


@dataclass(slots=True)
class TenantCounts:
    """Its requests that are here, that never had a slot, and that run. `n_held`: those that have had a slot and whose readers
    are behind; they count as if they ran: not to read is no way to have more requests than the tenant may."""

    policy: TenantPolicy
    n_live: int = 0
    n_queued: int = 0
    n_running: int = 0
    n_held: int = 0
    balance: float = 0.0
    filled_ns: int = 0


class TenantBooks:
    """Counts by tenant. A tenant with nothing here and a full account is forgotten."""

    def __init__(self, policy: SchedulerPolicy) -> None:
        self._policy = policy
        self._tenants: dict[str, TenantCounts] = {}

    def __getitem__(self, tenant: str) -> TenantCounts:
        """The counts of a tenant that has requests here; whoever moves one of them counts it."""
        return self._tenants[tenant]

    def weight(self, tenant: str) -> float:
        return self._policy.tenant(tenant).weight

    def may_run(self, tenant: str) -> bool:
        """Whether one more of the tenant's requests may run."""
        books = self._tenants[tenant]
        return not books.policy.running_max or books.n_running + books.n_held < books.policy.running_max

    def may_queue(self, tenant: str) -> tuple[int, int] | None:
        """None, or (requests queued, limit) when the tenant has as many as it may."""
        limit = self._policy.tenant(tenant).queue_max
        queued = self._tenants[tenant].n_queued if tenant in self._tenants else 0
        return (queued, limit) if limit and queued >= limit else None

    def overdrawn_us(self, tenant: str, now_ns: int) -> int:
        """How long until the tenant's account of tokens is above zero again; 0: it is."""
        per_minute = self._policy.tenant(tenant).tokens_per_minute
        if not per_minute or tenant not in self._tenants:
            return 0
        books = self._tenants[tenant]
        self._fill(books, now_ns)
        return 0 if books.balance > 0 else int((1 - books.balance) * (MINUTE_NS // 1000) / per_minute)

    def charge(self, tenant: str, n_tokens: int, now_ns: int) -> None:
        """The tenant's requests have used `n_tokens`."""
        books = self._tenants[tenant]
        if books.policy.tokens_per_minute:
            self._fill(books, now_ns)
            books.balance -= n_tokens

    def enter(self, tenant: str, now_ns: int) -> None:
        """One more request is here, and queued."""
        books = self._tenants.get(tenant)
        if books is None:
            policy = self._policy.tenant(tenant)
            books = self._tenants[tenant] = TenantCounts(policy, balance=float(policy.tokens_per_minute), filled_ns=now_ns)
        books.n_live += 1
        books.n_queued += 1

    def tidy(self, now_ns: int) -> None:
        """Forget tenants that are as if they had never been here."""
        for tenant, books in list(self._tenants.items()):
            if books.n_live:  # a swapped request is neither new nor in a slot, but it will ask for one
                continue
            self._fill(books, now_ns)
            if books.balance >= books.policy.tokens_per_minute:
                del self._tenants[tenant]

    def balances(self, now_ns: int) -> dict[str, float]:
        """Tokens in the accounts that are not full. Modifies nothing, so that how often somebody asks changes no decision."""
        limited = {t: books for t, books in self._tenants.items() if books.policy.tokens_per_minute}
        filled = {tenant: _filled(books, now_ns) for tenant, books in limited.items()}
        return {t: balance for t, balance in filled.items() if balance < limited[t].policy.tokens_per_minute}

    def restore(self, balances: Mapping[str, float], at_ns: int) -> None:
        """So much was in these accounts at that time, in an engine before this one. Who is here already stays as it is."""
        for tenant, balance in balances.items():
            policy = self._policy.tenant(tenant)
            if policy.tokens_per_minute and tenant not in self._tenants:
                self._tenants[tenant] = TenantCounts(policy, balance=balance, filled_ns=at_ns)

    def forget(self, tenant: str) -> None:
        """Do not remember the account of a tenant with nothing here."""
        if tenant in self._tenants and not self._tenants[tenant].n_live:
            del self._tenants[tenant]

    def _fill(self, books: TenantCounts, now_ns: int) -> None:
        books.balance = _filled(books, now_ns)
        books.filled_ns = now_ns


def _filled(books: TenantCounts, now_ns: int) -> float:
    per_minute = books.policy.tokens_per_minute
    earned = max(0, now_ns - books.filled_ns) * per_minute / MINUTE_NS
    return min(float(per_minute), books.balance + earned)
