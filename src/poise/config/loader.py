"""From a profile, a file, the environment and the command line to one validated `Settings`, with the origin of every value.

Each source is validated by itself, so that a problem names the source it is in, and all problems are found at once: a bad
value is reported even if a stronger source overrides it. What remains is laid over the defaults, the stronger source last,
and `poise.config.consistency` looks at the values together."""

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from poise.config import sources
from poise.config.catalogue import NAME, catalogue, closest_keys, dotted, meant, pattern, section_keys, split
from poise.config.consistency import Draft, reconcile
from poise.config.settings import Settings
from poise.config.sources import ConfigError, Layer, Source, merge, shown

_RANGE_ERRORS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal", "finite_number"}


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """Settings that fit together, and for each dotted key where its value came from.

    An origin reads "default", "default, limited by KEY", "profile NAME", "file /path/poise.toml", "environment POISE_..." or
    "command line --..."."""

    settings: Settings
    origins: dict[str, str]
    _draft: Draft = field(repr=False, compare=False)

    def varied(self, changes: Mapping[str, object]) -> "LoadedSettings":
        """What would be loaded with more given on the command line, each value valid by itself.

        Raises ConfigError when that does not fit together with what is set."""
        draft = self._draft.copy()
        layer = sources.command_line_layer(changes)
        draft.values |= changes
        draft.sources |= {key: layer.source_of(key) for key in changes}
        return _finish(draft, [])


def load(
    file: Path | Sequence[Path] | None,
    environment: Mapping[str, str],
    overrides: Mapping[str, object],
    assignments: Sequence[str] | None = None,
) -> LoadedSettings:
    """Read all sources; the later ones win: defaults, profile, files in their order, environment, assignments, overrides.

    Overrides are values by dotted key; None is not given. Assignments are KEY=VALUE. The profile is the one that the last source
    names.

    Without a `file`, ./poise.toml is read, or else poise.toml in the user's configuration directory, if there is one.
    Raises ConfigError with every problem of every source, also of assignments that are none."""
    pairs = [assignment.partition("=") for assignment in assignments or ()]
    problems = [f"--set {key}: must be KEY=VALUE" for key, equals, _ in pairs if not equals]
    given_last: dict[str, object] = {key.strip(): value for key, equals, value in pairs if equals}
    given_last |= {key: value for key, value in overrides.items() if value is not None}
    given = [file] if isinstance(file, Path) else list(file or ())
    found = sources.find_file() if not given else None
    layers = [sources.file_layer(path) for path in (given or ([found] if found else []))]
    layers += [sources.environment_layer(environment), sources.command_line_layer(given_last)]
    layers = [*_profile(layers), *layers]
    draft = Draft(values=dict(flatten(Settings().model_dump())), sources={}, suspect=set())
    for layer in layers:
        bad = _problems_by_key(layer)
        problems += [*layer.problems, *bad.values()]
        draft.suspect |= bad.keys() if layer.complete else set(section_keys())
        for key, value in flatten(layer.values, skip=bad.keys()):
            draft.values[key] = value
            draft.sources[key] = layer.source_of(key)
    if "profile" in draft.suspect:
        draft.suspect |= set(section_keys())  # it may have meant anything
    return _finish(draft, problems)


def _finish(given: Draft, problems: list[str]) -> LoadedSettings:
    draft = given.copy()
    problems = [*problems, *reconcile(draft)]
    if problems:
        raise ConfigError(problems)
    origins = {key: draft.source(key).origin for key in draft.values}
    return LoadedSettings(_build(draft.values), origins, given)


def _profile(layers: Sequence[Layer]) -> list[Layer]:
    """The layer of the profile that is asked for, if one is and if there is such a one."""
    asked = [layer.values["profile"] for layer in layers if "profile" in layer.values]
    return [sources.profile_layer(asked[-1])] if asked and asked[-1] in catalogue()["profile"].choices else []


def flatten(table: Mapping[str, Any], *, skip: Container[str] = (), path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """The values of a nested table by dotted key. Sections are opened, other values are not.

    An empty entry of a table is a value as well: it is there."""
    for name, value in table.items():
        key = dotted((*path, name))
        if key in skip:
            continue
        known = pattern((*path, name))
        is_entry = known.endswith(f".{NAME}")
        if isinstance(value, Mapping) and known in section_keys() and (value or not is_entry):
            yield from flatten(value, skip=skip, path=(*path, name))
        else:
            yield key, value


def _build(values: Mapping[str, Any]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *sections, name = split(key)
        table = nested
        for section in sections:
            table = table.setdefault(section, {})
        table[name] = value
    return Settings.model_validate(nested)


def _problems_by_key(layer: Layer) -> dict[str, str]:
    """What validation finds in one layer. The defaults below it fill in the required keys, nothing else."""
    try:
        Settings.model_validate(merge(Settings().model_dump(), layer.values))
    except ValidationError as error:
        problems: dict[str, str] = {}
        for detail in error.errors(include_url=False):
            # Another source may give what is missing here.
            if detail["type"] != "missing":
                key, problem = _explain(detail, layer)
                problems.setdefault(key, problem)
        return problems
    return {}


def _explain(detail: ErrorDetails, layer: Layer) -> tuple[str, str]:
    """The dotted key that an error is about, and the line that is printed."""
    names_an_entry = detail["loc"][-1] == "[key]"
    path = [str(part) for part in detail["loc"] if not isinstance(part, int)]  # without the place in a list
    key = dotted(path[:-1] if names_an_entry else path)
    source: Source = layer.source_of(key)
    if detail["type"] == "extra_forbidden":
        return key, f"{source.name}: {key}: unknown key{meant(closest_keys(key))}"
    if names_an_entry:
        return key, f"{source.name}: {key}: {detail['ctx']['error']}"
    return key, f"{source.name}: {key} = {shown(key, detail['input'])}: {_rule(detail, key, pattern(path))}"


def _rule(detail: ErrorDetails, key: str, known: str) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] in ("model_type", "dict_type"):
        return f"must be a section, [{key}]"
    setting = catalogue()[known]
    return f"must be {setting.limits if detail['type'] in _RANGE_ERRORS else setting.allowed}"
