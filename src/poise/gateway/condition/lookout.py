"""Gathers once a second what findings are judged by, from what the gateway has already, and keeps what was found."""

import time
from collections import Counter
from collections.abc import Callable

from poise.gateway.condition.findings import NOTED_S, Finding, FindingRow, Findings, LiveFigures, Observation
from poise.gateway.condition.memory import own_rss_bytes
from poise.gateway.records.kept import Records
from poise.gateway.records.record import Record
from poise.gateway.supervision.blame import Death
from poise.gateway.supervision.engine import EnginePhase, EngineProcess
from poise.gateway.tasks import Tasks
from poise.gateway.text.tokens import TextJobs
from poise.metrics.audit import AuditMetrics
from poise.scheduler.request import Hold
from poise.wire.changes import ChangeKind

_OPERATOR = "operator"
TEXT_ENDS = 3


class Lookout:
    """What an operator should look at now. The engine is asked for nothing."""

    def __init__(
        self,
        engine: EngineProcess,
        records: Records,
        audit: AuditMetrics,
        tasks: Tasks,
        text: TextJobs,
        *,
        rss_bytes: Callable[[], int] = own_rss_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine, self._records, self._audit = engine, records, audit
        self._tasks, self._text = tasks, text
        self._rss_bytes, self._clock = rss_bytes, clock
        self._findings = Findings()
        self._held_since_s: dict[str, float] = {}
        self._ends: list[str] = []
        engine.on_death(self._on_death)

    def look(self) -> None:
        """Judge the present moment."""
        now_s = self._clock()
        live = self._records.live()
        held = [record.response_id for record in live if record.held is not Hold.RUN]
        self._held_since_s = {name: self._held_since_s.get(name, now_s) for name in held}
        state, ends = self._engine.state, self._ends
        status = state.status if state.phase is EnginePhase.READY else None
        self._ends = []
        cells: Counter[str] = Counter()
        for pool in status.pools if status is not None else []:
            cells.update({tenant: n for tenant, n in pool.cells_by_tenant.items() if tenant})
        self._findings.look(
            now_s,
            Observation(
                live=[self._request(record, now_s) for record in live],
                cells_by_tenant=cells,
                engine_bytes=status.unaccounted_bytes if status is not None else None,
                gateway_bytes=self._rss_bytes() - self._records.n_bytes,
                audit_busy_s=self._audit.busy_s(),
                audit_worst_s=self._audit.take_worst_s(),
                audit_queue=self._audit.n_queued(),
                audit_lost=self._audit.n_lost,
                audit=self._audit.standing(),
                model_changed=state.model_changed,
                engine_ready=state.phase is EnginePhase.READY,
                engine_ends=ends,
            ),
        )

    def rows(self, *, named: bool) -> list[FindingRow]:
        """`named`: with the requests and tenants that it is about."""
        now_s = self._clock()
        found = self._findings.current()
        found += [each for each in (self._failing(now_s), self._text_ends(now_s)) if each is not None]
        return [each.row(now_s, named=named) for each in found]

    def _failing(self, now_s: float) -> Finding | None:
        """Tasks that failed a moment ago. Asked for when it is shown: the task that looks may be one of them."""
        failed = self._tasks.failed_lately(NOTED_S)
        if not failed:
            return None
        parts = [f"{task.name} ({task.last_error}, {task.n_failures} times)" for task in failed]
        text = f"Tasks of the gateway that failed within the last minute: {', '.join(parts)}"
        since_s = min(task.since_s for task in failed)
        return Finding("task_failing", text, {"tasks": [task.name for task in failed]}, min(since_s, now_s), now_s)

    def _text_ends(self, now_s: float) -> Finding | None:
        """Text workers that end again and again: somebody's texts, or the host."""
        ends = [(at_s, how) for at_s, how in self._text.deaths if at_s >= now_s - NOTED_S]
        if len(ends) < TEXT_ENDS:
            return None
        counts = Counter(how for _, how in ends)
        hows = ", ".join(f"{how} {n} times" for how, n in counts.most_common())
        text = f"Text workers ended {len(ends)} times within the last minute: {hows}"
        return Finding("text_workers_ending", text, dict(counts), ends[0][0], now_s)

    def _request(self, record: Record, now_s: float) -> LiveFigures:
        since_s = self._held_since_s.get(record.response_id)
        held_s, why = None if since_s is None else now_s - since_s, _allowance(record) if record.downgraded else ""
        n_tokens = record.n_prompt + record.n_tokens
        return LiveFigures(record.response_id, record.origin.tenant, record.state, n_tokens, held_s, why)

    def _on_death(self, death: Death) -> None:
        if not death.is_on_purpose:
            self._ends.append(death.how)


def _allowance(record: Record) -> str:
    """Which allowance a downgraded request went over; empty if an operator downgraded it."""
    why = next((moment.detail.get("why", "") for moment in record.timeline if moment.what == ChangeKind.DOWNGRADE), "")
    return "" if why == _OPERATOR else str(why)
