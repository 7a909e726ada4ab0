"""From settings to a runner that is ready."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.config import EngineSettings, PoolSettings, PoolsSettings, Settings
from poise.llama.gguf import ModelError
from poise.llama.load import check_fit, load_runner, pool_specs
from poise.llama.memory import PoolSpec
from tests.llama.gguf_files import write_gguf

SMALL = Settings(
    pools=PoolsSettings(
        short=PoolSettings(slots=2, slot_tokens=512, flash_attention="on"),
        long=PoolSettings(slots=1, slot_tokens=1024, flash_attention="off"),
    )
)


def test_pools_follow_the_settings() -> None:
    """ "auto" is left open, to be measured."""
    assert pool_specs(SMALL) == [PoolSpec("short", 2, 512, True), PoolSpec("long", 1, 1024, False)]
    assert [spec.flash_attention for spec in pool_specs(Settings())] == [None, None]


def test_what_does_not_fit_is_refused_before_loading(tmp_path: Path) -> None:
    """The header is enough to know."""
    path = write_gguf(tmp_path / "tiny.gguf")
    check_fit(path, SMALL)
    greedy = SMALL.model_copy(update={"engine": EngineSettings(memory_reserve_mb=1 << 20)})
    with pytest.raises(ModelError, match=r"needs .* of memory"):
        check_fit(path, greedy)


@pytest.mark.slow
def test_a_runner_is_loaded_with_its_measurements(
    model_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
