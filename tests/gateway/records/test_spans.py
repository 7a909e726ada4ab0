"""States, slots and chunks of a request, from its timeline."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.records.spans import class_at, computed_of, covered_s, spans_of
from tests.gateway.lives import Life


def told(life: Life, now_s: float = 9.0) -> list[tuple[str, float, float, str]]:
    return [(span.state, span.begin_s, span.end_s, span.pool) for span in spans_of(life.record, now_s)]


def test_every_moment_since_the_queue_belongs_to_one_state() -> None:
    """Through a swap while its reader was behind, and the loss of an engine."""
    life = Life().queued(1).started(2).tokens(3).at(4, "stall").at(5, "swap").at(6, "resume").at(7, "lost")
    life.at(8, "recover", why="5").ended(9)
    assert told(life) == [
        ("queued", 1, 2, ""),
        ("prefill", 2, 3, "short"),
        ("decode", 3, 4, "short"),
        ("stalled", 4, 5, "short"),
        ("swapped", 5, 6, ""),
        ("decode", 6, 7, "short"),
        ("lost", 7, 8, ""),
        ("decode", 8, 9, "short"),
    ]


def test_what_has_not_ended_lasts_until_now() -> None:
    """Also where an operator paused it in the queue: it has no slot to hold."""
    assert told(Life().queued(1).at(2, "pause"), 5) == [("queued", 1, 2, ""), ("paused", 2, 5, "")]
    assert told(Life().queued(1).started(2, "long"), 5)[-1] == ("prefill", 2, 5, "long")


def test_choices_are_apart_and_a_failure_ends_all() -> None:
    """Each has a queue, a slot and an end of its own."""
    life = Life(n=2).queued(1).queued(1, choice=1).started(2, choice=1).at(3, "finished", None)
    assert sorted(told(life)) == [("prefill", 2, 3, "short"), ("queued", 1, 2, ""), ("queued", 1, 3, "")]


def test_chunks_begin_with_their_pass() -> None:
    """One that is told at its end; several that are told as one, until the last one's."""
    one, many = computed_of(Life().prefill(3, 64, 0.5, 7).prefill(4, 160, 1.0, chunks=10, until_s=6).record)
    assert (one.begin_s, one.end_s, one.n_tokens, one.n_beside) == (2.5, 3, 64, 7)
    assert (many.begin_s, many.end_s, many.n_chunks) == (3.9, 6, 10)


def test_a_downgrade_changes_the_class_from_then_on() -> None:
    """What it held before, it held as what it was."""
    record = Life().queued(1).at(3, "downgrade", why="output").record
    assert (class_at(record, 2), class_at(record, 3)) == ("interactive", "background")


SPAN = st.tuples(st.integers(0, 20), st.integers(1, 10)).map(lambda p: (float(p[0]), float(p[0] + p[1])))


@given(st.lists(SPAN, max_size=8), st.integers(1, 4), st.integers(0, 20), st.integers(1, 12))
def test_how_long_enough_were_open_is_counted_second_by_second(
    spans: list[tuple[float, float]], at_least: int, begin: int, length: int
) -> None:
    """Against a count of every second."""
    end = begin + length
    slow = sum(sum(a <= second < b for a, b in spans) >= at_least for second in range(begin, end))
    assert covered_s(spans, at_least, begin, end) == pytest.approx(slow)
