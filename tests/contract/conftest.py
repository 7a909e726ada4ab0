"""The runners that the contract suite is run against."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

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
    pools = [PoolSpec("short", SHORT_SLOTS, CELLS, True), PoolSpec("long", LONG_SLOTS, CELLS, False)]
    with LlamaRunner(Model.load(default_model()), pools, batch_tokens=128, threads=1) as runner:
        yield runner


@pytest.fixture(params=["sim", pytest.param("llama", marks=pytest.mark.slow)])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """A runner with empty slots and nothing stored."""
    is_llama = request.param == "llama"
    subject = llama_subject(request.getfixturevalue("llama_runner")) if is_llama else sim_subject()
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


def sim_subject() -> Subject:
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
    runner = ExactRunner(pools, n_vocab=49_152, clock=VirtualClock(), fault=lambda what, detail: failing)
    return Subject(runner, 12, lambda entry: runner._entries[entry].cells, CELL_BYTES, broken, json.dumps)
