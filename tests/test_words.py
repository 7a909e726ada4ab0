"""Words that are sent, counted and shown stand once in the code: a new kind of change, or a header, has one place."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

import poise

SOURCE = Path(poise.__file__).parent
OUTSIDE = ("console/", "bench/")
"""Clients of the HTTP API, which import nothing of the server."""


@cache
def texts(path: Path) -> list[str]:
    """Every text in a module."""
    nodes = ast.walk(ast.parse(path.read_text()))
    return [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]


def spelled_in(*words: str) -> set[str]:
    """Modules in which a text is one of these words, or begins with one that ends with a dash."""
    starts = tuple(word for word in words if word.endswith("-"))
    found = set()
    for path in sorted(SOURCE.rglob("*.py")):
        name = path.relative_to(SOURCE).as_posix()
        if not name.startswith(OUTSIDE) and any(text in words or text.startswith(starts) for text in texts(path)):
            found.add(name)
    return found


@pytest.mark.parametrize(
    ("words", "home"),
    [
        (("stall",), {"scheduler/request.py"}),
        (("resume", "downgrade"), {"scheduler/request.py"}),
        (("recover",), {"wire/changes.py"}),
        (("reader_timeout",), {"metrics/story.py"}),
        (("kv_cells", "tenant_limits"), {"scheduler/bottleneck.py"}),
        (("X-Poise-",), {"gateway/request/headers.py"}),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_a_word_is_spelled_once(words: tuple[str, ...], home: set[str]) -> None:
    """Everybody else imports it."""
    assert spelled_in(*words) == home
