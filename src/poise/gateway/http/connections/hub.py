"""What the connections of one server share: their limits, their places, and the application that answers."""

from __future__ import annotations

import asyncio
import contextvars
import ipaddress
import logging
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from starlette.types import ASGIApp, Scope
from uvicorn.server import ServerState

from poise.config import Settings
from poise.gateway.http.backpressure import high_water
from poise.gateway.http.connections.exchange import Exchange
from poise.gateway.http.connections.files import connections_max, connections_wanted
from poise.gateway.http.connections.heads import Headers, HeadLimits
from poise.gateway.http.connections.peers import TrustedProxies
from poise.gateway.http.connections.places import Places
from poise.gateway.tenancy.exposure import is_loopback
from poise.metrics.connections import ConnectionMetrics

if TYPE_CHECKING:
    from poise.gateway.http.connections.protocol import Connection

log = logging.getLogger(__name__)

SUMMARY_S = 60.0
IPV6_SITE_BITS = 64
"""What one site is given of IPv6, whose every address it can use."""


@dataclass(frozen=True, slots=True)
class Limits:
    head: HeadLimits
    head_s: float
    idle_s: float
    send_s: float
    write_high_water: int


def limits_of(settings: Settings) -> Limits:
    server = settings.server
    return Limits(
        head=HeadLimits(server.request_line_max, server.header_bytes_max, server.header_fields_max),
        head_s=server.body_timeout_s,
        idle_s=server.idle_timeout_s,
        send_s=server.send_timeout_s,
        write_high_water=high_water(settings.streams),
    )


def places_of(settings: Settings, files: int) -> Places:
    """`files`: how many this process may open."""
    server = settings.server
    wanted = connections_wanted(server)
    return Places(connections_max(wanted, files), server.body_bytes_total, body_least=server.max_body_bytes)


class Hub:
    def __init__(
        self, settings: Settings, places: Places, metrics: ConnectionMetrics | None, *, app: ASGIApp, is_tls: bool
    ) -> None:
        self.limits = limits_of(settings)
        self.places = places
        self.proxies = TrustedProxies(settings.server.trusted_proxies)
        self.scheme = "https" if is_tls else "http"
        self._app = app
        self._metrics = metrics
        self._state = ServerState()
        self._application_state: dict[str, Any] = {}
        self._noted: Counter[str] = Counter()
        if metrics is not None:
            metrics.watch(lambda: places.n_open, lambda: places.bodies.used)

    def attach(self, state: ServerState, application_state: dict[str, Any]) -> None:
        """The server is there: it waits for the connections and tasks in `state` when it stops."""
        self._state = state
        self._application_state = application_state

    @staticmethod
    @lru_cache(maxsize=1024)
    def _site(address: str) -> str:
        if not address or is_loopback(address):
            return ""
        try:
            parsed = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return address
        if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((parsed, IPV6_SITE_BITS), strict=False))
        return str(getattr(parsed, "ipv4_mapped", None) or parsed)

    def bounded(self, address: str) -> str:
        """Under what name the connections of an address are counted; empty: it has no bound of its own."""
        return "" if address in self.proxies else self._site(address)

    def joined(self, connection: Connection) -> None:
        self._state.connections.add(connection)  # type: ignore[arg-type]

    def left(self, connection: Connection) -> None:
        self._state.connections.discard(connection)

    def start(self, exchange: Exchange, scope: Scope) -> None:
        """Have the application answer a request."""
        run = exchange.run(self._app, scope)
        # Without a context of its own each task would keep that of the connection, and what others left there.
        task = asyncio.get_running_loop().create_task(run, context=contextvars.Context())
        self._state.tasks.add(task)
        task.add_done_callback(self._state.tasks.discard)

    def n_answered(self) -> None:
        self._state.total_requests += 1

    def default_headers(self) -> Headers:
        return self._state.default_headers

    def new_state(self) -> dict[str, Any]:
        return self._application_state.copy()

    def note(self, reason: str) -> None:
        """A connection was refused or closed. Each is counted; the log has one line a minute, however many there are."""
        if self._metrics is not None:
            self._metrics.cut(reason)
        if not self._noted:
            asyncio.get_running_loop().call_later(SUMMARY_S, self._say)
        self._noted[reason] += 1

    def _say(self) -> None:
        counts = ", ".join(f"{n} {reason}" for reason, n in self._noted.most_common())
        self._noted.clear()
        log.warning("connections refused or closed in the last %.0f s: %s", SUMMARY_S, counts)
