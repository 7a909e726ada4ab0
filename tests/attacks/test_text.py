"""Text that is dear or deadly to tokenise, with a model of a family whose tokeniser runs out of stack over long words."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from poise.llama.files.default_model import default_model
from tests.attacks.besieged import Besieged, attack, start

PRE = b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 6)
"""A text of six letters in the header of a GGUF file, and its name."""


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Besieged]:
    """The default model with another pre-tokeniser: text is split by std::regex, recursing by letter."""
    folder = tmp_path_factory.mktemp("fragile")
    data = default_model().read_bytes()
    assert data.count(PRE + b"smollm") == 1
    model = folder / "fragile.gguf"
    model.write_bytes(data.replace(PRE + b"smollm", PRE + b"gpt-4o"))
    server = start("model.weights=as-is", f"model.path={model}", folder=folder)
    try:
        yield Besieged(server, key="polite-secret-key", hostile_key="hostile-secret-key")
    finally:
        code = server.stop()
    assert code == 0


@pytest.mark.slow
async def test_one_word_ends_nothing_but_its_own_request(fragile: Besieged) -> None:
    """Tens of thousands of letters without a space: computed, refused, or the end of a process that only works for text."""
    outcomes = await attack(fragile, "long_word", n=3)
    assert not {outcome for outcome in outcomes if outcome.startswith(("no", "not"))}, outcomes
