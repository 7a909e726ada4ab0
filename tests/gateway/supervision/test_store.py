"""The host store between engines, over real processes: `kill -9`, erasures without an engine, and what engines die of."""

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
from poise.engine.arena import Arena
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.supervision.launch import FrameConnection, spawn
from poise.gateway.supervision.store import StoreKeeper
from poise.gateway.supervision.supervisor import Supervisor
from poise.scheduler.memory.stored import StoredPrefix
from poise.scheduler.request import RequestClass, Started
from poise.wire import messages as wire
from poise.wire import to_engine
from tests.engine.reference import answer
from tests.gateway.mailbox import Mailbox
from tests.gateway.simulated_engine import TORN

AGENTS = 6
GREEDY = to_engine.SamplingParams(temperature=0.0, ignore_eos=True)


@contextlib.asynccontextmanager
async def supervisor(mode: str = "works") -> AsyncIterator[Supervisor]:
    settings = Settings(engine=EngineSettings(restart_delay_max_s=0.5))
    made = Supervisor(settings, "model.gguf", (sys.executable, "-m", "tests.gateway.simulated_engine", mode))
    await made.start()
    await made.until(lambda state: state.is_settled)
    try:
        yield made
    finally:
        await made.stop()


def prompt(agent: int, n: int = 240) -> list[int]:
    return [(agent * 131 + k * 7) % 600 + 1 for k in range(n)]


def submit(s: Supervisor, tokens: list[int], tenant: str, n_output: int = 20) -> Mailbox:
    return Mailbox(s.submit(to_engine.Submit(0, tenant, RequestClass.INTERACTIVE.value, tokens, n_output, GREEDY)))


async def ended(box: Mailbox) -> tuple[int, list[int]]:
    """When it has ended: the cells that it did not have to compute, and its tokens."""
    received: list[object] = []
    while not (received and isinstance(received[-1], wire.Finish | wire.Refused)):
        received += await box.receive()
    assert isinstance(received[-1], wire.Finish)
    starts = [event.n_cached for event in received if isinstance(event, Started)]
    return starts[0] if starts else -1, [event.token for event in received if isinstance(event, wire.Token)]


async def turns(s: Supervisor) -> None:
    """A turn of each of six agents, at once; and then the engine rests, so that all is copied."""
    boxes = [submit(s, prompt(agent), f"agent{agent}") for agent in range(AGENTS)]
    for agent, box in enumerate(boxes):
        assert (await ended(box))[1] == answer(prompt(agent), 20)
    await rested(s)


async def rested(s: Supervisor) -> None:
    """A question is answered in a step of its own, after what there was to do: a slot is copied in each."""
    for _ in range(AGENTS + 2):
        await s.forget("nobody")


async def next_turns(s: Supervisor) -> list[float]:
    """The share of what was said before that each next turn finds; its text is as it ought to be."""
    shares = []
    for agent in range(AGENTS):
        said = prompt(agent) + answer(prompt(agent), 20)
        n_cached, tokens = await ended(submit(s, [*said, 5, 6, 7], f"agent{agent}"))
        assert tokens == answer([*said, 5, 6, 7], 20)
        shares.append(n_cached / len(said))
    return shares


async def killed(s: Supervisor) -> None:
    """The engine is, and another one is ready."""
    restarts = s.state.restarts
    assert s.state.ready is not None
    os.kill(s.state.ready.pid, signal.SIGKILL)
    await s.until(lambda state: state.restarts > restarts and state.phase is EnginePhase.READY)


async def test_six_agents_find_their_contexts_in_the_next_engine() -> None:
    """And in the one after it: at least 95 % of each, none of it another's."""
    async with supervisor() as s:
        await turns(s)
        for _ in range(2):
            await killed(s)
            assert min(await next_turns(s)) >= 0.95
            await rested(s)
        n_cached, _ = await ended(submit(s, prompt(1), "stranger"))
        assert n_cached == 0


async def test_an_entry_that_was_half_written_when_its_engine_was_killed_is_not_read(tmp_path: Path) -> None:
    """The process ends in the middle of it. The turn behind it computes it again; nothing of it is left in the memory."""
    sign = tmp_path / "tear"
    async with supervisor(f"torn:{sign}") as s:
        sign.touch()
        box = submit(s, prompt(0), "agent0")
        await ended(box)
        await s.until(lambda state: state.restarts == 1 and state.phase is EnginePhase.READY)
        assert not sign.exists()
        await s.forget("nobody")
        assert s._store._fd is not None
        with Arena(s._store._fd) as arena:
            assert TORN not in bytes(arena._bytes[arena._begin :][: 1 << 20])
        assert (await next_turns(s))[0] == 0.0


