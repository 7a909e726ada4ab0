"""`poise fit` and `poise weights`: what a model file needs and which weights are served, without serving it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from poise.commands.options import JsonForTable, JsonForText, refusal, takes_settings

if TYPE_CHECKING:
    from poise.config import LoadedSettings

DOES_NOT_FIT = 2


@takes_settings("--profile", "--model")
def fit(
    loaded: LoadedSettings,
    *,
    memory: Annotated[str, typer.Option("--memory", help="Judge for a host or group with so much in all, as in 2G.")] = "",
    as_json: JsonForTable = False,
) -> None:
    """Tell whether model and settings fit this host's memory.

    Nothing is loaded. The status is 0 if it fits and 2 if not; then the smallest change that makes it fit is printed. With
    --memory, all processes count, and of the models beside this one the largest is named that fits with its context and slots."""
    from poise.llama.files.gguf import ModelError
    from poise.llama.fitting.fit import bytes_of, judge, largest, to_json, to_text

    try:
        result = judge(loaded) if not memory else largest(loaded, bytes_of(memory))
    except ValueError as error:
        raise refusal(f"poise: {error}") from error
    except ModelError as error:
        raise refusal(f"poise: {error}") from error
    typer.echo(to_json(result) if as_json else to_text(result))
    raise typer.Exit(0 if result.fits else DOES_NOT_FIT)


@takes_settings("--profile", "--model")
def weights(
    loaded: LoadedSettings,
    *,
    check: Annotated[bool, typer.Option("--check", help="Choose again now, and measure everything anew.")] = False,
    as_json: JsonForText = False,
) -> None:
    """Show which weights are served, and why.

    The figures of quality and speed that decided it are kept from the first start with the model."""
    from poise.llama.binding.library import EngineLibraryError
    from poise.llama.choosing.weights import to_json, to_text
    from poise.llama.files.gguf import ModelError
    from poise.llama.fitting.fit import chooser, model_path

    try:
        path = model_path(loaded.settings)
        weights_of = chooser(path, loaded.settings, _show_progress)
        if check:
            weights_of.forget()
            chosen = weights_of.choose()
            typer.echo("", err=True)
        else:
            chosen = weights_of.planned()
    except (ModelError, EngineLibraryError) as error:
        raise refusal(f"poise: {error}") from error
    typer.echo(to_json(path, chosen) if as_json else to_text(path, chosen))


def _show_progress(done: float) -> None:
    typer.echo(f"\rchoosing weights ... {done:.0%}", nl=False, err=True)
