"""The runners that the contract suite is run against."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from poise.llama.default_model import default_model
from poise.llama.memory import PoolSpec
from poise.llama.model import Model
from poise.llama.runner import LlamaRunner
from poise.scheduler.plan import ReleaseSlot
from poise.sim.clock import VirtualClock
from poise.sim.runner import SimRunner
from poise.wire.messages import PoolInfo
from tests.contract.runner_contract import InspectableRunner, Subject

SHORT_SLOTS, LONG_SLOTS, CELLS = 4, 2, 256


@pytest.fixture(scope="session")
def llama_runner() -> Iterator[LlamaRunner]:
    """One for the whole session, since the weights take a while; flash attention in one pool and none in the other."""
    pools = [PoolSpec("short", SHORT_SLOTS, CELLS, True), PoolSpec("long", LONG_SLOTS, CELLS, False)]
    with LlamaRunner(Model.load(default_model()), pools, batch_tokens=128) as runner:
        yield runner


@pytest.fixture(params=["sim", pytest.param("llama", marks=pytest.mark.slow)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A runner with empty slots."""
    runner: InspectableRunner
    if request.param == "llama":
        runner = request.getfixturevalue("llama_runner")
        # Chunking and neighbours change the order of floating-point sums, so only the first tokens must agree.
        yield Subject(runner, n_comparable=4)
    else:
        pools = [
            PoolInfo("short", SHORT_SLOTS, CELLS, flash_attention=True, kv_bytes=0),
            PoolInfo("long", LONG_SLOTS, CELLS, flash_attention=False, kv_bytes=0),
        ]
        runner = SimRunner(pools, n_vocab=49_152, clock=VirtualClock())
        yield Subject(runner, n_comparable=12)
    for pool in runner.pools:
        for slot in range(pool.n_slots):
            runner.apply(ReleaseSlot(pool.name, slot, request_id=0))
