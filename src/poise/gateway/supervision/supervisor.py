"""Owns the engine process: starts it, speaks to it, notices its death at once, and starts it again with back-off.

A dead engine is seen as the end of its socket, one that hangs by its black box (`poise.gateway.supervision.life`). Its
live requests wait for the next engine (`poise.gateway.supervision.handover`); requests that come while there is none are
answered with EngineUnavailable."""

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from itertools import count

from msgspec.structs import replace

from poise.config import Settings, engine_settings
from poise.engine.blackbox import BlackBox, BoxReading
from poise.gateway.supervision.blame import Cause, Death
from poise.gateway.supervision.engine import ENGINE_LOST, EnginePhase, EngineState, RequestHandle
from poise.gateway.supervision.handover import Handover
from poise.gateway.supervision.launch import LaunchedEngine, Launcher
from poise.gateway.supervision.life import Backoff, Life, Watchdog, look_every_s, restart_after
from poise.gateway.supervision.model_file import LOOK_EVERY_S, ModelFile, pause
from poise.gateway.supervision.questions import Questions, unavailable
from poise.gateway.supervision.store import StoreKeeper
from poise.gateway.tasks import Tasks
from poise.metrics.early import RecoveryMetrics
from poise.scheduler.request import Control
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from poise.wire.fingerprint import MODEL_CHANGED
from poise.wire.framing import FrameError, encode_frame
from poise.wire.to_engine import Accounts

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-m", "poise.worker.engine.process")
SHUTDOWN_GRACE_S = 5.0
TASK, MODEL_TASK = "engine-supervisor", "model-file"
LOAD_S = 2.0  # what is taken for the time that an engine needs to be ready, until one has been


