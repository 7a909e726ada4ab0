"""What goes into the audit log: one entry at the end of each API request, and one for whatever an operator or the server does.

An entry says who (tenant, id of the key), what (endpoint, class), how much (tokens, waiting, compute) and what came of it. Text
of prompts and answers is in it only where the tenant's `content_log` says so, in a field of its own, `content`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from starlette.requests import Request

from poise.audit.chain import audit_key
from poise.audit.log import AuditLog
from poise.config import Settings
from poise.config.paths import audit_dir, keys_file
from poise.gateway.errors import ApiError
from poise.gateway.keys import Key, KeysFile
from poise.gateway.middleware import request_id_of
from poise.gateway.tenants import caller_of
from poise.scheduler.request import RequestClass

CANCELLED = "cancelled"
REFUSED = "refused"


class Part(Protocol):
    """One engine request of an API request, as far as it is put on record."""

    outcome: str | None
    n_output: int
    n_cached: int
    served_us: int
    n_preempted: int
    queued_us: int | None
    ttft_s: float | None
    text: str


class Audit:
    """Where everything that is to be put on record goes. Without a log it does nothing."""

    def __init__(self, settings: Settings, log: AuditLog | None = None) -> None:
        self._settings = settings
        self._log = log

    @property
    def enabled(self) -> bool:
        return self._log is not None

    def put(self, event: str, **fields: Any) -> None:
        """Whatever happens to the server: start, stop, another level, other keys. No text of requests."""
        if self._log is not None:
            self._log.put(event, fields)

    def begin(self, request: Request) -> RequestEntry:
        """The entry of an API request, which is written at its end."""
        return RequestEntry(self, request)

    def operator(self, request: Request, action: str, **fields: Any) -> None:
        """What an operator has done."""
        caller = caller_of(request)
        self.put(
            "admin", action=action, by=caller.tenant, key=caller.key_id, request=request_id_of(request.scope), **fields
        )

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
    return Audit(settings, AuditLog(folder, key, rotate_bytes=wanted.rotate_mb << 20, keep_days=wanted.keep_days))


class RequestEntry:
    """What is known of one API request by the time it ends. `end` writes it, once."""

    def __init__(self, audit: Audit, request: Request) -> None:
        self._audit = audit
        self._request = request
        self._began_s = time.perf_counter()
        self._ended = False
        self.request_class: RequestClass | None = None
        self.response_id = ""
        self.stream = False
        self.n_prompt = 0
        self.error: ApiError | None = None
        """What the client was told in a stream that had begun."""
        self.parts: Callable[[], Sequence[Part]] = tuple
        """Its engine requests, however many there are by then."""
        self._prompt: Any = None

    @property
    def keeps_content(self) -> bool:
        return self._audit.keeps_content(caller_of(self._request).tenant)

    def note_prompt(self, prompt: object) -> None:
        """The prompt as it was sent. It is kept only where it is to be written."""
        if self.keeps_content:
            self._prompt = prompt

    def end(self, error: ApiError | None = None, *, outcome: str = "") -> None:
        """`error` is what the client was told; `outcome` what happened where the parts do not say."""
        if self._ended:
            return
        self._ended = True
        if not self._audit.enabled:
            return
        caller, parts, error = caller_of(self._request), self.parts(), error or self.error
        outcomes = list(dict.fromkeys(part.outcome or CANCELLED for part in parts))
        waits = [part.queued_us for part in parts if part.queued_us is not None]
        firsts = [part.ttft_s for part in parts if part.ttft_s is not None]
        fields = {
            "request": request_id_of(self._request.scope),
            "response": self.response_id,
            "tenant": caller.tenant,
            "key": caller.key_id,
            "endpoint": self._request.scope["path"],
            "class": self.request_class.value if self.request_class else None,
            "stream": self.stream,
            "status": None if error is None and (outcome or CANCELLED in outcomes) else error.status if error else 200,
            "error": error.code if error else None,
            "outcome": outcome or ("+".join(outcomes) if outcomes else REFUSED),
            "prompt_tokens": self.n_prompt,
            "output_tokens": sum(part.n_output for part in parts),
            "cached_tokens": sum(part.n_cached for part in parts),
            "queue_ms": round(max(waits) / 1000, 1) if waits else None,
            "ttft_ms": round(min(firsts) * 1000, 1) if firsts else None,
            "duration_ms": round((time.perf_counter() - self._began_s) * 1000, 1),
            "served_us": sum(part.served_us for part in parts),
            "preemptions": sum(part.n_preempted for part in parts),
        }
        content = None
        if self._prompt is not None:
            content = {"prompt": self._prompt, "output": [part.text for part in parts if part.text]}
        self._audit.write(fields, content)
