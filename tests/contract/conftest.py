"""The runners that the contract suite is run against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from poise.engine.arena import Arena, make_memory
from poise.llama.binding.model import Model
from poise.llama.files.default_model import default_model
from poise.llama.files.memory import PoolSpec
from poise.llama.running.runner import LlamaRunner
from poise.wire.messages import PoolInfo
from poise_lab.sim.runner import VirtualClock
from tests.contract.runner_contract import Subject
from tests.sim.exact_runner import CELL_BYTES, ExactRunner

SHORT_SLOTS, LONG_SLOTS, CELLS = 4, 2, 256


@pytest.fixture(scope="session")
def llama_runner() -> Iterator[LlamaRunner]:
    """One for the whole session, since the weights take a while; flash attention in one pool and none in the other.

    One thread: several wait for each other at every node of the graph, which on a busy host takes ten times as long.
    """
    with llama(None) as runner:
        yield runner


@pytest.fixture(scope="session")
def lasting_llama_runner() -> Iterator[LlamaRunner]:
    """The same with its host store in shared memory."""
    with llama(arena()) as runner:
        yield runner


def llama(arena: Arena | None) -> LlamaRunner:
    pools = [PoolSpec("short", SHORT_SLOTS, CELLS, True), PoolSpec("long", LONG_SLOTS, CELLS, False)]
    return LlamaRunner(Model.load(default_model()), pools, batch_tokens=128, threads=1, arena=arena)


def arena() -> Arena:
    made = Arena(make_memory(64 << 20))
    made.inherit(b"")
    return made


SLOW = pytest.mark.slow


@pytest.fixture(params=["sim", "lasting-sim", pytest.param("llama", marks=SLOW), pytest.param("lasting-llama", marks=SLOW)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A runner with empty slots and nothing stored; the store in its own memory, or in memory that outlives it."""
    lasts, _, kind = request.param.rpartition("-")
    if kind == "llama":
        subject = llama_subject(request.getfixturevalue("lasting_llama_runner" if lasts else "llama_runner"))
    else:
        subject = sim_subject(arena() if lasts else None)
    yield subject
    subject.clean_up()


def llama_subject(runner: LlamaRunner) -> Subject:
    @contextmanager
    def broken() -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for name in ("state_seq_get_data", "state_seq_set_data"):
                patch.setattr(runner.model.library, name, lambda *_: 0)
            yield

    # Chunking and neighbours change the order of floating-point sums, so only the first tokens must agree.
    return Subject(runner, 4, lambda entry: runner._store._entries[entry].state.data, 1, broken, lark)


def lark(places: list[list[int]]) -> str:
    """Token ids as llguidance's grammars name them."""
    rule = " ".join(f"<[{','.join(map(str, place))}]>" for place in places)
    return json.dumps({"grammars": [{"lark_grammar": f"start: {rule}"}]})


def sim_subject(arena: Arena | None = None) -> Subject:
    failing = False

    @contextmanager
    def broken() -> Iterator[None]:
        nonlocal failing
        failing = True
        try:
            yield
        finally:
            failing = False

    pools = [
        PoolInfo("short", SHORT_SLOTS, CELLS, flash_attention=True, kv_bytes=0),
        PoolInfo("long", LONG_SLOTS, CELLS, flash_attention=False, kv_bytes=0),
    ]
    runner = ExactRunner(pools, n_vocab=49_152, clock=VirtualClock(), fault=lambda what, detail: failing, arena=arena)
    return Subject(runner, 12, lambda entry: runner._entries[entry].cells, CELL_BYTES, broken, json.dumps)
