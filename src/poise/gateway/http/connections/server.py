"""uvicorn with connections of our own: it runs the application's lifespan and the stopping; we accept, read and write."""

import contextlib
import resource
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from poise.config import Settings
from poise.gateway.http.connections.acceptor import Acceptor
from poise.gateway.http.connections.hub import Hub, places_of
from poise.metrics.connections import ConnectionMetrics


class HttpServer(uvicorn.Server):
    """Serves an application on listening sockets, within the bounds of the settings, until `should_exit`.

    Signals are the caller's: they end the process normally, so that it has an exit code of its own."""

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        *,
        metrics: ConnectionMetrics | None = None,
        tls: ssl.SSLContext | None = None,
        grace_s: int | None = None,
        lifespan: Literal["auto", "on", "off"] = "auto",
    ) -> None:
        """`grace_s`: time that answers have when it is stopped; None: as long as they take."""
        super().__init__(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,  # it would believe anybody on this machine
                ws="none",
                lifespan=lifespan,
                timeout_graceful_shutdown=grace_s,
            )
        )
        self._settings = settings
        self._tls = tls
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._hub = Hub(settings, places_of(settings, files), metrics, app=app, is_tls=tls is not None)

    def cut_off(self) -> None:
        """Stop now, whatever is being answered: everybody's client is gone."""
        self.should_exit = True
        for connection in list(self._hub.state.connections):
            connection.abort()  # type: ignore[union-attr]

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Raises SystemExit when the application does not start."""
        await super().startup(sockets=[])  # its own way of accepting is not used
        self._hub.state, self._hub.application_state = self.server_state, self.lifespan.state
        servers: list[Any] = self.servers
        servers += [Acceptor(listener, self._hub, self._settings, self._tls) for listener in sockets or []]
