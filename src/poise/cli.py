"""The command line.

Everything beyond typer is imported inside the commands, and the commands of other packages are imported when they are called,
so that `poise --help` answers at once and `poise serve` loads only what it runs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import wraps
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from poise import __version__

if TYPE_CHECKING:
    from poise.config import LoadedSettings

USAGE_ERROR = 2
CAPACITY_FILE = "capacity.json"
"""Where `poise.llama.capacity` keeps its record, in the state directory."""
DOES_NOT_FIT = 2

OVERVIEW = """A local LLM server that keeps its composure under load.

poise serves the OpenAI API over llama.cpp. Many requests advance together, a token at a time: interactive chats keep their
pace while long prompts and background jobs run, every tenant gets a fair share, and what does not fit is refused at once
with the reason. Settings come from poise.toml, POISE_* variables and options; `poise config` shows the result."""

EXAMPLES = """\b
Examples:
  poise serve                                      the default model on http://127.0.0.1:8000
  poise serve --model model.gguf --port 9000
  poise serve --profile team --set classes.interactive.queue_max=16
  poise fit --model model.gguf --profile edge      does it fit into memory, and if not, what would
  POISE_SERVER__PORT=9000 poise config             every setting and where it came from

\b
Profiles:
  workstation   one person: chats in front, jobs behind (the defaults)
  team          several keys on one node: fair shares, limits for each, long answers go on in the background
  edge          little memory: few slots, short contexts, quantised KV cells

\b
Ask it something:
  curl http://127.0.0.1:8000/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "default", "messages": [{"role": "user", "content": "Hello!"}]}'
"""

LATER: Mapping[str, tuple[str, str]] = {
    "bench": ("poise.bench.command", "Measure a running server under the load of a scenario."),
    "bench compare": ("poise.bench.compare_command", "Compare two results or servers, with confidence intervals."),
    "sim": ("poise.sim.command", "Run a scenario through the scheduler in virtual time."),
    "top": ("poise.console.top", "Show a running server in the terminal, live."),
    "dashboard": ("poise.console.dashboard", "Print an address that opens the dashboard as an operator."),
    "explain": ("poise.console.explain", "Tell why a request took as long as it did."),
    "token": ("poise.console.token", "Print the token of a server of yours, for scripts."),
    "tune": ("poise.tune.command", "Find better settings for this host by measuring."),
    "capacity": ("poise.tune.capacity_command", "Measure how much load this host can take, and record it."),
    "capacity show": ("poise.tune.capacity_command", "Show what was measured, beside the limits that are set."),
    "keys": ("poise.gateway.commands", "Make, list and revoke API keys."),
    "audit": ("poise.gateway.commands", "Check and read the audit log."),
}
"""Commands of other packages: name -> module with a function (or a group of commands) of that name (with _ for a space), and the
line in `poise --help`. A name of two words is a command below another one, which has its own arguments."""


class _Group(TyperGroup):
    """Lists placeholders for the commands in LATER; imports the real one when it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if " ".join(args[:2]) in LATER:
            args = [" ".join(args[:2]), *args[2:]]
        name, command, rest = super().resolve_command(ctx, args)
        return name, _imported(name) if name is not None and name in LATER else command, rest


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"poise {__version__}")
        raise typer.Exit


