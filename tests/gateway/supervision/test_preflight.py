"""The check before a start: in a child, whose death is one line, and which leaves nothing of llama.cpp in the gateway."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from poise.gateway.supervision.preflight import CannotStart, Checked, in_child


def test_what_was_found_comes_back() -> None:
    checked = Checked("/models/é.gguf", ["one", "two"])
    assert in_child(lambda: checked) == checked


def test_what_is_wrong_comes_back() -> None:
    def refuse() -> Checked:
        raise CannotStart("model.gguf: is empty; download it again")

    with pytest.raises(CannotStart, match="^model.gguf: is empty; download it again$"):  # noqa: RUF043
        in_child(refuse)


def test_a_file_that_kills_its_reader_is_one_line() -> None:
    def die() -> Checked:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    with pytest.raises(CannotStart, match="SIGKILL"):
        in_child(die)


def test_the_gateway_has_nothing_of_llama_cpp() -> None:
    """Importing all that `poise serve` runs loads neither the binding nor the module that loads the library."""
    code = (
        "import sys, poise.cli, poise.gateway.serve; "
        "print([m for m in sys.modules if 'llama_cpp' in m or m == 'poise.llama.binding.library'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "[]"
