"""Whether it fits, by purpose; and advice that, applied as it is printed, makes it fit."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from poise.config import ConfigError, LoadedSettings, Settings, load
from poise.config.settings import EngineSettings, PoolSettings, PoolsSettings
from poise.llama.files.gguf import ModelError, read_header
from poise.llama.files.memory import PoolSpec
from poise.llama.fitting.fit import (
    GATEWAY_BYTES,
    LONG_SLOTS_MAX,
    SLACK_BYTES,
    TEXT_WORKER_BYTES,
    Fit,
    bytes_of,
    check_fit,
    judge,
    largest,
    lay_out,
    pool_specs,
    settings_need,
    to_json,
    to_text,
)
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, write_gguf

MIB = 1 << 20
BIG_KEYS = {
    **TINY_KEYS,
    "llama.context_length": 32_768,
    "llama.embedding_length": 2048,
    "llama.block_count": 24,
    "llama.attention.head_count": 32,
    "llama.attention.head_count_kv": 8,
    "llama.feed_forward_length": 8192,
}
"""48 KiB for a cell of f16."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of hardly any weights whose header announces large cells."""
    return write_gguf(tmp_path_factory.mktemp("fit") / "big.gguf", gguf_bytes(BIG_KEYS))


def loaded(values: Mapping[str, object] | None = None) -> LoadedSettings:
    """With two long slots and half a GiB of store, unless it says otherwise."""
    return load(Path("/dev/null"), {}, {"pools.long.slots": 2, "store.budget_mb": 512, **(values or {})})


