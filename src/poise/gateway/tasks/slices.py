"""Long work in the event loop, done in slices: in between, everybody else has a turn.

Work is a generator that yields where it may be interrupted, at the latest after a few milliseconds."""

import asyncio
from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def at_once(work: Generator[None, None, T]) -> T:
    """Runs the work to its end without a pause and returns its result."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_turns(work: Generator[None, None, T]) -> T:
    """Runs the work and returns its result; other tasks of the loop run wherever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)
