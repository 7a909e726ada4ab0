"""Options that commands share, and how settings are loaded from them. Imports nothing heavy: `poise --help` answers at once."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

if TYPE_CHECKING:
    from poise.config import Settings

USAGE_ERROR = 2
# Texts, so that a wrong value is reported by the loader: with its range, and together with all other problems.
SHARED: Mapping[str, tuple[str, str, str]] = {
    "--profile": ("profile", "NAME", "workstation, team, edge or hybrid: where values start (profile)."),
    "--model": ("model.path", "FILE", "GGUF file (model.path)."),
    "--host": ("server.host", "ADDRESS", "Address to listen on (server.host)."),
    "--port": ("server.port", "NUMBER", "Port to listen on (server.port); 0: any."),
    "--threads": ("engine.threads", "NUMBER", "Compute threads (engine.threads)."),
    "--upstream": ("backends.upstream.url", "URL", "Server that answers in the place of a model here (backends.upstream.url)."),
    "--gpu-layers": ("engine.gpu_layers", "NUMBER", "Layers kept on a GPU (engine.gpu_layers)."),
}
"""The setting that each is for, how its value is called, and what it is."""
JsonForTable = Annotated[bool, typer.Option("--json", help="JSON instead of a table.")]
JsonForText = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
OneConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file. Else ./poise.toml, else the one of your user directory."),
]
GROUP = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False, "no_args_is_help": True}
"""What groups of commands have in common."""
_FILES_HELP = "TOML file. Can be repeated, the later ones win. Else ./poise.toml, else the one of your user directory."
_FILES = typer.Option("--config", metavar="FILE", help=_FILES_HELP)
_SET = typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in engine.batch_tokens=256. Can be repeated.")


def takes_settings(*shared: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Makes a command of a function of LoadedSettings and options of its own: with --config, these of SHARED, and --set."""

    def command_of(function: Callable[..., None]) -> Callable[..., None]:
        @wraps(function)
        def command(config: list[Path] | None, assignments: list[str] | None, **given: Any) -> None:
            from poise.config import ConfigError, load

            values = {SHARED[option][0]: given.pop(option.strip("-").replace("-", "_")) for option in shared}
            if values.get("backends.upstream.url") is not None:
                values["engine.enabled"] = "false"
            try:
                loaded = load(config, os.environ, values, assignments)
            except ConfigError as error:
                raise refusal(*error.problems) from error
            function(loaded, **given)

        kinds: dict[str, Any] = {"config": Annotated[list[Path] | None, _FILES]}
        for option in shared:
            _, metavar, text = SHARED[option]
            name = option.strip("-").replace("-", "_")
            kinds[name] = Annotated[str | None, typer.Option(option, metavar=metavar, help=text)]
        kinds["assignments"] = Annotated[list[str] | None, _SET]
        defaults = dict.fromkeys(kinds) | (function.__kwdefaults__ or {})
        # The settings come from here: what their type is called means nothing to typer.
        own = get_type_hints(function, localns={"LoadedSettings": object}, include_extras=True)
        kinds |= {name: own[name] for name in function.__kwdefaults__ or {}}
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters = [inspect.Parameter(name, kind, default=defaults[name], annotation=kinds[name]) for name in kinds]
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = kinds
        return command

    return command_of


def settings_of(config: Path | None) -> Settings:
    """The settings of a command that has no more to do with them than where files are."""
    from poise.config import ConfigError, load

    try:
        return load(config, os.environ, {}).settings
    except ConfigError as error:
        raise refused(*error.problems) from error


def refused(*problems: str) -> typer.Exit:
    """As `refusal`, by the program's name."""
    return refusal(*(f"poise: {problem}" for problem in problems))


def refusal(*problems: str) -> typer.Exit:
    """Print the problems, a line each; the caller raises the result."""
    for problem in problems:
        typer.echo(problem, err=True)
    return typer.Exit(USAGE_ERROR)
