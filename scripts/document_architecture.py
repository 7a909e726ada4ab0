"""Writes the map of docs/architecture.md from the docstrings of packages and modules. `--check` only compares.

    python scripts/document_architecture.py

A folder is a heading with the first sentence of its `__init__.py`, a module a row with the first sentence of its own.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "poise"
LAB = ROOT / "lab" / "poise_lab"
DOCUMENT = ROOT / "docs" / "architecture.md"


def main() -> int:
    text = DOCUMENT.read_text()
    wanted, n = re.subn(
        r"(<!-- generated: map -->\n).*?(<!-- end -->)",
        lambda found: found[1] + "\n".join(the_map()) + "\n" + found[2],
        text,
        flags=re.DOTALL,
    )
    if n != 1:
        print(f"{DOCUMENT}: needs one place for the map, has {n}")
        return 2
    if "--check" in sys.argv[1:]:
        if wanted != text:
            print(f"{DOCUMENT} differs from the docstrings: run scripts/document_architecture.py")
        return int(wanted != text)
    DOCUMENT.write_text(wanted)
    return 0


def the_map() -> Iterator[str]:
    """The lines of it: every folder with modules in it, each one before those below it; the laboratory last."""
    for root, base in ((SOURCE, SOURCE), (LAB, LAB.parent)):
        yield from _below(root, base)


def _below(root: Path, base: Path) -> Iterator[str]:
    for folder in [root, *sorted(path for path in root.rglob("*") if path.is_dir())]:
        modules = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))
        package = folder / "__init__.py"
        if not package.exists():
            continue
        name = folder.relative_to(base).as_posix()
        if folder != base:
            yield f"\n**`{name}/`** {first_sentence(package)}\n"
        if modules:
            yield "| module | what it is |\n|---|---|"
        for path in modules:
            yield f"| `{path.relative_to(base).as_posix()}` | {first_sentence(path)} |"


def first_sentence(path: Path) -> str:
    """The first paragraph of a module's docstring, on one line."""
    paragraph = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n\n")[0]
    return " ".join(paragraph.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
