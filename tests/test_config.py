"""Loading: precedence, origins, defaults that give way, the scheduler's policy, and the documentation of every setting."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.config import ConfigError, LoadedSettings, Settings, load, to_policy
from poise.config.catalogue import Setting, catalogue, quoted, section_keys
from poise.config.document import to_toml
from poise.config.sources import OTHER_VARIABLES
from poise.scheduler.policy import ClassPolicy, CostPrior, PoolPolicy
from poise.scheduler.request import RequestClass

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"


@pytest.fixture(autouse=True, scope="module")
def nowhere(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A current directory and a home without any configuration file."""
    directory = tmp_path_factory.mktemp("nowhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("XDG_CONFIG_HOME", str(directory / "user"))
        yield directory


def value(loaded: LoadedSettings, key: str) -> Any:
    found: Any = loaded.settings.model_dump()
    for part in key.split("."):
        found = found[part]
    return found


def check(
    expected: dict[str, tuple[object, str]],
    *,
    toml: str = "",
    environment: dict[str, str] | None = None,
    options: dict[str, object] | None = None,
) -> None:
    """The named keys have these values and origins, and every other key has its default."""
    Path("given.toml").write_text(toml)
    loaded = load(Path("given.toml"), environment or {}, options or {})
    assert {key: (value(loaded, key), loaded.origins[key]) for key in expected} == expected
    untouched = {key for key, origin in loaded.origins.items() if origin == "default"}
    assert untouched == set(loaded.origins) - expected.keys()
    for key in untouched:
        assert value(loaded, key) == catalogue()[key].default, key


def test_defaults() -> None:
    """Nothing given, nothing changed: the models' defaults fit together as they are."""
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.origins.keys() == catalogue().keys()


def test_later_sources_win() -> None:
    """Defaults < file < environment < command line, setting by setting."""
    file = f"file {Path('given.toml').absolute()}"
    check(
        {
            "server.host": ("a", file),
            "server.port": (2, "environment POISE_SERVER__PORT"),
            "engine.threads": (3, "command line --threads"),
            "engine.batch_tokens": (300, "command line --set engine.batch_tokens"),
        },
        toml='server = {host = "a", port = 1}\n[engine]\nthreads = 1\nbatch_tokens = 100',
        environment={"POISE_SERVER__PORT": "2", "POISE_ENGINE__THREADS": "2", "POISE_ENGINE__BATCH_TOKENS": "200"},
        options={"engine.threads": "3", "engine.batch_tokens": 300, "server.host": None},
    )


def test_sections_merge_deep() -> None:
    """One key of a nested section leaves its siblings at the defaults of that very section."""
    origin = f"file {Path('given.toml').absolute()}"
    check({"classes.background.queue_max": (5, origin)}, toml="[classes.background]\nqueue_max = 5")


def test_tenants_merge_across_sources() -> None:
    """API keys add up; the same tenant in a later source is replaced."""
    Path("given.toml").write_text('[auth.keys]\nalice = "sk-a"\nbob = "sk-b"')
    environment = {"POISE_AUTH__KEYS__BOB": "123", "POISE_AUTH__KEYS__TEAM__RED": "sk-t"}
    loaded = load(Path("given.toml"), environment, {"auth.keys.carol": "sk-c"})
    assert loaded.settings.auth.keys == {"alice": "sk-a", "bob": "123", "team__red": "sk-t", "carol": "sk-c"}
    assert loaded.origins["auth.keys.bob"] == "environment POISE_AUTH__KEYS__BOB"
    assert loaded.origins["auth.keys.carol"] == "command line --set auth.keys.carol"
    assert "auth.keys" not in loaded.origins


@pytest.mark.parametrize(
    ("key", "text", "expected"),
    [
        ("server.port", "8001", 8001),
        ("server.port", " 8_001 ", 8001),
        ("server.body_timeout_s", "2.5", 2.5),
        ("server.body_timeout_s", "3", 3.0),
        ("server.host", "8000", "8000"),
        ("server.host", "", ""),
        ("engine.kv_type", "q8_0", "q8_0"),
        ("pools.short.flash_attention", "off", "off"),
        ("auth.admin_key", "true", "true"),
    ],
)
def test_text_is_read_by_the_type_of_the_setting(key: str, text: str, expected: object) -> None:
    """The environment and the command line hold texts; the setting decides what they mean."""
    variable = catalogue()[key].variable
    check({key: (expected, f"environment {variable}")}, environment={variable: text})
    by_option = load(None, {}, {key: text})
    assert (value(by_option, key), type(value(by_option, key))) == (expected, type(expected))


@pytest.mark.parametrize(("text", "expected"), [("true", True), ("ON", True), ("1", True), ("no", False), ("0", False)])
def test_switch_words(text: str, expected: bool) -> None:
    """A switch understands the usual words."""
    environment = {"POISE_AUTH__REQUIRED": text, "POISE_AUTH__KEYS__A": "sk"}
    assert load(None, environment, {}).settings.auth.required is expected


def test_file_may_begin_with_a_byte_order_mark() -> None:
    """Some editors put one there."""
    Path("given.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 1\n")
    assert load(Path("given.toml"), {}, {}).settings.server.port == 1


def test_search_for_the_file(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The named file, else ./poise.toml, else the user's."""
    user = nowhere / "user" / "poise" / "poise.toml"
    user.parent.mkdir(parents=True)
    local, named = nowhere / "here" / "poise.toml", nowhere / "named.toml"
    local.parent.mkdir()
    monkeypatch.chdir(local.parent)
    for port, file in enumerate((user, local, named), start=1):
        file.write_text(f"server.port = {port}")
        loaded = load(file if file == named else None, {}, {})
        assert (loaded.settings.server.port, loaded.origins["server.port"]) == (port, f"file {file}")
    user.unlink()


def test_variables_of_others_are_left_alone() -> None:
    """POISE_LOG is not a setting, and Kubernetes describes a service called poise in variables of the same prefix."""
    links = {
        "POISE_SERVICE_HOST": "10.0.0.1",
        "POISE_SERVICE_PORT": "8000",
        "POISE_SERVICE_PORT_HTTP": "8000",
        "POISE_PORT": "tcp://10.0.0.1:8000",
        "POISE_PORT_8000_TCP": "tcp://10.0.0.1:8000",
        "POISE_PORT_8000_TCP_ADDR": "10.0.0.1",
    }
    check({}, environment={**links, "POISE_LOG": "debug", "HOME": "/", "poise_x": ""})


@pytest.mark.parametrize(
    ("key", "given_value", "changed"),
    [
        (
            "pools.short.slots",
            4,
            {
                "classes.interactive.slots_max": (4, "limited by pools.short.slots"),
                "classes.background.slots_max": (4, "limited by pools.short.slots"),
            },
        ),
        (
            "pools.short.slots",
            1,
            {
                "pools.short.reserved_slots": (0, "limited by pools.short.slots"),
                "classes.interactive.slots_max": (1, "limited by pools.short.slots"),
                "classes.background.slots_max": (1, "limited by pools.short.slots"),
            },
        ),
        ("pools.short.slots", 32, {"classes.interactive.slots_max": (32, "raised to pools.short.slots")}),
        ("pools.long.slots", 3, {"classes.interactive.heavy_max": (3, "raised to pools.long.slots")}),
        ("pools.long.slots", 1, {"classes.interactive.heavy_max": (1, "limited by pools.long.slots")}),
        ("pools.short.slot_tokens", 16384, {"pools.long.slot_tokens": (16384, "raised to pools.short.slot_tokens")}),
        (
            "pools.long.slot_tokens",
            1024,
            {
                "pools.short.slot_tokens": (1024, "limited by pools.long.slot_tokens"),
                "classes.interactive.heavy_tokens": (1023, "limited by pools.short.slot_tokens"),
                "classes.background.heavy_tokens": (1023, "limited by pools.short.slot_tokens"),
            },
        ),
        (
            "classes.interactive.max_output_tokens",
            100,
            {"classes.interactive.default_output_tokens": (100, "limited by classes.interactive.max_output_tokens")},
        ),
        (
            "classes.interactive.min_share",
            0.9,
            {"classes.background.min_share": (0.05, "limited by classes.interactive.min_share")},
        ),
        ("engine.batch_tokens", 32, {}),
        ("scheduler.quantum_tokens", 512, {}),
    ],
)
def test_defaults_give_way(key: str, given_value: object, changed: dict[str, tuple[object, str]]) -> None:
    """One set value never clashes with a default that depends on it: the default follows and says why."""
    expected = {name: (number, f"default, {reason}") for name, (number, reason) in changed.items()}
    loaded = load(None, {}, {key: given_value})
    check({key: (given_value, loaded.origins[key]), **expected}, options={key: given_value})


def test_to_policy() -> None:
    """Settings become scheduler units: microseconds, cells, enum keys."""
    policy = to_policy(load(None, {}, {"classes.interactive.queue_max": 7, "scheduler.ageing": 0.5}).settings)
    assert policy.pools == {"short": PoolPolicy(12, 4096, 2), "long": PoolPolicy(2, 8192, 0)}
    assert policy.classes == {
        RequestClass.INTERACTIVE: ClassPolicy(7, 100_000, 0.0, 12, 1024, 2),
        RequestClass.BACKGROUND: ClassPolicy(256, 150_000, 0.15, 6, 1024, 1),
    }
    assert (policy.quantum_tokens, policy.batch_tokens, policy.ageing, policy.hole_steps) == (16, 512, 0.5, 2)
    assert (policy.chunk_tokens, policy.priors) == ({}, {})


def test_to_policy_takes_what_was_measured() -> None:
    """Slots cut to a short model's context are what counts, also for which prompts are heavy."""
    prior = CostPrior(prompt_us=100.0)
    policy = to_policy(Settings(), slot_cells={"short": 512}, chunk_tokens={"long": 64}, priors={"long": prior})
    assert (policy.pools["short"].slot_cells, policy.pools["long"].slot_cells) == (512, 8192)
    assert policy.classes[RequestClass.INTERACTIVE].heavy_tokens == 511
    assert (policy.chunk_tokens, policy.priors) == ({"long": 64}, {"long": prior})


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Any value within the setting's limits."""
    if setting.kind in ("integer", "number"):
        low, high = map(float, re.findall(r"[\d.]+", setting.limits))
        if setting.kind == "integer":
            return st.integers(int(low), int(high))
        return st.floats(low, high, exclude_min=setting.limits.startswith("above"))
    if setting.kind == "table":
        keys = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
        return st.dictionaries(st.from_regex(r"(?!key-|local)[a-z0-9_-]{1,64}", fullmatch=True), keys, max_size=3)
    if setting.key == "auth.admin_key":
        return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E))
    return {"switch": st.booleans(), "choice": st.sampled_from(setting.choices or ("",)), "text": st.text()}[
        setting.kind
    ]


