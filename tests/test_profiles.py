"""Profiles: complete, consistent, explained, and weaker than everything that is set."""

from __future__ import annotations

import tomllib
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from poise.cli import EXAMPLES
from poise.config import ConfigError, Settings, load
from poise.config.catalogue import catalogue
from poise.config.loader import flatten
from poise.llama.fitting.fit import LONG_SLOTS_MAX

PROFILES = [str(choice) for choice in catalogue()["profile"].choices]
COMPLETE = ("pools.", "store.", "classes.", "tenant_defaults.")
"""What every profile decides, setting by setting."""


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


def text(profile: str) -> str:
    return (files("poise.config") / "profiles" / f"{profile}.toml").read_text()


def values(profile: str) -> dict[str, Any]:
    return dict(flatten(tomllib.loads(text(profile))))


def test_the_files_are_the_choices() -> None:
    """Each choice has its file in the package, each file is a choice, and the help lists them."""
    found = [path.name for path in (files("poise.config") / "profiles").iterdir()]
    assert sorted(found) == sorted(f"{profile}.toml" for profile in PROFILES)
    assert all(f"\n  {profile} " in EXAMPLES for profile in PROFILES)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_complete_and_fits_together(profile: str) -> None:
    """It decides everything it is for, all of them decide the same settings, and nothing in it has to give way."""
    given = values(profile)
    assert list(given) == list(values(PROFILES[0]))
    assert not {key for key in catalogue() if key.startswith(COMPLETE)} - given.keys()
    loaded = load(None, {}, {"profile": profile})
    assert {key for key, origin in loaded.origins.items() if origin == f"profile {profile}"} == given.keys()
    assert dict(flatten(loaded.settings.model_dump())).items() >= given.items()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_says_why(profile: str) -> None:
    """Each choice has its reason beside it."""
    for line in text(profile).splitlines():
        if " = " in line.partition("#")[0]:
            assert len(line.partition("#")[2].split()) >= 2, line


def test_the_workstation_is_the_default() -> None:
    """A server without a profile and one with this behave the same."""
    assert load(None, {}, {"profile": "workstation"}).settings == load(None, {}, {}).settings == Settings()


@pytest.mark.parametrize("profile", PROFILES)
def test_quantised_cells_only_with_flash_attention(profile: str) -> None:
    """They need it: no pool may be left to a measurement that cannot choose."""
    given = values(profile)
    if given["engine.kv_type"] != "f16":
        assert {given[f"pools.{pool}.flash_attention"] for pool in ("short", "long")} == {"on"}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_full_queue_answers_and_not_the_connection_limit(profile: str) -> None:
    """Everything that may wait and run can be connected."""
    given = values(profile)
    waiting = sum(given[f"classes.{name}.queue_max"] for name in ("interactive", "background"))
    slots = [given[f"pools.{name}.slots"] for name in ("short", "long")]
    running = sum(LONG_SLOTS_MAX if n == "auto" else n for n in slots)
    assert waiting + running < given["server.max_connections"]


def test_everything_that_is_set_goes_before_a_profile() -> None:
    """File, environment, command line; the last one to name a profile decides which."""
    Path("poise.toml").write_text('profile = "edge"\n[pools.long]\nslots = 2')
    loaded = load(None, {"POISE_PROFILE": "team", "POISE_STORE__BUDGET_MB": "7"}, {"engine.batch_tokens": 64})
    settings, origins = loaded.settings, loaded.origins
    assert (settings.profile, origins["profile"]) == ("team", "environment POISE_PROFILE")
    assert (settings.pools.short.slots, origins["pools.short.slots"]) == (16, "profile team")
    assert (settings.pools.long.slots, settings.store.budget_mb, settings.engine.batch_tokens) == (2, 7, 64)
    assert load(None, {"POISE_PROFILE": "team"}, {"profile": "edge"}).settings.profile == "edge"


def test_a_profile_gives_way_like_a_default() -> None:
    """What is set never clashes with what a profile proposes; its limits grow where they mean all there is."""
    few = load(None, {}, {"profile": "team", "pools.short.slots": 3, "pools.long.slots": 1})
    assert few.origins["classes.background.slots_max"] == "profile team, limited by pools.short.slots"
    assert few.settings.classes.interactive.heavy_max == 1
    many = load(None, {}, {"profile": "edge", "pools.short.slots": 9})
    assert many.settings.classes.interactive.slots_max == 9
    assert many.origins["classes.interactive.slots_max"] == "profile edge, raised to pools.short.slots"


def test_memory_is_not_taken_behind_the_operators_back() -> None:
    """A profile's capacity is not enlarged, and its type of cells is not changed, to make room for what is set."""
    cases = {
        "classes.background.slots_max": (5, "must be at most pools.short.slots = 4 (profile edge)"),
        "pools.long.flash_attention": ("off", 'must be "auto" or "on" with engine.kv_type = "q8_0" (profile edge)'),
    }
    for key, (value, problem) in cases.items():
        with pytest.raises(ConfigError, match=f"{key}.*{problem}".replace("(", r"\(").replace(")", r"\)")):
            load(None, {}, {"profile": "edge", key: value})


def test_no_conclusion_from_an_unknown_profile() -> None:
    """14 slots may fit the profile that was meant."""
    with pytest.raises(ConfigError) as caught:
        load(None, {}, {"profile": "taem", "classes.interactive.slots_max": 14})
    problem = '--profile: profile = "taem": must be one of "workstation", "team", "edge", "hybrid"'
    assert caught.value.problems == (problem,)
