"""Reading a request's body: JSON, within a size and a time, whatever the client sends.

Its Content-Type does not matter: `curl -d` calls JSON a form. Pages of other sites, which can send forms without asking, are
kept out by what browsers say of them (`guard`)."""

import asyncio
import gc
import re
import zlib
from collections.abc import Iterator
from typing import Any

import msgspec
from starlette.requests import Request

from poise.gateway.http.connections.exchange import EXCHANGE
from poise.gateway.request.refusals import ApiError, ClientGone, body_too_large, shown

JsonObject = dict[str, Any]

CONTAINERS_MAX = 65_536
"""Arrays and objects a body may open. A million empty ones fit into few bytes, but hold up all streams while they are built."""

LARGE_BYTES = 1 << 16
CODINGS = "gzip, deflate"
PIECE_BYTES = 1 << 17
"""So much of a packed body is unpacked before others have a turn."""

BOM = b"\xef\xbb\xbf"
_HIGH, _LOW = rb"[dD][89abAB][0-9a-fA-F]{2}", rb"[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(rb"\\u(?<!\\\\u)(?:%b(?!\\u[dD][c-fC-F])|(?<!\\u%b\\u)%b)" % (_HIGH, _HIGH, _LOW))
"""One half of a character beyond U+FFFF, escaped, without the other one: clients that cut texts by UTF-16 send it."""
ESCAPES_MAX = 65_536
"""In a body with more, no halves are looked for."""

_decode = msgspec.json.Decoder().decode


async def read_json(request: Request, max_bytes: int, timeout_s: float) -> JsonObject:
    """The JSON object in the body. Raises ApiError, or ClientGone when the client leaves before it is complete."""
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length[:20]) > max_bytes:
        raise body_too_large(max_bytes, length[:20])
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, max_bytes)
    except TimeoutError:
        message = f"The body was not complete after {timeout_s:g} s. Send it faster."
        raise ApiError(408, "request_timeout", message) from None
    try:
        parsed = parse_object(body)
    except ApiError as error:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind in ("", "application/json"):
            raise
        message = f"{error.message} It was sent as {shown(kind)}; send it as application/json."
        raise ApiError(error.status, error.code, message) from None
    if len(body) > LARGE_BYTES:
        await asyncio.sleep(0)  # to check what it says takes as long again
    return parsed


def parse_object(body: bytes) -> JsonObject:
    """Strict JSON: no NaN, no invalid UTF-8, no nesting that exhausts the stack.

    Of two equal keys the last one counts, as JSON parsers do. A byte order mark is skipped, and half a character becomes U+FFFD.
    """
    body = body.removeprefix(BOM)
    if not body.strip(b" \t\r\n"):
        raise _invalid_json("it is empty; send a JSON object")
    if body.count(b"[") + body.count(b"{") > CONTAINERS_MAX:
        raise _invalid_json(f"it opens more than {CONTAINERS_MAX} arrays and objects; send a simpler one")
    # Objects that are made by the thousand set off the collector of cycles, of which JSON has none.
    collects = gc.isenabled()
    gc.disable()
    try:
        value = _decoded(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise _invalid_json(str(error)) from None
    except RecursionError:
        raise _invalid_json("it is nested too deeply; send a simpler one") from None
    finally:
        if collects:
            gc.enable()
    if type(value) is not dict:
        raise ApiError(400, "invalid_json", f"The request body must be a JSON object, but is {shown(value)}.")
    return value


def _decoded(body: bytes) -> Any:
    try:
        return _decode(body)
    except msgspec.DecodeError:
        if body.count(b"\\u") > ESCAPES_MAX or _HALF.search(body) is None:
            raise
        return _decode(_HALF.sub(rb"\\ufffd", body))


async def _read(request: Request, max_bytes: int) -> bytes:
    packed = _packed(request.headers.get("content-encoding", ""))
    exchange = request.scope.get(EXCHANGE)
    chunks: list[bytes] = []
    n_bytes = n_unpacked = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise body_too_large(max_bytes, f"more than {max_bytes}")
        is_last = not message.get("more_body", False)
        if packed is None:
            chunks.append(chunk)
        else:
            for piece in packed.unpack(chunk, is_last):
                n_unpacked += len(piece)
                if n_unpacked > max_bytes:
                    raise body_too_large(max_bytes, f"more than {max_bytes}, unpacked,")
                if exchange is not None:
                    exchange.grow(len(piece))
                chunks.append(piece)
                await asyncio.sleep(0)
        if is_last:
            return b"".join(chunks)


class Packed:
    """A body that comes packed. It is unpacked a piece at a time, so that whoever takes the pieces can stop at a bound."""

    def __init__(self, coding: str) -> None:
        self._coding = coding
        self._inflate: Any = None

    def unpack(self, data: bytes, is_last: bool) -> Iterator[bytes]:
        """The pieces of what has come in. Raises ApiError (400)."""
        if self._inflate is None and data:
            # "deflate" is the zlib format by its definition, and without its head as some clients send it.
            is_bare = self._coding == "deflate" and data[0] & 15 != 8
            self._inflate = zlib.decompressobj(-zlib.MAX_WBITS if is_bare else zlib.MAX_WBITS | 32)
        piece = b""
        while data or len(piece) == PIECE_BYTES:
            if self._inflate.eof:
                raise self._broken("something comes behind its end")
            try:
                piece = self._inflate.decompress(data, PIECE_BYTES)
            except zlib.error as error:
                raise self._broken(str(error)) from None
            data = self._inflate.unconsumed_tail or self._inflate.unused_data
            yield piece
        if is_last and not (self._inflate and self._inflate.eof):
            raise self._broken("it is cut short")

    def _broken(self, why: str) -> ApiError:
        message = f"The body was sent with Content-Encoding {self._coding}, but is not: {why}."
        return ApiError(400, "invalid_content_encoding", message)


def _packed(header: str) -> Packed | None:
    """How a body is to be unpacked, by its Content-Encoding. Raises ApiError (415)."""
    codings = [coding for name in header.lower().split(",") if (coding := name.strip()) not in ("", "identity")]
    if not codings:
        return None
    if len(codings) > 1 or codings[0] not in ("gzip", "x-gzip", "deflate"):
        why = f"The Content-Encoding {shown(header)} is not known here. Send the body as it is, or as one of {CODINGS}."
        raise ApiError(415, "unsupported_content_encoding", why, headers={"Accept-Encoding": CODINGS})
    return Packed(codings[0])


def _invalid_json(why: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The request body is not valid JSON: {why}.")
