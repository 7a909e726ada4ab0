"""What goes into the audit log: one entry at the end of each API request, and one for whatever an operator or the server does.

An entry says who (tenant, id of the key), what (endpoint, class), how much (tokens, waiting, compute) and what came of it. Text
of prompts and answers is in it only where the tenant's `content_log` says so, in a field of its own, `content`."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from poise.audit.chain import audit_key
from poise.audit.log import AuditError, AuditLog
from poise.config import Settings
from poise.config.paths import audit_dir, keys_file
from poise.gateway.records.record import CANCELLED, Record
from poise.gateway.records.spans import calls_of
from poise.gateway.records.values import Bill
from poise.gateway.request.refusals import ApiError, ClientGone
from poise.gateway.tasks import Tasks
from poise.gateway.tenancy.caller import Caller
from poise.gateway.tenancy.keys import Key, KeysFile
from poise.gateway.tenancy.strangers import Strangers
from poise.metrics.audit import AuditMetrics, Standing
from poise.scheduler.request import PreemptionKind, RequestClass

REFUSED, BROKEN = "refused", "internal_error"
PREEMPTIONS = (PreemptionKind.PAUSE, PreemptionKind.SWAP, PreemptionKind.DROP)
_COUNTS = ("prompt_tokens", "output_tokens", "cached_tokens", "tool_calls", "served_us", "preemptions")
NOTHING: Mapping[str, Any] = {"response": "", "queue_ms": None, "ttft_ms": None, **dict.fromkeys(_COUNTS, 0)}
"""The figures of a request that never began."""

WRITTEN_S = 5.0
"""How long an entry is waited for that has to be there first."""
_WRITER = "audit-writer"


class Audit:
    """Writes the audit log's entries. Without a log it does nothing."""

    def __init__(self, settings: Settings, log: AuditLog | None = None) -> None:
        self._settings = settings
        self._log = log
        self.strangers = Strangers(self.put)
        """Who is refused before it is known who they are."""

    @property
    def enabled(self) -> bool:
        return self._log is not None

    def watch(self, metrics: AuditMetrics, tasks: Tasks) -> None:
        """Count in these metrics how the writer keeps up, and show its thread among the tasks."""
        self.strangers.on_refusal = metrics.refused_stranger
        if self._log is not None:
            log = self._log
            tasks.watch(_WRITER)
            metrics.on_failure = partial(tasks.failed, _WRITER)
            log.watch, metrics.n_queued, metrics.busy_s = metrics, lambda: log.n_queued, lambda: log.busy_s
            metrics.standing = lambda: Standing(*log.standing)

    def put(self, event: str, **fields: Any) -> None:
        """Write an entry about the server: start, stop, another level, other keys. No text of requests."""
        if self._log is not None:
            self._log.put(event, fields)

    async def written(self, event: str, **fields: Any) -> None:
        """The same, for what must not happen without its entry: returns when that is with the system. Raises AuditError."""
        if self._log is None:
            raise AuditError("there is no audit log; set audit.enabled = true")
        try:
            async with asyncio.timeout(WRITTEN_S):
                await asyncio.wrap_future(self._log.written(event, fields))
        except TimeoutError:
            raise AuditError(f"the disk has not taken an entry of the audit log within {WRITTEN_S:g} s") from None

    def begin(self, request_id: str, endpoint: str) -> "RequestEntry":
        """The entry of an API request, which is written at its end. `endpoint` is its path."""
        return RequestEntry(self, request_id, endpoint)

    def operator(self, caller: Caller, action: str, **fields: Any) -> None:
        """Write an entry about what an operator has done."""
        self.put("admin", action=action, by=caller.tenant, key=caller.key_id, request=caller.request_id, **fields)

    def level_changed(self, level: str, former: str, reasons: Sequence[str]) -> None:
        self.put("level", level=level, former=former, reasons=list(reasons))

    def keys_changed(self, before: Sequence[Key], after: Sequence[Key]) -> None:
        """The keys file was read again."""
        known = {key.id: key for key in before}
        for key in after:
            old = known.pop(key.id, None)
            if old is None:
                self.put("key_added", key=key.id, tenant=key.tenant, admin=key.admin)
            elif old.revoked is None and key.revoked is not None:
                self.put("key_revoked", key=key.id, tenant=key.tenant)
            elif old != key:
                self.put("key_changed", key=key.id, tenant=key.tenant)
        for key in known.values():
            self.put("key_removed", key=key.id, tenant=key.tenant)

    def keeps_content(self, tenant: str) -> bool:
        return self._log is not None and self._settings.tenant(tenant).content_log

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Erase what is on record of a tenant's texts. The entries stay."""
        if self._log is None:
            return {"audit_contents": 0}
        return {"audit_contents": await asyncio.wrap_future(self._log.erase_content(tenant))}

    def close(self) -> None:
        """Write what is left. What comes later is lost."""
        self.strangers.tell()
        if self._log is not None:
            self._log.close()

    def write(self, fields: Mapping[str, Any], content: Mapping[str, Any] | None) -> None:
        if self._log is not None:
            self._log.put("request", fields, content)


