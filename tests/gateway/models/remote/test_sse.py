"""Events come whole out of bytes that were cut anywhere, and never become more than their bound."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import count, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.models.remote.sse import LINE_BYTES_MAX, EventLines, ServerEvent, TooLong

STREAM = (
    b"\xef\xbb\xbf: a comment\n\nevent: ping\ndata: {}\n\nid: 7\nretry: 10\ndata: one\r\n\r\n"
    b"data:two\ndata:  three\ndata\n\nevent: nothing\n\nevent: last\ndata: \xc3\xa9"
)
EVENTS = [
    ServerEvent("ping", b"{}"),
    ServerEvent("", b"one"),
    ServerEvent("", b"two\n three\n"),
    ServerEvent("last", b"\xc3\xa9"),
]


def read(parts: Iterable[bytes]) -> list[ServerEvent]:
    lines = EventLines()
    return [event for part in parts for event in lines.feed(part)] + list(lines.flush())


@given(st.lists(st.integers(0, len(STREAM))))
def test_cuts_make_no_difference(cuts: list[int]) -> None:
    """Nor does a blank line that never came."""
    places = [0, *sorted(cuts), len(STREAM)]
    assert read(STREAM[a:b] for a, b in pairwise(places)) == EVENTS


@given(st.lists(st.binary(max_size=50), max_size=20))
def test_any_bytes_can_come(parts: list[bytes]) -> None:
    assert read(parts) == read([b"".join(parts)])


@pytest.mark.parametrize("piece", [b"x" * 5000, b"data: " + b"x" * 5000 + b"\n"])
def test_an_event_has_a_bound(piece: bytes) -> None:
    """In one line, and in many. What was complete before it is told; afterwards no more of it is kept than the bound."""
    lines = EventLines()
    found = lines.feed(b"data: before\n\n" + piece)
    assert next(found).data == b"before"
    n_pieces = next(n for n in count() if not is_taken(found if n == 0 else lines.feed(piece)))
    assert n_pieces * len(piece) <= LINE_BYTES_MAX < (n_pieces + 2) * len(piece)


def is_taken(events: Iterable[ServerEvent]) -> bool:
    try:
        return list(events) == []
    except TooLong:
        return False
