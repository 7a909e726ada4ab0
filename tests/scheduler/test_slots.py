"""Which slot a sequence gets and which hole is closed: what is cheapest, by hand and by trying everything."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from poise.scheduler.planning.slots import STEPS_COUNTED, cheapest_slot, closing_move, runs_added
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.sequence import Sequence

PASS_US = 5000.0


def holding(*slots: int, n_computed: int = 100, n_likely: int = 40) -> dict[int, Sequence]:
    held = {}
    for slot in slots:
        sequence = Sequence(Request(slot, "a", RequestClass.INTERACTIVE, n_computed, n_likely), "short", 0, 0.0)
        sequence.n_computed = n_computed
        held[slot] = sequence
    return held


def runs(slots: set[int]) -> int:
    return sum(slot - 1 not in slots for slot in slots)


def free(held: dict[int, Sequence], n: int = 8) -> list[int]:
    return [slot for slot in range(n) if slot not in held]


def test_r8_alone_it_takes_the_lowest_and_then_the_next() -> None:
    assert cheapest_slot(range(4), {}, PASS_US, 10, lambda slot: 0.0) == 0
    assert cheapest_slot([0, 2, 3], holding(1), PASS_US, 10, lambda slot: 0.0) == 0
    assert cheapest_slot([0, 3], holding(1, 2), PASS_US, 10, lambda slot: 0.0) == 0


def test_r8_a_short_context_is_carried_to_its_neighbours_and_a_long_one_used_where_it_lies() -> None:
    """Its own slot, 6, costs nothing to fill, but is a run of its own; any other costs the copy."""
    assert cheapest_slot(free(holding(0)), holding(0), PASS_US, 100, lambda slot: 1_000.0 * (slot != 6)) == 1
    assert cheapest_slot(free(holding(0)), holding(0), PASS_US, 100, lambda slot: 500_000.0 * (slot != 6)) == 6


def test_r8_a_slot_with_a_context_that_is_dear_is_left_alone() -> None:
    losses = {1: 400_000.0}
    assert cheapest_slot(free(holding(0)), holding(0), PASS_US, 100, lambda slot: losses.get(slot, 0.0)) == 2


def test_r8_a_hole_is_closed_where_that_makes_fewer_runs_and_not_otherwise() -> None:
    held = holding(0, 2, 3)
    assert closing_move(free(held), held, PASS_US, 1.0, lambda slot: 0.0) == (0, 1), "of 0 and 2-3 one run"
    shifted = holding(1, 2, 3)
    assert closing_move(free(shifted), shifted, PASS_US, 1.0, lambda slot: 0.0) is None, "it is one run already"
    ends = holding(0, 2, n_likely=1)
    assert closing_move(free(ends), ends, PASS_US, 1000.0, lambda slot: 0.0) is None, "the last token is not worth a copy"
    lies_warm = holding(0, 2)
    assert closing_move(free(lies_warm), lies_warm, PASS_US, 1.0, lambda slot: 1e9) is None


@given(
    st.sets(st.integers(0, 11), min_size=1, max_size=11),
    st.lists(st.integers(0, 200_000), min_size=12, max_size=12),
    st.integers(1, 64),
)
def test_the_cheapest_slot_is_the_cheapest_of_all(slots: set[int], carried: list[int], n_steps: int) -> None:
    held = holding(*sorted(slots))
    empty = free(held, 12)
    chosen = cheapest_slot(empty, held, PASS_US, n_steps, lambda slot: float(carried[slot]))

    def cost(slot: int) -> float:
        return carried[slot] + (runs(slots | {slot}) - runs(slots)) * PASS_US * min(n_steps, STEPS_COUNTED)

    assert cost(chosen) == min(map(cost, empty))
    assert all(runs_added(held, slot) == runs(slots | {slot}) - runs(slots) for slot in empty)


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11))
def test_closing_moves_end_in_as_few_runs_as_there_can_be(slots: set[int]) -> None:
    """Each makes fewer runs, so they end; with copies that cost nothing they end with one run, or with none that is worth it."""
    held = holding(*sorted(slots))
    while (move := closing_move(free(held, 12), held, PASS_US, 0.0, lambda slot: 0.0)) is not None:
        source, target = move
        before = runs(set(held))
        assert target not in held
        held[target] = held.pop(source)
        assert runs(set(held)) < before
    singles = [slot for slot in held if slot - 1 not in held and slot + 1 not in held]
    assert len(held) == 1 or not singles, "one that stands alone could have joined others"
