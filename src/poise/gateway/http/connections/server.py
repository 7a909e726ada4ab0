"""uvicorn with connections of our own: it runs the application's lifespan and the stopping; we accept, read and write.

Each connection is counted before anything is read of it, TLS included. The kernel's queue is always emptied: one that there is
no room for is accepted and refused. Where there is not even a file for it, one that was kept back serves to accept it and to let
it go."""

import asyncio
import contextlib
import errno
import logging
import os
import resource
import socket
import ssl
from collections.abc import Iterator
from typing import Any, Literal

import uvicorn
from starlette.types import ASGIApp

from poise.config import Settings
from poise.gateway.http.connections.hub import Hub, places_of
from poise.gateway.http.connections.protocol import Connection
from poise.metrics.clients import ConnectionMetrics

log = logging.getLogger(__name__)


AT_ONCE = 64
"""Connections that are taken before others have their turn."""
HANDSHAKE_S = 10.0
"""Longest time for a TLS handshake."""
PAUSE_S = 0.2
_NO_FILES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Acceptor:
    """Serves one listening socket from the moment it is made until `close`; uvicorn knows it as one of its servers."""

    def __init__(self, listener: socket.socket, hub: Hub, settings: Settings, tls: ssl.SSLContext | None) -> None:
        self.sockets = (listener,)
        self._hub = hub
        self._tls = tls
        self._send_buffer_bytes = settings.streams.send_buffer_bytes
        self._handshake_s = min(HANDSHAKE_S, settings.server.body_timeout_s)
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._spare = _open_spare()
        self._is_closed = False
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept)

    def close(self) -> None:
        if not self._is_closed:
            self._is_closed = True
            self._loop.remove_reader(self.sockets[0])
            for task in list(self._opening):
                task.cancel()
            if self._spare is not None:
                os.close(self._spare)
                self._spare = None

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._opening, return_exceptions=True)

    def _accept(self) -> None:
        for _ in range(AT_ONCE):
            try:
                connection, address = self.sockets[0].accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                if error.errno in _NO_FILES:
                    self._without_files()
                else:
                    log.warning("cannot accept a connection: %s", error.strerror)
                    self._pause()
                return
            self._open(connection, str(address[0]))

    def _open(self, connection: socket.socket, address: str) -> None:
        connection.setblocking(False)
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if self._send_buffer_bytes:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._send_buffer_bytes)
        place = self._hub.places.enter(self._hub.bounded(address), lambda: None)
        task = self._loop.create_task(self._hand_over(connection, Connection(self._hub, place)))
        place.dismiss = task.cancel
        self._opening.add(task)

        def opened(task: asyncio.Task[None]) -> None:
            self._opening.discard(task)
            if task.cancelled():  # before it began
                connection.close()

        task.add_done_callback(opened)

    async def _hand_over(self, sock: socket.socket, connection: Connection) -> None:
        """Give a socket to its Connection, after the TLS handshake where there is one."""
        handshake_s = self._handshake_s if self._tls is not None else None
        try:
            await self._loop.connect_accepted_socket(lambda: connection, sock, ssl=self._tls, ssl_handshake_timeout=handshake_s)
        except (OSError, asyncio.CancelledError) as error:
            sock.close()
            if not isinstance(error, asyncio.CancelledError):
                self._hub.note("handshake")
        finally:
            if not connection.is_made:
                self._hub.places.leave(connection.place)

    def _without_files(self) -> None:
        """Make room: end a connection that does nothing, and let the one that waits go."""
        self._hub.note("no_files")
        self._hub.places.spare_one()
        if self._spare is None:
            self._spare = _open_spare()
        if self._spare is None:
            self._pause()
            return
        os.close(self._spare)
        with contextlib.suppress(OSError):
            self.sockets[0].accept()[0].close()
        self._spare = _open_spare()

    def _pause(self) -> None:
        self._loop.remove_reader(self.sockets[0])
        self._loop.call_later(PAUSE_S, self._resume)

    def _resume(self) -> None:
        if not self._is_closed:
            self._loop.add_reader(self.sockets[0], self._accept)


def _open_spare() -> int | None:
    try:
        return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None


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
        self._leaves, self._left = False, asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
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

    @property
    def should_exit(self) -> bool:
        return self._leaves

    @should_exit.setter
    def should_exit(self, leaves: bool) -> None:
        """From any thread."""
        self._leaves = leaves
        if leaves and self._loop is not None:
            self._loop.call_soon_threadsafe(self._left.set)

    async def main_loop(self) -> None:
        """Sleeps until it is told to stop, where uvicorn's own wakes ten times a second to look."""
        self._loop = asyncio.get_running_loop()
        if not self._leaves:
            await self._left.wait()

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
