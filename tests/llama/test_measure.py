"""Choosing flash attention and chunks: the decisions on given times, the cache, and one real measurement."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poise.llama.binding.model import Model
from poise.llama.choosing import measure
from poise.llama.choosing.measure import Pass, PoolChoice, choose, typical_passes
from poise.llama.files.memory import PoolSpec
from poise.scheduler.planning.budget import CostModel
from poise.scheduler.policy import CostPrior

SHORT, LONG = PoolSpec("short", 10, 4096), PoolSpec("long", 2, 8192)
CHOICE = PoolChoice(True, 16, CostPrior(1.0, 2.0, 3.0, 4.0))

# As measured on a 2-core CPU: flash attention on, off.
SHORT_US = {"first": (7900, 8900), "chunk": (58500, 62300), "one": (8100, 8700), "rows": (39700, 41700), "near": (63100, 62700)}
LONG_US = {
    "first": (8700, 9100),
    "chunk": (58500, 62300),
    "one": (16500, 14400),
    "far": (166800, 96900),
    "large": (407600, 318800),
}


def probing(pool: PoolSpec, gpu_layers: int = 0) -> Any:
    model: Any = SimpleNamespace(gpu_layers=gpu_layers)
    return measure._Probing(model, pool, "f16", 2, typical_passes(pool, 512))


def times(pool: PoolSpec, microseconds: dict[str, tuple[int, int]]) -> dict[bool, dict[Pass, float]]:
    passes = typical_passes(pool, 512)
    on, off = zip(*microseconds.values(), strict=True)
    return {True: dict(zip(passes, map(float, on), strict=False)), False: dict(zip(passes, map(float, off), strict=False))}


def test_each_pool_gets_what_is_faster_for_it() -> None:
    """On for the short pool, off for the long one, as measured here; and the reverse where it is the reverse."""
    assert probing(SHORT)._faster(times(SHORT, SHORT_US)) is True
    assert probing(LONG)._faster(times(LONG, LONG_US)) is False
    swapped = {name: (off, on) for name, (on, off) in LONG_US.items()}
    assert probing(LONG)._faster(times(LONG, swapped)) is True


def test_a_spell_of_slow_memory_does_not_overrule_what_is_usual() -> None:
    """As measured while a neighbour was busy, with flash attention off suffering more; a clear difference still decides."""
    spell = {
        "first": (7400, 8900),
        "chunk": (36500, 46000),
        "one": (14300, 16100),
        "far": (136900, 99300),
        "large": (273400, 305100),
    }
    assert probing(LONG)._faster(times(LONG, spell)) is False
    assert probing(LONG, gpu_layers=99)._faster(times(LONG, spell)) is True
    slower = {name: (us, round(us * 1.1)) for name, (us, _) in SHORT_US.items()}
    assert probing(LONG)._faster(times(LONG, slower)) is False
    clear = {name: (us, round(us * 1.2)) for name, (us, _) in SHORT_US.items()}
    assert probing(LONG)._faster(times(LONG, clear)) is True


def test_the_large_chunk_counts_where_it_makes_a_mode_fast() -> None:
    """A mode that is fast in large chunks only wins if that way is the fastest; its chunk is then reported."""
    fast_large = LONG_US | {"large": (150_000, 318_800)}
    assert probing(LONG)._faster(times(LONG, fast_large)) is True
    assert measure._chunk_tokens(times(LONG, fast_large)[True]) == 64


def test_a_chunk_must_be_clearly_cheaper() -> None:
    """More than 15 percent a token; pools where it was not measured keep the quantum."""
    for large, expected in ((4 * 96_900, 16), (round(3.45 * 96_900), 16), (round(3.3 * 96_900), 64)):
        assert measure._chunk_tokens(times(LONG, LONG_US | {"large": (1, large)})[False]) == expected
    assert measure._chunk_tokens(times(SHORT, SHORT_US)[True]) == 16


@pytest.mark.parametrize(("pool", "gpu_layers", "expected"), [(SHORT, 0, True), (LONG, 0, False), (LONG, 99, True)])
def test_without_measurements_the_rule_of_thumb_decides(pool: PoolSpec, gpu_layers: int, expected: bool) -> None:
    """On for short contexts and on GPUs."""
    first = typical_passes(pool, 512)[0]
    assert probing(pool, gpu_layers)._faster({True: {first: 9.0}, False: {first: 1.0}}) is expected


@pytest.mark.parametrize(("pool", "microseconds"), [(SHORT, SHORT_US), (LONG, LONG_US)])
def test_the_prior_predicts_what_was_measured(pool: PoolSpec, microseconds: dict[str, tuple[int, int]]) -> None:
    """Within 40 percent for every pass: good enough until the scheduler has measured for itself."""
    for measured in times(pool, microseconds).values():
        model = CostModel(measure._fit(measured))
        for timed, us in measured.items():
            assert model.predict_us(timed.shape) == pytest.approx(us, rel=0.4), timed


def test_a_single_timed_token_gives_a_usable_prior() -> None:
    """On a very slow model nothing else is measured."""
    prior = measure._fit({Pass(1, 1, 0): 300_000.0})
    assert prior.fixed_us + prior.decode_us == pytest.approx(300_000, rel=0.05)
    assert prior.prompt_us > 50_000


@pytest.mark.parametrize("pool", [PoolSpec("short", 1, 64), PoolSpec("long", 1, 64), PoolSpec("long", 1, 700), SHORT, LONG])
def test_passes_fit_their_pool(pool: PoolSpec) -> None:
    """Small pools are measured at positions that they have."""
    for batch_tokens in (32, 512):
        passes = typical_passes(pool, batch_tokens)
        assert max(timed.depth for timed in passes) <= max(measure.QUANTUM, pool.slot_cells // 2)
        assert max(timed.n_tokens for timed in passes) <= max(measure.QUANTUM, batch_tokens)
        assert len(set(passes)) == len(passes)


@pytest.fixture
def fake_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A model that is never computed with: every measurement gives CHOICE, and they are counted."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"weights")
    model = SimpleNamespace(
        path=path,
        header=SimpleNamespace(file_bytes=7),
        context_train=0,
        gpu_layers=0,
        library=SimpleNamespace(version=lambda: b"1"),
        measured=0,
    )

    def count(self: object, deadline: float) -> PoolChoice:
        model.measured += 1
        return CHOICE

    monkeypatch.setattr(measure._Probing, "choose", count)
    monkeypatch.setattr(metadata, "version", lambda name: "1")
    return model


def test_a_measurement_is_made_once(fake_model: Any, tmp_path: Path) -> None:
    """The cache answers until the model, the pools or the host differ."""
    cache = tmp_path / "cache" / "measurements.json"
    seen: list[float] = []
    for _ in range(3):
        assert choose(fake_model, [SHORT, LONG], cache_file=cache, progress=seen.append) == {"short": CHOICE, "long": CHOICE}
    assert fake_model.measured == 2
    assert seen == [0.0, 0.5, 1.0]
    choose(fake_model, [SHORT, LONG], cache_file=cache, threads=1)
    choose(fake_model, [SHORT, LONG], cache_file=cache, kv_type="q8_0")
    choose(fake_model, [PoolSpec("short", 11, 4096), LONG], cache_file=cache)
    fake_model.path.write_bytes(b"others.")
    choose(fake_model, [SHORT, LONG], cache_file=cache)
    assert fake_model.measured == 10
    assert len(json.loads(cache.read_text())) == 5


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "entry: 3", "entry: {}", 'entry: {"short": {"flash_attention": 1}}'])
def test_a_damaged_cache_is_measured_again(fake_model: Any, tmp_path: Path, damage: str) -> None:
    """And replaced by a whole one."""
    cache = tmp_path / "measurements.json"
    choose(fake_model, [SHORT], cache_file=cache)
    (key,) = json.loads(cache.read_text())
    cache.write_text(f'{{"{key}": {damage[7:]}}}' if damage.startswith("entry: ") else damage)
    for _ in range(2):
        assert choose(fake_model, [SHORT], cache_file=cache) == {"short": CHOICE}
    assert fake_model.measured == 2


@pytest.mark.slow
def test_a_real_measurement(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both pools; the answer comes from the cache the second time; a fixed setting stays."""
    pools = [PoolSpec("short", 2, 256, False), PoolSpec("long", 1, 1024)]
    cache = tmp_path / "measurements.json"
    choices = choose(model, pools, threads=1, cache_file=cache, limit_s=20)
    assert choices["short"].flash_attention is False
    assert choices["long"].chunk_tokens in (16, 64)
    for choice in choices.values():
        assert choice.prior.decode_us > 0
        assert choice.prior.prompt_us > 0
    monkeypatch.setattr(measure, "_Probing", None)  # nothing can be measured any more
    assert choose(model, pools, threads=1, cache_file=cache) == choices


@pytest.mark.slow
def test_no_time_to_measure(model: Model, tmp_path: Path) -> None:
    """With the limit used up at once, the rule of thumb and a prior from a few tokens; quantised cells force it on."""
    choices = choose(model, [SHORT, LONG], cache_file=tmp_path / "a.json", limit_s=0)
    assert [choice.flash_attention for choice in choices.values()] == [True, False]
    forced = choose(model, [LONG], kv_type="q8_0", cache_file=tmp_path / "b.json", limit_s=0)
    assert forced["long"].flash_attention is True
