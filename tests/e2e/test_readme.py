"""Every command of README.md, as it stands there, against a real server."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from poise.llama.files.default_model import locate
from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for kind, text in BLOCKS if kind == "sh" for line in text.splitlines()]
PROGRAMS = [text for kind, text in BLOCKS if kind == "python"]
ADDRESS = "http://127.0.0.1:8000"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PoiseServer, dict[str, str]]]:
    """A server with folders of its own, and what commands beside it need to find it."""
    folder = tmp_path_factory.mktemp("readme")
    environment = {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    started = PoiseServer.start(environment=environment)
    yield started, environment | {"KEY": "somebody", "HOME": str(folder), "XDG_CACHE_HOME": str(Path.home() / ".cache")}
    assert started.stop() == 0


def run(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=250, check=False, cwd=ROOT, env=os.environ | environment
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def poise(words: list[str], url: str) -> list[str]:
    """The command under this interpreter, with what this host has in the place of the reader's."""
    if words[0] in {"explain", "top"}:
        words = [*words, "--url", url]
    return [sys.executable, "-m", "poise", *(str(locate()) if word == "/path/to/model.gguf" else word for word in words)]


def served(words: list[str], environment: dict[str, str]) -> None:
    """The server of these options comes up, and ends in order. It is kept on this machine, whatever its host."""
    options = [word.replace("0.0.0.0", "127.0.0.1") for word in words]
    assert PoiseServer.start(*options, environment=environment).stop() == 0


def test_there_are_commands() -> None:
    assert len(COMMANDS) >= 10
    assert len(PROGRAMS) == 1


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program(program: str, server: tuple[PoiseServer, dict[str, str]]) -> None:
    """It prints an answer."""
    url, environment = server[0].url, server[1]
    assert run([sys.executable, "-c", program.replace(ADDRESS, url)], environment).strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command(command: str, server: tuple[PoiseServer, dict[str, str]]) -> None:
    """`make` targets set everything up, which is what has happened when this runs: here they only have to be there."""
    url, environment = server[0].url, server[1]
    words = shlex.split(command)
    if words[:2] == [".venv/bin/poise", "serve"]:
        served(words[2:], environment)
    elif words[0] == ".venv/bin/poise":
        printed = run(poise(words[1:], url), environment)
        if words[1] == "keys":  # from now on a key is needed: the commands below show it
            environment["KEY"] = re.findall(r"\S{20,}", printed)[0]
    elif words[0] == "make":
        run(["make", "--dry-run", *words[1:]], environment)
    else:
        assert words[0] == "curl", f"no test runs {command!r}"
        assert run(shell(command, url), environment).strip()


def shell(command: str, url: str) -> list[str]:
    """Through a shell, because of the variables; a refusal is an error."""
    return ["sh", "-c", command.replace("curl ", "curl --silent --show-error --fail ", 1).replace(ADDRESS, url)]
