"""The folder tree is the architecture: layers, purity of the scheduler, sizes, and documents that cannot rot."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "poise"
LAB = ROOT / "lab" / "poise_lab"
MODULES = sorted([*SOURCE.rglob("*.py"), *LAB.rglob("*.py")])
PACKAGES = sorted({path.parent for path in MODULES})

LINES_MAX = 420
FUNCTION_LINES_MAX = 70
IMPURE = {
    "time", "datetime", "random", "secrets", "logging", "os", "sys", "io", "pathlib", "socket", "asyncio", "threading",
    "subprocess", "numpy", "msgspec", "ctypes", "uuid", "warnings",
}  # fmt: skip


def named(path: Path) -> str:
    """A module's or package's place in poise, or in the laboratory beside it."""
    return path.relative_to(SOURCE if path.is_relative_to(SOURCE) else LAB.parent).as_posix()


def modules_of(package: str, root: Path = SOURCE) -> list[Path]:
    """All modules of a package, however deep. A package that is not there, or has none, is an error and no pass."""
    found = sorted((root / package).rglob("*.py"))
    assert found, f"there is no package {package}"
    return found


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", modules_of("scheduler"), ids=named)
def test_the_scheduler_is_pure(path: Path) -> None:
    """Invariant 1: no clock, I/O, logging, randomness or model handle, and no sets to iterate by accident."""
    for module in imports(path):
        top = module.split(".")[0]
        assert top not in IMPURE, f"{path.name} imports {module}"
        assert top != "poise" or module.startswith("poise.scheduler"), f"{path.name} imports {module}"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.For | ast.comprehension):
            assert not isinstance(node.iter, ast.Set | ast.SetComp), f"{path.name}: iterates a set"
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in {"open", "print", "hash", "id", "input"}, f"{path.name}: calls {node.func.id}"


def test_only_the_engine_process_binds_the_loop_to_llama_cpp() -> None:
    """The loop runs in the simulator because it knows ports only; the gateway has nothing of llama.cpp in its process."""
    allowed = {
        "worker/engine/process.py",
        "worker/text/process.py",
        "worker/text/grammar.py",
        "gateway/supervision/preflight.py",
        "gateway/serve.py",
        "gateway/condition/degradation.py",
        "gateway/condition/power/sources.py",
        "commands/doctor.py",
        "commands/model_files.py",
        "commands/settings.py",
        "poise_lab/tune/passes.py",
        "poise_lab/tune/command.py",
        "poise_lab/tune/capacity.py",
        "poise_lab/tune/capacity_command.py",
        "poise_lab/tune/evidence.py",
        "poise_lab/tune/tunedfile.py",
    }  # preflight: in a child; serve: free memory; degradation, power: usable cores, quotas; commands: `poise fit` reads a
    # header; tune: its child times passes; the record of capacity, digests, atomic files
    assert allowed <= {named(path) for path in MODULES}, "an exception for a module that is not there"
    for path in MODULES:
        name = named(path)
        if not name.startswith("llama/") and name not in allowed:
            assert not any(m.startswith("poise.llama") for m in imports(path)), f"{name} imports poise.llama"
        if name != "llama/binding/library.py":
            assert not any(m.split(".")[0] == "llama_cpp" for m in imports(path)), f"{name} imports llama_cpp"


OPENING = {"create_connection", "open_connection", "urlopen", "connect", "connect_ex", "sock_connect", "sendto", "getaddrinfo"}
"""Calls by which a program reaches another host, or asks for its address."""
CLIENTS = {"aiohttp", "ftplib", "http.client", "httpx", "httpx2", "requests", "smtplib", "urllib.request", "urllib3"}
"""Modules that do so. What sends traces is OpenTelemetry's, in `metrics.traces`, and off by default."""
DOOR = "gateway/models/egress/"
LISTENS = "gateway/serve.py"
"""It asks for the addresses that it is to listen on."""


def opens(text: str) -> list[str]:
    """Ways to another host, in a module."""
    nodes = list(ast.walk(ast.parse(text)))
    calls = [node.func for node in nodes if isinstance(node, ast.Call) and ast.unparse(node.func) != "sqlite3.connect"]
    names = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
    found = [name for name in names if name in OPENING]
    for node in nodes:
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        found += [module for module in modules if module in CLIENTS]
    return found