class Supervisor:
    """An Engine and an EngineProcess over a real one. All methods are called in one event loop."""

    def __init__(
        self, settings: Settings, model_path: str, command: Sequence[str] = ENGINE_COMMAND, tasks: Tasks | None = None
    ) -> None:
        """`command` starts an engine; the numbers of files and of its end of the socket pair are added to it."""
        self.state = EngineState()
        self.metrics = RecoveryMetrics()
        self._store = StoreKeeper(settings.store_mb << 20)
        self._launcher = Launcher(command, self._store)
        self._tasks = tasks or Tasks()
        self._settings = settings
        self.model = ModelFile(model_path)
        self._backoff = Backoff(settings.engine.restart_delay_max_s)
        self._ids = count(1)
        self._requests = requests = Handover(self._send, self.metrics, settings.engine.recoveries_max)
        self.queued_by_account, self.hold, self.end_all = requests.queued_by_account, requests.hold, requests.end_all
        self.quarantined = requests.quarantine.all
        self._questions = Questions(self.state, self._send)
        self._accounts = Accounts(0, [])
        """As the last engine left them that sent them."""
        self._templates: dict[str, list[int]] = {}
        self._shares = (1.0, 1.0)
        self._power: to_engine.Power | None = None
        self._listeners: list[Callable[[Death], None]] = []
        self.on_death = self._listeners.append
        self._engine: LaunchedEngine | None = None
        self._watchdog: Watchdog | None = None
        self._life = Life(0.0)
        """Of the present engine, or of the one before while there is none."""
        self._replacing = ""
        """What the engine was asked to end for, so that another one takes its place."""
        self._lost_s = 0.0
        """When an engine was lost that has no ready successor yet; 0: there is none."""
        self._load_s = LOAD_S
        self._was_ready = False
        """Whether an engine has ever been."""
        self._weights = ""
        """Those of the last engine that was."""
        self._task: asyncio.Task[None] | None = None
        self._watching: list[asyncio.Task[None]] = []
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begin to start the engine; returns at once."""
        self._task = self._tasks.start(TASK, self._supervise, essential=True)
        watchdog = self._tasks.every("engine-watchdog", look_every_s(self._settings.engine.watchdog_s), self._watch)
        self._watching = [watchdog, self._tasks.start(MODEL_TASK, self._watch_model)]

    async def until(self, condition: Callable[[EngineState], bool]) -> None:
        """Wait until the condition holds of the engine's phase or of its progress in loading."""
        while not condition(self.state):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self, *, at_once: bool = False) -> None:
        """End the engine: politely, then by signal; `at_once`, and where none is ready, by signal. Live requests get their
        ENGINE_LOST."""
        self._enter(EnginePhase.STOPPED, "the server is stopping")
        for task in self._watching:
            task.cancel()
        if self._task is not None:
            if self._watchdog is not None and not at_once:
                self._send(to_engine.Shutdown())
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(asyncio.shield(self._task), SHUTDOWN_GRACE_S)
            if self._engine is not None:
                self._engine.kill()
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
        self._end()

    def submit(self, submit: to_engine.Submit, label: str = "") -> RequestHandle:
        if self.state.phase is not EnginePhase.READY:
            raise unavailable(self.state)
        return self._requests.add(replace(submit, request_id=next(self._ids)), label)

    @property
    def n_live(self) -> int:
        return self._requests.n_live

    def use(self, settings: Settings) -> None:
        self._settings = settings

    def adjust(self, queue_share: float, slots_share: float) -> None:
        self._shares = (queue_share, slots_share)
        if self.state.phase is EnginePhase.READY:
            self._send(to_engine.Adjust(*self._shares))

    def limit(self, power: to_engine.Power) -> None:
        self._power = power
        if self.state.phase is EnginePhase.READY:
            self._send(power)

    def release(self) -> None:
        if self.state.phase is EnginePhase.READY and not self.n_live:
            self._send(to_engine.Release())
            self.state.is_released = True

    def restart(self, why: str) -> None:
        assert not self.n_live, "requests are live"
        self._replacing = why
        self._enter(EnginePhase.RESTARTING, why)
        self._send(to_engine.Shutdown())

    def declare(self, templates: Mapping[str, list[int]]) -> None:
        """Send the engine these templates: now if it is ready, and each later one when it is."""
        self._templates = dict(templates)
        if self.state.phase is EnginePhase.READY:
            self._send_templates()

    def _send_templates(self) -> None:
        for name, tokens in self._templates.items():
            self._send(to_engine.Template(name, tokens))

    async def control(self, request_id: int, action: Control) -> wire.Controlled:
        message = to_engine.Control(request_id, action.value)
        return await self._questions.ask(wire.Controlled, message, (request_id, action.value))

    async def forget(self, tenant: str) -> wire.Forgotten:
        message = to_engine.Forget(next(self._ids), tenant)
        return await self._questions.ask(wire.Forgotten, message, message.forget_id)

    def disown(self, tenant: str) -> int:
        self._store.erase(tenant)
        self._accounts = self._accounts.without(tenant)
        return self._requests.disown(tenant)

    async def erase(self, tenant: str) -> wire.Erased:
        message = to_engine.Erase(next(self._ids), tenant)
        try:
            erased = await self._questions.ask(wire.Erased, message, message.erase_id)
            self._store.erased(tenant)
            return erased
        finally:
            self._accounts = self._accounts.without(tenant)  # the engine may have sent them meanwhile

    def journal(self) -> AsyncGenerator[list[str], None]:
        return self._questions.journal(next(self._ids))

    def _ended(self) -> bool:
        return self.state.phase in (EnginePhase.STOPPED, EnginePhase.FAILED)

    def _send(self, message: to_engine.ToEngine) -> None:
        if self._engine is not None:
            if self._watchdog is not None:  # first: the engine may be faster than what follows
                self._watchdog.sent(time.monotonic_ns())
            self._engine.connection.write(encode_frame(message))

    async def _supervise(self) -> None:
        """Run engines one after the other until one fails for good or the server stops."""
        while not self._ended():
            death = await self._run_one()
            if self._ended():
                break
            delay_s = self._note_death(death)
            await (pause(delay_s, self.model.path) if death.is_lasting else asyncio.sleep(delay_s))
        self._end()

    def _end(self) -> None:
        """No other engine is started: end what waits for one."""
        self._requests.end_all(ENGINE_LOST, "the engine stopped")
        self._questions.fail()
        self._launcher.close()

    def _note_death(self, death: Death) -> float:
        """Log and count an engine's death and pass it on; returns the time until the next start."""
        replaced, self._replacing = self._replacing, ""
        now_s = time.monotonic()
        delay_s, is_hopeless = restart_after(self._life, death, self._backoff, now_s, replaced=bool(replaced))
        self._lost_s = self._lost_s or now_s
        self.state.restarts += 1
        self.state.status, self.state.retry_after_s = None, delay_s + self._load_s
        self._enter(EnginePhase.RESTARTING, replaced or death.detail)
        self._requests.lose(death, hopeless=is_hopeless)
        self._questions.fail()
        if replaced:
            log.warning("%s: the engine is replaced", replaced)
            return 0.0
        self.metrics.lost(death.cause.value)
        when = f"in {delay_s:.1f} s" if delay_s else "at once"
        log.error("%s; starting it again %s; %d requests wait for it", death.detail, when, self.n_live)
        for listener in self._listeners:
            listener(death)
        return delay_s

    async def _run_one(self) -> Death:
        """Start one engine and read it until it ends."""
        self._life = Life(time.monotonic())
        self.model.opened()
        try:
            engine = await self._launcher.launch(self._dispatch)
        except OSError as error:
            return Death(Cause.EXIT, None, f"the engine process cannot be started: {error}")
        self._engine = engine
        try:
            await self._read(engine)
        finally:
            self._watchdog = self._engine = None
            code = await engine.end(SHUTDOWN_GRACE_S)
        death, has_worked = self._life.death(code, _last_record(engine.box)), self._life.has_worked
        self._store.take_back(fruitful=has_worked or self._life.is_stable(time.monotonic()), is_short=death.is_short)
        return death

    async def _read(self, engine: LaunchedEngine) -> None:
        """Tell an engine what it is to be, and return when nothing more can be heard of it, for whatever reason."""
        try:
            settings, model = engine_settings(self._settings), self.model
            secret = self._store.secret
            self._send(to_engine.Configure(settings, model.path, model.fingerprint, self._weights, secret))
            await engine.connection.lost
        except (FrameError, ConnectionError) as error:
            log.error("the engine's socket broke: %s", error)
        except Exception:
            # Whatever is wrong here, requests must neither wait for ever nor take the supervisor with them.
            log.exception("what the engine said could not be dealt with; it is replaced")

    def _watch(self) -> None:
        """End an engine that hangs. Loading is exempt: it takes as long as the disk does."""
        life = self._life
        if self._watchdog is None or self._engine is None or life.hang:
            return
        if (reading := _last_record(self._engine.box)) is not None:
            life.hang = self._watchdog.look(time.monotonic_ns(), reading)
        if life.hang:
            self._engine.kill()

    async def _watch_model(self) -> None:
        """Notice that the model file is another one now; end an engine under which it changes, before it says anything wrong."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S - time.monotonic() % LOOK_EVERY_S)  # when everything else looks, too
            await self.model.look()
            if self.model.is_changed and not self.state.model_changed:
                log.error("%s", MODEL_CHANGED)
            self.state.model_changed = self.model.is_changed
            if self.model.is_overwritten and self._engine is not None and not self._life.is_outdated:
                self._life.is_outdated = True
                self._engine.kill()

    def _dispatch(self, message: wire.ToGateway) -> None:
        match message:
            case wire.Step():
                self._life.has_worked |= bool(message.tokens)
                self._requests.step(message)
            case wire.Accepted() | wire.Refused():
                self._requests.answered(message)
            case wire_status.Status():
                self.state.status = message
                for waiting in message.waiting:
                    self._requests.waiting(waiting)
            case Accounts():
                self._accounts = message
            case wire.Loading():
                self.state.progress, self.state.stage = message.progress, message.stage
                self._changed.set()
            case wire.Ready():
                self._ready(message)
            case wire.Fatal():
                self._life.last_words = message
                # Only a person can mend what an engine has never been ready with. Later, whatever it is may pass.
                for_good = message.permanent and not self._was_ready
                self._enter(EnginePhase.FAILED if for_good else EnginePhase.RESTARTING, message.message)
            case wire.Controlled():
                self._requests.controlled(message)
                self._questions.answer((message.request_id, message.action), message)
            case wire.Forgotten(forget_id=key) | wire.Erased(erase_id=key) | wire.JournalPage(read_id=key):
                self._questions.answer(key, message)

    def _ready(self, ready: wire.Ready) -> None:
        self.state.ready, self.state.progress, self.state.stage = ready, 1.0, "ready"
        if self.state.phase is EnginePhase.STOPPED:
            return
        self.state.is_released = False
        now_s = self._life.ready_s = time.monotonic()
        self._was_ready, self._weights = True, ready.weights
        self._tasks.worked(TASK)
        # Before anything is sent: what the engine leaves alone counts from the first message on.
        self._watchdog = Watchdog(self._settings.engine.watchdog_s, time.monotonic_ns())
        self._load_s = now_s - self._life.began_s
        if self._lost_s:
            self.metrics.ready_again(now_s - self._lost_s)
            self._lost_s = 0.0
        self._enter(EnginePhase.READY)
        # Before any request: what is sent in order arrives in order.
        self._send(self._store.lend())
        self._send(self._accounts)
        self._send_templates()
        if self._shares != (1.0, 1.0):
            self._send(to_engine.Adjust(*self._shares))
        if self._power is not None:
            self._send(self._power)
        self._requests.hand_over()

    def _enter(self, phase: EnginePhase, detail: str = "") -> None:
        """Enter the next phase and wake whoever waits for one; STOPPED is the last one."""
        if self.state.phase is EnginePhase.STOPPED:
            return
        self.state.phase, self.state.detail = phase, detail
        if phase not in (EnginePhase.READY, EnginePhase.STOPPED):
            self.state.ready = None
        self._changed.set()


def _last_record(box: BlackBox) -> BoxReading | None:
    """None: what the engine left is not readable. Then nobody is blamed, and nothing is taken for a hang."""
    try:
        return box.read()
    except ValueError as error:
        log.error("the engine's black box cannot be read: %s", error)
        return None
