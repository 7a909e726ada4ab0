"""Long work in the event loop, done in slices: in between, everybody else has a turn.

Work is a generator that yields where it may be interrupted, at the latest after a few milliseconds. A large answer is sent in the
pieces in which it is made, so that it is never in memory as a whole.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Generator, Iterable, Iterator, Mapping
from itertools import chain
from typing import TypeVar

from starlette.responses import Response, StreamingResponse

T = TypeVar("T")

JSON = "application/json"
WHOLE_BYTES, DEAR_BYTES = 1 << 18, 1 << 14
"""An answer up to so many bytes is sent in one, with its length; after so many, others have a turn."""


def at_once(work: Generator[None, None, T]) -> T:
    """Its result, without an interruption."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result


async def in_turns(work: Generator[None, None, T]) -> T:
    """Its result. Everybody else has a turn wherever it yields."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            result: T = end.value
            return result
        await asyncio.sleep(0)


def freeze_heap() -> None:
    """What there is now, at the end of the start, is there for good: the collector of cycles has no need to look at it again. It
    would stop the loop for some 40 ms each time."""
    gc.collect()
    gc.freeze()


async def json_of(pieces: Iterator[bytes], headers: Mapping[str, str]) -> Response:
    """A JSON answer that is made in pieces: in one when it is small, else each piece as it is made."""
    made: list[bytes] = []
    n_bytes = since = 0
    for piece in pieces:
        made.append(piece)
        n_bytes += len(piece)
        if n_bytes > WHOLE_BYTES:
            return sent_in_pieces(chain(made, pieces), headers)
        since += len(piece)
        if since > DEAR_BYTES:
            since = 0
            await asyncio.sleep(0)
    return Response(b"".join(made), headers=headers, media_type=JSON)


def sent_in_pieces(pieces: Iterable[bytes], headers: Mapping[str, str]) -> Response:
    """A JSON answer of which each piece is made when the client has taken most of those before it."""
    return StreamingResponse(_with_turns(pieces), headers=headers, media_type=JSON)


async def _with_turns(pieces: Iterable[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece
        await asyncio.sleep(0)
