"""The door: the one place where something is sent to another server.

    async with egress.send(permit, Call("/chat/completions", body)) as reply:
        async for data in reply.chunks(): ...

In this order: the door is open; the audit log has the entry `egress`; only then a connection, to what the name in the settings
resolves to, verified by TLS. One permit is one exchange: nothing is sent again by itself, no redirect is followed, no proxy of
the environment is asked, no cookie is kept. At the end the log gets `egress_end`. A server that sends nothing useful is given up:
what comes byte by byte is no sign of life, whole lines are one for a while (`first_s`), and what `progressed` is called for is.

A backend that does not leave this host needs neither an open door nor an audit log; where there is one, it has the entries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit

from poise.audit.log import AuditError
from poise.config import Settings
from poise.gateway.models.egress.hosts import Host, host_of
from poise.gateway.models.egress.permit import Permit, Purpose
from poise.gateway.models.egress.reply import UNSENT, EgressError, Failure, Reply, error_of, retry_after_s
from poise.gateway.request.labels import label_of
from poise.metrics.egress import EgressMetrics

if TYPE_CHECKING:
    from aiohttp.abc import AbstractResolver

    from poise.gateway.models.egress.connection import Connections

__all__ = ["Call", "Egress", "EgressError", "Recorder", "Reply"]

NO_CLOUD = "POISE_NO_CLOUD"
CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Call:
    """What is sent: `path` below the backend's URL, and a body; none: the path is only asked for."""

    path: str
    body: bytes = b""
    accept: str = "text/event-stream"
    model: str = ""
    """For the audit log."""


class Recorder(Protocol):
    """The audit log."""

    @property
    def enabled(self) -> bool: ...

    async def written(self, event: str, **fields: Any) -> None:
        """Returns when the entry was handed to the system. Raises AuditError."""

    def put(self, event: str, **fields: Any) -> None: ...


