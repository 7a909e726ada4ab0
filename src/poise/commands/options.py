"""Options that commands share, and how settings are loaded from them. Imports nothing heavy: `poise --help` answers at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from poise.config import LoadedSettings

USAGE_ERROR = 2
ConfigFile = Annotated[
    list[Path] | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="TOML file. Can be repeated, the later ones win. Else ./poise.toml, else the one of your user directory.",
    ),
]
Profile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="workstation, team or edge: where values start (profile)."),
]
# Texts, so that a wrong value is reported by the loader: with its range, and together with all other problems.
Model = Annotated[str | None, typer.Option("--model", metavar="FILE", help="GGUF file (model.path).")]
Host = Annotated[str | None, typer.Option("--host", metavar="ADDRESS", help="Address to listen on (server.host).")]
Port = Annotated[str | None, typer.Option("--port", metavar="NUMBER", help="Port to listen on (server.port); 0: any.")]
Threads = Annotated[str | None, typer.Option("--threads", metavar="NUMBER", help="Compute threads (engine.threads).")]
GpuLayers = Annotated[
    str | None, typer.Option("--gpu-layers", metavar="NUMBER", help="Layers kept on a GPU (engine.gpu_layers).")
]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any setting, as in engine.batch_tokens=256. Can be repeated."),
]


def options_of(
    profile: str | None,
    model: str | None,
    host: str | None,
    port: str | None,
    threads: str | None,
    gpu_layers: str | None,
) -> dict[str, object]:
    return {
        "profile": profile,
        "model.path": model,
        "server.host": host,
        "server.port": port,
        "engine.threads": threads,
        "engine.gpu_layers": gpu_layers,
    }


def load_settings(
    files: list[Path] | None, assignments: list[str] | None, options: Mapping[str, object]
) -> LoadedSettings:
    from poise.config import ConfigError, load_given

    try:
        return load_given(files, os.environ, assignments, options)
    except ConfigError as error:
        raise refusal(*error.problems) from error


def refusal(*problems: str) -> typer.Exit:
    """Print the problems, a line each; the caller raises the result."""
    for problem in problems:
        typer.echo(problem, err=True)
    return typer.Exit(USAGE_ERROR)
