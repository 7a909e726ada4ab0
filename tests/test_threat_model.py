"""docs/threat-model.md: every promise has a test, every test named is there, every kind of attack is after a promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from tests.attacks.kinds import KINDS

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "threat-model.md").read_text()
ROWS = re.findall(r"^\| (P\d+) \| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)(?:\[([\w, ]+)\])?`", PAGE)))


def test_promises_are_numbered_without_a_gap() -> None:
    """And each of them names a test."""
    assert [number for number, _, _ in ROWS] == [f"P{n + 1}" for n in range(len(ROWS))]
    assert len(ROWS) == len(re.findall(r"^\| P\d", PAGE, re.MULTILINE))
    for number, promise, tests in ROWS:
        assert "`tests/" in tests, f"{number} ({promise}) has no test"


@pytest.mark.parametrize(("path", "name", "cases"), NAMED, ids=lambda part: part.rpartition("/")[2][:60])
def test_every_test_that_is_named_is_there(path: str, name: str, cases: str) -> None:
    """As a function of that file; what is in brackets are kinds of attack."""
    tree = ast.parse((ROOT / path).read_text())
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    assert set(re.findall(r"\w+", cases)) <= set(KINDS)


def test_every_kind_of_attack_is_after_the_promises_that_name_it() -> None:
    """What a kind says of itself is what the page says of it."""
    by_kind = {
        name: {number for number, _, tests in ROWS for cases in re.findall(r"\[([\w, ]+)\]", tests) if name in cases.split(", ")}
        for name in KINDS
    }
    assert by_kind == {name: set(kind.promises) for name, kind in KINDS.items()}
