"""The supervisor over real processes and sockets, with a simulated model: submit, abort, death, restart, end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.config.settings import EngineSettings
from poise.gateway.supervision.engine import ENGINE_LOST, EnginePhase, EngineUnavailable
from poise.gateway.supervision.launch import FrameConnection, LaunchedEngine
from poise.gateway.supervision.life import Watchdog
from poise.gateway.supervision.supervisor import Supervisor
from poise.scheduler.request import Control, Queued, RequestClass
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts
from tests.gateway.mailbox import Mailbox
from tests.gateway.simulated_engine import BUG_TOKEN

FOREVER = 4000


@contextlib.asynccontextmanager
async def supervisor(mode: str = "works", **engine: Any) -> AsyncIterator[Supervisor]:
    """`engine`: settings."""
    settings = Settings(engine=EngineSettings(restart_delay_max_s=0.5, **engine))
    command = (sys.executable, "-m", "tests.gateway.simulated_engine", mode)
    made = Supervisor(settings, "model.gguf", command)
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


def submit(s: Supervisor, prompt: list[int], max_output: int = 5) -> Mailbox:
    sampling = to_engine.SamplingParams(temperature=0.0, ignore_eos=True)
    return Mailbox(s.submit(to_engine.Submit(0, "t", RequestClass.INTERACTIVE.value, prompt, max_output, sampling)))


async def events(handle: Mailbox) -> list[object]:
    """Everything until the last event."""
    received: list[object] = []
    while not (received and isinstance(received[-1], wire.Finish | wire.Refused)):
        received += await handle.receive()
    return received


async def ends(handles: list[Mailbox]) -> list[wire.Finish]:
    lasts = [(await events(handle))[-1] for handle in handles]
    return [last for last in lasts if isinstance(last, wire.Finish)]


def pid_of(s: Supervisor) -> int:
    assert s.state.ready is not None
    return s.state.ready.pid


async def until_ready(s: Supervisor, restarts: int = 0) -> None:
    await s.until(lambda state: state.phase is EnginePhase.READY and state.restarts >= restarts)


async def test_a_request_goes_through() -> None:
    """Accepted, Start, the prompt, tokens, Finish, in this order, over a real socket."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        received = await events(submit(s, [1, 2, 3]))
        kinds = [type(e).__name__ for e in received]
        assert kinds == ["Accepted", "Started", "Prefill", "Token", "Token", "Token", "Token", "Token", "Finish"]
        assert s.state.ready is not None


async def test_before_the_engine_is_ready_requests_are_refused() -> None:
    """EngineUnavailable with a time to come back, not a hang."""
    async with supervisor() as s:
        with pytest.raises(EngineUnavailable) as caught:
            submit(s, [1])
        assert caught.value.retry_after_s > 0
        assert not caught.value.permanent


async def test_an_abort_ends_the_request_once() -> None:
    """Its last event is Finish with reason aborted; a second abort does nothing."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [1, 2, 3], FOREVER)
        await handle.receive()
        handle.abort()
        handle.abort()
        received = await events(handle)
        assert isinstance(received[-1], wire.Finish)
        assert received[-1].reason == "aborted"


async def test_without_recoveries_a_dead_engine_ends_requests_and_is_replaced() -> None:
    """`recoveries_max = 0`: every live request ends once with ENGINE_LOST, and the next engine works."""
    async with supervisor(recoveries_max=0) as s:
        await s.until(lambda state: state.is_settled)
        first = pid_of(s)
        handles = [submit(s, [1, 2, 3], FOREVER) for _ in range(3)]
        await handles[0].receive()
        os.kill(first, signal.SIGKILL)
        assert [last.reason for last in await ends(handles)] == [ENGINE_LOST] * 3
        with pytest.raises(EngineUnavailable):
            submit(s, [1])
        await until_ready(s, restarts=1)
        assert len(await events(submit(s, [1, 2, 3]))) == 9
        assert pid_of(s) != first


async def test_the_engine_s_last_words_are_kept() -> None:
    """A bug in the loop is reported by its own message, with the journal's place."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        await events(submit(s, [BUG_TOKEN]))
        await s.until(lambda state: state.restarts >= 1)
        assert "a bug in the runner" in s.state.detail or s.state.phase is EnginePhase.READY


