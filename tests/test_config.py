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

import poise
from poise.config import ConfigError, LoadedSettings, Settings, engine_settings, load, to_policy
from poise.config.catalogue import NAME, Setting, catalogue, find, quoted, section_keys
from poise.config.document import to_toml
from poise.config.sources import OTHER_VARIABLES
from poise.scheduler.policy import ClassPolicy, CostPrior, PoolPolicy, StorePolicy, TenantPolicy
from poise.scheduler.request import RequestClass

DOCUMENT = Path(__file__).parent.parent / "docs" / "configuration.md"
FLAT = {key: setting for key, setting in catalogue().items() if NAME not in key}
"""The settings that are there without anything being declared."""


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
        setting = find(key)
        assert setting is not None
        assert value(loaded, key) == setting.default, key


def test_defaults() -> None:
    """Nothing given, nothing changed: the models' defaults fit together as they are."""
    loaded = load(None, {}, {})
    assert loaded.settings == Settings()
    assert set(loaded.origins.values()) == {"default"}
    assert loaded.origins.keys() == FLAT.keys()


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
    Path("given.toml").write_text('[auth.keys]\nalice = "sk-a-of-alice"\nbob = "sk-b-of-bobby"')
    environment = {"POISE_AUTH__KEYS__BOB": "123456789012", "POISE_AUTH__KEYS__TEAM__RED": "sk-t-of-the-team"}
    loaded = load(Path("given.toml"), environment, {"auth.keys.carol": "sk-c-of-carol"})
    assert loaded.settings.auth.keys == {
        "alice": "sk-a-of-alice",
        "bob": "123456789012",
        "team__red": "sk-t-of-the-team",
        "carol": "sk-c-of-carol",
    }
    assert loaded.origins["auth.keys.bob"] == "environment POISE_AUTH__KEYS__BOB"
    assert loaded.origins["auth.keys.carol"] == "command line --set auth.keys.carol"
    assert "auth.keys" not in loaded.origins


def test_sections_of_a_table_merge_across_sources() -> None:
    """What one source says of a tenant or a template, another completes; names may hold underscores, "local" is allowed."""
    Path("given.toml").write_text(
        "[tenants]\nalice = {weight = 3, queue_max = 9}\nlocal = {running_max = 1}\n[templates.faq]\ntenants = ['bob']"
    )
    environment = {
        "POISE_TENANTS__ALICE__WEIGHT": "2",
        "POISE_TENANTS__TEAM__RED__WEIGHT": "0.5",
        "POISE_TEMPLATES__FAQ__TEXT": "You answer.\n",
        "POISE_TEMPLATES__FAQ__TENANTS": "alice, key-0a",
    }
    loaded = load(Path("given.toml"), environment, {"tenants.key-0a.tokens_per_minute": "60"})
    tenants = {name: tenant.model_dump(exclude_defaults=True) for name, tenant in loaded.settings.tenants.items()}
    assert tenants == {
        "alice": {"weight": 2.0, "queue_max": 9},
        "local": {"running_max": 1},
        "team__red": {"weight": 0.5},
        "key-0a": {"tokens_per_minute": 60},
    }
    template = loaded.settings.templates["faq"]
    assert (template.text, template.tenants) == ("You answer.\n", ["alice", "key-0a"])
    assert loaded.origins["tenants.alice.weight"] == "environment POISE_TENANTS__ALICE__WEIGHT"
    assert loaded.origins["tenants.alice.queue_max"] == f"file {Path('given.toml').absolute()}"
    assert loaded.origins["tenants.alice.running_max"] == "default"
    assert loaded.origins["tenants.key-0a.tokens_per_minute"] == ("command line --set tenants.key-0a.tokens_per_minute")


