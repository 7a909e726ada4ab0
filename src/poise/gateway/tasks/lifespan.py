"""What looks at the server as long as there is an application: begun with it, ended with it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from fastapi import FastAPI

from poise.gateway.tasks.tasks import Tasks

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]


def beside(tasks: Tasks, looks: Mapping[str, tuple[float, Callable[[], None]]], inner: Lifespan | None) -> Lifespan:
    """Each look is done beside the requests, so many seconds apart; `inner` is entered first and left first."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(tasks.stop)
            if inner is not None:
                await stack.enter_async_context(inner(app))
            for name, (interval_s, look) in looks.items():
                tasks.every(name, interval_s, look)
            yield

    return lifespan
