"""docs/scheduler.md names the tests that show each rule; they exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
TEXT = (ROOT / "docs" / "scheduler.md").read_text()
NAMED = re.compile(
    r"\b(accounts|drafts|fairness|following|heavy|hold|limits|newcomers|places|power|preemption|prefix|recovery|retention|rules|"
    r"sampling_cost|slots|survival): "
    r"((?:`[a-z0-9_]+`(?:, )?\s*)+)"
)


def named_tests() -> list[tuple[str, str]]:
    return [(file, part) for file, parts in NAMED.findall(TEXT) for part in re.findall(r"`([a-z0-9_]+)`", parts)]


@pytest.mark.parametrize(("file", "part"), named_tests())
def test_the_document_names_tests_that_exist(file: str, part: str) -> None:
    """Renaming a test without the document fails here."""
    source = (Path(__file__).parent / f"test_{file}.py").read_text()
    assert re.search(rf"def test_\w*{part}", source), f"no test of {file} is called ...{part}..."


def test_the_document_names_many_tests_and_every_rule() -> None:
    """R1 to R8 and R10, and the pattern above still finds what the document says."""
    assert len(named_tests()) > 40
    for n in (*range(1, 9), 10):
        assert f"**R{n} " in TEXT
