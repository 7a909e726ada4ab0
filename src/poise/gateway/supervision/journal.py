"""The flight recorder of an engine, asked for page by page."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

from poise.gateway.supervision.engine import EngineUnavailable
from poise.wire import messages as wire
from poise.wire import to_engine

RETRY_S = 1.0


async def pages_of_engine(
    ask: Callable[[to_engine.ToEngine, object], Awaitable[Any]],
    send: Callable[[to_engine.ToEngine], None],
    read_id: int,
) -> AsyncGenerator[list[str], None]:
    """The pages that an engine sends. `ask` waits for an answer, `send` does not. Raises EngineUnavailable."""
    begins = True
    try:
        while True:
            page: wire.JournalPage = await ask(to_engine.ReadJournal(read_id, begins=begins), read_id)
            if page.is_lost:
                raise EngineUnavailable("the journal is read by another, or was another engine's", RETRY_S)
            if page.is_last:
                return
            begins = False
            yield page.lines
    finally:
        send(to_engine.ReadJournal(read_id, ends=True))
