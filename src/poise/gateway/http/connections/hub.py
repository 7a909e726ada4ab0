"""What the connections of one server share: their limits, their places, and the application that answers."""

import asyncio
import contextvars
import logging
from collections import Counter
from typing import Any

from starlette.types import ASGIApp, Scope
from uvicorn.server import ServerState

from poise.config import Settings
from poise.config.kinds import is_loopback
from poise.gateway.http.backpressure import high_water
from poise.gateway.http.connections.exchange import Exchange
from poise.gateway.http.connections.files import connections_max, connections_wanted
from poise.gateway.http.connections.peers import TrustedProxies
from poise.gateway.http.connections.places import Places
from poise.gateway.tenancy.exposure import site_of
from poise.metrics.clients import ConnectionMetrics

log = logging.getLogger(__name__)

SUMMARY_S = 60.0


def places_of(settings: Settings, files: int) -> Places:
    """`files`: how many this process may open."""
    server = settings.server
    most = connections_max(connections_wanted(server), files)
    return Places(most, server.body_bytes_total, body_least=server.max_body_bytes)


class Hub:
    def __init__(
        self, settings: Settings, places: Places, metrics: ConnectionMetrics | None, *, app: ASGIApp, is_tls: bool
    ) -> None:
        self.limits = settings.server
        self.write_high_water = high_water(settings.streams)
        self.places = places
        self.proxies = TrustedProxies(settings.server.trusted_proxies)
        self.scheme = "https" if is_tls else "http"
        self._app = app
        self._metrics = metrics
        self.state = ServerState()
        """Of the server: it waits for the connections and tasks in it when it stops."""
        self.application_state: dict[str, Any] = {}
        self._noted: Counter[str] = Counter()
        if metrics is not None:
            metrics.watch(lambda: places.n_open, lambda: places.bodies.used)

    def bounded(self, address: str) -> str:
        """Under what name the connections of an address are counted; empty: it has no bound of its own."""
        return "" if not address or address in self.proxies or is_loopback(address) else site_of(address)

    def start(self, exchange: Exchange, scope: Scope) -> None:
        """Have the application answer a request."""
        run = exchange.run(self._app, scope)
        # Without a context of its own each task would keep that of the connection, and what others left there.
        task = asyncio.get_running_loop().create_task(run, context=contextvars.Context())
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)

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
