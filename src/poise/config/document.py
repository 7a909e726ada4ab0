"""The effective configuration as text: TOML with the origin of each value beside it, or JSON. Keys are masked."""

import json
from collections.abc import Iterator
from typing import Any

from poise.config.catalogue import dotted, printable, quoted, split
from poise.config.loader import LoadedSettings, flatten
from poise.config.sources import is_secret, shown


def to_toml(loaded: LoadedSettings, *, secrets: bool = False) -> str:
    """Valid TOML that loads to the same settings (but for keys, unless `secrets` are wanted)."""
    values = _values(loaded, secrets)
    sections: dict[str, list[str]] = {}
    for key in values:
        sections.setdefault(dotted(split(key)[:-1]), []).append(key)
    tables = ("\n".join(_section(name, keys, values, loaded.origins)) for name, keys in sections.items())
    return "\n\n".join(tables) + "\n"


def to_json(loaded: LoadedSettings) -> str:
    """An object of dotted key to `{"value": ..., "origin": ...}`."""
    values = _values(loaded, secrets=False)
    document = {key: {"value": value, "origin": loaded.origins[key]} for key, value in values.items()}
    return json.dumps(document, indent=2)


def _values(loaded: LoadedSettings, secrets: bool) -> dict[str, Any]:
    values = dict(flatten(loaded.settings.model_dump()))
    if secrets:
        return values
    # An empty key says that there is none, which is no secret.
    return {key: shown(key, value) if value and is_secret(key, value) else value for key, value in values.items()}


def _section(section: str, keys: list[str], values: dict[str, Any], origins: dict[str, str]) -> Iterator[str]:
    if section:
        yield f"[{section}]"
    lines = {key: f"{dotted(split(key)[-1:])} = {quoted(values[key])}" for key in keys}
    # A long path must not push every comment of its section out of sight.
    column = min(max(map(len, lines.values())), 40)
    for key, line in lines.items():
        yield f"{line:<{column}}  # {printable(origins[key])}"
