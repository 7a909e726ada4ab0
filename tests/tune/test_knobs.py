"""Which candidates there are: real settings, other values than those in force, and only what fits together."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise.config import LoadedSettings, load
from poise.config.catalogue import catalogue
from poise_lab.tune.knobs import knobs, pools_of, selected, stage_of

DOCUMENT = (Path(__file__).parent.parent.parent / "docs" / "tuning.md").read_text()


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


def loaded(**changes: object) -> LoadedSettings:
    return load(None, {}, {key.replace("__", "."): value for key, value in changes.items()})


@pytest.mark.parametrize("profile", ["workstation", "team", "edge"])
@pytest.mark.parametrize("n_cores", [1, 2, 7, 64])
def test_every_candidate_is_a_value_that_loads(profile: str, n_cores: int) -> None:
    """And it is not the one in force."""
    before = loaded(profile=profile)
    found = knobs(before, n_cores)
    assert found
    for knob in found:
        assert knob.key in catalogue()
        assert stage_of(knob.key) == knob.stage
        assert knob.pools == pools_of(knob.key)
        assert knob.current not in knob.candidates
        for value in knob.candidates:
            assert before.varied({knob.key: value}).settings != before.settings


def test_the_order_and_the_candidates_of_a_host() -> None:
    """Engine before policy; threads below the cores; what does not fit the other settings is left out."""
    found = {knob.key: knob for knob in knobs(loaded(), 8)}
    assert [knob.stage for knob in found.values()] == sorted(knob.stage for knob in found.values())
    assert next(iter(found)) == "model.weights"
    assert found["engine.threads"].candidates == (7, 4)
    assert found["scheduler.fill_share"].candidates == (0.4, 0.8)
    assert found["pools.short.slots"].candidates == (8, 16)
    small = {knob.key: knob for knob in knobs(loaded(pools__short__slot_tokens=1100), 1)}
    assert small["classes.background.heavy_tokens"].candidates == (512,)
    assert "engine.threads" not in small


def test_selection() -> None:
    """By stage and by name; a name of nothing is one line."""
    found = knobs(loaded(), 4)
    assert {knob.stage for knob in selected(found, "engine", [])} == {"engine"}
    assert [knob.key for knob in selected(found, "all", ["scheduler.turn_ms"])] == ["scheduler.turn_ms"]
    assert selected(found, "engine", ["scheduler.turn_ms"]) == []
    with pytest.raises(ValueError, match=r"--knob scheduler\.turns: nothing to try; there are model\.weights, "):
        selected(found, "all", ["scheduler.turns"])


def test_the_document_has_every_knob() -> None:
    """docs/tuning.md lists what is tried, by its stage."""
    for knob in knobs(loaded(), 8):
        key = "pools.*.flash_attention" if knob.key.endswith("flash_attention") else knob.key
        assert f"`{key}`" in DOCUMENT, key
