"""A model file that changes under a running server: no engine goes on with it, and nothing wrong is sent."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from poise.config import Settings
from poise.config.settings import EngineSettings
from poise.gateway.models.local.refusals import engine_not_ready
from poise.gateway.supervision import model_file as module
from poise.gateway.supervision.engine import EnginePhase, EngineUnavailable
from poise.gateway.supervision.model_file import ModelFile
from poise.gateway.supervision.supervisor import Supervisor
from poise.wire import messages as wire
from poise.wire.fingerprint import MODEL_CHANGED
from tests.engine.reference import answer
from tests.gateway.supervision.test_supervisor import events, pid_of, submit, until_ready

LONG = 600


@contextlib.asynccontextmanager
async def serving(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Supervisor]:
    """A supervisor of simulated engines that look at a real file; it is looked at without a pause."""
    monkeypatch.setattr("poise.gateway.supervision.supervisor.LOOK_EVERY_S", 0.01)
    monkeypatch.setattr("poise.gateway.supervision.model_file.LOOK_EVERY_S", 0.01)
    settings = Settings(engine=EngineSettings(restart_delay_max_s=0.5, recoveries_max=1000))
    made = Supervisor(settings, str(path), (sys.executable, "-m", "tests.gateway.simulated_engine", "slow"))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"one model" * 1000)
    return model


def phase(s: Supervisor) -> EnginePhase:
    return s.state.phase


def former(path: Path) -> Path:
    """Where the file is put while another one has its name."""
    kept = path.with_suffix(".former")
    os.rename(path, kept)
    return kept


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def change(path: Path, how: str) -> bytes:
    """In place; returns what it was."""
    whole = path.read_bytes()
    with path.open("r+b") as file:
        if how == "written over":
            file.write(b"?")
        else:
            file.truncate(100)
    return whole


async def until_noticed(s: Supervisor, *, changed: bool) -> None:
    while s.state.model_changed is not changed:  # noqa: ASYNC110 - nothing tells of it
        await asyncio.sleep(0.01)


async def test_a_replaced_file_is_not_gone_on_with_until_it_is_put_back(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine that has the former one goes on. The next one is refused; what is live waits for the file to come back."""
    async with serving(path, monkeypatch) as s:
        await s.until(lambda state: state.is_settled)
        kept = former(path)
        write(path, b"another model" * 1000)
        await until_noticed(s, changed=True)
        assert phase(s) is EnginePhase.READY
        handle = submit(s, [5, 6, 7], LONG)
        received: list[object] = []
        while not any(isinstance(event, wire.Token) for event in received):
            received += await handle.receive()
        os.kill(pid_of(s), signal.SIGKILL)
        await s.until(lambda state: MODEL_CHANGED in state.detail)
        assert phase(s) is EnginePhase.RESTARTING
        with pytest.raises(EngineUnavailable, match=MODEL_CHANGED):
            submit(s, [1, 2, 3])
        refusal = engine_not_ready(s.state)
        assert (refusal.status, refusal.code) == (503, "engine_unavailable")
        assert MODEL_CHANGED in refusal.message
        os.rename(kept, path)
        await until_ready(s)
        received += await events(handle)
        assert [event.token for event in received if isinstance(event, wire.Token)] == answer([5, 6, 7], LONG)
        assert isinstance(received[-1], wire.Finish)
        assert received[-1].reason == "length"
        await until_noticed(s, changed=False)
        assert s.quarantined() == []


@pytest.mark.parametrize("how", ["written over", "cut short"])
async def test_a_file_that_changes_in_place_ends_the_engine(path: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """It has the file in its memory. Nobody is to blame for that, and none that is started sees the other one."""
    async with serving(path, monkeypatch) as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [5, 6, 7], LONG)
        whole = change(path, how)
        await s.until(lambda state: MODEL_CHANGED in state.detail)
        assert phase(s) is EnginePhase.RESTARTING
        write(path, whole)
        received = await events(handle)
        assert [event.token for event in received if isinstance(event, wire.Token)] == answer([5, 6, 7], LONG)
        assert s.quarantined() == []


async def test_contents_are_looked_at_when_the_file_was_touched(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A time that changed is no other model; and a file that is left alone costs one question to the system."""
    model = ModelFile(str(path))
    n_read = 0

    def counted(path: Path) -> str:
        nonlocal n_read
        n_read += 1
        return model.fingerprint

    monkeypatch.setattr(module, "fingerprint", counted)
    for _ in range(5):
        await model.look()
    assert n_read == 0
    os.utime(path, (1, 1))
    for _ in range(5):
        await model.look()
    assert (n_read, model.is_changed) == (1, False)


async def test_a_missing_file_is_no_other_one(path: Path) -> None:
    """The engine goes on with what it has opened; a name that never had a file is not watched."""
    model = ModelFile(str(path))
    os.unlink(path)
    await model.look()
    assert not model.is_changed
    never = ModelFile(str(path))
    write(path, b"x")
    await never.look()
    assert (never.is_changed, never.fingerprint) == (False, "")
