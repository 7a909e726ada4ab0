"""The real runner beyond the contract: failures inside llama.cpp, settings, books."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from poise.engine.ports import Row, RunnerError
from poise.llama.context import PoolContext, usable_threads
from poise.llama.memory import PoolSpec
from poise.llama.model import Model, ModelError
from poise.llama.runner import LlamaRunner
from poise.scheduler.plan import DropEntry, MoveSlot, StoreSlot
from poise.wire.messages import SamplingParams

STORY = [6403, 1980, 253, 655, 665, 436, 253, 1838, 8180, 617, 4161, 281, 253, 6560, 2141, 260, 3150, 30, 1963, 1194]


@pytest.fixture(scope="module")
def runner(model_path: Path) -> Iterator[LlamaRunner]:
    pools = [PoolSpec("short", 3, 300, True), PoolSpec("long", 2, 100_000, False)]
    with LlamaRunner(Model.load(model_path, vocab_only=False), pools, batch_tokens=64) as built:
        yield built


@pytest.mark.slow
def test_pools_are_built_as_reported(runner: LlamaRunner) -> None:
    """Slots are cut to the trained context; memory counts the cells that llama.cpp rounds up to."""
    short, long = runner.pools
    assert (short.n_slots, short.slot_cells, short.flash_attention) == (3, 300, True)
    assert short.kv_bytes == 3 * 512 * 23_040
    assert (long.n_slots, long.slot_cells, long.flash_attention) == (2, 8192, False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "words"), [(1, "no room"), (2, "aborted"), (-1, "invalid"), (-3, "failed"), (-9, "-9")]
)
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


@pytest.mark.slow
def test_what_was_stored_is_overwritten_when_it_goes(runner: LlamaRunner) -> None:
    """Dropped one by one, or all at shutdown: whoever gets the memory next finds nothing of a conversation in it."""
    for slot in (0, 1):
        runner.execute("short", [Row(1 + slot, slot, 0, STORY, False)])
        runner.apply(StoreSlot("short", slot, 5 + slot, len(STORY)))
    first, second = (runner._store._states[entry].data for entry in (5, 6))
    try:
        assert first.any()
        assert second.any()
        runner.apply(DropEntry(5))
        assert not first.any()
        assert second.any()
        runner._store.clear()
        assert not second.any()
        assert runner.stored_bytes == 0
    finally:
        for slot in (0, 1):
            runner._contexts["short"].release(slot)


@pytest.mark.slow
def test_an_entry_takes_about_what_the_pool_says_of_a_cell(runner: LlamaRunner) -> None:
    """The scheduler admits entries by that figure; positions and headers come on top, a fraction of a percent."""
    runner.execute("short", [Row(1, 0, 0, STORY, False)])
    try:
        n_bytes = runner.apply(StoreSlot("short", 0, 5, len(STORY)))
        predicted = len(STORY) * runner.pools[0].cell_bytes
        assert predicted < n_bytes < 1.01 * predicted
        runner.apply(DropEntry(5))
    finally:
        runner._contexts["short"].release(0)


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


@pytest.mark.parametrize(
    ("quota", "expected"), [("50000 100000", 1), ("max 100000", None), ("", None), ("100000000 100000", None)]
)
def test_threads_respect_the_quota(tmp_path: Path, quota: str, expected: int | None) -> None:
    """A container with half a core gets one thread; without a quota, every core it may use."""
    path = tmp_path / "cpu.max"
    path.write_text(quota)
    assert usable_threads(path) == (expected or usable_threads(tmp_path / "missing"))
