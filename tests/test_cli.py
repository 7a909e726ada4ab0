"""The command line as a user meets it: help, exit codes, errors in lines, and no needless imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner, Result

from poise import __version__
from poise.cli import LATER, app
from poise.config import LoadedSettings, load
from poise.config.sources import OPTIONS
from tests.llama.gguf_files import TINY_KEYS, gguf_bytes, write_gguf

ROOT = Path(__file__).parent.parent
# pydantic is not in the list: typer itself reads options with it.
HEAVY = ("aiohttp", "starlette", "uvicorn", "numpy", "jinja2", "llama_cpp", "rich", "msgspec", "poise.config")


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))
    for name in [name for name in os.environ if name.startswith("POISE_")]:
        monkeypatch.delenv(name)


def run(*arguments: str, exit_code: int = 0, stderr: str | None = "", variables: dict[str, str] | None = None) -> Result:
    """The result of one call; `stderr` None leaves it unchecked."""
    result = CliRunner().invoke(app, list(arguments), env=variables or {}, prog_name="poise")
    assert result.exit_code == exit_code, result.output
    if stderr is not None:
        assert result.stderr == stderr
    return result


def python(*arguments: str) -> str:
    """What a fresh interpreter prints."""
    command = [sys.executable, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def module_with(monkeypatch: pytest.MonkeyPatch, module: str, name: str, function: object) -> None:
    """Stand in for a module that a command imports."""
    double = ModuleType(module)
    setattr(double, name, function)
    monkeypatch.setitem(sys.modules, module, double)


def test_help_explains_itself() -> None:
    """What it is, every command with a whole sentence, and a request to try."""
    output = run("--help").stdout
    assert "keeps its composure under load" in output
    for command in ("serve", "config", "fit", "weights", "version", *LATER):
        assert f"\n  {command} " in output
    assert "..." not in output.partition("Commands:")[2]
    assert "curl http://127.0.0.1:8000/v1/chat/completions" in output
    assert run("-h").stdout == output


def test_help_is_quick() -> None:
    """Help and version import none of the libraries that the commands need; that is what makes them quick."""
    program = "import sys; from poise.cli import app; app(sys.argv[1:], standalone_mode=False); print(*sys.modules)"
    for arguments in (["--help"], ["serve", "--help"], ["fit", "--help"], ["--version"]):
        modules = python("-c", program, *arguments).splitlines()[-1].split()
        assert "typer" in modules
        assert not {module for module in modules if module in HEAVY}


def test_module_is_the_program() -> None:
    """`python -m poise` is `poise`."""
    assert python("-m", "poise", "--version") == f"poise {__version__}\n"


@pytest.mark.parametrize("command", ["serve", "config"])
def test_options_and_their_settings(command: str) -> None:
    """Each setting with an option of its own is named in the option's help, so that errors and help agree."""
    output = " ".join(run(command, "--help").stdout.split())
    for key, option in OPTIONS.items():
        assert f"({key})" in output.partition(f" {option} ")[2].partition(" --")[0], option


@pytest.fixture
def model(tmp_path: Path) -> str:
    """A header that announces KV cells of 48 KiB."""
    keys = {**TINY_KEYS, "llama.context_length": 8192, "llama.attention.key_length": 4096}
    return str(write_gguf(tmp_path / "model.gguf", gguf_bytes({**keys, "llama.attention.value_length": 4096})))


def test_fit(model: str) -> None:
    """Status 0 and a table when it fits; profile, file and assignments count."""
    output = run("fit", "--model", model, "--profile", "edge", "--set", "pools.short.slots=3").stdout
    assert output.startswith(f"{model}, profile edge\n")
    assert "3 slots of 2048 tokens, q8_0" in output
    assert "It fits, with" in output


def test_fit_as_json_and_its_advice(model: str) -> None:
    """Status 2 when it does not fit; with the advice it does."""
    free = json.loads(run("fit", "--model", model, "--json").stdout)["available_bytes"] >> 20
    arguments = ("fit", "--model", model, "--set", f"engine.memory_reserve_mb={free - 1200}")
    lines = run(*arguments, exit_code=2).stdout.splitlines()
    _, found, options = lines[-1].partition("the least that makes it fit: ")
    assert found
    assert json.loads(run(*arguments, *options.split(), "--json").stdout)["fits"] is True


def test_fit_without_a_model() -> None:
    """A file that is not there is one line, as for `serve`."""
    problem = "poise: no.gguf: does not exist; check the path\n"
    assert run("fit", "--model", "no.gguf", exit_code=2, stderr=problem).stdout == ""


def test_serve_refuses_what_does_not_fit(model: str) -> None:
    """Before anything is loaded, with the advice that `fit` gives."""
    document = json.loads(run("fit", "--model", model, "--json").stdout)
    reserve = (document["available_bytes"] >> 20) - 1200
    arguments = ("serve", "--model", model, "--port", "0", "--set", f"engine.memory_reserve_mb={reserve}")
    result = run(*arguments, exit_code=2, stderr=None)
    assert result.stderr.startswith(f"poise: {model}: needs ")
    assert "; the least that makes it fit: --set " in result.stderr
    assert result.stderr.count("\n") == 1


def test_version() -> None:
    """What a bug report needs."""
    assert run("version").stdout.startswith(f"poise {__version__}\npython 3.")


