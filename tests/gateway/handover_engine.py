"""An engine client over the real handover. The test says what an engine would; requests are kept as in a server, no longer."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count

from msgspec import structs

from poise.gateway.supervision.blame import Cause, Death, QuarantineReport
from poise.gateway.supervision.engine import EnginePhase, RequestHandle
from poise.gateway.supervision.handover import Handover
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import RequestClass, Started
from poise.wire import messages as wire
from poise.wire import to_engine
from tests.gateway.fakes import FakeEngine


class HandoverEngine(FakeEngine):
    """`script` is called with the id of each request that is submitted. What was submitted is known by number only."""

    def __init__(
        self, script: Callable[[HandoverEngine, int], None] | None = None, *, cells: int = 600, recoveries_max: int = 1
    ) -> None:
        super().__init__()
        assert self.state.ready is not None
        pools = [wire.PoolInfo("long", 4, cells, True, 1)]
        self.state.ready = wire.Ready("toy 1K", 1234, self.state.ready.n_vocab, 1000, pools, 1)
        self.handover = Handover(self._told, RecoveryMetrics(), recoveries_max)
        self.handover.hand_over()
        self.act = script
        self.n_submitted = 0
        self.n_prompt: dict[int, int] = {}
        self.background: set[int] = set()
        """Requests of this class: summaries."""
        self._numbers = count(1)

    def submit(self, submit: to_engine.Submit, label: str = "") -> RequestHandle:
        request_id = next(self._numbers)
        self.n_prompt[request_id] = len(submit.prompt)
        if submit.request_class == RequestClass.BACKGROUND:
            self.background.add(request_id)
        handle = self.handover.add(structs.replace(submit, request_id=request_id), label)
        self.n_submitted += 1
        self._note()
        if self.act is not None:
            self.act(self, request_id)
        return handle

    @property
    def n_live(self) -> int:
        return self.handover.n_live

    def quarantined(self) -> list[QuarantineReport]:
        return self.handover.quarantine.all()

    def disown(self, tenant: str) -> int:
        return self.handover.disown(tenant)

    def end_all(self, reason: str, detail: str) -> None:
        self.handover.end_all(reason, detail)

    async def until_submitted(self, n: int = 1) -> None:
        await self._until(lambda: self.n_submitted >= n)

    def accept(self, request_id: int) -> None:
        self.handover.answered(wire.Accepted(request_id, 1, 0))

    def refuse(self, request_id: int, reason: str = "queue_full") -> None:
        self.handover.answered(wire.Refused(request_id, reason, 1, 1, 1))

    def start(self, request_id: int) -> None:
        self.accept(request_id)
        self._step(starts=[Started(request_id, 5, "long", 0)])

    def say(self, request_id: int, text: str | Sequence[int]) -> None:
        ids = text.encode() if isinstance(text, str) else text
        self._step(tokens=[wire.Token(request_id, token, -0.5) for token in ids])

    def finish(self, request_id: int, reason: str = "stop") -> None:
        n_prompt = self.n_prompt.get(request_id, 0)
        self._step(finishes=[wire.Finish(request_id, reason, n_prompt, 1, 1000)])

    def die(self, *computing: int) -> None:
        """It ends by a signal in the pass of these requests, and the next one takes up what is live."""
        self.handover.lose(Death(Cause.CRASH, -11, "killed", computing))
        self.handover.hand_over()

    def close(self) -> None:
        self.state = replace(self.state, phase=EnginePhase.RESTARTING)

    def _step(
        self, starts: Sequence[Started] = (), tokens: Sequence[wire.Token] = (), finishes: Sequence[wire.Finish] = ()
    ) -> None:
        self.handover.step(wire.Step(1, list(starts), list(tokens), list(finishes)))

    def _told(self, message: to_engine.ToEngine) -> None:
        if isinstance(message, to_engine.Abort):
            self.aborted.append(message.request_id)
            asyncio.get_running_loop().call_soon(self.finish, message.request_id, "aborted")
            self._note()
