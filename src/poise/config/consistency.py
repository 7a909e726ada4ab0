"""Which values fit together.

Rules:
- Two values that were set and do not fit are a problem that names both keys.
- A section of `tenants` takes what it leaves out from `tenant_defaults`.
- A default never stands in the way: where a set value leaves no room for another setting's default, the default gives way,
  and its origin says so. A profile's value is a default in this. It also grows where it means "all of them": the slots that
  interactive work may hold.
- A default capacity (slots, cells, batch) is not enlarged behind the operator's back, because it costs memory: setting a share
  of it above it is a problem. The one exception is the long pool, which is at least as long as the short one by definition."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from poise.config.catalogue import NAME, catalogue, meant, split, tables
from poise.config.hybrid import leaves_host
from poise.config.paths import keys_file
from poise.config.serving import AuthSettings
from poise.config.sources import DEFAULT, Source, shown

POOLS = ("short", "long")
CLASSES = ("interactive", "background")
TAKEN_NAMES = ("local", "auto", "default")
"""Names that stand for this host, or for whoever the policy chooses."""
NAMED = re.compile(r"tenants\..*\.backends")
NOT_ANTHROPIC = ("logprobs", "choices", "completions")
"""Capabilities that its API has nothing for."""


@dataclass(slots=True)
class Draft:
    """Values by dotted key, on their way to Settings.

    `sources` has only the keys that were set or whose default gave way. `suspect` are the keys and sections whose set value was
    refused: what is in `values` for them is not what the operator wants, so no conclusion may be drawn from it."""

    values: dict[str, Any]
    sources: dict[str, Source]
    suspect: set[str]

    def copy(self) -> "Draft":
        return Draft(dict(self.values), dict(self.sources), set(self.suspect))

    def is_set(self, key: str) -> bool:
        return not self.source(key).yields

    def is_suspect(self, *keys: str) -> bool:
        """Whether the value of one of the keys, or of a section around it, was refused."""
        return any(key == suspect or key.startswith(suspect + ".") for key in keys for suspect in self.suspect)

    def source(self, key: str) -> Source:
        return self.sources.get(key, DEFAULT)

    def give_way(self, key: str, value: object, reason: str) -> None:
        """Replace a default."""
        assert not self.is_set(key), key
        self.values[key] = value
        origin = f"{self.source(key).origin.partition(',')[0]}, {reason}"
        self.sources[key] = Source(origin, origin, yields=True)

    def blame(self, key: str) -> str:
        return f"{self.source(key).name}: {self.show(key)}"

    def cite(self, key: str) -> str:
        return f"{self.show(key)} ({self.source(key).name})"

    def show(self, key: str) -> str:
        return f"{key} = {shown(key, self.values[key])}"


@dataclass(frozen=True, slots=True)
class Ceiling:
    """`key` is at most the value of `by`, or below it when `strict`.

    unless_0  no limit where `by` is 0
    lifts     a default `by` is raised to a set `key`
    follows   a default `key` is raised to a set `by`: by default there is no limit besides `by`"""

    key: str
    by: str
    strict: bool = False
    lifts: bool = False
    follows: bool = False
    unless_0: bool = False


def ceilings() -> Iterator[Ceiling]:
    """In an order in which a value that gives way is final before something else is measured by it."""
    yield Ceiling("pools.short.slot_tokens", "pools.long.slot_tokens", lifts=True)
    for pool in POOLS:
        yield Ceiling(f"pools.{pool}.slots", "engine.batch_tokens")  # each running sequence needs a row of the batch
    for name in CLASSES:
        first = name == CLASSES[0]  # nothing outranks it, so it may use all there is
        yield Ceiling(f"classes.{name}.slots_max", "pools.short.slots", follows=first)
        yield Ceiling(f"classes.{name}.heavy_max", "pools.long.slots")
        yield Ceiling(f"classes.{name}.heavy_tokens", "pools.short.slot_tokens", strict=True)
        yield Ceiling(f"classes.{name}.default_output_tokens", f"classes.{name}.max_output_tokens")
        context = f"classes.{name}.max_context_tokens"
        yield Ceiling(context, "pools.long.slot_tokens")
        # One token of output needs room as well.
        yield Ceiling(f"classes.{name}.max_prompt_tokens", "pools.long.slot_tokens", strict=True)
        yield Ceiling(f"classes.{name}.max_prompt_tokens", context, strict=True, unless_0=True)
        yield Ceiling(f"classes.{name}.default_output_tokens", context, strict=True, unless_0=True)
    yield Ceiling("levels.busy_queue_share", "levels.constrained_queue_share", lifts=True)
    yield Ceiling("server.max_body_bytes", "server.body_bytes_total", lifts=True)
    yield Ceiling("scheduler.quantum_tokens", "engine.batch_tokens")
    yield Ceiling("store.prefix_min_tokens", "pools.long.slot_tokens", strict=True)
    yield Ceiling("audit.rotate_mb", "audit.max_mb", strict=True)


def reconcile(draft: Draft) -> list[str]:
    """Let defaults give way, in place, and return what does not fit."""
    return [
        *_complete_entries(draft),
        *_let_front_through(draft),
        *(problem for ceiling in ceilings() for problem in _check_ceiling(draft, ceiling)),
        *_check_shares(draft),
        *_check_flash_attention(draft),
        *_check_keys(draft),
        *_check_downgrade(draft),
        *_check_templates(draft),
        *_check_tenant_names(draft),
        *_check_tls(draft),
        *_check_content_log(draft),
        *_check_backends(draft),
        *_check_egress(draft),
    ]


def _complete_entries(draft: Draft) -> Iterator[str]:
    """Give every entry of a table of sections the settings that it leaves out."""
    entries: dict[str, str] = {}  # with one key that was given for it
    for key in draft.values:
        path = split(key)
        for table, of_sections in tables().items():
            if of_sections and path[: len(table)] == table:
                entries.setdefault(".".join(path[: len(table) + 1]), key)
    for entry, given in entries.items():
        draft.values.pop(entry, None)  # the mark of an empty section
        parent = entry.rpartition(".")[0]
        for setting in [setting for known, setting in catalogue().items() if known.startswith(f"{parent}.{NAME}.")]:
            name = setting.key.rpartition(".")[2]
            key, shared = f"{entry}.{name}", f"tenant_defaults.{name}"
            if key in draft.values or draft.is_suspect(key):
                continue
            if setting.required:
                yield f"{draft.source(given).name}: {entry}: needs {key}"
            elif parent == "tenants" and shared in draft.sources:
                draft.give_way(key, draft.values[shared], f"as {shared}")
            else:
                draft.values[key] = setting.default


def _let_front_through(draft: Draft) -> Iterator[str]:
    """Where nothing is computed here, other servers are the place for every request, as far as nobody has said otherwise."""
    if draft.values["engine.enabled"] or draft.is_suspect("engine.enabled", "backends"):
        return
    yields: dict[str, Any] = {}
    for key in draft.values:
        table, _, name = key.partition(".")[0], *key.rpartition(".")[1:]
        if table == "backends" and name == "ceiling":
            yields[key] = "restricted"
        elif table == "backends" and name == "capabilities" and draft.values[key.replace(name, "format")] == "openai":
            yields[key] = [*draft.values[key], "sampling"]
        elif table in ("tenants", "tenant_defaults") and name == "egress":
            yields[key] = "allowed"
    if _leaving(draft):
        yields |= {"egress.enabled": True, "audit.enabled": True}
    for key, value in yields.items():
        if not draft.is_set(key):
            draft.give_way(key, value, "as engine.enabled = false")
    yield from ()


def _check_ceiling(draft: Draft, ceiling: Ceiling) -> Iterator[str]:
    key, by = ceiling.key, ceiling.by
    if "auto" in (draft.values[key], draft.values[by]):
        return  # memory decides, and leaves no less than is asked for
    most = max(1, draft.values[by] - 1) if ceiling.strict else draft.values[by]
    if draft.is_suspect(key, by) or (ceiling.unless_0 and draft.values[by] == 0):
        return
    if draft.values[key] <= most:
        if ceiling.follows and draft.values[key] < most and not draft.is_set(key):
            draft.give_way(key, most, f"raised to {by}")
    elif not draft.is_set(key):
        draft.give_way(key, most, f"limited by {by}")
    elif ceiling.lifts and not draft.is_set(by):
        draft.give_way(by, draft.values[key], f"raised to {key}")
    else:
        yield f"{draft.blame(key)}: must be {'below' if ceiling.strict else 'at most'} {draft.cite(by)}"


def _check_shares(draft: Draft) -> Iterator[str]:
    keys = [f"classes.{name}.min_share" for name in CLASSES]
    # Rounded, because 0.7 + 0.2 + 0.1 is not quite 1.
    if draft.is_suspect(*keys) or round(sum(draft.values[key] for key in keys), 9) < 1:
        return
    given = [key for key in keys if draft.is_set(key)]
    if len(given) == len(keys):
        *others, last = keys
        yield f"{draft.blame(last)}: must add up to less than 1 with {', '.join(map(draft.cite, others))}"
        return
    free = 1 - sum(draft.values[key] for key in given)
    for key in keys:
        if key not in given:
            # The defaulted classes and the unreserved rest divide what is left.
            share = min(draft.values[key], round(free / (len(keys) - len(given) + 1), 4))
            draft.give_way(key, share, f"limited by {' and '.join(given)}")


def _check_flash_attention(draft: Draft) -> Iterator[str]:
    if draft.values["engine.kv_type"] == "f16" or draft.is_suspect("engine.kv_type"):
        return
    for pool in POOLS:
        key = f"pools.{pool}.flash_attention"
        if draft.values[key] == "off" and not draft.is_suspect(key):
            yield f'{draft.blame(key)}: must be "auto" or "on" with {draft.cite("engine.kv_type")}'


def _check_keys(draft: Draft) -> Iterator[str]:
    tenants = [key for key in draft.values if key.startswith("auth.keys.")]
    owners: dict[str, str] = {}
    for key in [*tenants, "auth.admin_key"]:
        value = draft.values[key]
        if value and value in owners:
            yield f"{draft.blame(key)}: must differ from {draft.cite(owners[value])}"
        owners.setdefault(value, key)


def _check_downgrade(draft: Draft) -> Iterator[str]:
    for key in ("classes.background.downgrade_output_tokens", "classes.background.downgrade_served_ms"):
        if draft.values[key] and not draft.is_suspect(key):
            yield f"{draft.blame(key)}: must be 0, background work is what a request is downgraded to"


def _check_templates(draft: Draft) -> Iterator[str]:
    budget = "store.budget_mb"
    if draft.values[budget] or draft.is_suspect(budget):
        return
    for key in [key for key in draft.values if key.startswith("templates.") and key.endswith(".text")]:
        yield f"{draft.blame(key)}: needs room in the store, but {draft.cite(budget)}"


def _check_tenant_names(draft: Draft) -> Iterator[str]:
    """Where keys are declared, a limit for somebody who has none would silently do nothing."""
    keys = [key for key in draft.values if key.startswith("auth.keys.")]
    if not keys or any(suspect.startswith("auth") for suspect in draft.suspect):
        return
    if os.path.exists(keys_file(AuthSettings(keys_file=str(draft.values["auth.keys_file"])))):
        return  # its tenants come and go while the server runs
    names = [key.removeprefix("auth.keys.") for key in keys]
    names += ["local"] if draft.values["auth.required"] is False else []
    used = [(key, split(key)[1]) for key in draft.values if key.startswith("tenants.")]
    listed = [key for key in draft.values if key.startswith("templates.") and key.endswith(".tenants")]
    used += [(key, name) for key in listed for name in draft.values[key]]
    reported: list[str] = []
    for key, name in used:
        if name not in names and name not in reported and draft.is_set(key):
            reported.append(name)
            near = get_close_matches(name, names, n=1)
            yield f"{draft.blame(key)}: no caller can be {name}, auth.keys has no such tenant{meant(near)}"


def _check_tls(draft: Draft) -> Iterator[str]:
    pair = ("server.tls_cert", "server.tls_key")
    if draft.is_suspect(*pair):
        return
    for key, other in (pair, pair[::-1]):
        if draft.values[key] and not draft.values[other]:
            yield f"{draft.blame(key)}: needs {other} as well"


def _check_content_log(draft: Draft) -> Iterator[str]:
    if draft.values["audit.enabled"] or draft.is_suspect("audit.enabled"):
        return
    for key in [key for key, value in draft.values.items() if key.endswith(".content_log") and value]:
        if draft.is_set(key):
            yield f"{draft.blame(key)}: needs {draft.show('audit.enabled').replace('false', 'true')}"


def _check_backends(draft: Draft) -> Iterator[str]:
    names = _backends(draft)
    for name in names:
        section = f"backends.{name}"
        if name in TAKEN_NAMES:
            yield f"{draft.blame(f'{section}.url')}: the section needs another name than {', '.join(TAKEN_NAMES)}"
        format_, capabilities = f"{section}.format", f"{section}.capabilities"
        if draft.values[format_] == "anthropic" and not draft.is_suspect(capabilities, format_):
            left = [one for one in draft.values[capabilities] if one not in NOT_ANTHROPIC]
            if not draft.is_set(capabilities):
                draft.give_way(capabilities, left, f"limited by {format_}")
            elif left != draft.values[capabilities]:
                yield f"{draft.blame(capabilities)}: must be without {', '.join(NOT_ANTHROPIC)} with {draft.cite(format_)}"
        prices = [f"{section}.price_{kind}" for kind in ("input", "cached", "output")]
        if draft.is_suspect(*prices) or any(draft.values[price].strip("0.") for price in prices):
            continue
        for key in [f"{section}.budget_{period}" for period in ("hour", "day", "month")]:
            if draft.values[key] and not draft.is_suspect(key):
                yield f"{draft.blame(key)}: needs a price above 0, as {section}.price_output; nothing is spent there otherwise"
    if draft.is_suspect("backends"):
        return
    for key in [key for key in draft.values if key == "tenant_defaults.backends" or NAMED.fullmatch(key)]:
        for name in draft.values[key] if draft.is_set(key) else ():
            if name not in names:
                yield f"{draft.blame(key)}: there is no [backends.{name}]{meant(get_close_matches(name, names, n=1))}"


def _check_egress(draft: Draft) -> Iterator[str]:
    engine, egress, audit = "engine.enabled", "egress.enabled", "audit.enabled"
    if any(suspect.startswith("backends") for suspect in draft.suspect) or draft.is_suspect(engine, egress, audit):
        return
    names = _backends(draft)
    if not draft.values[engine] and not names:
        yield f"{draft.blame(engine)}: needs a section of backends, or nobody answers"
    leaving = _leaving(draft)
    if draft.values[egress] and not draft.values[audit] and leaving:
        yield f"{draft.blame(egress)}: needs {audit} = true, what is sent to backends.{leaving[0]} is written down before"


def _leaving(draft: Draft) -> list[str]:
    """Those that requests leave this host for."""
    found = {n: (f"backends.{n}.url", f"backends.{n}.leaves_host") for n in _backends(draft)}
    return [n for n, keys in found.items() if leaves_host(*(draft.values.get(key, "auto") for key in keys))]


def _backends(draft: Draft) -> list[str]:
    """Names of sections that are whole."""
    keys = (key for key in draft.values if key.startswith("backends.") and key.endswith(".url"))
    return [split(key)[1] for key in keys if not draft.is_suspect(key)]
