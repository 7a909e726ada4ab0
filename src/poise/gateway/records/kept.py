"""The responses that are kept: the live ones, and for a while those that have ended. In memory only; nothing is written to disk.

Who has ended longest ago goes first, when its time is over or when the budget, or its tenant's share of it, is used up. Live ones
count against the budget and are never given up for it."""

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from poise.config.serving import ResultsSettings
from poise.gateway.records.record import Record

ERASURES_MAX = 100


class Records:
    def __init__(self, settings: ResultsSettings) -> None:
        self._retention_s = settings.retention_s
        self._budget_bytes = settings.budget_mb << 20
        self._tenant_bytes = int(settings.tenant_share * self._budget_bytes)
        self._live: dict[str, Record] = {}
        self._finished: dict[str, Record] = {}
        """In the order in which they ended."""
        self._finished_bytes = 0
        self._bytes_by_tenant: dict[str, int] = {}
        """Of the finished ones."""
        self._erasures: dict[str, float] = {}
        """When the data of a tenant was erased: of the last few, for requests that were on their way just then."""
        self._by_request_id: dict[tuple[str, str], Record] = {}
        """The newest of each tenant's own ids."""
        self.forgotten_s: float | None = None
        """The last end of one that is no longer kept, by the clock `time.perf_counter`; None: all are."""

    @property
    def n_bytes(self) -> int:
        """Memory that all of them take."""
        return self._finished_bytes + sum(record.n_bytes for record in self._live.values())

    def is_live(self, account: str) -> bool:
        """Whether a request of the account has not ended."""
        return any((r.origin.account or r.origin.tenant) == account for r in self._live.values())

    def count(self) -> tuple[int, int]:
        """Live ones, and finished ones."""
        return len(self._live), len(self._finished)

    def add(self, record: Record) -> None:
        """One that has just begun."""
        record.erased |= record.origin.arrived_s < self._erasures.get(record.origin.tenant, 0.0)
        self._live[record.response_id] = record
        self._by_request_id[record.origin.tenant, record.origin.request_id] = record

    def finish(self, record: Record, *, keep: bool) -> None:
        """One has ended. `keep`: somebody may come back for it."""
        self._live.pop(record.response_id, None)
        if not keep or record.erased:
            self._forget_request_id(record)
            self._note_forgotten(record)
            return
        tenant = record.origin.tenant
        self._finished[record.response_id] = record
        self._finished_bytes += record.n_bytes
        self._bytes_by_tenant[tenant] = self._bytes_by_tenant.get(tenant, 0) + record.n_bytes
        if self._bytes_by_tenant[tenant] > self._tenant_bytes:
            for other in [other for other in self._finished.values() if other.origin.tenant == tenant]:
                if self._bytes_by_tenant.get(tenant, 0) <= self._tenant_bytes:
                    break
                self.drop(other)
        self.purge()

    def live(self) -> list[Record]:
        """In the order of their arrival."""
        return list(self._live.values())

    def newest(self) -> Iterator[Record]:
        """Everybody's, live ones and finished ones: by their arrival among the live ones, then by their end."""
        yield from list(reversed(self._live.values()))
        yield from list(reversed(self._finished.values()))

    def ended(self, n: int) -> list[Record]:
        """The last `n` that have ended and are kept, the newest first."""
        self.purge()
        return list(islice(reversed(self._finished.values()), n))

    def find_live(self, wanted: str) -> Record | None:
        """Any tenant's, by the id of the response, or by an X-Request-Id that only one live request has."""
        if (record := self._live.get(wanted)) is not None:
            return record
        matching = [record for record in self._live.values() if record.origin.request_id == wanted]
        return matching[0] if len(matching) == 1 else None

    def find(self, wanted: str, tenant: str | None) -> Record | None:
        """By the id of the response, or by the tenant's X-Request-Id, of which the newest counts. Tenant None: anybody's."""
        self.purge()
        record = self._live.get(wanted) or self._finished.get(wanted)
        if record is not None:
            return record if tenant in (None, record.origin.tenant) else None
        return self._by_request_id.get((tenant, wanted)) if tenant is not None else None

    def of_tenant(self, tenant: str) -> Iterator[Record]:
        """The newest first: by their arrival among the live ones, then by their end."""
        self.purge()
        for kept in (self._live, self._finished):
            yield from [record for record in reversed(kept.values()) if record.origin.tenant == tenant]

    def drop(self, record: Record) -> None:
        """Forget a finished one. Who is reading it reads on."""
        if self._finished.pop(record.response_id, None) is None:
            return
        tenant = record.origin.tenant
        self._finished_bytes -= record.n_bytes
        self._bytes_by_tenant[tenant] -= record.n_bytes
        if not self._bytes_by_tenant[tenant]:
            del self._bytes_by_tenant[tenant]
        self._forget_request_id(record)
        self._note_forgotten(record)

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Forget every finished one of a tenant, and the live ones when they end. Returns what was forgotten at once."""
        self._erasures.pop(tenant, None)
        self._erasures[tenant] = time.perf_counter()
        if len(self._erasures) > ERASURES_MAX:
            del self._erasures[next(iter(self._erasures))]
        for record in self._live.values():
            record.erased |= record.origin.tenant == tenant
        finished = [record for record in self._finished.values() if record.origin.tenant == tenant]
        for record in finished:
            self.drop(record)
        return {
            "results": len(finished),
            "result_tokens": sum(record.n_tokens for record in finished),
            "result_bytes": sum(record.n_bytes for record in finished),
        }

    def purge(self) -> None:
        """Forget those whose time is over, and as many more as the budget wants. Called also when nobody asks."""
        oldest_s, n_bytes = time.perf_counter() - self._retention_s, self.n_bytes
        while self._finished:
            record = next(iter(self._finished.values()))
            assert record.ended_s is not None
            if record.ended_s > oldest_s and n_bytes <= self._budget_bytes:
                break
            n_bytes -= record.n_bytes
            self.drop(record)

    def _note_forgotten(self, record: Record) -> None:
        """A request that no engine had a token of took no place from anybody."""
        if record.is_open and record.ended_s is not None:
            self.forgotten_s = max(record.ended_s, self.forgotten_s or record.ended_s)

    def _forget_request_id(self, record: Record) -> None:
        key = (record.origin.tenant, record.origin.request_id)
        if self._by_request_id.get(key) is record:
            del self._by_request_id[key]
