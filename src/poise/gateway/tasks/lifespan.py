"""What lives as long as there is an application: the caller's own, and the pulse beside it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager

from starlette.applications import Starlette

from poise.gateway.tasks.pulse import Pulse
from poise.gateway.tasks.tasks import Tasks

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


def beside(
    tasks: Tasks, pulse: Pulse, rarely: Mapping[str, tuple[float, Callable[[], None]]], inner: Lifespan | None
) -> Lifespan:
    """Beside the requests the pulse beats, and each look of `rarely` is done so many seconds apart, until all tasks are stopped;
    `inner` is entered first and left first."""

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(tasks.stop)
            if inner is not None:
                await stack.enter_async_context(inner(app))
            pulse.start()
            for name, (interval_s, look) in rarely.items():
                tasks.every(name, interval_s, look)
            yield

    return lifespan