def open_audit(settings: Settings) -> Audit:
    """The audit log that the settings ask for. Raises AuditError, or KeysError when there is no pepper for its chain."""
    wanted = settings.audit
    if not wanted.enabled:
        return Audit(settings)
    key = audit_key(KeysFile(keys_file(settings.auth)).pepper())
    folder = audit_dir(wanted)
    rotate_bytes, bytes_max = wanted.rotate_mb << 20, wanted.max_mb << 20
    log = AuditLog(folder, key, rotate_bytes=rotate_bytes, keep_days=wanted.keep_days, bytes_max=bytes_max)
    return Audit(settings, log)


def _billed(bill: Bill) -> Mapping[str, Any]:
    """What an entry has of an answer of another server."""
    told = {"backend": bill.backend, "label": bill.label, "route_reason": bill.reason, "cost_nano": bill.cost_nano}
    return told | {"cost_known": bill.is_known, "price_version": bill.price_version}


class RequestEntry:
    """What is known of one API request, written at the end of its record, or of the `with` that it never got out of."""

    def __init__(self, audit: Audit, request_id: str, endpoint: str) -> None:
        self._audit, self._request_id, self._endpoint = audit, request_id, endpoint
        self.caller = Caller("")
        """Once it is known."""
        self._began_s = time.perf_counter()
        self._prompt: Any = None
        self.request_class: RequestClass | None = None
        self.stream = False

    def __enter__(self) -> "RequestEntry":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """The request ended before it had a record: it was refused, it failed, or its client left."""
        if isinstance(error, ApiError):
            self._write(error, REFUSED)
        elif error is not None:
            broken = isinstance(error, Exception) and not isinstance(error, ClientGone)
            self._write(None, BROKEN if broken else CANCELLED, status=500 if broken else None)

    def note_prompt(self, prompt: object) -> None:
        """The prompt as it was sent. It is kept only where it is to be written."""
        if self._audit.keeps_content(self.caller.tenant):
            self._prompt = prompt

    def ended(self, record: Record) -> None:
        if record.erased:
            self._prompt = None
        moments = Counter(moment.what for moment in record.timeline)
        waits = [moment.detail["wait_ms"] for moment in record.timeline if moment.what == "started"]
        usage, failure, outcome = record.usage(), record.failure, record.outcome or CANCELLED
        if failure is not None and not record.is_open:
            outcome = BROKEN if failure.code == BROKEN else REFUSED
        # A client that left has been sent a status only if its stream had begun.
        was_answered = CANCELLED not in outcome or (self.stream and record.is_open)
        self._write(
            failure,
            outcome,
            {
                "response": record.response_id,
                "prompt_tokens": usage.prompt_tokens,
                "output_tokens": usage.completion_tokens,
                "cached_tokens": usage.cached_tokens,
                "tool_calls": calls_of(record),
                "queue_ms": max(waits, default=None),
                "ttft_ms": round((record.arrivals[0] - record.origin.arrived_s) * 1000, 1) if record.arrivals else None,
                "served_us": record.served_us,
                "preemptions": sum(moments[what] for what in PREEMPTIONS),
                **(_billed(record.bill) if record.bill is not None else {}),
            },
            [answer.whole for answer in record.answers()] if self._prompt is not None else [],
            200 if was_answered else None,
        )

    def _write(
        self,
        error: ApiError | None,
        outcome: str,
        figures: Mapping[str, Any] = NOTHING,
        outputs: Sequence[str] = (),
        status: int | None = 200,
    ) -> None:
        if not self.caller.tenant:
            return  # a stranger, who must not be able to fill the disk: `strangers` counts
        fields = {
            "request": self._request_id,
            "tenant": self.caller.tenant,
            "key": self.caller.key_id,
            "endpoint": self._endpoint,
            "class": self.request_class.value if self.request_class else None,
            "stream": self.stream,
            "status": error.status if error is not None else status,
            "error": error.code if error is not None else None,
            "outcome": outcome,
            "duration_ms": round((time.perf_counter() - self._began_s) * 1000, 1),
            **NOTHING,
            **figures,
        }
        prompt, self._prompt = self._prompt, None
        content = {"prompt": prompt, "output": list(outputs)} if prompt is not None else None
        self._audit.write(fields, content)
