"""Only a person can mend what no engine was ever ready with. Whatever comes later may pass, and is tried again."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from poise.config import LevelsSettings, Settings
from poise.config.settings import EngineSettings
from poise.gateway.condition.degradation import Degradation, fallback
from poise.gateway.condition.levels import Level
from poise.gateway.supervision import model_file as pausing
from poise.gateway.supervision.engine import EnginePhase, EngineUnavailable
from poise.gateway.supervision.supervisor import Supervisor
from tests.gateway.fakes import ask, make_app
from tests.gateway.supervision.test_supervisor import events, pid_of, submit, until_ready

CUT = "is cut short: it has 1,048,576 bytes"
FULL = "does not fit: needs 900 MiB of memory and 500 MiB is available"
"""A simulated engine says so as long as it has the slots of the normal configuration."""
SETTINGS = Settings(engine=EngineSettings(restart_delay_max_s=0.2), levels=LevelsSettings(crashes_max=1, recover_s=1.0))


class Place:
    """A server whose model cannot be loaded as long as a file says why."""

    def __init__(self, folder: Path, settings: Settings = SETTINGS) -> None:
        self.wrong, self.model = folder / "wrong", folder / "model.gguf"
        self.wrong.write_text("")
        self.model.write_text("model")
        command = (sys.executable, "-m", "tests.gateway.simulated_engine", f"file:{self.wrong}")
        self.supervisor = Supervisor(settings, str(self.model), command)
        self.now_s = 0.0
        self.degradation = Degradation(settings, self.supervisor, self.supervisor.metrics, lambda: 1 << 40, lambda: self.now_s)

    def n_slots(self) -> int:
        """Of the engine that is ready."""
        assert self.supervisor.state.ready is not None
        return self.supervisor.state.ready.pools[0].n_slots

    def kill(self) -> None:
        os.kill(pid_of(self.supervisor), signal.SIGKILL)


@contextlib.asynccontextmanager
async def serving(folder: Path, settings: Settings = SETTINGS) -> AsyncIterator[Place]:
    place = Place(folder, settings)
    await place.supervisor.start()
    try:
        await place.supervisor.until(lambda state: state.is_settled)
        yield place
    finally:
        await place.supervisor.stop()


def says(words: str) -> Any:
    return lambda state: words in state.detail and state.phase is not EnginePhase.READY


async def test_a_file_that_was_being_copied_over_is_no_end(tmp_path: Path) -> None:
    """While it is cut short requests are told to come back, /health says why, and live ones wait; then all go on."""
    async with serving(tmp_path) as place:
        s = place.supervisor
        waiting = submit(s, [1, 2, 3], 50)
        place.wrong.write_text(CUT)
        place.kill()
        await s.until(says(CUT))
        await s.until(lambda state: state.restarts >= 3)
        assert s.state.phase is EnginePhase.RESTARTING
        with pytest.raises(EngineUnavailable) as caught:
            submit(s, [1])
        assert (caught.value.permanent, caught.value.retry_after_s > 0) == (False, True)
        health = await ask(make_app(s), "GET", "/health")
        assert (health.status, health.json()["status"], CUT in health.json()["detail"]) == (503, "restarting", True)
        assert "retry-after" in health.headers
        place.wrong.write_text("")
        await until_ready(s)
        assert len([e for e in await events(waiting) if type(e).__name__ == "Token"]) == 50


async def test_a_file_that_is_whole_again_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the pause is: it ends when the file has become another one."""
    monkeypatch.setattr(pausing, "LOOK_EVERY_S", 0.02)
    async with serving(tmp_path, Settings(engine=EngineSettings(restart_delay_max_s=3600.0))) as place:
        place.wrong.write_text(CUT)
        place.kill()
        await place.supervisor.until(lambda state: says(CUT)(state) and state.restarts >= 2)
        place.wrong.write_text("")
        place.model.write_text("model")  # as it was when the server was started, and written anew
        await until_ready(place.supervisor)


async def test_at_the_first_start_a_broken_file_is_the_end(tmp_path: Path) -> None:
    """One line and no second try: somebody is there to read it."""
    place = Place(tmp_path)
    place.wrong.write_text(CUT)
    await place.supervisor.start()
    await place.supervisor.until(lambda state: state.is_settled)
    assert (place.supervisor.state.phase, place.supervisor.state.restarts) == (EnginePhase.FAILED, 0)
    await place.supervisor.stop()


async def test_out_of_memory_then_too_little_of_it_goes_on_in_the_fallback(tmp_path: Path) -> None:
    """The killer of processes took the engine for something that grew: what is left is enough for half the slots."""
    settings = SETTINGS.model_copy(update={"levels": LevelsSettings(crashes_max=100)})
    async with serving(tmp_path, settings) as place:
        normal = place.n_slots()
        waiting = submit(place.supervisor, [1, 2, 3], 50)
        place.wrong.write_text(FULL)
        place.kill()
        await until_ready(place.supervisor, restarts=2)
        assert place.n_slots() == fallback(settings).n_slots("short") < normal
        assert place.degradation.level is Level.DEGRADED
        assert place.degradation.reasons == ["the normal configuration does not fit the memory that is free"]
        assert len([e for e in await events(waiting) if type(e).__name__ == "Token"]) == 50


async def test_a_recovery_that_does_not_fit_goes_back_to_the_fallback(tmp_path: Path) -> None:
    """And is tried again later, until it fits."""
    async with serving(tmp_path) as place:
        s, normal = place.supervisor, place.n_slots()
        place.kill()
        await until_ready(s, restarts=1)
        small = place.n_slots()
        assert (small < normal, place.degradation.level) == (True, Level.DEGRADED)
        place.wrong.write_text(FULL)
        place.now_s += 2.0
        place.degradation.look()
        assert s.state.phase is EnginePhase.RESTARTING
        await until_ready(s, restarts=3)
        assert (place.n_slots(), place.degradation.level) == (small, Level.DEGRADED)
        place.wrong.write_text("")
        place.now_s += 2.0
        place.degradation.look()
        await until_ready(s, restarts=4)
        place.degradation.look()
        assert (place.n_slots(), place.degradation.level) == (normal, Level.NORMAL)
