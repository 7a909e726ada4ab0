"""Questions to the engine that it answers with a message of its own, and who waits for which answer."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable
from typing import Any, TypeVar

from poise.gateway.supervision.engine import EnginePhase, EngineState, EngineUnavailable
from poise.wire import messages as wire
from poise.wire import to_engine

A = TypeVar("A")

ANSWER_TIMEOUT_S = 10.0
JOURNAL_RETRY_S = 1.0


class Questions:
    """Questions to the present engine that wait for an answer. `send` reaches it."""

    def __init__(self, state: EngineState, send: Callable[[to_engine.ToEngine], None]) -> None:
        self._state = state
        self._send = send
        self._asked: dict[object, deque[asyncio.Future[Any]]] = {}  # by what tells the answer, in the order of asking

    async def ask(self, kind: type[A], message: to_engine.ToEngine, key: object) -> A:
        """Send a message and wait for what answers it, which is of that kind. Raises EngineUnavailable."""
        if self._state.phase is not EnginePhase.READY:
            raise unavailable(self._state)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, deque()).append(future)
        self._send(message)
        try:
            answer = await asyncio.wait_for(future, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineUnavailable("the engine did not answer in time", self._state.retry_after_s) from error
        assert isinstance(answer, kind)
        return answer

    async def journal(self, read_id: int) -> AsyncGenerator[list[str], None]:
        """The flight recorder of the engine, page by page. Raises EngineUnavailable."""
        begins = True
        try:
            while True:
                page = await self.ask(wire.JournalPage, to_engine.ReadJournal(read_id, begins=begins), read_id)
                if page.is_lost:
                    raise EngineUnavailable("the journal is read by another, or was another engine's", JOURNAL_RETRY_S)
                if page.is_last:
                    return
                begins = False
                yield page.lines
        finally:
            self._send(to_engine.ReadJournal(read_id, ends=True))

    def answer(self, key: object, answer: Any) -> None:
        """Hand an answer to who asked first. One who no longer waits keeps his place: the answer is his all the same."""
        if (futures := self._asked.get(key)) is None:
            return
        future = futures.popleft()
        if not futures:
            del self._asked[key]
        if not future.done():
            future.set_result(answer)

    def fail(self) -> None:
        """The engine is gone: nobody waits for an answer that cannot come."""
        asked, self._asked = self._asked, {}
        for future in (future for futures in asked.values() for future in futures if not future.done()):
            future.set_exception(unavailable(self._state))


def unavailable(state: EngineState) -> EngineUnavailable:
    """Why the engine takes nothing now."""
    permanent, detail = state.phase is EnginePhase.FAILED, state.detail or state.stage
    return EngineUnavailable(f"the engine is {state.phase}: {detail}", state.retry_after_s, permanent)
