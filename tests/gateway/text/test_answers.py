"""Ids to text: characters and stop strings come out the same however the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.text.answers import Detokeniser, StopScanner

# Few characters, so that stop strings occur in the texts, overlap themselves and each other.
SMALL = st.text("abé", max_size=30)
STOPS = st.lists(st.text("abé", min_size=1, max_size=4), max_size=8)


def cut(data: bytes, places: list[int]) -> list[bytes]:
    """The data in pieces, cut at any places, also within characters."""
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


def truncated(text: str, stops: list[str]) -> str:
    """The text up to the stop string that is complete first; of several, the longest. By trying every end."""
    for end in range(1, len(text) + 1):
        complete = [len(stop) for stop in stops if text[:end].endswith(stop)]
        if complete:
            return text[: end - max(complete)]
    return text


def run(pieces: list[bytes], stops: list[str]) -> tuple[list[str], bool]:
    detokeniser, scanner = Detokeniser(), StopScanner(stops)
    shown = []
    for piece in pieces:
        shown.append(scanner.push(detokeniser.push(piece)))
        if scanner.stopped:
            return shown, True
    shown.append(scanner.push(detokeniser.flush()) + scanner.flush())
    return shown, scanner.stopped


@given(SMALL, STOPS, st.lists(st.integers(0, 1000), max_size=40))
def test_streaming_equals_truncating_the_whole(text: str, stops: list[str], places: list[int]) -> None:
    """For any text, stop strings and cuts, the pieces together are the truncated text."""
    shown, stopped = run(cut(text.encode(), places), stops)
    assert "".join(shown) == truncated(text, stops)
    assert stopped == any(stop in text for stop in stops)


@given(SMALL, STOPS, st.lists(st.integers(0, 1000), max_size=40))
def test_no_part_of_a_stop_string_is_shown_early(text: str, stops: list[str], places: list[int]) -> None:
    """What has been shown at any time is a beginning of the truncated text: nothing has to be taken back."""
    shown, _ = run(cut(text.encode(), places), stops)
    so_far = ""
    for piece in shown:
        so_far += piece
        assert truncated(text, stops).startswith(so_far)


@given(st.binary(max_size=40), st.lists(st.integers(0, 1000), max_size=40))
def test_any_bytes_decode_as_if_in_one_piece(data: bytes, places: list[int]) -> None:
    """Characters that are cut are put together, invalid bytes become U+FFFD, and nothing is lost."""
    shown, _ = run(cut(data, places), [])
    assert "".join(shown) == data.decode("utf-8", "replace")


@given(st.text(max_size=30), st.lists(st.integers(0, 1000), max_size=40))
def test_half_a_character_is_never_shown(text: str, places: list[int]) -> None:
    """Each piece of a valid text is valid text."""
    shown, _ = run(cut(text.encode(), places), [])
    assert not any("\ufffd" in piece for piece in shown) or "\ufffd" in text


@pytest.mark.parametrize(
    ("pieces", "stops", "expected"),
    [
        (["Hel", "lo END", " more"], ["END"], "Hello "),
        (["a E", "N", "D"], ["END"], "a "),
        (["a E", "N", "x"], ["END"], "a ENx"),
        (["aab"], ["ab"], "a"),
        (["abcd"], ["abcd", "bc"], "a"),
        (["xab"], ["ab", "xab"], ""),
        (["aaa", "b"], ["aab"], "a"),
        (["E", "N"], ["END"], "EN"),
    ],
)
def test_stop_strings_by_example(pieces: list[str], stops: list[str], expected: str) -> None:
    """Cases a person can follow."""
    shown, _ = run([piece.encode() for piece in pieces], stops)
    assert "".join(shown) == expected


def test_text_that_may_become_a_stop_string_is_held_only_as_long_as_needed() -> None:
    """The longest ending that could still grow into a stop string stays back; the rest does not wait."""
    scanner = StopScanner(["END"])
    assert [scanner.push(text) for text in ("one E", "N", "E", "x")] == ["one ", "", "EN", "Ex"]