SOME_VALUES = st.fixed_dictionaries({}, optional={key: values_of(setting) for key, setting in catalogue().items()})


@settings(max_examples=60, deadline=None)
@given(values=SOME_VALUES)
def test_any_settings_survive_being_written_and_loaded(values: dict[str, object], nowhere: Path) -> None:
    """Whatever loads, prints as TOML that loads to the same."""
    while True:
        try:
            loaded = load(None, {}, values)
            break
        except ConfigError as error:
            # Values drawn at random clash; drop the one that each problem blames, until the rest fits.
            blamed = [re.findall(r": ([a-z_.]+)[^ ]* =", problem)[0] for problem in error.problems]
            values = {key: value for key, value in values.items() if not any(name.startswith(key) for name in blamed)}
    file = nowhere / "written.toml"
    file.write_text(to_toml(loaded, secrets=True), encoding="utf-8")
    again = load(file, {}, {})
    assert again.settings == loaded.settings
    assert again.origins["server.port"] == f"file {file}"


def test_written_configuration_hides_keys() -> None:
    """The effective configuration is made to be pasted into a bug report."""
    loaded = load(None, {}, {"auth.keys.alice": "sk-hidden", "auth.admin_key": "sk-admin"})
    document = to_toml(loaded)
    assert "sk-" not in document
    assert tomllib.loads(document)["auth"] == {"required": False, "admin_key": "***", "keys": {"alice": "***"}}