@pytest.mark.parametrize("toml", ["tenants.alice = {}", "[tenants.alice]\nweight = 2.0"])
def test_a_tenant_takes_what_it_leaves_out_from_the_defaults(toml: str) -> None:
    """Also one whose section is empty."""
    Path("given.toml").write_text(toml)
    loaded = load(Path("given.toml"), {"POISE_TENANT_DEFAULTS__QUEUE_MAX": "5"}, {})
    alice = loaded.settings.tenants["alice"]
    assert (alice.queue_max, alice.running_max) == (5, 0)
    assert loaded.origins["tenants.alice.queue_max"] == "default, as tenant_defaults.queue_max"
    assert loaded.origins["tenants.alice.running_max"] == "default"


def test_an_empty_section_and_a_filled_one_are_one_tenant() -> None:
    """Whichever source comes first."""
    Path("given.toml").write_text("tenants.alice = {}\ntenants.bob.weight = 2")
    loaded = load(Path("given.toml"), {"POISE_TENANTS__ALICE__WEIGHT": "2"}, {"tenants.bob.queue_max": 1})
    assert {name: tenant.weight for name, tenant in loaded.settings.tenants.items()} == {"alice": 2.0, "bob": 2.0}


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
        ("auth.admin_key", "123456789012", "123456789012"),
        ("store.prefix_reuse", "off", False),
        ("classes.interactive.queue_timeout_s", "30", 30.0),
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
    environment = {"POISE_AUTH__REQUIRED": text, "POISE_AUDIT__ENABLED": text}
    settings = load(None, environment, {}).settings
    assert (settings.auth.required, settings.audit.enabled) == (expected, expected)
    assert load(None, {"POISE_AUTH__REQUIRED": "auto"}, {}).settings.auth.required == "auto"


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
                "classes.interactive.slots_max": (1, "limited by pools.short.slots"),
                "classes.background.slots_max": (1, "limited by pools.short.slots"),
            },
        ),
        ("pools.short.slots", 32, {"classes.interactive.slots_max": (32, "raised to pools.short.slots")}),
        ("pools.long.slots", 3, {}),
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
        ("classes.interactive.max_output_tokens", 100, {}),
        (
            "classes.interactive.min_share",
            0.9,
            {"classes.background.min_share": (0.05, "limited by classes.interactive.min_share")},
        ),
        ("classes.background.max_context_tokens", 300, {}),
        ("classes.interactive.max_prompt_tokens", 300, {}),
        ("store.budget_mb", 0, {}),
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
    assert policy.pools == {"short": PoolPolicy(12, 4096), "long": PoolPolicy(2, 8192)}
    assert policy.classes == {
        RequestClass.INTERACTIVE: ClassPolicy(7, 100_000, 0.0, 12, 1024, 2),
        RequestClass.BACKGROUND: ClassPolicy(256, 150_000, 0.15, 6, 1024, 1),
    }
    assert (policy.quantum_tokens, policy.batch_tokens, policy.ageing, policy.hole_steps) == (16, 512, 0.5, 2)
    assert (policy.chunk_tokens, policy.priors) == ({}, {})
    assert (policy.turn_us, policy.preemptions_max) == (2_000_000, 8)
    assert policy.store == StorePolicy(512 << 20, 0.5, True, 16, write_through=True)
    assert not to_policy(Settings(), lasts=False).store.write_through, "a copy that ends with its slot is of no use"
    assert (policy.tenants, policy.tenant_default) == ({}, TenantPolicy())