def test_only_the_door_opens_connections() -> None:
    """Of what runs in the gateway's process, and in those beside it."""
    rooms = ("gateway", "audit", "config", "engine", "llama", "metrics", "scheduler", "wire", "worker")
    found = {named(path): opens(path.read_text()) for room in rooms for path in modules_of(room)}
    outside = {name: ways for name, ways in found.items() if ways and not name.startswith(DOOR)}
    assert outside == {LISTENS: ["getaddrinfo"]}
    assert any(ways for name, ways in found.items() if name.startswith(DOOR)), "the door is not where it is looked for"


@pytest.mark.parametrize(
    "code",
    ["import aiohttp", "from http import client", "from urllib.request import x", "s.connect(a)", "loop.create_connection(f)"],
)
def test_ways_to_other_hosts_are_seen(code: str) -> None:
    """The test above would find these."""
    assert opens(code)
    assert not opens("from http import HTTPStatus; from urllib.parse import urlsplit; socket.create_server(a)")


def test_only_the_policy_makes_permits() -> None:
    """Nobody else names what a permit is sealed with."""
    found = {named(path) for path in MODULES if re.search(r"\bSEAL\b", path.read_text())}
    assert found == {"gateway/models/egress/permit.py", "gateway/models/routing/policy.py"}


def test_the_benchmark_is_an_outside_client() -> None:
    """It knows scenarios and HTTP only."""
    for path in modules_of("bench", LAB):
        for module in imports(path):
            if module.startswith("poise"):
                assert module.startswith(("poise_lab.bench", "poise_lab.scenarios")) or module == "poise", path


def test_the_console_is_an_outside_client() -> None:
    """It knows HTTP, and the file with the token of its user's server: whatever it shows, a key opened."""
    for path in modules_of("console"):
        for module in imports(path):
            assert not module.startswith("poise") or module.startswith(("poise.console", "poise.operator_token")), path


@pytest.mark.parametrize("path", MODULES, ids=named)
def test_files_and_functions_fit_a_reader(path: Path) -> None:
    """Files of 100 to 400 lines, functions on a screen, every module says what it is for."""
    text = path.read_text()
    tree = ast.parse(text)
    assert text.count("\n") <= LINES_MAX, f"{text.count(chr(10))} lines"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno
            assert lines <= FUNCTION_LINES_MAX, f"{node.name} is {lines} lines long"
    if tree.body:
        assert ast.get_docstring(tree), "no module docstring"


def test_the_map_is_up_to_date() -> None:
    """As `scripts/document_architecture.py` writes it, from the docstrings of every package and module."""
    script = ROOT / "scripts" / "document_architecture.py"
    done = subprocess.run([sys.executable, str(script), "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", PACKAGES, ids=named)
def test_packages_say_what_they_are_for(package: Path) -> None:
    """And whatever has Python in it is a package, so that nothing is left out of a build or of the map."""
    assert ast.get_docstring(ast.parse((package / "__init__.py").read_text())), package


def test_the_layers_in_the_document_are_the_linted_ones() -> None:
    """The layer list in docs/architecture.md is the one import-linter checks."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    lint = (ROOT / ".importlinter").read_text()
    listed = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    linted = re.search(r"layers =\n((?:    .*\n)+)", lint)
    assert listed, "no layers block in docs/architecture.md"
    assert linted, "no layers in .importlinter"
    assert [line.strip() for line in listed[1].split("\n") if line] == [
        line.strip().replace("poise.", "") for line in linted[1].split("\n") if line
    ]


def test_nothing_is_left_for_nobody() -> None:
    """No notes to a future that has no owner."""
    for path in [*MODULES, *sorted((ROOT / "tests").rglob("*.py"))]:
        if path != Path(__file__):
            assert not re.search(r"\b(TODO|FIXME|XXX)\b", path.read_text()), path


@pytest.mark.parametrize("seed", ["0", "1"])
def test_importing_the_core_needs_no_engine(seed: str) -> None:
    """The scheduler and the loop import without llama.cpp, so that the simulator runs anywhere."""
    code = "import sys, poise.engine.core, poise_lab.sim.simulate; sys.exit(any('llama_cpp' in m for m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, check=False)
    assert done.returncode == 0