def test_origin_cannot_break_out_of_its_comment() -> None:
    """A file's name may hold a line feed."""
    file = Path("a\nserver.port = 5 #.toml")
    file.write_text("server.port = 7")
    assert tomllib.loads(to_toml(load(file, {}, {})))["server"]["port"] == 7


@pytest.mark.parametrize("setting", catalogue().values(), ids=lambda setting: setting.key)
def test_every_setting_is_documented(setting: Setting) -> None:
    """docs/configuration.md has the row of each setting: default, range and meaning as in the models."""
    default = setting.default
    literal = quoted(default) if isinstance(default, str) else str(default).lower()
    row = f"| `{setting.key}` | `{literal}` | {setting.allowed} | {setting.description} |"
    assert row in DOCUMENT.read_text().splitlines()


def test_nothing_else_is_documented() -> None:
    """No row of a setting that is gone; every section has its heading; every other variable is explained."""
    text = DOCUMENT.read_text()
    reference = text.partition("## Reference")[2]
    assert re.findall(r"^\| `([a-z_.]+)`", reference, re.MULTILINE) == list(catalogue())
    parents = dict.fromkeys(key.rpartition(".")[0] for key in catalogue())
    assert re.findall(r"^### `\[([a-z.]+)\]`", reference, re.MULTILINE) == list(parents)
    assert set(parents) <= set(section_keys())
    assert all(f"`{name}`" in text for name in OTHER_VARIABLES)
