"""The books of the host store: who keeps how many bytes there, for what, and who goes first when room is needed.

One store serves three purposes: cells of swapped-out sequences, prefixes that may be used again, and declared templates. The
runner keeps the bytes; here is only what is decided about them. Swaps and templates are never evicted: a swap belongs to
a live request, a template to the operator. Prefixes go, those first that will be wanted last (`retention`), when anything needs
their room."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum

from poise.scheduler.fairness.thresholds import may_take
from poise.scheduler.memory.retention import Use
from poise.scheduler.policy import StorePolicy
from poise.scheduler.totals import Totals


class Purpose(StrEnum):
    SWAP = "swap"
    PREFIX = "prefix"
    TEMPLATE = "template"


@dataclass(slots=True, eq=False)
class Entry:
    """One stored state of `n_cells` cells. `n_bytes` is predicted until the runner has said what it really takes. `tenant` is who
    it counts for: of a swap, the account of its request."""

    number: int
    purpose: Purpose
    tenant: str
    pool: str
    n_cells: int
    n_bytes: int
    is_spare: bool = False
    """Its cells are in their slot as well: it goes before any other prefix."""
    in_use: bool = False
    """True while the plan that is being made reads it; it may not be evicted then."""
    use: Use = field(default_factory=Use)
    """Of a prefix."""


@dataclass(frozen=True, slots=True)
class StoreStatus:
    """How the store stands."""

    budget_bytes: int
    bytes_by_purpose: dict[Purpose, int]
    entries_by_purpose: dict[Purpose, int]
    peak_bytes: int


class HostStore:
    """Entries by number."""

    def __init__(self, policy: StorePolicy, totals: Totals) -> None:
        self._policy = policy
        self._totals = totals
        self.budget_bytes = policy.budget_bytes
        """What it may have now, of the policy's budget."""
        self._entries: dict[int, Entry] = {}
        self._bytes: dict[Purpose, int] = dict.fromkeys(Purpose, 0)
        self._prefix_bytes: dict[str, int] = {}
        self._swap_bytes: dict[str, int] = {}
        """By account."""
        self._next = 1
        self._peak_bytes = 0

    def __getitem__(self, number: int) -> Entry:
        return self._entries[number]

    def __contains__(self, number: int) -> bool:
        return number in self._entries

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    @property
    def n_bytes(self) -> int:
        return sum(self._bytes.values())

    def quota(self, tenant: str) -> int:
        """Bytes that a tenant's prefixes may take."""
        return int(self._policy.tenant_shares.get(tenant, self._policy.tenant_share) * self.budget_bytes)

    def victims(self, purpose: Purpose, tenant: str, n_bytes: int, now_ns: int) -> list[Entry] | None:
        """The prefixes that must go so that `n_bytes` fit, or None when they cannot. Modifies nothing.

        A tenant's prefixes displace its own first where its quota says so, then anybody's."""
        if n_bytes > self.budget_bytes:
            return None
        chosen: list[Entry] = []
        if purpose is Purpose.SWAP and not self._may_swap(tenant, n_bytes):
            return None
        if purpose is Purpose.PREFIX:
            quota = self.quota(tenant)
            over = self._prefix_bytes.get(tenant, 0) + n_bytes - quota
            if n_bytes > quota or not self._choose(chosen, over, tenant, now_ns):
                return None
        over = self.n_bytes + n_bytes - self.budget_bytes - sum(e.n_bytes for e in chosen)
        return chosen if self._choose(chosen, over, None, now_ns) else None

    def has_room(self, tenant: str, n_bytes: int, freed: int = 0) -> bool:
        """Whether a prefix of the tenant fits in what nobody uses, once `freed` bytes of the tenant's own have gone."""
        own = self._prefix_bytes.get(tenant, 0) - freed + n_bytes
        return own <= self.quota(tenant) and self.n_bytes - freed + n_bytes <= self.budget_bytes

    def surplus(self, now_ns: int) -> list[Entry]:
        """The prefixes that must go because the budget has shrunk, those first that will be wanted last."""
        chosen: list[Entry] = []
        self._choose(chosen, self.n_bytes - self.budget_bytes, None, now_ns)
        return chosen

    def add(self, purpose: Purpose, tenant: str, pool: str, n_cells: int, n_bytes: int) -> Entry:
        """A new entry, for which there must be room."""
        entry = Entry(self._next, purpose, tenant, pool, n_cells, n_bytes)
        self._next += 1
        self.put(entry)
        return entry

    def take_over(self, entry: Entry) -> None:
        """An entry that is there already. Later ones have higher numbers."""
        self._next = max(self._next, entry.number + 1)
        self.put(entry)

    def put(self, entry: Entry) -> None:
        """An entry that was removed to change its purpose, or is new."""
        self._entries[entry.number] = entry
        self._count(entry, entry.n_bytes)

    def remove(self, number: int, *, evicted: bool = False) -> Entry:
        entry = self._entries.pop(number)
        self._count(entry, -entry.n_bytes)
        self._totals.evicted_entries += evicted
        return entry

    def settle(self, number: int, n_bytes: int) -> None:
        """The runner has said what the entry really takes. Books that a prediction left over budget stay so until it goes."""
        entry = self._entries[number]
        change, entry.n_bytes = n_bytes - entry.n_bytes, n_bytes
        self._count(entry, change)
        self._totals.stored_bytes += n_bytes

    def books(self) -> StoreStatus:
        entries = dict.fromkeys(Purpose, 0)
        for entry in self:
            entries[entry.purpose] += 1
        return StoreStatus(self.budget_bytes, dict(self._bytes), entries, self._peak_bytes)

    def _may_swap(self, account: str, n_bytes: int) -> bool:
        """Alone an account's swaps may take its share of the store; beside others, that share of what is free without its own. So
        streams that nobody reads, which are swapped out and stay, leave room for the next one's."""
        share = self._policy.tenant_shares.get(account, self._policy.tenant_share)
        fixed = self._bytes[Purpose.SWAP] + self._bytes[Purpose.TEMPLATE]
        held, total = self._swap_bytes.get(account, 0), self.budget_bytes
        return share >= 1 or may_take(n_bytes, held=held, used=fixed, total=total, share=share / (1 - share))

    def _choose(self, chosen: list[Entry], over: int, tenant: str | None, now_ns: int) -> bool:
        """Add prefixes (of the tenant) to `chosen`, spare ones first, until `over` bytes are free; whether that is possible."""
        if over <= 0:
            return True
        owned = [
            e for e in self if e.purpose is Purpose.PREFIX and not e.in_use and tenant in (None, e.tenant) and e not in chosen
        ]
        for entry in sorted(owned, key=lambda e: (not e.is_spare, -e.use.wanted_in_ns(now_ns), e.number)):
            if over <= 0:
                break
            chosen.append(entry)
            over -= entry.n_bytes
        return over <= 0

    def _count(self, entry: Entry, change: int) -> None:
        self._bytes[entry.purpose] += change
        if entry.purpose is not Purpose.TEMPLATE:
            by_tenant = self._prefix_bytes if entry.purpose is Purpose.PREFIX else self._swap_bytes
            held = by_tenant.get(entry.tenant, 0) + change
            if held:
                by_tenant[entry.tenant] = held
            else:
                by_tenant.pop(entry.tenant, None)
        self._peak_bytes = max(self._peak_bytes, self.n_bytes)