async def test_a_model_that_cannot_be_loaded_is_not_tried_again() -> None:
    """FAILED with the one line, and requests are refused for good."""
    async with supervisor("bad-model") as s:
        await s.until(lambda state: state.is_settled)
        assert s.state.phase is EnginePhase.FAILED
        assert "is not a model" in s.state.detail
        assert s.state.restarts == 0
        with pytest.raises(EngineUnavailable) as caught:
            submit(s, [1])
        assert caught.value.permanent


async def test_an_illegal_instruction_is_explained() -> None:
    """A library compiled for another CPU: what to do is said, while it is tried again with back-off."""
    async with supervisor("dies") as s:
        await s.until(lambda state: state.restarts >= 2)
        assert "make engine-rebuild" in s.state.detail
        assert s.state.phase is EnginePhase.RESTARTING


async def test_stop_ends_the_process_and_what_was_in_flight() -> None:
    """After stop there is no engine process, and the live request has its last event."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        assert s.state.ready is not None
        pid = s.state.ready.pid
        handle = submit(s, [1, 2, 3], FOREVER)
        await handle.receive()
    assert isinstance((await events(handle))[-1], wire.Finish)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("moment", ["before it starts", "as it starts", "while it loads", "before it starts again"])
async def test_stop_waits_for_no_engine_that_is_not_ready(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is nothing to finish: neither a start nor the time until the next one is waited for, and no process is left."""
    monkeypatch.setattr("poise.gateway.supervision.supervisor.SHUTDOWN_GRACE_S", 3600.0)
    monkeypatch.setattr("poise.gateway.supervision.life.RESTART_DELAY_FIRST_S", 3600.0)
    restarts = moment == "before it starts again"
    s = Supervisor(
        Settings(engine=EngineSettings(restart_delay_max_s=3600.0)),
        "model.gguf",
        (sys.executable, "-m", "tests.gateway.simulated_engine", "dies" if restarts else "loads-for-ever"),
    )
    engine: LaunchedEngine | None = None
    async with asyncio.timeout(100):
        await s.start()
        if moment == "as it starts":
            while s._engine is None:
                await asyncio.sleep(0)
                engine = s._engine
        elif moment == "while it loads":
            await s.until(lambda state: state.stage == "loading")
        elif restarts:
            await s.until(lambda state: state.restarts == 2)
        await s.stop()
    assert s.state.phase is EnginePhase.STOPPED
    assert s._engine is None
    assert engine is None or engine.process.returncode is not None


async def test_an_engine_ends_when_its_gateway_is_gone() -> None:
    """The end of the socket ends the engine, also when nobody could tell it to stop."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        engine = s._engine
        assert engine is not None
        engine.connection.close()
        await s.until(lambda state: state.restarts == 1)
        assert engine.process.returncode == 0


async def test_an_engine_knows_no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the gateway's environment says of keys is not in the engine's, which the same user could read."""
    monkeypatch.setenv("POISE_AUTH__KEYS", "secret")
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        environment = await asyncio.to_thread(Path(f"/proc/{pid_of(s)}/environ").read_bytes)
        assert b"PATH=" in environment
        assert b"secret" not in environment


async def test_the_journal_can_be_asked_for() -> None:
    """JSON lines from the running engine."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        await events(submit(s, [1, 2, 3]))
        pages = [page async for page in s.journal()]
        assert any('"kind": "plan"' in line for page in pages for line in page)
        early, late = s.journal(), s.journal()
        await anext(early)
        await anext(late)
        with pytest.raises(EngineUnavailable, match="by another"):
            await anext(early)
        await late.aclose()


async def test_operators_reach_the_engine() -> None:
    """Each question gets its own answer, also two of a kind; a request that is not there is nobody's failure."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [1, 2, 3], FOREVER)
        await handle.receive()
        first, second, unknown, forgotten = await asyncio.gather(
            s.control(handle.request_id, Control.PAUSE),
            s.control(handle.request_id, Control.PAUSE),
            s.control(999, Control.PAUSE),
            s.forget("nobody"),
        )
        assert (first.state, first.detail) == ("paused", "")
        assert second.detail
        assert unknown.state == ""
        assert (forgotten.entries, forgotten.cells) == (0, 0)
        received: list[object] = []
        while not any(isinstance(event, wire.Change) for event in received):
            received += await handle.receive()
        handle.abort()


