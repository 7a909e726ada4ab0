"""How far two models' predictions are apart."""

from __future__ import annotations

import numpy as np
import pytest

from poise.llama.binding.model import Model
from poise.llama.choosing import quality as quality_module
from poise.llama.choosing.quality import (
    UNCOUNTED,
    WINDOWS,
    Quality,
    TooSlow,
    _Sums,
    _windows,
    compare,
    kl_divergence,
    log_softmax,
    quality_text,
)

RANDOM = np.random.default_rng(7)


def logits(rows: int, vocabulary: int = 50) -> np.ndarray:
    return RANDOM.normal(scale=3.0, size=(rows, vocabulary)).astype(np.float32)


def test_probabilities_and_their_divergence() -> None:
    """Rows add up to one; the divergence is 0 from itself, positive from another, and as worked out by hand."""
    p, q = log_softmax(logits(20) + 500), log_softmax(logits(20))
    assert np.allclose(np.exp(p).sum(axis=1), 1.0, atol=1e-5)
    assert np.allclose(kl_divergence(p, p), 0.0)
    assert (kl_divergence(p, q) > 0).all()
    even, biased = np.log(np.array([[0.5, 0.5]], np.float32)), np.log(np.array([[0.75, 0.25]], np.float32))
    assert kl_divergence(even, biased)[0] == pytest.approx(0.5 * np.log(0.5 / 0.75) + 0.5 * np.log(0.5 / 0.25), rel=1e-5)


def test_sums_over_chunks_are_those_over_the_whole() -> None:
    """Perplexity by its definition, the same in one piece and in several; skipped positions and unknown tokens do not count."""
    source, other = logits(40), logits(40)
    known = [int(token) for token in RANDOM.integers(0, 50, size=39)]
    whole, parts = _Sums(), _Sums()
    whole.add(source, other, known, 5)
    for start in range(0, 40, 10):
        piece = slice(start, start + 10)
        parts.add(source[piece], other[piece], known[piece], max(0, 5 - start))
    quality = whole.quality
    assert quality.n_positions == parts.quality.n_positions == 34
    surprise = -log_softmax(source)[np.arange(5, 39), known[5:]]
    assert quality.source_perplexity == pytest.approx(np.exp(surprise.mean()), rel=1e-5)
    differences = log_softmax(source)[np.arange(5, 39), known[5:]] - log_softmax(other)[np.arange(5, 39), known[5:]]
    assert quality.error == pytest.approx(differences.std() / np.sqrt(34), rel=1e-3)
    assert np.log(quality.perplexity_ratio) == pytest.approx(differences.mean(), rel=1e-3)
    for name in ("source_perplexity", "perplexity", "kl", "same_top", "error"):
        assert getattr(parts.quality, name) == pytest.approx(getattr(quality, name), rel=1e-4), name


def test_a_short_last_chunk_adds_nothing() -> None:
    """Fewer known tokens than positions to skip."""
    sums = _Sums()
    sums.add(logits(3), logits(3), [1, 2], 16)
    assert sums.quality.n_positions == 0


def test_each_limit_is_named() -> None:
    """Divergence first; a lower perplexity than the source's is no problem."""
    quality = Quality(1000, source_perplexity=20.0, perplexity=20.3, kl=0.01, same_top=0.95)
    assert quality.problem(1.02, 0.02) == ""
    assert "0.0100, allowed is 0.005 (model.weights_kl_max)" in quality.problem(1.02, 0.005)
    assert "1.015 times the source's, allowed is 1.01 (model.weights_perplexity_max)" in quality.problem(1.01, 0.02)
    assert Quality(1000, 20.0, 19.0, 0.01, 0.95).problem(1.0, 0.02) == ""


def test_the_text_is_varied_and_of_the_right_length() -> None:
    """Prose, dialogue, lists, code and data; long enough to compare on and short enough to read at a start."""
    text = quality_text()
    assert 900 < len(text.split()) < 1500
    assert all(piece in text for piece in ("Assistant: ", "def merge(", '{"order": ', "\n1. Mix", "Dear Ms"))


@pytest.mark.slow
def test_a_model_is_as_good_as_itself(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same computation twice: no difference at all, at every position of every window."""
    monkeypatch.setattr(quality_module, "WINDOW", 80)  # a part of each window does here
    seen: list[float] = []
    quality = compare(model, model, threads=1, progress=seen.append)
    assert quality.kl == pytest.approx(0.0, abs=1e-6)
    assert quality.perplexity == quality.source_perplexity
    assert quality.same_top == 1.0
    assert 3.0 < quality.perplexity < 50.0, "it reads the text as a language model does"
    assert quality.n_positions == WINDOWS * (80 - UNCOUNTED)
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    windows = _windows(model)
    assert len(windows) == WINDOWS
    assert len({len(window) for window in windows}) == 1


@pytest.mark.slow
def test_too_slow_is_said_after_two_chunks(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not at the end of the time."""
    seen: list[float] = []
    with pytest.raises(TooSlow) as caught:
        compare(model, model, threads=1, limit_s=0.0, progress=seen.append)
    assert len(seen) == 1
    assert caught.value.args[0] > 0


@pytest.mark.slow
def test_other_kv_cells_are_held_against_those_of_16_bits(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """One model with two types of cells: 8 bits change its predictions a little, 4 bits more."""
    monkeypatch.setattr(quality_module, "WINDOW", 80)
    eight, four = (compare(model, model, threads=1, kv_type=kv_type).kl for kv_type in ("q8_0", "q4_0"))
    assert 0.0 < eight < four
    assert eight < 0.05
