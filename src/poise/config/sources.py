"""The places values come from, each read into a `Layer`: a nested table, and for each key the source to name.

Nothing here knows which source wins or which values are right, except that text from the environment and the command line
is read by the type of its setting, and that a name which fits no setting is a problem of the source."""

import os
import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from poise.config import catalogue as settings
from poise.config.catalogue import NAME, VARIABLE_PREFIX, find, meant, printable, quoted, split, variable

FILE_NAME = "poise.toml"
OTHER_VARIABLES = ("POISE_API_KEY", "POISE_LOG", "POISE_NO_CLOUD", "POISE_BROWSER", "POISE_PROMETHEUS")
"""Variables of the prefix that are not settings, described in docs/configuration.md."""
SHOWN_OF_AUTH = ("auth.keys_file", "auth.required", "auth.status")
"""The rest of the section may be keys, and is never shown."""
OPTIONS = {
    "profile": "--profile",
    "model.path": "--model",
    "backends.upstream.url": "--upstream",
    "server.host": "--host",
    "server.port": "--port",
    "engine.threads": "--threads",
    "engine.gpu_layers": "--gpu-layers",
}
"""Settings with a command-line option of their own; the others are reached with --set KEY=VALUE."""

# Kubernetes puts these into every container next to a service that happens to be called poise.
_SERVICE_LINK = re.compile(r"POISE_(SERVICE_(HOST|PORT\w*)|PORT_\d+_(TCP|UDP|SCTP)\w*)")


class ConfigError(Exception):
    """The configuration cannot be used. `problems` has every reason, one line each."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = tuple(map(printable, problems))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Source:
    """Where a value came from: `name` in front of a problem, `origin` in the effective configuration.

    A value that `yields` gives way to one that was set."""

    name: str
    origin: str
    yields: bool = False


DEFAULT = Source("default", "default", yields=True)


@dataclass(slots=True)
class Layer:
    """The values of one source, not yet validated, and the problems met while reading them.

    Without `complete`, the source could not be read to its end and may have meant to set anything."""

    source_of: Callable[[str], Source]
    values: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    complete: bool = True


def find_file() -> Path | None:
    """The file that is read when none is named: of this directory, else of this user."""
    from platformdirs import user_config_path

    candidates = (Path(FILE_NAME), user_config_path("poise", appauthor=False) / FILE_NAME)
    # Not Path.is_file, which raises for a directory that may not be entered.
    return next((path for path in candidates if os.path.isfile(path)), None)


def file_layer(path: Path) -> Layer:
    source = Source(str(path), f"file {path.absolute()}")
    layer = Layer(lambda _: source)
    text = ""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        layer.values = tomllib.loads(text)
    except OSError as error:
        layer.problems.append(f"{path}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        layer.problems.append(f"{path}: line {line}: not UTF-8 text (byte 0x{error.object[error.start]:02x})")
    except tomllib.TOMLDecodeError as error:
        layer.problems.append(f"{path}: {_syntax_problem(str(error), text)}")
    except (RecursionError, ValueError) as error:
        # tomllib lets these through for absurd nesting and for integers of thousands of digits.
        layer.problems.append(f"{path}: not usable as TOML: {error}")
    layer.complete = not layer.problems
    return layer


def profile_layer(name: str) -> Layer:
    """The values of a profile, which is one of those that the setting allows. They give way like defaults."""
    source = Source(f"profile {name}", f"profile {name}", yields=True)
    text = (Path(__file__).parent / "profiles" / f"{name}.toml").read_text(encoding="utf-8")
    return Layer(lambda _: source, tomllib.loads(text))


def environment_layer(environment: Mapping[str, str]) -> Layer:
    layer = Layer(lambda key: Source(variable(key), f"environment {variable(key)}"))
    for name, text in _relevant(environment):
        key = _key_of(name)
        if key is not None:
            _put(layer, key, text)
        else:
            layer.problems.append(f"{name}: unknown variable{meant(_closest_variables(name.upper()))}")
    return layer


def command_line_layer(overrides: Mapping[str, object]) -> Layer:
    """Values by dotted key; None is an option that was not given. Text is read by the type of its setting."""
    layer = Layer(lambda key: Source(_option(key), f"command line {_option(key)}"))
    for key, value in overrides.items():
        if value is None:
            continue
        if find(key) is not None:
            _put(layer, key, value)
        else:
            layer.problems.append(f"{_option(key)}: {_no_setting(key)}")
    return layer


def merge(base: dict[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """A new nested table: `upper` over `base`, table by table."""
    merged = dict(base)
    for key, value in upper.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _put(layer: Layer, key: str, value: object) -> None:
    # Bytes of the environment or the command line that are not UTF-8 arrive as lone surrogates, which cannot be printed.
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        layer.problems.append(f"{layer.source_of(key).name}: {key}: not UTF-8 text")
        return
    setting = find(key)
    if isinstance(value, str) and setting is not None:
        value = setting.parse(value)
    nested: Any = value
    for part in reversed(split(key)):
        nested = {part: nested}
    layer.values = merge(layer.values, nested)


def _key_of(name: str) -> str | None:
    """The key of an environment variable. Like the rest, an entry's name is in capitals there."""
    for key in settings.catalogue():
        table, entry, setting = key.partition(f".{NAME}")
        if not entry:
            if name == variable(key):
                return key
            continue
        before, after = variable(f"{table}."), setting.upper().replace(".", "__")
        inside = name[len(before) : len(name) - len(after)]
        if name.startswith(before) and name.endswith(after) and inside and name == name.upper():
            return f"{table}.{inside.lower()}{setting}"
    return None


