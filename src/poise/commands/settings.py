"""`poise config`: the effective settings, and where each came from."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

from poise.commands.options import SHARED, takes_settings

if TYPE_CHECKING:
    from poise.config import LoadedSettings

JsonForToml = Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")]
CAPACITY_FILE = "capacity.json"
"""Where `poise.llama.fitting.capacity` keeps its record, in the state directory."""


@takes_settings(*SHARED)
def show_config(loaded: LoadedSettings, *, as_json: JsonForToml = False) -> None:
    """Print the effective settings and where each came from.

    The output is a valid poise.toml, except that API keys are masked."""
    from poise.config.document import to_json, to_toml

    typer.echo(to_json(loaded) if as_json else to_toml(loaded), nl=as_json)
    warn_of_capacity(loaded)


def warn_of_capacity(loaded: LoadedSettings) -> None:
    """Limits above what was measured here, if anything was and the model is there."""
    from poise.config.paths import state_dir

    if not (state_dir() / CAPACITY_FILE).exists() and not loaded.settings.server.require_measured:
        return
    from poise.llama.binding.library import EngineLibraryError
    from poise.llama.files.gguf import ModelError
    from poise.llama.fitting.capacity import problems
    from poise.llama.fitting.fit import model_path

    with suppress(ModelError, EngineLibraryError, OSError):  # `poise doctor` tells what is wrong with them
        for line in problems(loaded, model_path(loaded.settings)):
            typer.echo(f"warning: {line}", err=True)
