"""An application on a free port of this machine, as `poise serve` serves it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator
from typing import Any

from starlette.types import ASGIApp

from poise.config import Settings
from poise.gateway.http.connections.server import HttpServer
from poise.metrics.clients import ConnectionMetrics
from tests.gateway.fakes import WAIT_S


@contextlib.asynccontextmanager
async def served(
    app: ASGIApp,
    settings: Settings | None = None,
    *,
    metrics: ConnectionMetrics | None = None,
    tls: ssl.SSLContext | None = None,
    **options: Any,
) -> AsyncIterator[int]:
    """The port on which it answers. Returns when all connections have ended."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        made = settings or Settings()
        server = HttpServer(app, made, metrics=metrics, tls=tls, grace_s=1, **options)
        task = asyncio.create_task(server.serve([listener]))
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            await asyncio.wait_for(task, WAIT_S)
