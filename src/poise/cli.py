"""The command line.

Everything beyond typer is imported inside the commands, and the commands of other packages are imported when they are called,
so that `poise --help` answers at once and `poise serve` loads only what it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from poise import __version__
from poise.commands.model_files import fit, weights
from poise.commands.options import SHARED, JsonForText, refusal, takes_settings
from poise.commands.settings import show_config

if TYPE_CHECKING:
    from poise.config import LoadedSettings

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
  hybrid        other servers beside this one: what is labelled may leave, the rest stays

\b
Ask it something:
  curl http://127.0.0.1:8000/v1/chat/completions \\
    -H 'Content-Type: application/json' \\
    -d '{"model": "default", "messages": [{"role": "user", "content": "Hello!"}]}'
"""

LAB = "poise_lab"
"""What measures a server, and is installed apart from it."""

LATER: Mapping[str, tuple[str, str]] = {
    "bench": ("poise_lab.bench.command", "Measure a running server under the load of a scenario."),
    "bench compare": ("poise_lab.bench.compare_command", "Compare two results or servers, with confidence intervals."),
    "sim": ("poise_lab.sim.command", "Run a scenario through the scheduler in virtual time."),
    "top": ("poise.console.commands", "Show a running server in the terminal, live."),
    "dashboard": ("poise.console.commands", "Print an address that opens the dashboard as an operator."),
    "explain": ("poise.console.commands", "Tell why a request took as long as it did."),
    "route": ("poise.console.route", "Tell who would answer a request, and why; nothing is sent."),
    "token": ("poise.console.commands", "Print the token of a server of yours, for scripts."),
    "tune": ("poise_lab.tune.command", "Find better settings for this host by measuring."),
    "capacity": ("poise_lab.tune.capacity_command", "Measure how much load this host can take, and record it."),
    "capacity show": ("poise_lab.tune.capacity_command", "Show what was measured, beside the limits that are set."),
    "keys": ("poise.commands.keys", "Make, list and revoke API keys."),
    "audit": ("poise.commands.audit", "Check and read the audit log."),
    "spend": ("poise.commands.spend", "Show what other servers have cost, and budgets."),
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
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


@app.command()
@takes_settings(*SHARED)
def serve(loaded: LoadedSettings) -> None:
    """Serve the OpenAI API until interrupted."""
    from poise.gateway.serve import serve as run

    raise typer.Exit(run(loaded))


app.command("config")(show_config)
app.command()(fit)
app.command()(weights)


@app.command()
@takes_settings("--profile", "--model", "--host", "--port")
def doctor(loaded: LoadedSettings, *, as_json: JsonForText = False) -> None:
    """Check what a start depends on, and say what to do.

    Host, engine, model, settings, permissions, address, clock, disk and memory are looked at; nothing is changed.
    The status is 0 if `poise serve` can start, also with warnings, and 1 if not."""
    from poise.commands.doctor import BAD_FOUND, examine, is_bad, to_json, to_text

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


def _placeholder() -> None:
    raise AssertionError("a placeholder is listed, never called")


for _name, (_, _summary) in LATER.items():
    app.command(_name, help=_summary)(_placeholder)


def _imported(name: str) -> Any:
    """The real command of another package."""
    module, summary = LATER[name]
    try:
        function: Callable[..., object] | typer.Typer = getattr(import_module(module), name.replace(" ", "_"))
    except ImportError as error:
        if error.name == LAB:
            raise refusal(
                f"poise {name} is part of poise-lab, which is not installed; in a checkout: pip install -e lab"
            ) from error
        raise refusal(f"poise {name}: cannot be loaded: {error}") from error
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
