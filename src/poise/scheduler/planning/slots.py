"""Which slot a sequence gets, and which hole is closed (rule R8): what costs least.

llama.cpp computes consecutive slots in one pass, and each further run of them costs a pass's fixed part again, in every step. On
the other side stands what must be carried: cells that lie warm in another slot, and those that have to make room. Short contexts
are carried in a millisecond and keep their slots dense; long ones are used where they lie."""

from collections.abc import Callable, Container, Iterable, Mapping

from poise.scheduler.sequence import Sequence

STEPS_COUNTED = 16
"""A run of its own is counted for so many steps at most: by then its neighbours have ended, or its hole is closed."""


def runs_added(holders: Container[int], slot: int) -> int:
    """How many more runs of consecutive slots there are once this one is held too: 1, 0, or -1 where it joins two."""
    return 1 - ((slot - 1) in holders) - ((slot + 1) in holders)


def cheapest_slot(
    free: Iterable[int], holders: Mapping[int, Sequence], pass_us: float, n_steps: int, carried_us: Callable[[int], float]
) -> int:
    """The free slot for one that runs for `n_steps`; of several that cost the same the lowest.

    `pass_us`: the fixed part of a pass. `carried_us`: what it takes to empty a slot and to fill it with what is known."""
    steps = min(n_steps, STEPS_COUNTED)
    return min(free, key=lambda slot: (carried_us(slot) + runs_added(holders, slot) * pass_us * steps, slot))


def closing_move(
    free: Iterable[int], holders: Mapping[int, Sequence], pass_us: float, cell_us: float, emptied_us: Callable[[int], float]
) -> tuple[int, int] | None:
    """The move (source, target) that saves most by making fewer runs, or None where none pays for itself.

    Only those move that stand alone or highest: a move out of the middle of a run makes one more. `cell_us`: what carrying a cell
    takes; `emptied_us`: what it takes to empty a slot."""
    best: tuple[float, int, int] | None = None
    targets = [slot for slot in free if runs_added(holders, slot) < 1]
    highest = max(holders, default=-1)
    for source, sequence in holders.items() if targets else ():
        alone = runs_added(holders, source) == 1
        if not alone and source != highest:
            continue
        left = min(max(1, sequence.n_likely - sequence.n_output), STEPS_COUNTED)
        others = holders.keys() - {source}
        for target in targets:
            fewer = alone - runs_added(others, target)
            if fewer > 0 and (alone or target < source):
                saved = fewer * pass_us * left - cell_us * sequence.n_computed - emptied_us(target)
                if saved > 0 and (best is None or (-saved, target, source) < best):
                    best = (-saved, target, source)
    return (best[2], best[1]) if best else None
