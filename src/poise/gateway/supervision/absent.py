"""No engine: what stands in its place where nothing is computed on this host, and other servers answer."""

from collections.abc import AsyncGenerator, Callable, Mapping

from poise.config import Settings
from poise.gateway.supervision.blame import Death, QuarantineReport
from poise.gateway.supervision.engine import EnginePhase, EngineState, EngineUnavailable, RequestHandle
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import Control, RequestClass
from poise.wire import messages as wire
from poise.wire.to_engine import Power, Submit

NONE_HERE = "there is no engine on this host (engine.enabled = false)"


class NoEngine:
    """A WholeEngine that computes nothing and has nothing to tell. It is always ready: nothing waits for it."""

    def __init__(self) -> None:
        self.metrics = RecoveryMetrics()
        self.state = EngineState(EnginePhase.READY, progress=1.0, stage="none")
        self.n_live = 0

    async def start(self) -> None: ...

    async def stop(self, *, at_once: bool = False) -> None: ...

    async def until(self, holds: Callable[[EngineState], bool]) -> None:
        """What is to come is there."""

    def queued_by_account(self, request_class: RequestClass) -> dict[str, int]:
        return {}

    def submit(self, submit: Submit, label: str = "") -> RequestHandle:
        raise _none()

    def hold(self, request_id: int, hold: str) -> None: ...

    def declare(self, templates: Mapping[str, list[int]]) -> None: ...

    async def control(self, request_id: int, action: Control) -> wire.Controlled:
        raise _none()

    async def forget(self, tenant: str) -> wire.Forgotten:
        raise _none()

    def disown(self, tenant: str) -> int:
        return 0

    async def erase(self, tenant: str) -> wire.Erased:
        return wire.Erased(0, 0, 0, 0, 0)

    async def journal(self) -> AsyncGenerator[list[str], None]:
        for page in list[list[str]]():
            yield page
        raise _none()

    def adjust(self, queue_share: float, slots_share: float) -> None: ...

    def limit(self, power: Power) -> None: ...

    def release(self) -> None: ...

    def use(self, settings: Settings) -> None: ...

    def restart(self, why: str) -> None: ...

    def on_death(self, listener: Callable[[Death], None]) -> None: ...

    def end_all(self, reason: str, detail: str) -> None: ...

    def quarantined(self) -> list[QuarantineReport]:
        return []


def _none() -> EngineUnavailable:
    return EngineUnavailable(NONE_HERE, 0.0, permanent=True)
