"""The engine as the gateway sees it: what a request needs of it, what its operators and the server's condition need, and the
handle of one live request.

`poise.gateway.supervision.supervisor.Supervisor` is both ports over a real engine process; whoever uses the engine names the
smaller one."""

from collections.abc import AsyncGenerator, Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from poise.config import Settings
from poise.gateway.supervision.blame import Death, QuarantineReport
from poise.metrics.engine import EngineReading
from poise.metrics.story import Outcome
from poise.scheduler.request import Control, Queued, RequestClass, Started
from poise.wire import messages as wire
from poise.wire.messages import Finish, Refused
from poise.wire.status import Status
from poise.wire.to_engine import Power, Submit

ENGINE_LOST = Outcome.ENGINE_LOST.value
"""Finish.reason given by the gateway to requests that no engine could go on with."""
QUARANTINED = Outcome.QUARANTINED.value
"""Finish.reason given by the gateway to a request that engines died computing."""
SERVER_STOPPING = Outcome.SERVER_STOPPING.value
"""Finish.reason given by the gateway to requests that were live when the time for draining was over."""

_Computed = wire.Prefill | wire.PromptLogprobs | wire.Drafted | wire.Token
RequestEvent = wire.Accepted | Refused | Queued | Started | wire.Change | _Computed | Finish


class EnginePhase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    RESTARTING = "restarting"
    FAILED = "failed"
    """It stopped for good: a restart would end the same way."""
    STOPPED = "stopped"


@dataclass(slots=True)
class EngineState:
    """The truth about the engine, for /health, /status and admission."""

    phase: EnginePhase = EnginePhase.LOADING
    progress: float = 0.0
    stage: str = "starting"
    detail: str = ""
    restarts: int = 0
    retry_after_s: float = 1.0
    model_changed: bool = False
    """Another model file is there now than the one that the server was started with."""
    is_released: bool = False
    """Its model's pages were given back, and nothing has been asked for since."""
    ready: wire.Ready | None = None
    status: Status | None = None

    @property
    def is_settled(self) -> bool:
        """It is ready, or nothing more will come."""
        return self.phase in (EnginePhase.READY, EnginePhase.FAILED, EnginePhase.STOPPED)

    @property
    def reading(self) -> EngineReading:
        """As metrics read it."""
        return EngineReading(self.phase is EnginePhase.READY, self.restarts, self.status)


class EngineUnavailable(Exception):
    """The engine cannot take requests now. `permanent`: it never will without an operator."""

    def __init__(self, message: str, retry_after_s: float, permanent: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.permanent = permanent


class RequestHandle:
    """One live request. Its events are handed to who listens, as they arrive: Accepted or Refused first, Queued while it is
    queued, then Starts, Changes, Prefills, Drafteds and Tokens, and exactly one Finish.

    A Refused or a Finish is the last event. What comes before anybody listens is kept. An engine that is lost and replaced in
    between shows as a Change, LOST and then RECOVER, and as nothing else."""

    def __init__(self, request_id: int, abort: Callable[[int], None]) -> None:
        self.request_id = request_id
        self.done = False
        """True when the last event has been put."""
        self._abort = abort
        self._listener: Callable[[RequestEvent], None] | None = None
        self._kept: list[RequestEvent] = []

    def put(self, event: RequestEvent) -> None:
        """Called by the owner of the engine connection, in the event loop."""
        listener = self._listener
        if type(event) is Finish or type(event) is Refused:
            self.done, self._listener = True, None
        if listener is None:
            self._kept.append(event)
        else:
            listener(event)

    def listen(self, listener: Callable[[RequestEvent], None]) -> None:
        """Call `listener` for what has come so far, and then for each event as it comes. It must not raise."""
        self._listener = None if self.done else listener  # it holds this handle
        kept, self._kept = self._kept, []
        for event in kept:
            listener(event)

    def abort(self) -> None:
        """The caller no longer wants the request. Safe at any time and any number of times."""
        if not self.done:
            self._abort(self.request_id)


class EngineView(Protocol):
    """What can be seen of the engine at any time: it is asked for nothing."""

    @property
    def state(self) -> EngineState: ...

    @property
    def n_live(self) -> int:
        """Requests that have not ended."""

    def queued_by_account(self, request_class: RequestClass) -> dict[str, int]:
        """By account, requests of a class that have not begun: to the last one, where the engine's status is a moment old."""


class Engine(EngineView, Protocol):
    """The engine as requests see it."""

    def submit(self, submit: Submit, label: str = "") -> RequestHandle:
        """Hand a request to the engine, under a number that it is given here. Raises EngineUnavailable.

        `label`: what reports call it, its X-Request-Id."""

    def hold(self, request_id: int, hold: str) -> None:
        """The readers of a request are behind, or have caught up: `hold` is a Hold. Later engines are sent it, too."""

    def declare(self, templates: Mapping[str, list[int]]) -> None:
        """The tokens of each template that requests may name. Every engine is told as soon as it is ready."""


class EngineProcess(EngineView, Protocol):
    """The engine as its operators see it, and the condition of the server: what acts on all requests, or on the process."""

    async def control(self, request_id: int, action: Control) -> wire.Controlled:
        """An operator's word on a live request. Raises EngineUnavailable."""

    async def forget(self, tenant: str) -> wire.Forgotten:
        """Drop what is cached for a tenant. Raises EngineUnavailable."""

    def disown(self, tenant: str) -> int:
        """Have a tenant's live requests leave nothing when they end, in any engine, and take its name out of reports.

        Returns how many reports named it. No engine is needed for that."""

    async def erase(self, tenant: str) -> wire.Erased:
        """The same, and overwrite it, and take the tenant out of the flight recorder. Raises EngineUnavailable."""

    def journal(self) -> AsyncGenerator[list[str], None]:
        """The engine's flight recorder as it stands, JSON lines, oldest first, a page at a time. To be closed by its reader.

        Another reader in between has the place of this one, which then raises EngineUnavailable, as without an engine."""

    def adjust(self, queue_share: float, slots_share: float) -> None:
        """Allow only these shares of each class's queue and slots, this engine and later ones."""

    def limit(self, power: Power) -> None:
        """Allow no more than this, this engine and later ones."""

    def release(self) -> None:
        """Have the model's pages given back to the system, if nothing is live."""

    def use(self, settings: Settings) -> None:
        """The settings that engines are started with from now on. The present one keeps its own."""

    def restart(self, why: str) -> None:
        """Replace the engine by another one. Only while nothing is live."""

    def on_death(self, listener: Callable[[Death], None]) -> None:
        """Be told of each engine that is lost, before the next one is started."""

    def end_all(self, reason: str, detail: str) -> None:
        """End every live request with this Finish."""

    def quarantined(self) -> list[QuarantineReport]:
        """Requests that were ended because engines died computing them, the newest hundred."""


class WholeEngine(Engine, EngineProcess, Protocol):
    """Both: what the application is built over."""