def test_config_prints_what_loads_to_the_same(tmp_path: Path) -> None:
    """The effective configuration is a configuration file, with each origin beside its value."""
    (tmp_path / "mine.toml").write_text("[pools.short]\nslots = 4")
    variables = {"POISE_SERVER__HOST": "::1"}
    arguments = ("config", "--config", "mine.toml", "--port", "0", "--set", "scheduler.ageing=0.5")
    output = run(*arguments, variables=variables).stdout
    lines = [" ".join(line.split()) for line in output.splitlines()]
    for line in (
        'host = "::1" # environment POISE_SERVER__HOST',
        "port = 0 # command line --port",
        "ageing = 0.5 # command line --set scheduler.ageing",
        f"slots = 4 # file {tmp_path / 'mine.toml'}",
        "slots_max = 4 # default, limited by pools.short.slots",
        "threads = 0 # default",
    ):
        assert line in lines
    (tmp_path / "printed.toml").write_text(output)
    expected = load(Path("mine.toml"), variables, {"server.port": 0, "scheduler.ageing": 0.5})
    assert load(Path("printed.toml"), {}, {}).settings == expected.settings


def test_config_as_json() -> None:
    """The same for programs; keys are masked here too."""
    document = json.loads(run("config", "--json", "--set", "auth.keys.alice=sk-1-of-alice", "--threads", "2").stdout)
    assert document["engine.threads"] == {"value": 2, "origin": "command line --threads"}
    assert document["auth.keys.alice"] == {"value": "***", "origin": "command line --set auth.keys.alice"}
    assert document["auth.admin_key"] == {"value": "", "origin": "default"}


def test_option_wins_over_assignment() -> None:
    """The same setting twice: the option made for it counts."""
    output = run("config", "--set", "server.port=1", "--port", "2").stdout
    assert tomllib.loads(output)["server"]["port"] == 2


@pytest.mark.parametrize("command", ["serve", "config"])
def test_bad_configuration_is_lines_on_stderr(command: str) -> None:
    """All problems, a line each, status 2, nothing on stdout."""
    Path("poise.toml").write_text("server.port = '8000'")
    problems = (
        "--set nonsense: must be KEY=VALUE\n"
        'poise.toml: server.port = "8000": must be a whole number between 0 and 65535\n'
        "POISE_SERVER_HOST: unknown variable; did you mean POISE_SERVER__HOST?\n"
        "--threads: engine.threads = -1: must be between 0 and 1024\n"
    )
    arguments = (command, "--threads", "-1", "--set", "nonsense")
    result = run(*arguments, variables={"POISE_SERVER_HOST": "a"}, exit_code=2, stderr=problems)
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "fragment"),
    [
        (["serve", "--prot", "1"], "No such option: --prot"),
        (["severe"], "No such command 'severe'"),
        (["serve", "extra"], "Got unexpected extra argument"),
        (["config", "--port"], "Option '--port' requires an argument"),
    ],
)
def test_wrong_usage(arguments: list[str], fragment: str) -> None:
    """Status 2 and the reason."""
    assert fragment in run(*arguments, exit_code=2, stderr=None).stderr


def test_missing_file() -> None:
    """A file that was named must exist."""
    run("config", "--config", "no.toml", exit_code=2, stderr="no.toml: cannot be read: No such file or directory\n")


def test_serve_hands_over_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """`serve` loads, calls the gateway, and ends with its status."""
    seen: list[LoadedSettings] = []

    def serve(loaded: LoadedSettings) -> int:
        seen.append(loaded)
        return 3

    module_with(monkeypatch, "poise.gateway.serve", "serve", serve)
    run("serve", "--model", "a b.gguf", "--host", "0.0.0.0", "--gpu-layers", "7", exit_code=3)
    [loaded] = seen
    assert (loaded.settings.model.path, loaded.settings.engine.gpu_layers) == ("a b.gguf", 7)
    assert loaded.origins["server.host"] == "command line --host"


@pytest.mark.parametrize("name", LATER)
def test_commands_of_other_packages_are_there(name: str) -> None:
    """Where the table says they are."""
    module, _ = LATER[name]
    assert callable(getattr(import_module(module), name.replace(" ", "_")))


@pytest.mark.parametrize("name", LATER)
def test_commands_of_other_packages(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their own options and help, and the number they return as status."""

    def command(count: int = 0) -> int:
        """Do the real thing."""
        print("count", count)
        return count

    module_with(monkeypatch, LATER[name][0], name.replace(" ", "_"), command)
    words = name.split()
    assert run(*words).stdout == "count 0\n"
    assert run(*words, "--count", "4", exit_code=4).stdout == "count 4\n"
    output = run(*words, "--help").stdout
    assert "Do the real thing." in output
    assert f"Usage: poise {name} [OPTIONS]" in output


def test_command_that_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing library is a line, not a traceback."""
    monkeypatch.setitem(sys.modules, "poise_lab.sim.command", None)
    result = run("sim", exit_code=2, stderr=None)
    assert result.stderr.startswith("poise sim: cannot be loaded: ")
    assert result.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["bench", "bench compare", "sim", "tune", "capacity", "capacity show"])
def test_a_server_without_its_laboratory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed apart says so."""
    for module in [module for module in sys.modules if module.split(".")[0] == "poise_lab"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if not (Path(place) / "poise_lab").exists()])
    result = run(*name.split(), exit_code=2, stderr=None)
    assert result.stderr == f"poise {name} is part of poise-lab, which is not installed; in a checkout: pip install -e lab\n"
