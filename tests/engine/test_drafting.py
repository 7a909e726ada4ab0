"""The index that guesses are looked for in: what followed the last time, from this text alone, in constant time for a token."""

from __future__ import annotations

from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.engine import drafting
from poise.engine.drafting import MATCH_MAX, SHORT, NgramIndex


def test_what_followed_the_last_time_is_guessed() -> None:
    """The latest place wins, and of two the one after more equal tokens."""
    index = NgramIndex()
    index.extend([1, 2, 3, 4, 50, 51, 9, 2, 3, 4, 60, 61, 62, 7, 2, 3, 4])
    assert index.guess(2) == ([60, 61], 3)
    index.extend([1, 2, 3, 4, 50, 51, 9, 2, 3, 4, 60, 61, 62, 7, 2, 3, 4, 8, 1, 2, 3, 4])
    assert index.guess(3) == ([50, 51, 9], 4)


def test_nothing_is_guessed_after_what_is_new() -> None:
    index = NgramIndex()
    assert index.guess(4) == ([], 0)
    for n in range(1, 8):
        index.extend(list(range(n)))
        assert index.guess(4) == ([], 0)
    assert index.guess(0) == ([], 0)


def test_a_run_that_reaches_the_end_repeats_itself() -> None:
    index = NgramIndex()
    index.extend([9, 5, 6, 5, 6, 5, 6])
    assert index.guess(5)[0] == [5, 6, 5, 6, 5]


def test_a_prediction_is_guessed_from_its_beginning_and_found_again() -> None:
    """As long as the output has been that; later where the output is back in it, and never beyond its end."""
    index, prompt = NgramIndex([10, 11, 12, 13, 14, 15], 3), [1, 2, 3]
    index.extend([*prompt, 10])
    assert index.guess(3) == ([11, 12, 13], MATCH_MAX)
    assert index.guess(9) == ([11, 12, 13, 14, 15], MATCH_MAX)
    index.extend([*prompt, 10, 77])
    assert index.guess(3) == ([], 0)
    index.extend([*prompt, 10, 77, 11, 12, 13])
    assert index.guess(8) == ([14, 15], 3)


@given(
    tokens=st.lists(st.integers(0, 4), min_size=1, max_size=120),
    prediction=st.lists(st.integers(0, 4), max_size=30),
    cuts=st.lists(st.integers(1, 9), max_size=40),
    most=st.integers(0, 9),
)
def test_it_does_not_matter_how_the_text_came(tokens: list[int], prediction: list[int], cuts: list[int], most: int) -> None:
    """Token by token or at once; what is guessed stood somewhere in the text after equal tokens, as far as that goes."""
    whole, pieces = NgramIndex(prediction, 1 << 20), NgramIndex(prediction, 1 << 20)
    first = min(len(tokens), cuts[0] if cuts else 1)
    whole.extend(tokens[:first])
    pieces.extend(tokens[:first])
    whole.extend(tokens)
    end = first
    for cut in cuts:
        end = min(len(tokens), end + cut)
        pieces.extend(tokens[:end])
    pieces.extend(tokens)
    guesses, n_matched = whole.guess(most)
    assert (guesses, n_matched) == pieces.guess(most)
    assert len(guesses) <= most
    if guesses and len(tokens) > first:
        text = [*prediction, -1, *tokens] if prediction else tokens
        places = [p for p in range(SHORT, len(text)) if text[p - SHORT : p] == text[-SHORT:] and text[p] == guesses[0]]
        assert places
        assert n_matched >= SHORT


def test_of_a_long_text_only_the_end_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafting, "TOKENS_MAX", 20)
    numbers = count()
    text = [next(numbers) for _ in range(100)]
    index = NgramIndex(list(range(1000, 1100)), 100)
    index.extend(text)
    assert index.guess(4) == ([1000, 1001, 1002, 1003], MATCH_MAX)
    index.extend([*text, 5, 6, 7])
    assert index.guess(4) == ([], 0)
    index.extend([*text, 5, 6, 7, 90, 91, 92])
    assert index.guess(2)[0] == [93, 94]
    assert len(index._text) == 20 + 1 + 20 + 6