def _closest_variables(name: str) -> list[str]:
    if _key_of(name) is not None:
        return [name]  # it was not in capitals
    meant_key = name.removeprefix(VARIABLE_PREFIX).lower().replace("__", ".")
    is_section = settings.pattern(split(meant_key)) in settings.section_keys()
    keys = [f"{meant_key}.{NAME}"] if is_section else settings.closest_keys(meant_key)
    near = [key for key in keys if find(key)]
    if near:
        return [variable(key.replace(f".{NAME}", ".<name>")) for key in near]
    # One underscore where two belong is the usual slip.
    known = {_squashed(setting.variable): setting.variable for setting in settings.catalogue().values()}
    slips = [known[match] for match in get_close_matches(_squashed(name), known, n=1, cutoff=0.9)]
    return slips or get_close_matches(name, OTHER_VARIABLES, n=1, cutoff=0.9)


def _squashed(name: str) -> str:
    return name.removeprefix(VARIABLE_PREFIX).replace("_", "")


def _relevant(environment: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name in sorted(environment):
        if not name.startswith(VARIABLE_PREFIX) or name in OTHER_VARIABLES or _SERVICE_LINK.fullmatch(name):
            continue
        if name == "POISE_PORT" and "://" in environment[name]:
            continue  # a service link as well; with a plain number it is someone who means POISE_SERVER__PORT
        yield name, environment[name]


def _option(key: str) -> str:
    return OPTIONS.get(key, f"--set {key}")


def _no_setting(key: str) -> str:
    if settings.pattern(split(key)) in settings.section_keys():
        return "names a section, not a setting"
    return f"unknown key{meant(settings.closest_keys(key))}"


def _syntax_problem(message: str, text: str) -> str:
    """tomllib's message with the place first: "Invalid value (at line 3, column 8)" -> "line 3, column 8: invalid value"."""
    what, _, place = message.rstrip(")").rpartition(" (at ")
    if place == "end of document":
        place = f"line {max(1, len(text.splitlines()))}, at the end"
    return f"{place}: {what[:1].lower()}{what[1:]}"


def is_secret(key: str, value: object) -> bool:
    return key.split(".")[0] == "auth" and not isinstance(value, bool) and key not in SHOWN_OF_AUTH


def shown(key: str, value: object) -> str:
    """A value in a message, short and on one line. Under `auth` only what can be no key is shown."""
    if is_secret(key, value):
        return "***"
    is_text = isinstance(value, str) or (isinstance(value, list) and all(isinstance(item, str) for item in value))
    text = quoted(value) if is_text else _plain(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _plain(value: object) -> str:
    try:
        return str(value).lower() if isinstance(value, bool) else " ".join(str(value).split())
    except ValueError:
        return "a number of thousands of digits"  # Python refuses to write such a number out
