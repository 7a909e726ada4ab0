"""A budget of reasoning: its end is forced when it is spent, at the end of a character, and the same after any replay."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poise.engine.thinking import Budget
from poise.wire.to_engine import Thinking

END = (7, 8)


def drive(budget: Budget, draws: list[int]) -> list[int]:
    """The output where these are drawn wherever nothing is forced."""
    output, left = [], list(draws)
    while left or budget.forced is not None:
        token = budget.forced if budget.forced is not None else left.pop(0)
        budget.take(token)
        output.append(token)
    return output


def piece(token: int) -> bytes:
    """Token 100 + b is one byte of a character, all others are whole."""
    return bytes([token]) if token >= 100 else b"x"


def test_the_end_is_forced_when_the_budget_is_spent() -> None:
    """Counted from the answer's beginning, or from the tokens that begin the reasoning."""
    assert drive(Budget(Thinking(3, END), piece), [1, 2, 3, 4, 5]) == [1, 2, 3, *END, 4, 5]
    assert drive(Budget(Thinking(0, END), piece), [1, 2]) == [*END, 1, 2]
    assert drive(Budget(Thinking(2, END, (5, 6)), piece), [1, 2, 5, 6, 1, 2, 3]) == [1, 2, 5, 6, 1, 2, *END, 3]
    assert drive(Budget(Thinking(0, END, (5,)), piece), [1, 5, 2]) == [1, 5, *END, 2]


def test_a_model_may_end_it_itself() -> None:
    """And then nothing is forced, also where it begins again."""
    assert drive(Budget(Thinking(4, END), piece), [1, *END, 2, 3, 4, 5, 6]) == [1, *END, 2, 3, 4, 5, 6]
    assert drive(Budget(Thinking(2, END), piece), [*END, 2, 3, 4]) == [*END, 2, 3, 4]
    assert drive(Budget(Thinking(9, END, (5,)), piece), [1, 2, 3]) == [1, 2, 3]


def test_a_character_is_not_cut() -> None:
    """The end waits until it is whole."""
    euro = list("€".encode())
    assert drive(Budget(Thinking(2, END), piece), [1, *euro, 2]) == [1, *euro, *END, 2]
    assert drive(Budget(Thinking(1, END), piece), [0xE2, 1, 2]) == [0xE2, 1, *END, 2]


@given(st.lists(st.sampled_from([1, 2, 5, 7, 8, 0xE2, 0x82, 0xAC]), max_size=20), st.integers(0, 8), st.booleans())
def test_it_follows_from_the_tokens(draws: list[int], tokens: int, starts: bool) -> None:
    """Whoever takes an output over, wherever it was cut, forces what would have been forced."""
    thinking = Thinking(tokens, END, (5,) if starts else ())
    output = drive(Budget(thinking, piece), draws)
    for cut in range(len(output) + 1):
        budget = Budget(thinking, piece, output[:cut])
        for token in output[cut:]:
            assert budget.forced in (None, token)
            budget.take(token)
        assert budget.forced is None