@pytest.mark.parametrize("is_there", [True, False])
async def test_an_erased_tenant_is_not_in_the_next_engine(is_there: bool) -> None:
    """Whether an engine erased it or there was none: then the gateway has overwritten it at once. The others are there."""
    async with supervisor() as s:
        await turns(s)
        if is_there:
            s.disown("agent0")
            await s.erase("agent0")
            assert not s._store._erased
            await killed(s)
        else:
            restarts = s.state.restarts
            assert s.state.ready is not None
            os.kill(s.state.ready.pid, signal.SIGKILL)
            await s.until(lambda state: state.phase is EnginePhase.RESTARTING)
            s.disown("agent0")
            assert s._store._fd is not None
            with Arena(s._store._fd) as arena:
                assert b"agent0" not in bytes(arena._bytes[: 1 << 22])
                assert b"agent1" in bytes(arena._bytes[: 1 << 22])
            await s.until(lambda state: state.restarts > restarts and state.phase is EnginePhase.READY)
        shares = await next_turns(s)
        assert shares[0] == 0.0
        assert min(shares[1:]) >= 0.95


async def test_engines_that_die_of_what_they_take_over_are_not_given_it_for_ever() -> None:
    """After two in a row that died before a token came, nothing is handed on; a token, and it is again."""
    async with supervisor() as s:
        await turns(s)
        await killed(s)  # this one had worked
        await killed(s)
        assert s._store.lend() == to_engine.Inherit(keep=True)
        await killed(s)
        assert max(await next_turns(s)) == 0.0
        await rested(s)
        await killed(s)
        assert min(await next_turns(s)) >= 0.95


def keeper_with(*tenants: str) -> StoreKeeper:
    """As an engine has left it that has ended."""
    keeper = StoreKeeper(1 << 20)
    fd = keeper.descriptor()
    assert fd is not None
    with Arena(fd) as arena:
        arena.inherit(b"f")
        for number, tenant in enumerate(tenants, 1):
            arena.reserve(number, 100, 16)[:] = bytes([number]) * 100
            arena.commit(StoredPrefix(number, tenant, "short", 16, 100, (1, 2)))
    return keeper


def left_by(keeper: StoreKeeper) -> list[str]:
    fd = keeper.descriptor()
    assert fd is not None
    with Arena(fd) as arena:
        return sorted(entry.tenant for entry in arena.inherit(b"f"))


def test_an_erasure_that_an_engine_did_not_finish_is_done_when_it_has_ended() -> None:
    """Not before: the memory is the engine's."""
    keeper = keeper_with("a", "b")
    keeper.lend()
    keeper.erase("a")
    assert left_by(keeper) == ["a", "b"]
    keeper.take_back(fruitful=True, is_short=False)
    assert left_by(keeper) == ["b"]
    keeper.lend()
    keeper.erase("b")
    keeper.erased("b")
    keeper.take_back(fruitful=True, is_short=False)
    assert left_by(keeper) == ["b"], "the engine has done it; this is what came later"
    keeper.close()


def test_what_is_short_of_memory_gets_what_the_store_has() -> None:
    """An engine that did not fit leaves the next one an empty store."""
    keeper = keeper_with("a")
    keeper.lend()
    keeper.take_back(fruitful=True, is_short=True)
    assert left_by(keeper) == []
    keeper.close()


def test_nothing_is_left_when_the_server_ends() -> None:
    """Overwritten, and given back."""
    keeper = keeper_with("a")
    assert keeper._fd is not None
    copy = os.dup(keeper._fd)
    keeper.close()
    with Arena(copy) as arena:
        assert not any(bytes(arena._bytes[arena._begin : 1 << 22]))
    os.close(copy)
    keeper.close()


def test_a_host_without_such_memory_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store then ends with the engine, and a warning says so. So it is with a store of no size."""
    monkeypatch.delattr(os, "memfd_create")
    keeper = StoreKeeper(1 << 20)
    assert keeper.descriptor() is None
    keeper.erase("a")
    keeper.close()
    assert StoreKeeper(0).descriptor() is None


def test_memory_that_cannot_be_mapped_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be overwritten must not be handed on either."""
    keeper = keeper_with("a")

    def refuse(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    with monkeypatch.context() as broken:
        broken.setattr("poise.engine.arena.mmap.mmap", refuse)
        keeper.erase("a")
    assert left_by(keeper) == []
    keeper.close()


async def test_no_other_child_has_the_memory(tmp_path: Path) -> None:
    """A text worker is started as this one is: with its socket, and none of the gateway's files."""
    keeper = keeper_with("a")
    listing = tmp_path / "files"
    lost = asyncio.get_running_loop().create_future()
    connection: FrameConnection[wire.ToGateway] = FrameConnection(wire.ToGateway, lambda _: None, lost)
    child = await spawn(("/bin/sh", "-c", f"ls -l /proc/self/fd > {listing}"), connection, dict(os.environ))
    await asyncio.to_thread(child.wait)
    connection.close()
    assert "socket" in listing.read_text()
    assert "poise-store" not in listing.read_text()
    assert "poise-store" in os.readlink(f"/proc/self/fd/{keeper._fd}")
    keeper.close()