def test_to_policy_of_the_store_the_tenants_and_the_downgrade() -> None:
    """Megabytes become bytes, milliseconds microseconds; a tenant without a section gets the defaults."""
    values = {
        "store.budget_mb": 3,
        "store.tenant_share": 0.25,
        "store.prefix_reuse": False,
        "store.prefix_min_tokens": 64,
        "store.write_through": False,
        "scheduler.turn_ms": 500,
        "scheduler.preemptions_max": 2,
        "classes.interactive.downgrade_output_tokens": 700,
        "classes.interactive.downgrade_served_ms": 9,
        "tenant_defaults.queue_max": 4,
        "tenants.alice.weight": 2.5,
        "tenants.alice.running_max": 3,
        "tenants.alice.tokens_per_minute": 100,
        "tenants.alice.cache_share": 0.1,
    }
    policy = to_policy(load(None, {}, values).settings, cell_bytes={"short": 46080})
    assert policy.store == StorePolicy(3 << 20, 0.25, False, 64, {"alice": 0.1})
    assert (policy.turn_us, policy.preemptions_max) == (500_000, 2)
    interactive, background = (policy.classes[name] for name in RequestClass)
    assert (interactive.downgrade_output_tokens, interactive.downgrade_served_us) == (700, 9000)
    assert (background.downgrade_output_tokens, background.downgrade_served_us) == (0, 0)
    assert policy.tenant("alice") == TenantPolicy(2.5, 3, 4, 100)
    assert policy.tenant("local") == TenantPolicy(queue_max=4)
    assert (policy.pools["short"].cell_bytes, policy.pools["long"].cell_bytes) == (46080, 0)


def test_to_policy_has_as_many_drafts_as_can_be_drawn_and_forgotten() -> None:
    """A pass draws after each stream and each guess; a recurrent model forgets nothing."""
    values = {"speculation.max_streams": 3, "speculation.max_tokens": 12}
    settings = load(None, {}, values).settings
    found = [to_policy(settings, n_drawn=n).drafts for n in (32, 8, 3, 0)]
    assert [(drafts.max_streams, drafts.max_tokens) for drafts in found][:2] == [(3, 12), (3, 5)]
    assert [drafts.max_streams for drafts in found[2:]] == [0, 0]


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
    if setting.key.startswith("auth.") and setting.kind == "text":
        return st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
    if setting.key == "templates.NAME.text":
        return st.text().filter(str.strip)
    if setting.key == "server.origins":
        return st.lists(st.sampled_from(["https://a.example", "http://localhost:3000"]), max_size=3)
    if setting.key.endswith(".classes"):
        return st.lists(st.sampled_from(["interactive", "background"]), max_size=3)
    if setting.kind == "names":
        return st.lists(st.sampled_from(["alice", "local", "key-1"]), max_size=3)
    return {"switch": st.booleans(), "choice": st.sampled_from(setting.choices or ("",)), "text": st.text()}[setting.kind]


NAMES = ("alice", "a-b__c")
SOME_VALUES = st.fixed_dictionaries(
    {},
    optional={
        key.replace(NAME, name): values_of(setting)
        for key, setting in catalogue().items()
        for name in (NAMES if NAME in key else ("",))
    },
)


@settings(max_examples=60)
@given(values=SOME_VALUES)
def test_any_settings_survive_being_written_and_loaded(values: dict[str, object], nowhere: Path) -> None:
    """Whatever loads, prints as TOML that loads to the same."""
    while True:
        try:
            loaded = load(None, {}, values)
            break
        except ConfigError as error:
            # Values drawn at random clash; drop the one that each problem blames, until the rest fits.
            blamed = [re.findall(r": ([a-z_.-]+)", problem)[0] for problem in error.problems]
            values = {key: value for key, value in values.items() if not key.startswith(tuple(blamed))}
    file = nowhere / "written.toml"
    file.write_text(to_toml(loaded, secrets=True), encoding="utf-8")
    again = load(file, {}, {})
    assert again.settings == loaded.settings
    assert again.origins["server.port"] == f"file {file}"


def test_written_configuration_hides_keys() -> None:
    """The effective configuration is made to be pasted into a bug report."""
    values = {"auth.keys.alice": "sk-hidden-key-1", "auth.admin_key": "sk-admin-key-1", "auth.keys_file": "/etc/poise/keys.jsonl"}
    loaded = load(None, {}, values)
    document = to_toml(loaded)
    assert "sk-" not in document
    assert tomllib.loads(document)["auth"] == {
        "required": "auto",
        "status": "auto",
        "keys_file": "/etc/poise/keys.jsonl",
        "admin_key": "***",
        "keys": {"alice": "***"},
    }