class Egress:
    """The door and its switches. Raises EgressSetupError where a backend cannot be used as it is configured."""

    def __init__(
        self,
        settings: Settings,
        record: Recorder,
        metrics: EgressMetrics,
        *,
        environ: Mapping[str, str],
        resolver: AbstractResolver | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """`resolver`: of names, in the place of the system's."""
        self._record, self._metrics, self._now = record, metrics, now
        self._hosts = {name: host_of(name, backend, environ) for name, backend in settings.backends.items()}
        self._ceilings = {name: label_of(backend.ceiling) for name, backend in settings.backends.items()}
        self._connections: Connections | None = None
        if settings.backends:
            from poise.gateway.models.egress.connection import Connections

            self._connections = Connections(resolver)
        self._connecting: set[asyncio.Timeout] = set()
        self._forbidden = ""
        if environ.get(NO_CLOUD, "0") not in ("", "0"):
            self._forbidden = f"{NO_CLOUD} is set in the server's environment"
        elif not settings.egress.enabled:
            self._forbidden = "egress.enabled is false"
        self._shut = ""
        metrics.is_open(lambda: not self.why_closed)

    @property
    def why_closed(self) -> str:
        """Why nothing leaves this host, for operators; empty: it may."""
        return self._forbidden or self._shut

    def shut(self, why: str) -> None:
        """An operator's switch. What has no answer yet is broken off; one that has begun goes on: its text has left."""
        self._shut = why or "an operator has closed it"
        now_s = asyncio.get_running_loop().time()
        for limit in list(self._connecting):
            limit.reschedule(now_s)

    def open(self) -> None:
        """Takes `shut` back. What the settings or the environment forbid stays forbidden: `why_closed` has it."""
        self._shut = ""

    def leaves_host(self, backend: str) -> bool:
        return self._hosts[backend].leaves_host

    @asynccontextmanager
    async def send(self, permit: Permit, call: Call) -> AsyncIterator[Reply]:
        """Raises EgressError, at first and while the reply is read."""
        host = self._hosts[permit.backend]
        is_told, reply, outcome = False, Reply(host), CANCELLED
        try:
            self._admit(permit, call)
            self._check_open(host)
            if host.leaves_host or self._record.enabled:
                await self._announce(permit, call, host)
                is_told = True
            self._check_open(host)
            self._metrics.sent(permit.backend, permit.label.shown)
            await self._connect(host, call, reply)
            yield reply
            outcome = reply.outcome
            await reply.finish()
        except EgressError as error:
            outcome = error.kind
            raise
        finally:
            reply.close()
            self._tell_end(permit, reply, outcome, is_told)

    async def close(self) -> None:
        """Connections that are kept are closed."""
        if self._connections is not None:
            await self._connections.close()

    def _admit(self, permit: Permit, call: Call) -> None:
        """What the policy has seen to, seen to once more."""
        assert not permit.is_used, "a permit is for one exchange"
        permit.is_used = True
        if permit.purpose is Purpose.HEALTH:
            assert not call.body, "nothing of a request is sent to see how a server is"
        elif permit.label > self._ceilings[permit.backend]:
            raise EgressError("closed", f"the label {permit.label.shown} is above backends.{permit.backend}.ceiling")

    def _check_open(self, host: Host) -> None:
        if host.leaves_host and self.why_closed:
            raise EgressError("closed", f"nothing may leave this host: {self.why_closed}")

    async def _announce(self, permit: Permit, call: Call, host: Host) -> None:
        fields = {
            "request": permit.request_id,
            "tenant": permit.tenant,
            "backend": permit.backend,
            "host": host.shown,
            "model": call.model,
            "purpose": permit.purpose.value,
            "label": permit.label.shown,
            "sources": list(permit.sources),
            "reason": permit.reason,
            "bytes": len(call.body),
        }
        try:
            await self._record.written("egress", **fields)
        except (AuditError, OSError) as error:
            raise EgressError("no_audit", f"nothing leaves without an entry in the audit log: {error}") from None

    async def _connect(self, host: Host, call: Call, reply: Reply) -> None:
        """Send it, and wait for the head of an answer that is one."""
        assert self._connections is not None
        try:
            async with asyncio.timeout(host.connect_s + host.first_s) as limit:
                self._connecting.add(limit)
                try:
                    answer = await self._connections.ask(host, call.path, call.body, call.accept)
                finally:
                    self._connecting.discard(limit)
        except TimeoutError:
            reply.n_sent = len(call.body)
            self._check_open(host)
            raise error_of(host, "timeout", f"did not begin an answer within {host.first_s:g} s") from None
        except Failure as failure:
            is_sent = failure.kind not in UNSENT
            reply.n_sent = len(call.body) if is_sent else 0
            what = "broke off before an answer" if is_sent else "cannot be connected to"
            raise error_of(host, failure.kind, f"{what} ({failure.why})") from None
        reply.n_sent = len(call.body)
        reply.begin(answer)
        await self._check_head(host, reply)

    async def _check_head(self, host: Host, reply: Reply) -> None:
        status, encoding = reply.status, reply.headers.get("Content-Encoding", "").strip().lower()
        is_plain = encoding in ("", "identity")
        if 300 <= status <= 399:
            where = f"sends requests on to {_host_in(reply.headers.get('Location', ''))}, which is not followed"
            raise error_of(host, "redirect", f"{where}; put the right address into backends.{host.backend}.url", status=status)
        if status >= 400:
            body = await reply.error_body() if is_plain else b""
            wait_s = retry_after_s(reply.headers, self._now())
            raise error_of(host, "status", f"answered with status {status}", status=status, retry_after_s=wait_s, body=body)
        if not is_plain:
            raise error_of(host, "encoding", "answered with a compressed body though it was asked for none", has_begun=True)

    def _tell_end(self, permit: Permit, reply: Reply, outcome: str, is_told: bool) -> None:
        tokens = reply.tokens
        self._metrics.ended(permit.backend, permit.label.shown, outcome, reply.n_sent, reply.n_received)
        if tokens is not None:
            self._metrics.used(permit.backend, tokens.prompt, tokens.cached, tokens.output, reply.cost_nano)
        if is_told:
            self._record.put(
                "egress_end",
                request=permit.request_id,
                tenant=permit.tenant,
                backend=permit.backend,
                outcome=outcome,
                status=reply.status or None,
                sent=reply.n_sent,
                received=reply.n_received,
                prompt_tokens=tokens.prompt if tokens is not None else None,
                cached_tokens=tokens.cached if tokens is not None else None,
                output_tokens=tokens.output if tokens is not None else None,
                cost_nano=reply.cost_nano if tokens is not None else None,
            )


def _host_in(location: str) -> str:
    """The host that a redirect names, and nothing else of it."""
    with suppress(ValueError):
        host = urlsplit(location).hostname or ""
        if host and all(character.isalnum() or character in ".-:" for character in host):
            return host[:253]
    return "another address of its own" if location else "nowhere"
