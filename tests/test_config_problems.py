"""Configurations that are refused, with the exact lines that the operator reads."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.config import ConfigError, load
from poise.config.catalogue import NAME, catalogue, section_keys

RULE_HOST = "must be names or addresses, without scheme, port and path"
RULE_TENANT = 'a tenant name must be 1 to 64 of a-z, 0-9, "_" and "-", not "local" and not begin with "key-"'
RULE_NAME = 'a tenant name must be 1 to 64 of a-z, 0-9, "_" and "-"'
RULE_KEY = "must be printable ASCII without spaces, at least 12 characters"


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


def check(
    *problems: str, toml: str | bytes = "", environment: dict[str, str] | None = None, options: dict[str, object] | None = None
) -> None:
    """Exactly these problems are reported, in this order."""
    Path("poise.toml").write_bytes(toml.encode() if isinstance(toml, str) else toml)
    with pytest.raises(ConfigError) as caught:
        load(None, environment or {}, options or {})
    assert caught.value.problems == problems
    assert str(caught.value) == "\n".join(problems)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("[classes.interactive]\nqueue_max = -3", "classes.interactive.queue_max = -3: must be between 1 and 1000000"),
        ("server.port = 65536", "server.port = 65536: must be between 0 and 65535"),
        ('server.port = "8000"', 'server.port = "8000": must be a whole number between 0 and 65535'),
        ("server.port = true", "server.port = true: must be a whole number between 0 and 65535"),
        ("server.port = 8000.0", "server.port = 8000.0: must be a whole number between 0 and 65535"),
        ("server.port = [1, 2]", "server.port = [1, 2]: must be a whole number between 0 and 65535"),
        ("server.port = 2026-01-01", "server.port = 2026-01-01: must be a whole number between 0 and 65535"),
        ("server.body_timeout_s = 0", "server.body_timeout_s = 0: must be above 0 and at most 3600"),
        ("server.body_timeout_s = inf", "server.body_timeout_s = inf: must be above 0 and at most 3600"),
        ("server.body_timeout_s = nan", "server.body_timeout_s = nan: must be above 0 and at most 3600"),
        ("server.body_timeout_s = false", "server.body_timeout_s = false: must be a number above 0 and at most 3600"),
        ("scheduler.ageing = '0.1'", 'scheduler.ageing = "0.1": must be a number between 0 and 10'),
        ("sampling.top_p = 0", "sampling.top_p = 0: must be above 0 and at most 1"),
        ("server.host = 1", "server.host = 1: must be text"),
        ("model.path = {a = 1}", "model.path = {'a': 1}: must be text"),
        ("engine.kv_type = 'f61'", 'engine.kv_type = "f61": must be one of "f16", "q8_0", "q4_0"'),
        ("pools.short.flash_attention = true", 'pools.short.flash_attention = true: must be one of "auto", "on", "off"'),
        ("server = 5", "server = 5: must be a section, [server]"),
        ("pools.short = 'big'", 'pools.short = "big": must be a section, [pools.short]'),
        ("[[server]]\nport = 1", "server = [{'port': 1}]: must be a section, [server]"),
        ("server.prot = 5", "server.prot: unknown key; did you mean server.port?"),
        ("[servr]\nport = 5", "servr: unknown key; did you mean server?"),
        ("port = 5", "port: unknown key; did you mean server.port?"),
        ("[scheduler]\nbatch_tokens = 5", "scheduler.batch_tokens: unknown key; did you mean engine.batch_tokens?"),
        ("classes.interactive.colour = 5", "classes.interactive.colour: unknown key"),
        ("slots = 5", "slots: unknown key; did you mean pools.short.slots or pools.long.slots?"),
        ("[server]\n'a b' = 5", 'server."a b": unknown key'),
        ("colour = 'red'", "colour: unknown key"),
        ("auth.required = 'yes'", 'auth.required = "yes": must be one of "auto", true, false'),
        ("server.hosts = ['http://a.example']", f'server.hosts = "http://a.example": {RULE_HOST}'),
        (
            "server.origins = ['a.example']",
            'server.origins = "a.example": must be origins, each as in https://chat.example: scheme, host and perhaps a port',
        ),
        ("server.tls_cert = 'c.pem'", 'server.tls_cert = "c.pem": needs server.tls_key as well'),
        ("server.tls_key = 'k.pem'", 'server.tls_key = "k.pem": needs server.tls_cert as well'),
        ("auth.keys_file = 5", "auth.keys_file = 5: must be text"),
        ("tenants.a.classes = ['batch']", 'tenants.a.classes = "batch": must be among "interactive" and "background"'),
        ("tenants.a.content_log = true", "tenants.a.content_log = true: needs audit.enabled = true"),
        ("auth.keys = 'sk-a'", "auth.keys = ***: must be a section, [auth.keys]"),
        ("auth.keys.alice = 5", "auth.keys.alice = ***: must be text"),
        ("auth.keys.alice = ''", f"auth.keys.alice = ***: {RULE_KEY}"),
        ("auth.keys.alice = 'eleven-char'", f"auth.keys.alice = ***: {RULE_KEY}"),
        ("auth.admin_key = 'short'", f"auth.admin_key = ***: {RULE_KEY}"),
        ("auth.keys.alice = 'sk a'", f"auth.keys.alice = ***: {RULE_KEY}"),
        ("auth.admin_key = 'schlüssel'", f"auth.admin_key = ***: {RULE_KEY}"),
        ("auth.keys.Alice = 'sk-of-twelve'", f"auth.keys.Alice: {RULE_TENANT}"),
        ("auth.keys.local = 'sk-of-twelve'", f"auth.keys.local: {RULE_TENANT}"),
        ("auth.keys.key-a = 'sk-of-twelve'", f"auth.keys.key-a: {RULE_TENANT}"),
        ("auth.keys.'a.b' = 'sk-of-twelve'", f'auth.keys."a.b": {RULE_TENANT}'),
        ("auth.keys.'' = 'sk-of-twelve'", f'auth.keys."": {RULE_TENANT}'),
        (f"auth.keys.{'a' * 65} = 'sk-of-twelve'", f"auth.keys.{'a' * 65}: {RULE_TENANT}"),
        ("store.budget_mb = -1", 'store.budget_mb = -1: must be "auto" or a whole number between 0 and 1048576'),
        ("store.tenant_share = 1.5", "store.tenant_share = 1.5: must be between 0 and 1"),
        ("store.prefix_reuse = 1", "store.prefix_reuse = 1: must be true or false"),
        ("store.prefix_min_tokens = 4", "store.prefix_min_tokens = 4: must be between 8 and 1048576"),
        ("scheduler.turn_ms = 0", "scheduler.turn_ms = 0: must be between 10 and 3600000"),
        ("scheduler.preemptions_max = -1", "scheduler.preemptions_max = -1: must be between 0 and 1000"),
        ("classes.interactive.queue_timeout_s = inf", "classes.interactive.queue_timeout_s = inf: must be between 0 and 86400"),
        ("classes.interactive.long_system_share = 0", "classes.interactive.long_system_share = 0: must be above 0 and at most 1"),
        ("pools.short.reserved_slots = 2", "pools.short.reserved_slots: unknown key"),
        ("tenant_defaults.weight = 0", "tenant_defaults.weight = 0: must be between 0.01 and 100"),
        ("tenants = 5", "tenants = 5: must be a section, [tenants]"),
        ("tenants.alice = 2", "tenants.alice = 2: must be a section, [tenants.alice]"),
        ("tenants.alice.weight = 'much'", 'tenants.alice.weight = "much": must be a number between 0.01 and 100'),
        ("tenants.local.running_max = -1", "tenants.local.running_max = -1: must be between 0 and 10000"),
        ("tenants.alice.wieght = 2", "tenants.alice.wieght: unknown key; did you mean tenants.alice.weight?"),
        ("tenants.alice.colour = 2", "tenants.alice.colour: unknown key"),
        ("tenants.weight = 2", "tenants.weight = 2: must be a section, [tenants.weight]"),
        ("tenants.Alice.weight = 2", f"tenants.Alice: {RULE_NAME}"),
        ("tenants.'a.b'.weight = 2", f'tenants."a.b": {RULE_NAME}'),
        ("tenants.NAME.weight = 2", f"tenants.NAME: {RULE_NAME}"),
        ("[tenant.alice]\nweight = 2", "tenant: unknown key; did you mean tenants?"),
        ("weight = 2", "weight: unknown key; did you mean tenant_defaults.weight or tenants.NAME.weight?"),
        ("templates.faq.text = ' '", 'templates.faq.text = " ": must not be empty'),
        ("templates.faq.text = 5", "templates.faq.text = 5: must be text"),
        ("templates.faq.tenants = ['alice']", "templates.faq: needs templates.faq.text"),
        ("templates.faq = {}", "templates.faq: needs templates.faq.text"),
        ("templates.faq.prompt = 'x'", "templates.faq.prompt: unknown key"),
        ("[templates.faq]\ntext = 'x'\ntenants = 'a'", 'templates.faq.tenants = "a": must be a list of names'),
        ("[templates.faq]\ntext = 'x'\ntenants = [1]", "templates.faq.tenants = 1: must be a list of names"),
        ("[templates.faq]\ntext = 'x'\ntenants = ['A']", f'templates.faq.tenants = "A": {RULE_NAME}'),
        ("templates.FAQ.text = 'x'", f"templates.FAQ: {RULE_NAME.replace('tenant', 'template')}"),
        ("server.host = [" + "1," * 99 + "]", "server.host = [" + "1, " * 18 + "1,...: must be text"),
        ("server.port = 0x" + "f" * 5000, "server.port = a number of thousands of digits: must be between 0 and 65535"),
    ],
)
def test_one_bad_value(toml: str, problem: str) -> None:
    """Key, value, what is allowed, and the file."""
    check(f"poise.toml: {problem}", toml=toml)


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            "classes.interactive.slots_max = 9\npools.short.slots = 8",
            "classes.interactive.slots_max = 9: must be at most pools.short.slots = 8 (poise.toml)",
        ),
        (
            "classes.background.heavy_max = 3\npools.long.slots = 2",
            "classes.background.heavy_max = 3: must be at most pools.long.slots = 2 (poise.toml)",
        ),
        (
            "classes.interactive.heavy_tokens = 2048\npools.short.slot_tokens = 2048",
            "classes.interactive.heavy_tokens = 2048: must be below pools.short.slot_tokens = 2048 (poise.toml)",
        ),
        (
            "classes.interactive.heavy_tokens = 2048\npools.long.slot_tokens = 2048",
            "classes.interactive.heavy_tokens = 2048: must be below pools.short.slot_tokens = 2048 "
            "(default, limited by pools.long.slot_tokens)",
        ),
        (
            "pools.short.slot_tokens = 4096\npools.long.slot_tokens = 2048",
            "pools.short.slot_tokens = 4096: must be at most pools.long.slot_tokens = 2048 (poise.toml)",
        ),
        (
            "scheduler.quantum_tokens = 64\nengine.batch_tokens = 32",
            "scheduler.quantum_tokens = 64: must be at most engine.batch_tokens = 32 (poise.toml)",
        ),
        (
            "pools.short.slots = 64\nengine.batch_tokens = 32",
            "pools.short.slots = 64: must be at most engine.batch_tokens = 32 (poise.toml)",
        ),
        (
            "classes.background = {default_output_tokens = 20, max_output_tokens = 10}",
            "classes.background.default_output_tokens = 20: "
            "must be at most classes.background.max_output_tokens = 10 (poise.toml)",
        ),
        (
            "classes.interactive.min_share = 0.7\nclasses.background.min_share = 0.3",
            "classes.background.min_share = 0.3: "
            "must add up to less than 1 with classes.interactive.min_share = 0.7 (poise.toml)",
        ),
        (
            "engine.kv_type = 'q8_0'\npools.long.flash_attention = 'off'",
            'pools.long.flash_attention = "off": must be "auto" or "on" with engine.kv_type = "q8_0" (poise.toml)',
        ),
        (
            "classes.background.max_context_tokens = 9000",
            "classes.background.max_context_tokens = 9000: must be at most pools.long.slot_tokens = 8192 (default)",
        ),
        (
            "classes.background.max_prompt_tokens = 8192",
            "classes.background.max_prompt_tokens = 8192: must be below pools.long.slot_tokens = 8192 (default)",
        ),
        (
            "classes.interactive = {max_prompt_tokens = 900, max_context_tokens = 900}",
            "classes.interactive.max_prompt_tokens = 900: "
            "must be below classes.interactive.max_context_tokens = 900 (poise.toml)",
        ),
        (
            "classes.interactive = {default_output_tokens = 900, max_context_tokens = 900}",
            "classes.interactive.default_output_tokens = 900: "
            "must be below classes.interactive.max_context_tokens = 900 (poise.toml)",
        ),
        (
            "classes.background.downgrade_served_ms = 5",
            "classes.background.downgrade_served_ms = 5: must be 0, background work is what a request is downgraded to",
        ),
        (
            "store.prefix_min_tokens = 8192",
            "store.prefix_min_tokens = 8192: must be below pools.long.slot_tokens = 8192 (default)",
        ),
        (
            "store.budget_mb = 0\ntemplates.faq.text = 'x'",
            'templates.faq.text = "x": needs room in the store, but store.budget_mb = 0 (poise.toml)',
        ),
        (
            "auth.keys.alice = 'sk-of-twelve'\ntenants.alcie = {weight = 2, queue_max = 1}",
            "tenants.alcie.weight = 2: no caller can be alcie, auth.keys has no such tenant; did you mean alice?",
        ),
        (
            "auth = {keys = {alice = 'sk-of-twelve'}}\ntenants.local.queue_max = 1",
            "tenants.local.queue_max = 1: no caller can be local, auth.keys has no such tenant",
        ),
        (
            "auth = {required = false, keys = {alice = 'sk-of-twelve'}}\n"
            "templates.faq = {text = 'x', tenants = ['alice', 'bob', 'local']}",
            'templates.faq.tenants = ["alice", "bob", "local"]: no caller can be bob, auth.keys has no such tenant',
        ),
        (
            "auth.keys = {a = 'sk-of-twelve', b = 'sk-of-twelve'}",
            "auth.keys.b = ***: must differ from auth.keys.a = *** (poise.toml)",
        ),
        (
            "auth = {admin_key = 'sk-of-twelve', keys = {a = 'sk-of-twelve'}}",
            "auth.admin_key = ***: must differ from auth.keys.a = *** (poise.toml)",
        ),
    ],
)
def test_values_that_do_not_fit_together(toml: str, problem: str) -> None:
    """Both keys are named, with where each came from."""
    check(f"poise.toml: {problem}", toml=toml)


def test_clash_between_sources() -> None:
    """Each side of a clash names its own source."""
    check(
        "--set classes.interactive.slots_max: classes.interactive.slots_max = 5: "
        "must be at most pools.short.slots = 4 (POISE_POOLS__SHORT__SLOTS)",
        environment={"POISE_POOLS__SHORT__SLOTS": "4"},
        options={"classes.interactive.slots_max": "5"},
    )


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("POISE_SERVER__PORT", "80 00", 'server.port = "80 00": must be a whole number between 0 and 65535'),
        ("POISE_SERVER__PORT", "", 'server.port = "": must be a whole number between 0 and 65535'),
        ("POISE_SERVER__BODY_TIMEOUT_S", "nan", "server.body_timeout_s = nan: must be above 0 and at most 3600"),
        ("POISE_SERVER__HOST", "a\udcff", "server.host: not UTF-8 text"),
        ("POISE_AUTH__REQUIRED", "maybe", 'auth.required = "maybe": must be one of "auto", true, false'),
        ("POISE_AUTH__KEYS__LOCAL", "sk", f"auth.keys.local: {RULE_TENANT}"),
        ("POISE_SERVER_PORT", "1", "unknown variable; did you mean POISE_SERVER__PORT?"),
        ("POISE_PORT", "8000", "unknown variable; did you mean POISE_SERVER__PORT?"),
        ("POISE_SERVER__port", "1", "unknown variable; did you mean POISE_SERVER__PORT?"),
        ("POISE_LOGS", "1", "unknown variable; did you mean POISE_LOG?"),
        ("POISE_AUTH__KEYS", "a=sk", "unknown variable; did you mean POISE_AUTH__KEYS__<NAME>?"),
        ("POISE_TENANTS__ALICE__WEIGHT", "x", 'tenants.alice.weight = "x": must be a number between 0.01 and 100'),
        ("POISE_TENANTS__ALICE__WIEGHT", "1", "unknown variable; did you mean POISE_TENANTS__ALICE__WEIGHT?"),
        ("POISE_TENANTS__alice__WEIGHT", "1", "unknown variable; did you mean POISE_TENANTS__ALICE__WEIGHT?"),
        (
            "POISE_TENANTS____WEIGHT",
            "1",
            "unknown variable; did you mean POISE_TENANT_DEFAULTS__WEIGHT or POISE_TENANTS__<NAME>__WEIGHT?",
        ),
        ("POISE_TENANTS__ALICE", "1", "unknown variable"),
        ("POISE_NAME", "1", "unknown variable; did you mean POISE_MODEL__NAME?"),
        ("POISE_AUTH__KEYS__alice", "sk", "unknown variable; did you mean POISE_AUTH__KEYS__ALICE?"),
        ("POISE_CLASSES__INTERACTIVE__QUEUES_MAX", "1", "unknown variable; did you mean POISE_CLASSES__INTERACTIVE__QUEUE_MAX?"),
        ("POISE_CLASSES__INTERACTIVE__COLOUR", "1", "unknown variable"),
        ("POISE_", "1", "unknown variable"),
    ],
)
def test_bad_variable(name: str, text: str, problem: str) -> None:
    """The variable is named; a slip in its name is answered with the likely one."""
    check(f"{name}: {problem}", environment={name: text})


@pytest.mark.parametrize(
    ("key", "given_value", "problem"),
    [
        ("server.port", "99999", "--port: server.port = 99999: must be between 0 and 65535"),
        ("engine.threads", "many", '--threads: engine.threads = "many": must be a whole number between 0 and 1024'),
        ("scheduler.ageing", 11.0, "--set scheduler.ageing: scheduler.ageing = 11.0: must be between 0 and 10"),
        ("server.prot", "1", "--set server.prot: unknown key; did you mean server.port?"),
        ("server", "1", "--set server: names a section, not a setting"),
        ("tenants.alice", "1", "--set tenants.alice: names a section, not a setting"),
        ("tenants.alice.wieght", "1", "--set tenants.alice.wieght: unknown key; did you mean tenants.alice.weight?"),
        ("tenants.a.b.weight", "1", f'--set tenants."a.b": tenants."a.b": {RULE_NAME}'),
        ("templates.faq.tenants", "alice", "--set templates.faq.tenants: templates.faq: needs templates.faq.text"),
    ],
)
def test_bad_option(key: str, given_value: object, problem: str) -> None:
    """The option is named as it was typed."""
    check(problem, options={key: given_value})


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"[server]\nport = \n", "line 2, column 8: invalid value"),
        (b"[server]\nport = 1\nport = 2\n", "line 3, column 9: cannot overwrite a value"),
        (b"[server]\nhost = 'a", 'line 2, at the end: expected "\'"'),
        (b"[server]\nhost = 'a\xff'", "line 2: not UTF-8 text (byte 0xff)"),
    ],
)
def test_file_that_is_not_toml(content: bytes, problem: str) -> None:
    """The place in the file comes first."""
    check(f"poise.toml: {problem}", toml=content)


def test_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A named file must be there and be a file."""
    for path, reason in (("missing.toml", "No such file or directory"), (os.curdir, "Is a directory")):
        with pytest.raises(ConfigError) as caught:
            load(Path(path), {}, {})
        assert caught.value.problems == (f"{path}: cannot be read: {reason}",)