def test_origin_cannot_break_out_of_its_comment() -> None:
    """A file's name may hold a line feed."""
    file = Path("a\nserver.port = 5 #.toml")
    file.write_text("server.port = 7")
    assert tomllib.loads(to_toml(load(file, {}, {})))["server"]["port"] == 7


@pytest.mark.parametrize("setting", catalogue().values(), ids=lambda setting: setting.key)
def test_every_setting_is_documented(setting: Setting) -> None:
    """docs/configuration.md has the row of each setting: default, range and meaning as in the models."""
    default = setting.default
    literal = f"`{quoted(default) if isinstance(default, str) else str(default).lower()}`"
    shown = "required" if setting.required else literal
    row = f"| `{setting.key}` | {shown} | {setting.allowed} | {setting.description} |"
    assert row in DOCUMENT.read_text().splitlines()


def test_nothing_else_is_documented() -> None:
    """No row of a setting that is gone; every section has its heading; every other variable is explained."""
    text = DOCUMENT.read_text()
    reference = text.partition("## Reference")[2]
    assert re.findall(r"^\| `([A-Za-z_.]+)`", reference, re.MULTILINE) == list(catalogue())
    parents = dict.fromkeys(key.rpartition(".")[0] for key in catalogue() if "." in key)
    assert re.findall(r"^### `\[([A-Za-z_.]+)\]`", reference, re.MULTILINE) == list(parents)
    assert set(parents) <= set(section_keys())
    assert all(f"`{name}`" in text for name in OTHER_VARIABLES)


def test_every_variable_that_is_read_may_be_set() -> None:
    """One that the loader does not know would keep the server from starting: a switch that nobody can use."""
    source = Path(poise.__file__).parent
    read = {name for path in source.rglob("*.py") for name in re.findall(r"\"(POISE_[A-Z_]+)\"", path.read_text())}
    assert {"POISE_NO_CLOUD", "POISE_LOG"} <= read - {"POISE_PORT"} <= set(OTHER_VARIABLES)
    load(None, dict.fromkeys(OTHER_VARIABLES, "1"), {})


def test_tenants_of_a_keys_file_are_not_known_to_the_configuration(nowhere: Path) -> None:
    """They come and go while the server runs, so nothing can be said about a name."""
    values = {"auth.keys.alice": "sk-a-of-alice", "tenants.bob.weight": 2}
    with pytest.raises(ConfigError, match="no caller can be bob"):
        load(None, {}, values)
    (nowhere / "keys.jsonl").touch()
    load(None, {}, values | {"auth.keys_file": str(nowhere / "keys.jsonl")})


def test_the_engine_gets_no_secrets() -> None:
    """Neither keys nor texts: it needs none to compute, and it may dump what it has."""
    given = {"auth.keys.alice": "sk-hidden-key-1", "auth.admin_key": "sk-admin-key-1", "templates.faq.text": "system-text"}
    handed = engine_settings(load(None, {}, given).settings)
    assert "sk-" not in handed
    assert "system-text" not in handed
    assert Settings.model_validate_json(handed).pools == Settings().pools


def test_aliases_keep_their_order_dots_and_stars() -> None:
    """Across sources, and what is printed loads to the same."""
    Path("given.toml").write_text('[aliases]\n"gpt-3.5-turbo" = "default"\n"gpt-*" = "small"\n"a\\"b.c" = "small"')
    loaded = load(Path("given.toml"), {"POISE_ALIASES__O3": "small"}, {"aliases.gpt-4.1*": "default"})
    wanted = {"gpt-3.5-turbo": "default", "gpt-*": "small", 'a"b.c': "small", "o3": "small", "gpt-4.1*": "default"}
    assert list(loaded.settings.aliases.items()) == list(wanted.items())
    assert loaded.origins['aliases."gpt-*"'] == f"file {Path('given.toml').absolute()}"
    Path("printed.toml").write_text(to_toml(loaded))
    assert list(load(Path("printed.toml"), {}, {}).settings.aliases.items()) == list(wanted.items())
