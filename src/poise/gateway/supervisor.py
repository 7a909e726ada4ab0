"""Owns the engine process: starts it, speaks to it, notices its death at once, and starts it again with back-off.

A dead engine is seen as the end of its socket. Its live requests end with ENGINE_LOST, so that every accepted request has
its one terminal event; requests that come while there is no engine are answered with EngineUnavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from itertools import count
from typing import Any

from poise.config import Settings
from poise.gateway.engine_client import (
    ENGINE_LOST,
    EnginePhase,
    EngineState,
    EngineUnavailable,
    RequestHandle,
)
from poise.scheduler.request import Control, RequestClass
from poise.wire import messages as wire
from poise.wire.framing import FrameError, FrameReader, encode_frame

log = logging.getLogger(__name__)

ENGINE_COMMAND = (sys.executable, "-m", "poise.engine.process")
RESTART_DELAY_FIRST_S = 0.5
STABLE_AFTER_S = 60.0
"""An engine that was ready for this long has earned a fresh back-off."""
SHUTDOWN_GRACE_S = 5.0
ANSWER_TIMEOUT_S = 10.0


class Supervisor:
    """An EngineClient over a real engine process. All methods are called in one event loop."""

    def __init__(self, settings: Settings, model_path: str, command: Sequence[str] = ENGINE_COMMAND) -> None:
        """`command` starts an engine; the number of its end of the socket pair is added as the last argument."""
        self.state = EngineState()
        self._command = command
        self._configure = wire.Configure(settings.model_dump_json(), model_path)
        self._delay_max_s = settings.engine.restart_delay_max_s
        self._ids = count(1)
        self._handles: dict[int, RequestHandle] = {}
        self._asked: dict[object, deque[asyncio.Future[Any]]] = {}
        """Who waits for an answer of the engine: by what tells the answer, in the order of asking."""
        self._templates: dict[str, list[int]] = {}
        self._transport: asyncio.WriteTransport | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    async def start(self) -> None:
        """Begin to start the engine; returns at once."""
        self._task = asyncio.create_task(self._supervise(), name="engine-supervisor")

    async def wait_until_settled(self) -> None:
        """Wait until the engine is ready or has failed for good."""
        await self.until(lambda state: state.is_settled)

    async def until(self, condition: Callable[[EngineState], bool]) -> None:
        """Wait until the condition holds of the engine's phase or of its progress in loading."""
        while not condition(self.state):
            self._changed.clear()
            await self._changed.wait()

    async def stop(self) -> None:
        """End the engine: politely, then by signal. Live requests get their ENGINE_LOST."""
        self._set(EnginePhase.STOPPED, detail="the server is stopping")
        self._send(wire.Shutdown())
        if self._task is not None:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(asyncio.shield(self._task), SHUTDOWN_GRACE_S)
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    def submit(
        self,
        *,
        tenant: str,
        request_class: RequestClass,
        prompt: list[int],
        max_output: int,
        sampling: wire.SamplingParams,
        template: str = "",
        queue_timeout_ms: int = 0,
    ) -> RequestHandle:
        if self.state.phase is not EnginePhase.READY:
            raise self._unavailable()
        request_id = next(self._ids)
        handle = RequestHandle(request_id, self._abort)
        self._handles[request_id] = handle
        self._send(
            wire.Submit(
                request_id, tenant, request_class.value, prompt, max_output, sampling, template, queue_timeout_ms
            )
        )
        return handle

    def hold(self, request_id: int, level: str) -> None:
        self._send(wire.Hold(request_id, level))

    def declare(self, templates: Mapping[str, list[int]]) -> None:
        """Tell the engine of these templates: now if it is ready, and each later one when it is."""
        self._templates = dict(templates)
        if self.state.phase is EnginePhase.READY:
            self._send_templates()

    def _send_templates(self) -> None:
        for name, tokens in self._templates.items():
            self._send(wire.Template(name, tokens))

    async def control(self, request_id: int, action: Control) -> wire.Controlled:
        answer: wire.Controlled = await self._ask(wire.Control(request_id, action.value), (request_id, action.value))
        return answer

    async def forget(self, tenant: str) -> wire.Forgotten:
        forget_id = next(self._ids)
        answer: wire.Forgotten = await self._ask(wire.Forget(forget_id, tenant), forget_id)
        return answer

    async def journal(self) -> list[str]:
        dump_id = next(self._ids)
        lines: list[str] = await self._ask(wire.DumpJournal(dump_id), dump_id)
        return lines

    async def _ask(self, message: wire.ToEngine, key: object) -> Any:
        """Send a message and wait for what answers it."""
        if self.state.phase is not EnginePhase.READY:
            raise self._unavailable()
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.setdefault(key, deque()).append(future)
        self._send(message)
        try:
            return await asyncio.wait_for(future, ANSWER_TIMEOUT_S)
        except TimeoutError as error:
            raise EngineUnavailable("the engine did not answer in time", self.state.retry_after_s) from error

    def _answer(self, key: object, answer: Any) -> None:
        """Hand an answer to who asked first. One who no longer waits keeps his place: the answer is his all the same."""
        if (futures := self._asked.get(key)) is None:
            return
        future = futures.popleft()
        if not futures:
            del self._asked[key]
        if not future.done():
            future.set_result(answer)

    def _ended(self) -> bool:
        return self.state.phase in (EnginePhase.STOPPED, EnginePhase.FAILED)

    def _unavailable(self) -> EngineUnavailable:
        state = self.state
        permanent = state.phase is EnginePhase.FAILED
        detail = state.detail or state.stage
        return EngineUnavailable(f"the engine is {state.phase}: {detail}", state.retry_after_s, permanent)

    def _abort(self, request_id: int) -> None:
        self._send(wire.Abort(request_id))

    def _send(self, message: wire.ToEngine) -> None:
        if self._transport is not None:
            self._transport.write(encode_frame(message))

    async def _supervise(self) -> None:
        """Run engines one after the other until one fails for good or the server stops."""
        loop = asyncio.get_running_loop()
        delay_s = RESTART_DELAY_FIRST_S
        while not self._ended():
            began_s = loop.time()
            try:
                code = await self._run_one()
            except OSError as error:
                code = None
                self.state.detail = f"the engine process cannot be started: {error}"
            finally:
                self._lose_everything()
            if self._ended():
                break
            if loop.time() - began_s > STABLE_AFTER_S:
                delay_s = RESTART_DELAY_FIRST_S
            self.state.restarts += 1
            self.state.retry_after_s = delay_s + 2.0
            self._set(EnginePhase.RESTARTING, detail=self._obituary(code))
            log.error("%s; starting it again in %.1f s", self.state.detail, delay_s)
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, self._delay_max_s)

    async def _run_one(self) -> int | None:
        """Start one engine and read it until it ends; returns its exit code."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, str(theirs.fileno()), pass_fds=[theirs.fileno()]
            )
        loop = asyncio.get_running_loop()
        self._transport, connection = await loop.create_unix_connection(
            lambda: _Connection(self._dispatch, loop.create_future()), sock=ours
        )
        try:
            self._send(self._configure)
            await connection.lost
        except (FrameError, ConnectionError) as error:
            log.error("the engine's socket broke: %s", error)
        finally:
            self._transport.close()
            self._transport = None
            code = await self._reap(self._process)
        return code

    def _dispatch(self, message: wire.ToGateway) -> None:
        match message:
            case wire.Step():
                self._step(message)
            case wire.Accepted() | wire.Refused():
                if (handle := self._handles.get(message.request_id)) is not None:
                    handle.put(message)
                    if handle.done:
                        del self._handles[message.request_id]
            case wire.Status():
                self.state.status = message
                for waiting in message.waiting:
                    if (handle := self._handles.get(waiting.request_id)) is not None:
                        handle.put(waiting)
            case wire.Loading():
                self.state.progress, self.state.stage = message.progress, message.stage
                self._changed.set()
            case wire.Ready():
                self.state.ready, self.state.progress, self.state.stage = message, 1.0, "ready"
                if self.state.phase is not EnginePhase.STOPPED:
                    self._set(EnginePhase.READY)
                    self._send_templates()  # before any request: what is sent in order arrives in order
            case wire.Fatal():
                phase = EnginePhase.FAILED if message.permanent else EnginePhase.RESTARTING
                self._set(phase, detail=message.message)
            case wire.Journal():
                self._answer(message.dump_id, message.lines)
            case wire.Controlled():
                self._answer((message.request_id, message.action), message)
            case wire.Forgotten():
                self._answer(message.forget_id, message)

    def _step(self, step: wire.Step) -> None:
        handles = self._handles
        for start in step.starts:
            if (handle := handles.get(start.request_id)) is not None:
                handle.put(start)
        for change in step.changes:
            if (handle := handles.get(change.request_id)) is not None:
                handle.put(change)
        for token in step.tokens:
            if (handle := handles.get(token.request_id)) is not None:
                handle.put(token)
        for finish in step.finishes:
            if (handle := handles.pop(finish.request_id, None)) is not None:
                handle.put(finish)

    def _lose_everything(self) -> None:
        """The engine is gone: everything that waited for it is answered now."""
        self.state.status = None
        handles, self._handles = self._handles, {}
        for handle in handles.values():
            handle.put(wire.Finish(handle.request_id, ENGINE_LOST, 0, 0, 0, "the engine stopped"))
        asked, self._asked = self._asked, {}
        for futures in asked.values():
            for future in futures:
                if not future.done():
                    future.set_exception(self._unavailable())

    async def _reap(self, process: asyncio.subprocess.Process) -> int:
        """Make sure that the process has ended."""
        try:
            return await asyncio.wait_for(process.wait(), SHUTDOWN_GRACE_S)
        except (TimeoutError, asyncio.CancelledError):
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            return await process.wait()

    def _obituary(self, code: int | None) -> str:
        if self.state.phase is EnginePhase.RESTARTING and self.state.detail:
            return self.state.detail  # its own last words
        if code is None:
            return self.state.detail
        if code == -signal.SIGILL:
            return "the engine hit an instruction that this CPU lacks; build it here again with `make engine-rebuild`"
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"
        return f"the engine {how}"

    def _set(self, phase: EnginePhase, detail: str = "") -> None:
        self.state.phase, self.state.detail = phase, detail
        if phase is not EnginePhase.READY:
            self.state.ready = self.state.ready if phase is EnginePhase.STOPPED else None
        self._changed.set()


class _Connection(asyncio.Protocol):
    """The gateway's end of the socket. Messages are dispatched as they arrive, with no stream and no task in between."""

    def __init__(self, dispatch: Callable[[wire.ToGateway], None], lost: asyncio.Future[None]) -> None:
        self.lost = lost
        """Done at the end of the connection, with what broke it."""
        self._dispatch = dispatch
        self._frames: FrameReader[wire.ToGateway] = FrameReader(wire.ToGateway)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._dispatch(message)
        except Exception as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        if exc is None:
            self.lost.set_result(None)
        else:
            self.lost.set_exception(exc)
