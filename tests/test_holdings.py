"""What poise keeps is what docs/data.md says: the list, the document, and every call in the source that writes a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from poise.config.holdings import FILES, MEMORY

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "poise"
DOCUMENT = (ROOT / "docs" / "data.md").read_text()
WRITING_METHODS = {"write_text", "write_bytes", "dump", "tofile", "save"}
WRITING_FUNCTIONS = {"NamedTemporaryFile", "TemporaryFile", "mkstemp", "mkdtemp", "replace_file", "replace_private"}
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
    found = {
        path.relative_to(SOURCE).as_posix() for path in SOURCE.rglob("*.py") if any(writes(ast.parse(path.read_text())))
    }
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


@pytest.mark.parametrize("owner", [memory.owner for memory in MEMORY])
def test_what_is_listed_is_there(owner: str) -> None:
    """A place that was renamed or removed leaves the list."""
    module, name = owner.split(":")
    assert isinstance(getattr(import_module(f"poise.{module}"), name), type)


def test_by_default_no_text_is_on_disk() -> None:
    """The one file that can have any needs a policy that says so."""
    assert [file.where for file in FILES if file.content != "no"] == ["state/audit/audit-*.jsonl"]
