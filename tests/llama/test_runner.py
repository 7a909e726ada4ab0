"""The real runner beyond the contract: failures inside llama.cpp, settings, books."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from poise.engine.ports import Row, RunnerError, Sampled
from poise.llama.binding.context import PoolContext
from poise.llama.binding.mapping import allocate
from poise.llama.binding.model import Model, ModelError
from poise.llama.files.memory import PoolSpec
from poise.llama.running.runner import LlamaRunner
from poise.scheduler.planning.plan import CopySlot, KvOperation, LoadSlot, MoveSlot, ReleaseSlot, StoreSlot, TrimSlot
from poise.wire.to_engine import SamplingParams

STORY = [6403, 1980, 253, 655, 665, 436, 253, 1838, 8180, 617, 4161, 281, 253, 6560, 2141, 260, 3150, 30, 1963, 1194]


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    pools = [PoolSpec("short", 3, 300, True), PoolSpec("long", 2, 100_000, False)]
    with LlamaRunner(Model.load(model_path, vocab_only=False), pools, batch_tokens=64, threads=1) as built:
        yield built


@pytest.mark.slow
def test_pools_are_built_as_reported(runner: LlamaRunner) -> None:
    """Slots are cut to the trained context; memory counts the cells that llama.cpp rounds up to."""
    short, long = runner.pools
    assert (short.n_slots, short.slot_cells, short.flash_attention) == (3, 300, True)
    assert short.kv_bytes == 3 * 512 * 23_040
    assert short.cell_bytes == long.cell_bytes == runner.cell_bytes("short") == 23_040
    assert (long.n_slots, long.slot_cells, long.flash_attention) == (2, 8192, False)


@pytest.mark.slow
@pytest.mark.parametrize(("code", "words"), [(1, "no room"), (2, "aborted"), (-1, "invalid"), (-3, "failed"), (-9, "-9")])
def test_a_failed_pass_empties_its_slots_only(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch, code: int, words: str
) -> None:
    """The error says what llama_decode returned; sequences without a row in the batch go on."""
    runner.open(1, STORY, SamplingParams(temperature=0.0))
    runner.open(2, STORY, SamplingParams(temperature=0.0))
    try:
        for request, slot in ((1, 0), (2, 1)):
            runner.execute("short", [Row(request, slot, 0, STORY, True)])
        with monkeypatch.context() as patch:
            patch.setattr(runner.model.library, "decode", lambda context, batch: code)
            with pytest.raises(RunnerError, match=words):
                runner.execute("short", [Row(1, 0, len(STORY), [5], True)])
        assert runner.slot_positions("short", 0) == -1
        assert runner.slot_positions("short", 1) == len(STORY) - 1
        with pytest.raises(RunnerError, match="holds 0 cells"):
            runner.execute("short", [Row(1, 0, len(STORY), [5], True)])
        assert len(runner.execute("short", [Row(2, 1, len(STORY), [5], True)])) == 1
    finally:
        for slot in (0, 1):
            runner._contexts["short"].release(slot)


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["short", "long"])
def test_cells_that_are_not_numbers_die_with_their_request(runner: LlamaRunner, pool: str) -> None:
    """Forgotten cells are still multiplied, by zero: what is not a number would reach the next sequence of the slot."""

    def drawn(request: int, tokens: list[int], start: int = 0) -> Sampled:
        if not start:
            runner.open(request, tokens, SamplingParams(temperature=0.0))
        (sampled,) = runner.execute(pool, [Row(request, 0, start, tokens, True)])
        return sampled

    expected = drawn(1, STORY[:8]).token.token
    runner.apply(ReleaseSlot(pool, 0, 1))
    drawn(2, STORY * 3)
    context, n_cells = runner._contexts[pool], 3 * len(STORY)
    state = context.read_into(allocate(context.state_size(0, n_cells)), 0)
    values_bytes = n_cells * context.info.cell_bytes // (2 * 30)  # of the last of 30 layers
    state[-values_bytes:-64] = 0xFF  # 0xFFFF is none of f16's numbers; at the very end is how much the other slots hold: nothing
    context.release(0)
    context.write_state(0, state, n_cells)
    failed = drawn(2, [5], n_cells)
    assert "not numbers" in failed.failed
    runner.apply(ReleaseSlot(pool, 0, 2))
    try:
        after = drawn(3, STORY[:8])
        assert (after.failed, after.token.token) == ("", expected)
    finally:
        runner.apply(ReleaseSlot(pool, 0, 3))


@pytest.mark.slow
def test_rows_out_of_order_are_a_mistake(runner: LlamaRunner) -> None:
    """llama.cpp would split the batch; the planner never does this."""
    rows = [Row(1, 1, 0, [1], False), Row(2, 0, 0, [1], False)]
    with pytest.raises(AssertionError, match="ascending"):
        runner.execute("short", rows)


@pytest.mark.slow
def test_an_empty_sequence_moves_too(runner: LlamaRunner) -> None:
    """Nothing to carry; and a move onto a busy slot is a mistake."""
    runner.apply(MoveSlot("short", 0, 1, 7))
    assert runner.slot_positions("short", 1) == -1
    runner.execute("short", [Row(1, 2, 0, STORY, False)])
    with pytest.raises(AssertionError, match="not empty"):
        runner.apply(MoveSlot("short", 0, 2, 7))
    runner._contexts["short"].release(2)


def fail(*_: object) -> int:
    return 0


def no_memory(*_: object, **__: object) -> object:
    raise OSError(12, "Cannot allocate memory")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "operation", "words"),
    [
        ("state_seq_get_data", StoreSlot("short", 0, 2, 20), "slot 0 of pool short could not be read"),
        ("state_seq_get_data", MoveSlot("short", 0, 1, 1), "slot 0 of pool short could not be read"),
        ("state_seq_get_data", CopySlot("short", 0, 1, 20, 1), "slot 0 of pool short could not be read"),
        ("state_seq_set_data", MoveSlot("short", 0, 1, 1), "not be written to slot 1 of pool short"),
        ("state_seq_set_data", CopySlot("short", 0, 1, 9, 1), "not be written to slot 1 of pool short"),
        ("state_seq_set_data", LoadSlot("short", 1, 1, 9, 1), "not be written to slot 1 of pool short"),
        ("memory", StoreSlot("short", 0, 2, 20), "no memory for 4"),
        ("memory", MoveSlot("short", 0, 1, 1), "no memory for 5"),
        ("memory", CopySlot("short", 0, 1, 20, 1), "no memory for 5"),
    ],
    ids=str,
)
def test_a_state_that_cannot_be_carried(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch, broken: str, operation: KvOperation, words: str
) -> None:
    """One line that says what failed; no entry, an empty target, and of a move an empty source."""
    context = runner._contexts["short"]
    monkeypatch.setattr(context, "_state", np.empty(0, np.uint8))
    runner.execute("short", [Row(1, 0, 0, STORY, False)])
    stored = runner.apply(StoreSlot("short", 0, 1, len(STORY)))
    try:
        with monkeypatch.context() as patch:
            if broken == "memory":
                patch.setattr("poise.llama.binding.mapping.mmap.mmap", no_memory)
            else:
                patch.setattr(runner.model.library, broken, fail)
            with pytest.raises(RunnerError, match=words):
                runner.apply(operation)
        assert runner.stored_bytes == stored
        assert runner.slot_positions("short", 1) == -1
        assert runner.slot_positions("short", 0) == (-1 if isinstance(operation, MoveSlot) else len(STORY) - 1)
        runner.apply(LoadSlot("short", 1, 1, len(STORY), 1))
    finally:
        runner._store.clear()
        for slot in (0, 1):
            runner.apply(ReleaseSlot("short", slot, 1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("operation", "slot"),
    [(TrimSlot("short", 0, 5), 0), (LoadSlot("short", 1, 1, 5, 1), 1), (CopySlot("short", 0, 1, 5, 1), 1)],
    ids=str,
)
def test_a_memory_that_cannot_be_shortened(
    runner: LlamaRunner, monkeypatch: pytest.MonkeyPatch, operation: KvOperation, slot: int
) -> None:
    """Recurrent models refuse to forget a part of a sequence: then the whole is forgotten, and said so."""
    remove = runner.model.library.memory_seq_rm
    runner.execute("short", [Row(1, 0, 0, STORY, False)])
    runner.apply(StoreSlot("short", 0, 1, len(STORY)))
    monkeypatch.setattr(
        runner.model.library, "memory_seq_rm", lambda memory, slot, start, end: start < 0 and remove(memory, slot, start, end)
    )
    try:
        with pytest.raises(RunnerError, match=f"slot {slot} of pool short cannot be cut to 5 cells"):
            runner.apply(operation)
        assert runner.slot_positions("short", slot) == -1
    finally:
        runner._store.clear()
        for busy in (0, 1):
            runner.apply(ReleaseSlot("short", busy, 1))


@pytest.mark.slow
def test_shutting_down_overwrites_what_is_stored(model_path: Path) -> None:
    """Nothing of a tenant stays behind in freed memory."""
    runner = LlamaRunner(Model.load(model_path), [PoolSpec("short", 1, 64, True)], batch_tokens=32, threads=1)
    runner.execute("short", [Row(1, 0, 0, STORY, False)])
    runner.apply(StoreSlot("short", 0, 1, len(STORY)))
    memory = runner._store.get(1, "short", 1).state
    assert memory.any()
    runner.shutdown()
    runner.shutdown()
    assert not memory.any()
    assert runner.stored_bytes == 0


@pytest.mark.slow
def test_a_whole_slot_can_be_used(runner: LlamaRunner) -> None:
    """Up to the last cell, and not one more; a batch of the largest size is fine."""
    context = runner._contexts["short"]
    for start in range(0, 300, 60):
        context.compute([Row(1, 0, start, list(range(60)), False)])
    assert context.last_position(0) == 299
    with pytest.raises(RunnerError, match="no room"):
        context.compute([Row(1, 0, 300, [1], False)])
    context.release(0)


@pytest.mark.slow
def test_quantised_cells_need_flash_attention(model: Model) -> None:
    """llama.cpp refuses as well; said beforehand and clearly."""
    with pytest.raises(ModelError, match="KV cells of type q8_0 need flash attention in pool x"):
        PoolContext(model, PoolSpec("x", 1, 64, False), batch_tokens=32, threads=1, kv_type="q8_0")
    context = PoolContext(model, PoolSpec("x", 1, 64, True), batch_tokens=32, threads=1, kv_type="q8_0")
    (row,) = context.compute([Row(1, 0, 0, STORY, True)])
    assert int(row.argmax()) > 0
    context.close()
    context.close()


@pytest.mark.slow
def test_a_pool_that_cannot_be_built_frees_the_rest(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and the model is closed."""
    model = Model.load(model_path)
    monkeypatch.setattr(model.library, "init_from_model", lambda model, params: None)
    with pytest.raises(ModelError, match="pool short cannot be built"):
        LlamaRunner(model, [PoolSpec("short", 1, 64, True)])
    with pytest.raises(AssertionError, match="closed"):
        _ = model.pointer


@pytest.mark.slow
def test_a_prompt_is_scored_as_llama_cpp_evaluates_it_at_once(runner: LlamaRunner, model: Model) -> None:
    """In pieces of a few tokens, against one pass over the whole with all of its logits."""
    prompt = STORY * 3
    whole = PoolContext(model, PoolSpec("x", 1, 64, True), batch_tokens=64, threads=1, kv_type="f16", every_position=True)
    logits = np.stack(whole.compute_every(Row(1, 0, 0, prompt, True))).astype(np.float64)
    whole.close()
    expected = logits - np.log(np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    expected -= logits.max(axis=1, keepdims=True)
    runner.open(1, prompt, SamplingParams(n_prompt_logprobs=2))
    found = runner.score("short", Row(1, 0, 0, prompt[:-1], False), prompt[1:])
    runner.apply(ReleaseSlot("short", 0, 1))
    runner.close(1)
    assert found.start == 1
    assert found.logprobs == pytest.approx([expected[i, t] for i, t in enumerate(prompt[1:])], abs=0.1)
    assert [tokens[0].logprob for tokens in found.top] == pytest.approx(expected[:-1].max(axis=1).tolist(), abs=0.1)
    assert all(first.logprob >= second.logprob for first, second in found.top)
