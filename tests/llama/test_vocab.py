"""Text to tokens and back with the default model's vocabulary."""

from __future__ import annotations

import pytest

from poise.llama.binding.model import Model
from poise.llama.binding.vocab import Vocab

pytestmark = pytest.mark.slow

TEXTS = (
    "",
    "Hello world",
    "  leading and trailing  ",
    "line\n\nline\ttab\r\n",
    "Füße, naïve, 日本語, العربية, 👩‍👩‍👧 🏳️‍🌈",
    "nul \0 inside",
    "1234567890 " * 300,
    "\u200b\ufeff\u202e",
)


@pytest.fixture(scope="module")
def vocab(model: Model) -> Vocab:
    return model.vocab


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_survives_the_round_trip(vocab: Vocab, text: str) -> None:
    """The pieces of a text's tokens are its bytes."""
    ids = vocab.tokenize(text, add_special=False, parse_special=False)
    assert b"".join(vocab.piece(token, special=False) for token in ids).decode() == text


def test_a_piece_can_be_part_of_a_character(vocab: Vocab) -> None:
    """Pieces are bytes: an emoji spans several tokens."""
    ids = vocab.tokenize("👋", add_special=False, parse_special=False)
    assert len(ids) > 1
    with pytest.raises(UnicodeDecodeError):
        vocab.piece(ids[0], special=False).decode()


def test_control_tokens_are_read_and_shown_only_on_request(vocab: Vocab) -> None:
    """A user's text cannot contain one unless parse_special says so."""
    name = "<|im_end|>"
    assert vocab.tokenize(name, add_special=False, parse_special=True) == [vocab.special["eos"]]
    as_text = vocab.tokenize(name, add_special=False, parse_special=False)
    assert len(as_text) > 1
    assert vocab.piece(vocab.special["eos"], special=True) == name.encode()
    assert vocab.piece(vocab.special["eos"], special=False) == b""


def test_a_lone_surrogate_becomes_a_question_mark(vocab: Vocab) -> None:
    """JSON can carry one; UTF-8 cannot."""
    assert vocab.tokenize("a\ud800b", add_special=False, parse_special=False) == vocab.tokenize(
        "a?b", add_special=False, parse_special=False
    )


def test_special_tokens_are_known(vocab: Vocab) -> None:
    """SmolLM2: ChatML, no automatic beginning of text."""
    assert (vocab.bos, vocab.special_text("bos")) == (1, "<|im_start|>")
    assert (vocab.special["eos"], vocab.special_text("eos")) == (2, "<|im_end|>")
    assert vocab.special_text("fim_prefix") == ""
    assert vocab.add_bos is False
    assert {0, 2} <= set(vocab.eog_tokens)
    assert 1 not in vocab.eog_tokens


def test_every_token_has_a_piece(vocab: Vocab) -> None:
    """Also control tokens and raw bytes; the whole vocabulary is below the size that the model computes."""
    assert vocab.n_tokens == 49_152
    assert sum(bool(vocab.piece(token, special=True)) for token in range(vocab.n_tokens)) > 49_000