def test_all_problems_at_once() -> None:
    """File, environment and command line, then what does not fit; a bad value is reported even where it is overridden."""
    check(
        "poise.toml: server.port = -1: must be between 0 and 65535",
        "poise.toml: server.prot: unknown key; did you mean server.port?",
        "POISE_SERVER_HOST: unknown variable; did you mean POISE_SERVER__HOST?",
        "POISE_ENGINE__THREADS: engine.threads = -1: must be between 0 and 1024",
        '--port: server.port = "x": must be a whole number between 0 and 65535',
        "poise.toml: classes.interactive.slots_max = 13: must be at most pools.short.slots = 12 (default)",
        toml="server = {port = -1, prot = 1}\nclasses.interactive.slots_max = 13",
        environment={"POISE_SERVER_HOST": "a", "POISE_ENGINE__THREADS": "-1"},
        options={"server.port": "x"},
    )


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        ("pools.short.slots = '20'", 'pools.short.slots = "20": must be "auto" or a whole number between 1 and 256'),
        ("pools.short = 20", "pools.short = 20: must be a section, [pools.short]"),
        ("pools.short.slots =", "line 1, at the end: invalid value"),
    ],
)
def test_no_conclusion_from_a_refused_value(toml: str, problem: str) -> None:
    """20 slots were meant, so 15 of them for a class are no second problem."""
    check(f"poise.toml: {problem}", toml=toml, environment={"POISE_CLASSES__INTERACTIVE__SLOTS_MAX": "15"})


SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text()
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=5)
ENTRIES = [key.replace(NAME, "alice") for key in [*catalogue(), *section_keys()] if NAME in key]
KEYS = st.sampled_from([*catalogue(), *section_keys(), *ENTRIES]) | st.text()


@settings(max_examples=100)
@given(overrides=st.dictionaries(KEYS, VALUES), variables=st.dictionaries(KEYS, st.text()))
def test_anything_loads_or_is_refused_in_lines(overrides: dict[str, Any], variables: dict[str, str]) -> None:
    """No input reaches the operator as another exception, and a problem is one line."""
    environment = {"POISE_" + key.upper().replace(".", "__"): text for key, text in variables.items()}
    try:
        load(None, environment, overrides)
    except ConfigError as error:
        problems = error.problems
    else:
        return
    assert problems
    assert not any("\n" in problem for problem in problems)


CLOUD = '[backends.cloud]\nurl = "https://api.example.com/v1"\n'
NEAR = '[backends.near]\nurl = "http://127.0.0.1:9000/v1"\n'


@pytest.mark.parametrize(
    ("toml", "problem"),
    [
        (
            CLOUD + "[egress]\nenabled = true",
            "egress.enabled = true: needs audit.enabled = true, what is sent to backends.cloud is written down before",
        ),
        (
            NEAR + "leaves_host = true\n[egress]\nenabled = true",
            "egress.enabled = true: needs audit.enabled = true, what is sent to backends.near is written down before",
        ),
        ("engine.enabled = false", "engine.enabled = false: needs a section of backends, or nobody answers"),
        (
            '[backends.default]\nurl = "http://127.0.0.1:9000"',
            'backends.default.url = "http://127.0.0.1:9000": the section needs another name than local, auto, default',
        ),
        (
            CLOUD + 'format = "anthropic"\ncapabilities = ["tools", "logprobs"]',
            'backends.cloud.capabilities = ["tools", "logprobs"]: must be without logprobs, choices, completions with '
            'backends.cloud.format = "anthropic" (poise.toml)',
        ),
        (
            CLOUD + 'budget_day = "5"\nprice_output = "0.000"',
            'backends.cloud.budget_day = "5": needs a price above 0, as backends.cloud.price_output; nothing is spent there '
            "otherwise",
        ),
        (
            CLOUD + '[tenants.alice]\nbackends = ["clod"]',
            'tenants.alice.backends = ["clod"]: there is no [backends.clod]; did you mean cloud?',
        ),
        (CLOUD + '[tenant_defaults]\nbackends = ["x"]', 'tenant_defaults.backends = ["x"]: there is no [backends.x]'),
    ],
)
def test_what_other_servers_need(toml: str, problem: str) -> None:
    """Each alone."""
    check(f"poise.toml: {problem}", toml=toml)


@pytest.mark.parametrize(
    "toml",
    [
        NEAR + "[egress]\nenabled = true",
        CLOUD + "leaves_host = false\n[egress]\nenabled = true",
        CLOUD + "[egress]\nenabled = true\n[audit]\nenabled = true",
        NEAR + "[engine]\nenabled = false",
        CLOUD + 'budget_day = "5"\nprice_cached = "0.001"',
        CLOUD + '[tenant_defaults]\nbackends = ["cloud"]\n[tenants.alice]\nweight = 2.0',
    ],
)
def test_other_servers_that_are_whole(toml: str) -> None:
    """There is no problem with these."""
    Path("poise.toml").write_text(toml)
    load(None, {}, {})


def test_what_a_format_has_nothing_for_is_no_default() -> None:
    """And `poise config` says why."""
    Path("poise.toml").write_text(CLOUD + 'format = "anthropic"')
    loaded = load(None, {}, {})
    assert loaded.settings.backends["cloud"].capabilities == ["tools", "structured"]
    assert "limited by backends.cloud.format" in loaded.origins["backends.cloud.capabilities"]
