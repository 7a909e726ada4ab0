"""What poise keeps is what docs/data.md says: the list, the document, and every call in the source that writes a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tests.holdings import FILES, GROWING, MEMORY

ROOT = Path(__file__).parent.parent
SOURCE, LAB = ROOT / "src" / "poise", ROOT / "lab"
DOCUMENT = (ROOT / "docs" / "data.md").read_text()
WRITING_METHODS = {"write_text", "write_bytes", "dump", "tofile", "save"}
WRITING_FUNCTIONS = {"NamedTemporaryFile", "TemporaryFile", "mkstemp", "mkdtemp", "replace_file"}
FLAGS = {"O_WRONLY", "O_RDWR", "O_CREAT", "O_APPEND"}


def writes(tree: ast.AST) -> Iterator[int]:
    """Lines with a call that can write a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        texts = [a.value for a in [*node.args, *(k.value for k in node.keywords)] if isinstance(a, ast.Constant)]
        if any(isinstance(text, str) and text.startswith("/proc/self/") for text in texts):
            continue  # a switch of the kernel, and no file
        modes = [text for text in texts if isinstance(text, str) and 0 < len(text) <= 4]
        flags = {child.attr for child in ast.walk(node) if isinstance(child, ast.Attribute)} & FLAGS
        opens = name in ("open", "fdopen") and (bool(flags) or any(set(mode) & set("wax+") for mode in modes))
        if name in WRITING_METHODS or name in WRITING_FUNCTIONS or opens:
            yield node.lineno


def test_every_module_that_writes_files_is_listed() -> None:
    """And none that does not."""
    modules = [(path, root) for root in (SOURCE, LAB) for path in root.rglob("*.py")]
    found = {path.relative_to(root).as_posix() for path, root in modules if any(writes(ast.parse(path.read_text())))}
    assert found == {writer for file in FILES for writer in file.writers}


@pytest.mark.parametrize(
    "code", ["p.open('w')", "open(p, 'r+b')", "os.open(p, os.O_WRONLY)", "p.write_text(x)", "json.dump(x, f)"]
)
def test_writing_is_seen(code: str) -> None:
    """The test above would find these."""
    assert list(writes(ast.parse(code))) == [1]
    assert not list(writes(ast.parse("p.open('rb'); open(p); os.open(p, os.O_RDONLY)")))


def test_the_document_has_the_list() -> None:
    """Row by row, and nothing else."""
    rows = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and not line.startswith("| where")]
    rows = [row for row in rows if row.count("|") in (5, 6)]
    files = [
        f"| {where} | {file.what} | {file.content} | {file.until} | {file.readers} |"
        for file in FILES
        for where in [f"`{file.where}`" if "/" in file.where else file.where]
    ]
    assert rows == files + [f"| `{m.owner}` | {m.what} | {m.until} | {m.readers} |" for m in MEMORY]
    bounds = [line for line in DOCUMENT.splitlines() if line.startswith("| `") and line.count("|") == 4]
    assert [row for row in bounds if ":" in row.split("`")[1]] == [f"| `{g.owner}` | {g.what} | {g.bound} |" for g in GROWING]


CONTAINERS = {"dict", "list", "deque", "set", "OrderedDict", "defaultdict"}
WITH_A_REQUEST = {
    "gateway.models.local.choice:Choice",
    "gateway.text.context:Turns",
    "gateway.supervision.engine:RequestHandle",
    "gateway.models.local.generation:Generation",
    "gateway.api.fields:Ignored",
    "gateway.api.openai.writer:ChatWriter",
    "gateway.api.openai.writer:OpenAIWriter",
    "gateway.models.remote.written:_Part",
    "gateway.models.routed:RoutedJob",
    "gateway.models.remote.openai:Events",
    "gateway.records.moments:Gathered",
    "gateway.models.local.echo:Echo",
    "gateway.text.call_grammar:_Writer",
    "gateway.text.reading.source:Source",
    "gateway.records.reader:Reader",
    "gateway.records.record:Record",
    "gateway.text.segments:Segmenter",
}
"""Classes whose containers go with their request. (Records are kept longer, by Records.)"""
ROOMS = ("gateway", "metrics", "audit")
PARTS_OF = {"gateway.condition.findings:_Growth": "gateway.condition.findings:Findings"}


def growing(tree: ast.AST) -> Iterator[str]:
    """Classes with an attribute that is declared as a container of the object's own."""
    for kind in ast.walk(tree):
        if not isinstance(kind, ast.ClassDef):
            continue
        own = [n for n in ast.walk(kind) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Attribute)]
        if any(ast.unparse(node.annotation).partition("[")[0] in CONTAINERS for node in own):
            yield kind.name


def test_whatever_grows_in_the_gateway_has_a_bound_that_is_told() -> None:
    """A class with a container goes with a request, or says how large it can become."""
    assert all((SOURCE / room).is_dir() for room in ROOMS), "a room that is not there is not looked at"
    found = {
        f"{'.'.join(path.relative_to(SOURCE).with_suffix('').parts)}:{name}"
        for room in ROOMS
        for path in (SOURCE / room).rglob("*.py")
        for name in growing(ast.parse(path.read_text()))
    }
    told = {bound.owner for bound in GROWING}
    assert {PARTS_OF.get(owner, owner) for owner in found - WITH_A_REQUEST} == told


def test_containers_are_seen() -> None:
    """The test above would find these."""
    code = "class A:\n def __init__(self) -> None:\n  self.x: {} = y"
    for kind in ("dict[str, int]", "deque[int]", "list[A]"):
        assert list(growing(ast.parse(code.format(kind)))) == ["A"]
    assert not list(growing(ast.parse(code.format("int"))))


@pytest.mark.parametrize("owner", [memory.owner for memory in (*MEMORY, *GROWING)])
def test_what_is_listed_is_there(owner: str) -> None:
    """A place that was renamed or removed leaves the list."""
    module, name = owner.split(":")
    assert isinstance(getattr(import_module(f"poise.{module}"), name), type)


def test_by_default_no_text_is_on_disk() -> None:
    """The one file that can have any needs a policy that says so."""
    assert [file.where for file in FILES if file.content != "no"] == ["state/audit/audit-*.jsonl"]
