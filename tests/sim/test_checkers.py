"""Invariants over time: each broken once by hand."""

from __future__ import annotations

import pytest

from poise.config import Settings
from poise.scheduler.planning.plan import Batch, BatchResult, Chunk, KvOperation, StepPlan, StepResult, StoreSlot
from poise.scheduler.request import Queued, Request, RequestClass
from poise.wire import messages as wire
from poise_lab.sim.simulate import sim_policy
from tests.sim.checking.checkers import PROGRESS_STEPS, Checkers


class Anything:
    """Cells that are always as they should be."""

    def __init__(self) -> None:
        self.mirror: Checkers | None = None

    stored_bytes = 0

    def slot_positions(self, pool: str, slot: int) -> int:
        assert self.mirror is not None
        return (self.mirror.mirror.slots[pool, slot].n or 0) - 1


class Run:
    """Requests 1 (interactive) and 2 (background) of two prompt tokens each."""

    def __init__(self) -> None:
        real = Anything()
        self.checkers = real.mirror = Checkers(sim_policy(Settings()), real)
        for request_id, request_class in ((1, RequestClass.INTERACTIVE), (2, RequestClass.BACKGROUND)):
            request = Request(request_id, "a", request_class, 2, 500)
            self.checkers.recorded(0, "add", (request, Queued(request_id, 1, 0)))

    def step(self, *chunks: Chunk, operations: tuple[KvOperation, ...] = (), changes: tuple[str, ...] = ()) -> None:
        """One step; `changes` are those of request 1."""
        batches = (Batch("short", chunks, 0),) if chunks else ()
        self.checkers.recorded(0, "plan", (StepPlan(0, operations, batches),))
        self.checkers.recorded(0, "result", (StepResult((BatchResult(1),) * len(batches)),))
        self.checkers.heard(wire.Step(0, [], [], [], [wire.Change(1, what) for what in changes]))
        self.checkers.after_step()


def prompt(request_id: int) -> Chunk:
    return Chunk(request_id, request_id, 0, 2, True, True)


def decode(request_id: int, start: int) -> Chunk:
    return Chunk(request_id, request_id, start, 1, True, False)


def test_a_chat_that_is_left_out_twice_is_noticed() -> None:
    """Invariant 6: background may delay an interactive decode by a step, not by two."""
    run = Run()
    run.step(prompt(1), prompt(2))
    run.step(decode(2, 2))
    run.step(decode(1, 2), decode(2, 3))
    run.step(decode(2, 4))
    with pytest.raises(AssertionError, match="invariant 6"):
        run.step(decode(2, 5))


@pytest.mark.parametrize("away", ["pause", "stall", "swap", "drop"])
def test_a_chat_that_is_away_is_not_left_out(away: str) -> None:
    """Who has no slot or must stand still cannot be given a token."""
    run = Run()
    run.step(prompt(1), prompt(2))
    run.step(decode(2, 2), changes=(away,))
    for start in range(3, 9):
        run.step(decode(2, start))


def test_background_may_wait() -> None:
    """Nobody promised it a token in every step."""
    run = Run()
    run.step(prompt(1), prompt(2))
    for start in range(2, 9):
        run.step(decode(1, start))


def test_losing_a_slot_twice_in_a_row_is_noticed() -> None:
    """Invariant 8: something must be computed in between."""
    run = Run()
    run.step(prompt(1))
    run.step(changes=("swap",))
    with pytest.raises(AssertionError, match="computed nothing in between"):
        run.step(changes=("resume", "swap"))


def test_losing_a_slot_too_often_is_noticed() -> None:
    """Invariant 8: after preemptions_max times a sequence is protected."""
    run = Run()
    run.step(prompt(1))
    for start in range(2, 10):
        run.step(changes=("swap",))
        run.step(decode(1, start), changes=("resume",))
    with pytest.raises(AssertionError, match="lost its slot 9 times"):
        run.step(changes=("swap",))


def test_carrying_cells_to_and_fro_is_no_progress() -> None:
    """Invariant 5: a scheduler that only moves things is as stuck as one that does nothing."""
    run = Run()
    run.step(prompt(1))
    for entry in range(PROGRESS_STEPS - 1):
        run.step(operations=(StoreSlot("short", 1, entry, 2),))
    with pytest.raises(AssertionError, match="invariant 5"):
        run.step(operations=(StoreSlot("short", 1, PROGRESS_STEPS, 2),))


def test_planning_what_has_ended_is_noticed() -> None:
    """Invariant 2, from inside."""
    run = Run()
    run.step(prompt(1))
    run.checkers.heard(wire.Step(0, [], [], [wire.Finish(1, "aborted", 2, 1, 0)]))
    with pytest.raises(AssertionError, match="has ended"):
        run.step(decode(1, 2))