app = typer.Typer(
    cls=_Group,
    help=OVERVIEW,
    epilog=EXAMPLES,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain text: half the start-up time, and errors of one line that can be piped
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


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


@app.command()
def serve(
    config: ConfigFile = None,
    profile: Profile = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    assignments: Assignments = None,
) -> None:
    """Serve the OpenAI API until interrupted."""
    loaded = _load(config, assignments, _options(profile, model, host, port, threads, gpu_layers))
    from poise.gateway.serve import serve as run

    raise typer.Exit(run(loaded))


@app.command("config")
def show_config(
    config: ConfigFile = None,
    profile: Profile = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    threads: Threads = None,
    gpu_layers: GpuLayers = None,
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of TOML.")] = False,
) -> None:
    """Print the effective settings and where each came from.

    The output is a valid poise.toml, except that API keys are masked.
    """
    loaded = _load(config, assignments, _options(profile, model, host, port, threads, gpu_layers))
    from poise.config.document import to_json, to_toml

    typer.echo(to_json(loaded) if as_json else to_toml(loaded), nl=as_json)
    _warn_of_capacity(loaded)


@app.command()
def fit(
    config: ConfigFile = None,
    profile: Profile = None,
    model: Model = None,
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
) -> None:
    """Tell whether model and settings fit this host's memory.

    Nothing is loaded. The status is 0 if it fits and 2 if not; then the smallest change that makes it fit is printed.
    """
    loaded = _load(config, assignments, {"profile": profile, "model.path": model})
    from poise.llama.fit import judge, to_json, to_text
    from poise.llama.gguf import ModelError

    try:
        result = judge(loaded)
    except ModelError as error:
        raise _refusal(f"poise: {error}") from error
    typer.echo(to_json(result) if as_json else to_text(result))
    raise typer.Exit(0 if result.fits else DOES_NOT_FIT)


@app.command()
def weights(
    config: ConfigFile = None,
    profile: Profile = None,
    model: Model = None,
    assignments: Assignments = None,
    check: Annotated[bool, typer.Option("--check", help="Choose again now, and measure everything anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Show which weights are served, and why.

    The figures of quality and speed that decided it are kept from the first start with the model.
    """
    loaded = _load(config, assignments, {"profile": profile, "model.path": model})
    from poise.llama.fit import model_path, planned_weights, weights_to_load
    from poise.llama.gguf import ModelError
    from poise.llama.library import EngineLibraryError
    from poise.llama.weights import to_json, to_text

    try:
        path = model_path(loaded.settings)
        if check:
            chosen = weights_to_load(path, loaded.settings, _show_progress, again=True)
            typer.echo("", err=True)
        else:
            chosen = planned_weights(path, loaded.settings)
    except (ModelError, EngineLibraryError) as error:
        raise _refusal(f"poise: {error}") from error
    typer.echo(to_json(path, chosen) if as_json else to_text(path, chosen))


@app.command()
def doctor(
    config: ConfigFile = None,
    profile: Profile = None,
    model: Model = None,
    host: Host = None,
    port: Port = None,
    assignments: Assignments = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Check what a start depends on, and say what to do.

    Host, engine, model, settings, permissions, address, clock, disk and memory are looked at; nothing is changed.
    The status is 0 if `poise serve` can start, also with warnings, and 1 if not.
    """
    loaded = _load(config, assignments, _options(profile, model, host, port, None, None))
    from poise.gateway.doctor import BAD_FOUND, examine, is_bad, to_json, to_text

    findings = examine(loaded)
    typer.echo(to_json(findings) if as_json else to_text(findings))
    raise typer.Exit(BAD_FOUND if is_bad(findings) else 0)


@app.command()
def version() -> None:
    """Print the versions that a bug report needs."""
    import platform
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    typer.echo(f"poise {__version__}")
    typer.echo(f"python {platform.python_version()} on {platform.system()} {platform.machine()}")
    try:
        typer.echo(f"llama-cpp-python {installed('llama-cpp-python')}")
    except PackageNotFoundError:
        typer.echo("llama-cpp-python is not installed")


def main() -> None:
    """The console entry point."""
    app(prog_name="poise")


def _warn_of_capacity(loaded: LoadedSettings) -> None:
    """Limits above what was measured here, if anything was and the model is there."""
    from poise.config.paths import state_dir

    if not (state_dir() / CAPACITY_FILE).exists() and not loaded.settings.server.require_measured:
        return
    from poise.llama.capacity import problems
    from poise.llama.fit import model_path
    from poise.llama.gguf import ModelError
    from poise.llama.library import EngineLibraryError

    with suppress(ModelError, EngineLibraryError, OSError):  # `poise doctor` tells what is wrong with them
        for line in problems(loaded, model_path(loaded.settings)):
            typer.echo(f"warning: {line}", err=True)


def _show_progress(done: float) -> None:
    typer.echo(f"\rchoosing weights ... {done:.0%}", nl=False, err=True)


def _placeholder() -> None:
    raise AssertionError("a placeholder is listed, never called")


for _name, (_, _summary) in LATER.items():
    app.command(_name, help=_summary)(_placeholder)


def _options(
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


def _load(files: list[Path] | None, assignments: list[str] | None, options: Mapping[str, object]) -> LoadedSettings:
    from poise.config import ConfigError, load_given

    try:
        return load_given(files, os.environ, assignments, options)
    except ConfigError as error:
        raise _refusal(*error.problems) from error


def _imported(name: str) -> Any:
    """The real command of another package."""
    module, summary = LATER[name]
    try:
        function: Callable[..., object] | typer.Typer = getattr(import_module(module), name.replace(" ", "_"))
    except ImportError as error:
        raise _refusal(f"poise {name}: cannot be loaded: {error}") from error
    if isinstance(function, typer.Typer):
        return typer.main.get_command(function)
    command = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    command.command(name, help=None if function.__doc__ else summary)(_exiting(function))
    return typer.main.get_command(command)


def _exiting(function: Callable[..., object]) -> Callable[..., None]:
    """The function with its number as exit status; typer drops what a command returns."""

    @wraps(function)
    def command(*args: object, **kwargs: object) -> None:
        result = function(*args, **kwargs)
        if isinstance(result, int) and result:
            raise typer.Exit(result)

    return command


def _refusal(*problems: str) -> typer.Exit:
    """Print the problems, a line each; the caller raises the result."""
    for problem in problems:
        typer.echo(problem, err=True)
    return typer.Exit(USAGE_ERROR)