def applied(fit: Fit, values: Mapping[str, object]) -> LoadedSettings:
    """The settings with the advice as it is typed: text, over everything else."""
    words = fit.options.split()
    assert words[::2] == ["--set"] * (len(words) // 2)
    return loaded({**values, **dict(word.split("=") for word in words[1::2])})


def check(model: Path, values: Mapping[str, object], missing_mib: int, expected: str) -> None:
    """The advice when so much is missing; it makes it fit."""
    available = judge(loaded(values), model).need.total - missing_mib * MIB
    fit = judge(loaded(values), model, available=available)
    assert not fit.fits
    assert fit.options == expected
    assert judge(applied(fit, values), model, available=available).fits


def test_pools_follow_the_settings() -> None:
    """ "auto" is left open, to be measured; quantised cells leave nothing to measure."""
    pools = PoolsSettings(
        short=PoolSettings(slots=2, slot_tokens=512, flash_attention="on"),
        long=PoolSettings(slots=1, slot_tokens=1024, flash_attention="off"),
    )
    assert pool_specs(Settings(pools=pools)) == [PoolSpec("short", 2, 512, True), PoolSpec("long", 1, 1024, False)]
    assert [spec.flash_attention for spec in pool_specs(Settings())] == [None, None]
    quantised = Settings(engine=EngineSettings(kv_type="q8_0"))
    assert [spec.flash_attention for spec in pool_specs(quantised)] == [True, True]


@given(
    free_mib=st.integers(0, 40_000),
    share=st.floats(0, 1),
    slot_tokens=st.integers(4096, 32_768),
    heavy_max=st.integers(1, 10),
    short=st.sampled_from(["auto", 12]),
)
def test_long_slots_are_as_many_as_memory_pays_for(
    model: Path, free_mib: int, share: float, slot_tokens: int, heavy_max: int, short: str | int
) -> None:
    """Never fewer than may be computed at once, else within the share and all of the memory, and one more would not be."""
    values = {"pools.short.slots": short, "pools.long.slot_tokens": slot_tokens, "classes.interactive.heavy_max": heavy_max}
    settings = loaded({**values, "pools.long.slots": "auto", "engine.kv_memory_share": share}).settings
    header, available = read_header(model), free_mib * MIB
    layout = lay_out(header, settings, available)
    n_long = layout["pools.long.slots"]
    assert layout.keys() == ({"pools.short.slots", "pools.long.slots"} if short == "auto" else {"pools.long.slots"})
    assert layout.get("pools.short.slots", 12) == 12
    assert heavy_max <= n_long <= max(heavy_max, LONG_SLOTS_MAX)

    def is_paid(n: int) -> bool:
        need = settings_need(header, settings.with_layout(layout | {"pools.long.slots": n}))
        beside = available - need.weights - need.store - need.reserve
        return need.kv <= share * beside and need.total + SLACK_BYTES <= available

    assert n_long == heavy_max or is_paid(n_long)
    assert n_long >= LONG_SLOTS_MAX or not is_paid(n_long + 1)


@pytest.mark.parametrize(("free_mib", "store_mb"), [(1 << 20, 6144), (8192, 1808), (4000, 512), (1, 512)])
def test_the_host_store_has_twice_what_slots_hold_or_half_of_what_is_left(model: Path, free_mib: int, store_mb: int) -> None:
    settings = loaded({"store.budget_mb": "auto"}).settings
    header, available = read_header(model), free_mib * MIB
    layout = lay_out(header, settings, available)
    assert layout == {"store.budget_mb": store_mb}
    need = settings_need(header, settings.with_layout(layout))
    assert need.store == store_mb * MIB
    assert store_mb == 512 or need.store <= 2 * need.kv
    assert store_mb == 512 or need.total + SLACK_BYTES <= available


def test_given_slots_are_as_they_are(model: Path) -> None:
    """Whatever there is. And what was found is what is counted."""
    assert lay_out(read_header(model), loaded({"pools.long.slots": 3}).settings, 1 << 40) == {}
    fit = judge(loaded({"pools.long.slots": "auto"}), model, available=1 << 40)
    assert fit.layout == {"pools.long.slots": LONG_SLOTS_MAX}
    assert [pool.n_slots for pool in fit.need.pools] == [12, LONG_SLOTS_MAX]
    assert "8 slots of 8192 tokens" in to_text(fit)


def test_everything_is_counted(model: Path) -> None:
    """Weights, cells and buffers of each pool, the whole store, and what must stay free."""
    fit = judge(loaded({"store.budget_mb": 100, "engine.memory_reserve_mb": 50}), model, available=1 << 40)
    kv = {pool.name: pool.kv for pool in fit.need.pools}
    assert kv == {"short": 12 * 4096 * 49_152, "long": 2 * 8192 * 49_152}
    assert (fit.need.store, fit.need.reserve) == (100 * MIB, 50 * MIB)
    assert fit.need.total == fit.need.weights + sum(kv.values()) + fit.need.compute + 150 * MIB
    assert judge(loaded(), model, available=judge(loaded(), model).need.total).fits
    assert not judge(loaded(), model, available=judge(loaded(), model).need.total - 1).fits


@pytest.mark.parametrize(
    ("values", "missing_mib", "expected"),
    [
        ({}, 60, "--set store.budget_mb=384"),
        ({}, 400, "--set engine.batch_tokens=128"),
        ({}, 1500, "--set engine.kv_type=q8_0"),
        ({"store.budget_mb": 0}, 60, "--set pools.short.slots=11"),
        ({"engine.kv_type": "q8_0"}, 400, "--set store.budget_mb=48"),
        ({"engine.kv_type": "q8_0", "store.budget_mb": 0}, 400, "--set pools.short.slots=7"),
        ({}, 3000, "--set pools.short.slots=6 --set engine.kv_type=q8_0 --set store.budget_mb=320 --set engine.batch_tokens=256"),
    ],
)
def test_advice(model: Path, values: dict[str, object], missing_mib: int, expected: str) -> None:
    """The change that loses least, in steps that are worth typing; several where no single one does without harm."""
    check(model, values, missing_mib, expected)


@pytest.mark.parametrize(
    ("key", "value", "never"),
    [
        ("classes.interactive.slots_max", 12, "pools.short.slots"),
        ("pools.long.flash_attention", "off", "engine.kv_type"),
        ("scheduler.quantum_tokens", 512, "engine.batch_tokens"),
        ("classes.background.heavy_tokens", 4095, "slot_tokens"),
    ],
)
def test_advice_keeps_to_what_is_set(model: Path, key: str, value: object, never: str) -> None:
    """What poise would refuse is no advice."""
    values = {key: value}
    total = judge(loaded(values), model).need.total
    for missing_mib in range(100, 3500, 300):
        fit = judge(loaded(values), model, available=total - missing_mib * MIB)
        assert never not in fit.options


def test_heads_that_cannot_be_quantised(tmp_path: Path) -> None:
    """llama.cpp would refuse the cells, so they are not advised."""
    keys = {**BIG_KEYS, "llama.attention.key_length": 48, "llama.attention.value_length": 48}
    path = write_gguf(tmp_path / "odd.gguf", gguf_bytes(keys))
    fit = judge(loaded(), path, available=judge(loaded(), path).need.total - 1500 * MIB)
    assert fit.options
    assert "kv_type" not in fit.options


def test_nothing_helps(model: Path) -> None:
    """The weights and the reserve alone are too much: the rest of the settings cannot make up for it."""
    fit = judge(loaded(), model, available=400 * MIB)
    assert fit.advice is None
    assert fit.problem.endswith("use a smaller or more strongly quantised model or reserve less (engine.memory_reserve_mb)")
    assert judge(loaded(), model, available=1).advice is None


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    """Said before anything is reckoned."""
    with pytest.raises(ModelError, match="does not exist"):
        judge(loaded({"model.path": str(tmp_path / "no.gguf")}))


def test_what_is_printed(model: Path) -> None:
    """A table by purpose, what there is, and what to do."""
    enough = judge(loaded(), model, available=8000 * MIB)
    lines = to_text(enough).splitlines()
    assert lines[0] == f"{model}, profile workstation"
    assert "  KV cells, long pool      768 MiB  2 slots of 8192 tokens, f16" in lines
    assert "  together               5,023 MiB" in lines
    assert lines[-1] == "It fits, with 2,977 MiB to spare."
    assert "8,000 MiB is available to poise" in lines[-2]
    short = judge(loaded(), model, available=4963 * MIB)
    assert to_text(short).splitlines()[-1] == (
        "It does not fit: 60 MiB too much; the least that makes it fit: --set store.budget_mb=384"
    )
    assert short.problem == (
        "needs 5,023 MiB of memory (weights 0 MiB, KV cells 3,072 MiB, computing 927 MiB, host store 512 MiB,"
        " to stay free 512 MiB), and 4,963 MiB is available; the least that makes it fit: --set store.budget_mb=384"
    )


def test_what_is_printed_for_programs(model: Path) -> None:
    """Bytes, which add up."""
    document = json.loads(to_json(judge(loaded(), model, available=4963 * MIB)))
    need = document["need_bytes"]
    assert document["advice"] == {"store.budget_mb": 384}
    assert (document["fits"], document["available_bytes"]) == (False, 4963 * MIB)
    parts = [need["weights"], *need["kv"].values(), *need["compute"].values(), need["store"], need["reserve"]]
    assert sum(parts) == need["total"]
    assert judge(loaded(), model, available=1 << 40).advice is None


def test_the_engine_refuses_as_well(model: Path) -> None:
    """Memory that is gone since the gateway looked."""
    total = judge(loaded(), model).need.total
    check_fit(model, Settings(), available=total)
    with pytest.raises(ModelError, match="`poise fit` says what to change"):
        check_fit(model, Settings(), available=total - 1)


SIZES = st.fixed_dictionaries(
    {},
    optional={
        "pools.short.slots": st.integers(1, 256),
        "pools.short.slot_tokens": st.integers(64, 100_000),
        "pools.long.slots": st.integers(1, 256),
        "pools.long.slot_tokens": st.integers(64, 100_000),
        "classes.interactive.slots_max": st.integers(1, 64),
        "classes.background.heavy_tokens": st.integers(16, 4096),
        "store.budget_mb": st.integers(0, 20_000),
        "engine.batch_tokens": st.integers(32, 8192),
        "engine.memory_reserve_mb": st.integers(0, 2000),
        "engine.kv_type": st.sampled_from(["f16", "q8_0", "q4_0"]),
        "pools.long.flash_attention": st.sampled_from(["auto", "on", "off"]),
        "profile": st.sampled_from(["workstation", "team", "edge"]),
    },
)


@examples(max_examples=20)
@given(values=SIZES, share=st.floats(0.02, 0.999))
def test_advice_that_is_followed_makes_it_fit(values: dict[str, object], share: float, model: Path) -> None:
    """Whatever the sizes and whatever is missing: the settings load, they fit, and no part of the advice is idle."""
    try:
        before = loaded(values)
    except ConfigError:
        assume(False)
    available = int(judge(before, model).need.total * share)
    fit = judge(before, model, available=available)
    if fit.advice is None:
        assert not fit.fits
        return
    after = applied(fit, values)
    assert judge(after, model, available=available).fits
    assert after.settings == before.varied(fit.advice).settings
    for key in fit.advice if len(fit.advice) > 1 else ():
        fewer = {other: value for other, value in fit.advice.items() if other != key}
        try:
            settings = before.varied(fewer).settings
        except ConfigError:
            continue  # it makes room for another change
        assert settings_need(read_header(model), settings).total > available - SLACK_BYTES


@examples(max_examples=15)
@given(values=SIZES)
def test_what_helps_at_all_is_found(values: dict[str, object], model: Path) -> None:
    """With everything turned down as far as it goes it fits; so there is advice for that much memory."""
    least = {
        "store.budget_mb": 0,
        "engine.batch_tokens": 256,
        "pools.short.slots": 1,
        "pools.long.slots": 1,
        "pools.short.slot_tokens": 256,
        "pools.long.slot_tokens": 256,
    }
    try:
        before, smallest = loaded(values), loaded(values).varied(least)
    except ConfigError:
        assume(False)
    header = read_header(model)
    available = settings_need(header, smallest.settings).total
    fit = judge(before, model, available=available)
    assert fit.fits or fit.advice is not None


def test_the_largest_model_that_fits_an_amount_of_memory(tmp_path: Path) -> None:
    """Of the files beside the one that is set, all processes counted; where none fits, what would have to be given up."""
    big = write_gguf(tmp_path / "big.gguf", gguf_bytes(BIG_KEYS))
    small = write_gguf(tmp_path / "small.gguf", gguf_bytes(TINY_KEYS))
    (tmp_path / "torn.gguf").write_bytes(big.read_bytes()[:100])
    settings = loaded({"model.path": str(small)})
    others = GATEWAY_BYTES + settings.settings.text.workers * TEXT_WORKER_BYTES
    enough = judge(settings, big, available=1 << 40).need.total + others
    found = largest(settings, enough)
    assert (found.path, found.fits, found.host) == (big, True, enough)
    assert "big.gguf, 12 x 4096 tokens and 2 x 8192 tokens" in to_text(found)
    assert largest(settings, enough - 1).path == small
    none = largest(settings, others + judge(settings, small, available=1 << 40).need.total - 60 * MIB)
    assert not none.fits
    assert none.advice is not None
    with pytest.raises(ModelError):
        largest(loaded({"model.path": str(tmp_path / "elsewhere" / "none.gguf")}), enough)


@pytest.mark.parametrize(
    ("text", "n_bytes"), [("2G", 2 << 30), ("1536m", 1536 << 20), (" 1.5 GiB", 3 << 29), ("100MB", 100 << 20)]
)
def test_amounts_of_memory(text: str, n_bytes: int) -> None:
    """As people write them; other words are refused with the value."""
    assert bytes_of(text) == n_bytes
    with pytest.raises(ValueError, match="no amount of memory"):
        bytes_of(text + "x")
