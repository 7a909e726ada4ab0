"""What the engine says of its requests and of itself: the events of a step, and gauges and counters in one message."""

from collections.abc import Callable, Iterable
from dataclasses import replace

import msgspec

from poise.engine.ports import Runner
from poise.scheduler.memory.kv import PoolStatus
from poise.scheduler.request import Downgraded, Event, Finished, Preempted, Queued, Resumed, Started
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire.changes import ChangeKind
from poise.wire.figures import Bottleneck, StepFigures
from poise.wire.status import Status
from poise.wire.to_engine import Accounts

STATUS_PERIOD_NS = 200_000_000
"""A busy engine reports its gauges at most this often."""
POSITIONS_PERIOD_NS = 1_000_000_000
"""And the places of queued requests at most this often."""
TENANTS_MAX = 20
"""Tenants whose cells are counted by name."""

News = tuple[list[Started], list[wire.Change], list[wire.Finish]]


def news_of(events: Iterable[Event]) -> News:
    """The scheduler's events of one step, as a Step message has them: starts, changes and finishes, each in their order.

    Who reads a Step reads its starts before its changes. So of a request that starts, only those changes are kept that are still
    true then: what came after the start, and a downgrade. What kept it from starting until now is over.

    What the engine asked of itself (a negative id) is nobody else's business."""
    starts: list[Started] = []
    changes: list[wire.Change] = []
    finishes: list[wire.Finish] = []
    for event in events:
        if event.request_id < 0:
            continue
        match event:
            case Started():
                starts.append(event)
                changes = [c for c in changes if c.request_id != event.request_id or c.what == ChangeKind.DOWNGRADE]
            case Preempted():
                changes.append(wire.Change(event.request_id, event.kind.value, event.why.value if event.why else ""))
            case Resumed():
                changes.append(wire.Change(event.request_id, ChangeKind.RESUME.value))
            case Downgraded():
                changes.append(wire.Change(event.request_id, ChangeKind.DOWNGRADE.value, event.why.value))
            case Finished():
                finishes.append(msgspec.convert(event, wire.Finish, from_attributes=True))
    return starts, changes, finishes


class Reporter:
    """Builds Status messages. `due_ns` is when the next one is worth sending."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        rss_bytes: Callable[[], int],
        weights_bytes: int,
        resident_bytes: Callable[[int], int],
    ) -> None:
        """`resident_bytes`: what entries of the host store that take so many bytes have of resident memory."""
        self._scheduler = scheduler
        self._runner = runner
        self._rss_bytes, self._resident_bytes = rss_bytes, resident_bytes
        self._weights_bytes = weights_bytes
        self._positions_ns = 0
        self.due_ns = 0

    def status(self, now_ns: int, steps: StepFigures, prompt_tokens: int, output_tokens: int) -> Status:
        """How everything stands."""
        self.due_ns = now_ns + STATUS_PERIOD_NS
        snapshot, rss_bytes = self._scheduler.snapshot(), self._rss_bytes()
        stored_bytes = self._resident_bytes(sum(snapshot.store.bytes_by_purpose.values()))
        accounted = self._weights_bytes + sum(p.kv_bytes for p in self._runner.pools) + stored_bytes
        return Status(
            step=snapshot.step,
            classes=snapshot.classes,
            pools=[_told(pool) for pool in snapshot.pools.values()],
            prompt_tokens=prompt_tokens,
            output_tokens=output_tokens,
            moves=snapshot.n_moves,
            rss_bytes=rss_bytes,
            store=snapshot.store,
            totals=snapshot.totals,
            waiting=self._positions(now_ns),
            threads=self._runner.threads,
            unaccounted_bytes=rss_bytes - accounted if rss_bytes else 0,
            steps=steps,
            bottleneck=Bottleneck(
                {limit.value: ns // 1000 for limit, ns in snapshot.limited_ns.items()},
                snapshot.limit.value,
                snapshot.limit_since_ns,
            ),
            structure=self._runner.structure,
        )

    def accounts(self, now_ns: int) -> Accounts:
        """What an engine after this one has to know of accounts."""
        return Accounts(now_ns, self._scheduler.accounts(now_ns))

    def _positions(self, now_ns: int) -> list[Queued]:
        if now_ns < self._positions_ns:
            return []
        self._positions_ns = now_ns + POSITIONS_PERIOD_NS
        return self._scheduler.positions()


def _told(pool: PoolStatus) -> PoolStatus:
    """Without the names of tenants that hold little."""
    most = sorted(pool.cells_by_tenant.items(), key=lambda item: (-item[1], item[0]))
    by_tenant = dict(most[:TENANTS_MAX])
    if len(most) > TENANTS_MAX:
        by_tenant[""] = sum(n for _, n in most[TENANTS_MAX:])
    return replace(pool, cells_by_tenant=by_tenant)
