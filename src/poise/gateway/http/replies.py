"""Responses that handlers give: JSON of this moment, JSON in pieces, refusals."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from itertools import chain

import msgspec
from starlette.responses import Response, StreamingResponse

from poise.gateway.request.refusals import ApiError

JSON = "application/json"
FRESH = {"Cache-Control": "no-store"}
"""Numbers of this moment: no cache on the way is to keep them."""
WHOLE_BYTES, DEAR_BYTES = 1 << 18, 1 << 14
"""An answer up to so many bytes is sent in one, with its length; after so many, others have a turn."""


def json_reply(body: msgspec.Struct, status: int = 200, headers: Mapping[str, str] = FRESH) -> Response:
    return Response(msgspec.json.encode(body), status, headers, JSON)


def error_reply(error: ApiError, refusal: Callable[[ApiError], bytes] = ApiError.body) -> Response:
    """`refusal` writes the body."""
    headers = error.answer_headers
    if error.status in (408, 413):
        # The rest of the body is not wanted: without this the server would have to read it to keep the connection.
        headers["Connection"] = "close"
    return Response(refusal(error), error.status, headers, JSON)


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
