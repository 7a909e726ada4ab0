"""From settings to a runner that is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.config import Settings
from poise.config.settings import EngineSettings, ModelSettings, PoolSettings, PoolsSettings
from poise.llama.files.gguf import ModelError
from poise.llama.running.load import load_runner
from tests.llama.gguf_files import write_gguf

SMALL = Settings(
    engine=EngineSettings(threads=1),
    model=ModelSettings(weights="as-is"),
    pools=PoolsSettings(
        short=PoolSettings(slots=2, slot_tokens=512, flash_attention="on"),
        long=PoolSettings(slots=1, slot_tokens=1024, flash_attention="off"),
    ),
)


def test_what_does_not_fit_is_refused_before_loading(tmp_path: Path) -> None:
    """The header is enough to know; the file behind it is no model."""
    path = write_gguf(tmp_path / "tiny.gguf")
    greedy = SMALL.model_copy(update={"engine": EngineSettings(memory_reserve_mb=1 << 20)})
    with pytest.raises(ModelError, match=r"needs .* of memory and .* is available; `poise fit` says what to change"):
        load_runner(path, greedy, lambda done, stage: None)


@pytest.mark.slow
def test_a_runner_is_loaded_with_its_measurements(model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress from 0 to 1, pools as asked for, a first guess for the scheduler."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    seen: list[float] = []
    loaded = load_runner(model_path, SMALL, lambda done, stage: seen.append(done))
    with loaded.runner as runner:
        assert seen == sorted(seen)
        assert seen[-1] == 1.0
        assert [pool.slot_cells for pool in runner.pools] == [512, 1024]
        assert loaded.ready.pools == list(runner.pools)
        assert loaded.ready.n_vocab == 49_152
        assert set(loaded.priors) == set(loaded.chunk_tokens) == {"short", "long"}
    assert list(tmp_path.rglob("measurements.json")), "the measurement is remembered"


@pytest.mark.slow
def test_an_engine_in_the_place_of_another_measures_nothing(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Streams wait for it: the weights are those of before, and flash attention is what is usual."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    pools = PoolsSettings(short=PoolSettings(slots=2, slot_tokens=512), long=PoolSettings(slots=1, slot_tokens=1024))
    settings = Settings(pools=pools)
    loaded = load_runner(model_path, settings, lambda done, stage: None, "as-is")
    with loaded.runner as runner:
        assert [pool.flash_attention for pool in runner.pools] == [True, False]
        assert loaded.ready.weights == "as-is"
    assert not list(tmp_path.rglob("*.json")), "nothing was measured, and nothing is remembered"