async def test_a_waiting_request_hears_of_its_place() -> None:
    """From the engine's status, while it is queued."""
    async with supervisor("slow") as s:
        await s.until(lambda state: state.is_settled)
        handles = [submit(s, [1, 2, 3], FOREVER) for _ in range(20)]
        received: list[object] = []
        while not any(isinstance(event, Queued) for event in received):
            received += await handles[-1].receive()


async def test_questions_end_with_the_engine() -> None:
    """Nobody waits for an answer that cannot come."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        assert s._engine is not None
        asking = asyncio.create_task(s.forget("nobody"))
        await asyncio.sleep(0)
        s._engine.connection.close()
        with pytest.raises(EngineUnavailable):
            await asking
        with pytest.raises(EngineUnavailable):
            await s.control(1, Control.PAUSE)


async def test_interrupting_the_terminal_does_not_kill_the_engine() -> None:
    """Ctrl-C reaches the whole process group; ending is the gateway's decision."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        assert s.state.ready is not None
        received = await events(submit(s, [1, 2, 3]))
        os.kill(s.state.ready.pid, signal.SIGINT)
        assert len(received) == 9
        assert len(await events(submit(s, [1, 2, 3]))) == 9


async def test_an_engine_in_the_place_of_another_loads_the_same_weights() -> None:
    """And the first one chooses: whoever waits goes on with the weights that the answer began with, and for no measurement."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        assert s.state.ready is not None
        assert s.state.ready.weights_reason == "again: "
        os.kill(s.state.ready.pid, signal.SIGKILL)
        await s.until(lambda state: state.restarts == 1 and state.phase is EnginePhase.READY)
        assert s.state.ready.weights_reason == "again: works"


async def test_every_engine_is_told_of_the_templates(monkeypatch: pytest.MonkeyPatch) -> None:
    """When it is ready, again after a restart, and at once when they are declared later."""
    sent: list[to_engine.ToEngine] = []
    send = Supervisor._send

    def noting(s: Supervisor, message: to_engine.ToEngine) -> None:
        sent.append(message)
        send(s, message)

    monkeypatch.setattr(Supervisor, "_send", noting)
    async with supervisor() as s:
        s.declare({"a": [1, 2]})
        assert not sent
        await s.until(lambda state: state.is_settled)
        assert isinstance(sent[1], to_engine.Inherit)
        assert isinstance(sent[2], Accounts)
        assert sent[3:] == [to_engine.Template("a", [1, 2])]
        await events(submit(s, [BUG_TOKEN]))
        sent.clear()
        await until_ready(s, restarts=1)
        assert isinstance(sent[1], to_engine.Inherit)
        assert isinstance(sent[2], Accounts)
        assert sent[3:] == [to_engine.Template("a", [1, 2])]
        s.declare({"a": [1, 2], "b": [3]})
        assert sent[4:] == [to_engine.Template("a", [1, 2]), to_engine.Template("b", [3])]


async def test_a_message_that_is_taken_at_once_is_not_taken_to_be_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host the engine may have read it before the gateway's next instruction; then it rests, and is no hang."""
    wrote_ns: list[int] = []
    sent_ns: list[int] = []
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        write, sent = FrameConnection.write, Watchdog.sent

        def slowly(connection: FrameConnection[wire.ToGateway], data: bytes) -> None:
            write(connection, data)
            wrote_ns.append(time.monotonic_ns())

        def noting(watchdog: Watchdog, now_ns: int) -> None:
            sent_ns.append(now_ns)
            sent(watchdog, now_ns)

        monkeypatch.setattr(FrameConnection, "write", slowly)
        monkeypatch.setattr(Watchdog, "sent", noting)
        await events(submit(s, [1, 2, 3]))
    assert sent_ns
    assert all(sent <= wrote for sent, wrote in zip(sent_ns, wrote_ns, strict=True))
