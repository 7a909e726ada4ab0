"""A real engine killed beside six agents whose contexts are warm: their next turns find them, and say what they would have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import psutil
import pytest
from scripts.measure_survival import Agent, brief, figure, have_turns, kill_engine

from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

AGENTS, N_COMPARABLE = 6, 4


@pytest.fixture(scope="module")
def server() -> Iterator[PoiseServer]:
    started = PoiseServer.start("--set", "levels.crashes_max=100")
    yield started
    assert started.stop() == 0


def agents(kind: str) -> list[Agent]:
    """With the same texts, whatever they are called: another name is another tenant."""
    return [Agent(f"{kind}-{i}", [{"role": "system", "content": brief(f"agent {i}", 150)}]) for i in range(AGENTS)]


def test_agents_find_their_contexts_after_a_kill(server: PoiseServer) -> None:
    """kill -9, twice: at least 95 % of each context is not computed again, and answers begin like those of undisturbed agents."""
    undisturbed, killed = agents("undisturbed"), agents("killed")
    for each in (undisturbed, killed):
        asyncio.run(have_turns(server.url, each, "What is this about?", 24))
    for _ in range(2):
        asyncio.run(have_turns(server.url, undisturbed, "What else?", N_COMPARABLE))
    for _ in range(2):
        server.eventually(lambda: figure(server.url, 'poise_store_entries{purpose="prefix"}') >= 2 * AGENTS, "all is copied")
        kill_engine(psutil.Process(server.process.pid), server.url)
        asyncio.run(have_turns(server.url, killed, "What else?", N_COMPARABLE))
        assert min(agent.share for agent in killed) >= 0.95
    answers = [[agent.messages[turn]["content"] for turn in (4, 6)] for agent in killed]
    assert answers == [[agent.messages[turn]["content"] for turn in (4, 6)] for agent in undisturbed]
    assert figure(server.url, "poise_engine_inherited_entries_total") >= 2 * AGENTS
    server.eventually(server.nothing_runs, "the books are clean")


def test_memory_is_accounted_for(server: PoiseServer) -> None:
    """What the engine took over is in its books; the gateway, whose memory it is, has none of it in its own."""
    asyncio.run(have_turns(server.url, agents("killed")[:1], "What is this about?", 4))
    stored = figure(server.url, 'poise_store_bytes{purpose="prefix"}')
    assert stored > 2 * AGENTS * 150 * 20_000
    engine, gateway = server.engine().memory_info(), psutil.Process(server.process.pid).memory_info()
    assert engine.shared > stored
    assert gateway.shared < stored // 2
    assert -(16 << 20) < figure(server.url, "poise_engine_unaccounted_bytes") < 512 << 20
