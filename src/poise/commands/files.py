"""What the commands of the keys file and of the audit log share: their options, the settings, refusals."""

import os
from pathlib import Path
from typing import Annotated

import typer

from poise.commands.options import refusal
from poise.config import ConfigError, Settings, load

GROUP = {"add_completion": False, "rich_markup_mode": None, "pretty_exceptions_enable": False, "no_args_is_help": True}
OneConfigFile = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", help="TOML file. Else ./poise.toml, else the one of your user directory."),
]


def settings_of(config: Path | None) -> Settings:
    try:
        return load(config, os.environ, {}).settings
    except ConfigError as error:
        raise refused(*error.problems) from error


def refused(*problems: str) -> typer.Exit:
    return refusal(*(f"poise: {problem}" for problem in problems))
