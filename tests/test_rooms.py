"""Rooms: few entries in each, imports that go one way however they are written, and a contract for every one of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from configparser import ConfigParser
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src"
ROOMS = sorted(path.parent for path in (SOURCE / "poise").rglob("__init__.py"))

MODULES_MAX = 20
GATEWAY_ENTRIES_MAX = 18
EXCUSED_MAX = 1

Arrow = tuple[str, str]


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


def layers() -> dict[str, list[set[str]]]:
    """The layers of each container, highest first, as `.importlinter` has them."""
    found = {}
    for contract in contracts():
        if contract["type"] == "layers":
            rows = [set(row.split(" | ")) for row in contract["layers"].split("\n") if row]
            found.update(dict.fromkeys(contract["containers"].split(), rows))
    return found


def contracts() -> list[dict[str, str]]:
    parser = ConfigParser()
    parser.read_string((ROOT / ".importlinter").read_text())
    return [dict(parser[name]) for name in parser.sections() if ":contract:" in name]


def excused() -> set[Arrow]:
    lines = [line for contract in contracts() for line in contract.get("ignore_imports", "").split("\n") if line]
    return {(above, below) for above, _, below in (line.partition(" -> ") for line in lines)}


def imports(text: str) -> Iterator[str]:
    """Everything that is imported anywhere in a module: in functions and for type checkers, too."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def arrows() -> set[Arrow]:
    """Who imports whom, by modules. A package stands for what its `__init__` has."""
    modules = {name_of(path).removesuffix(".__init__"): path for path in (SOURCE / "poise").rglob("*.py")}
    found = set()
    for name, path in modules.items():
        for imported in imports(path.read_text()):
            target = imported if imported in modules else imported.rpartition(".")[0]
            if target in modules and target != name:
                found.add((name, target))
    return found


def backwards(container: str, rows: list[set[str]], all_arrows: set[Arrow]) -> list[Arrow]:
    """Arrows between two children of a container that do not go down."""
    place = {name: n for n, row in enumerate(rows) for name in row}
    wrong = []
    for above, below in all_arrows:
        if above.startswith(f"{container}.") and below.startswith(f"{container}."):
            ends = [name.removeprefix(f"{container}.").partition(".")[0] for name in (above, below)]
            if ends[0] != ends[1] and place[ends[0]] >= place[ends[1]]:
                wrong.append((above, below))
    return wrong


@pytest.mark.parametrize("room", ROOMS, ids=name_of)
def test_a_room_is_seen_at_a_glance(room: Path) -> None:
    """Beyond this many, modules want a room of their own."""
    assert len([path for path in room.glob("*.py") if path.name != "__init__.py"]) <= MODULES_MAX


def test_the_gateways_top_is_seen_at_a_glance() -> None:
    """Rooms and modules together."""
    top = SOURCE / "poise" / "gateway"
    files = [path.relative_to(top) for path in top.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    entries = {path.parts[0] for path in files} - {"__init__.py"}
    assert len(entries) <= GATEWAY_ENTRIES_MAX, sorted(entries)


@pytest.mark.parametrize("room", [room for room in ROOMS if room.name != "poise"], ids=name_of)
def test_every_room_has_its_place_in_a_contract(room: Path) -> None:
    """Each package is a layer of the one that it lies in."""
    container = name_of(room.parent)
    assert room.name in set().union(*layers().get(container, [])), f"no contract for {container} names {room.name}"


@pytest.mark.parametrize("container", layers())
def test_no_import_runs_back_up(container: str) -> None:
    """import-linter looks at the same layers; here nothing is left out of sight, and nothing but the list is excused."""
    rows = layers()[container]
    there = {path.stem for path in (SOURCE / container.replace(".", "/")).glob("*.py")} - {"__init__"}
    assert there <= set().union(*rows), f"modules of {container} without a place"
    assert set(backwards(container, rows, arrows())) <= excused()


def test_no_circles() -> None:
    """No two modules need each other, not even by way of others, and not for types alone."""
    below: dict[str, set[str]] = {}
    for importer, imported in arrows() - excused():
        below.setdefault(importer, set()).add(imported)
    while leaves := {name for targets in below.values() for name in targets} - set(below):
        below = {name: rest for name, targets in below.items() if (rest := targets - leaves)}
    assert not below, f"circles among {sorted(below)}"


def test_next_to_nothing_is_excused() -> None:
    """And what is, is needed: an excuse without an import goes."""
    assert len(excused()) <= EXCUSED_MAX
    assert excused() <= arrows()


@pytest.mark.parametrize(
    "text",
    ["import poise.a", "from poise import a", "def f():\n    from poise import a", "if TYPE_CHECKING:\n    import poise.a"],
)
def test_imports_are_seen_wherever_they_stand(text: str) -> None:
    """The tests above would find these."""
    assert list(imports(text)) == ["poise.a"]


def test_what_runs_back_up_is_seen() -> None:
    """Up, and sideways."""
    rows = [{"a"}, {"b", "c"}]
    down, up, sideways = ("poise.a", "poise.b.x"), ("poise.b.x", "poise.a.y"), ("poise.b", "poise.c")
    assert backwards("poise", rows, {down}) == []
    assert backwards("poise", rows, {up}) == [up]
    assert backwards("poise", rows, {sideways}) == [sideways]
