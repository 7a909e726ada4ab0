"""Reading a request's body: JSON, within a size and a time, whatever the client sends."""

from __future__ import annotations

import asyncio
import gc
import re
from typing import Any

import msgspec
from starlette.requests import Request

from poise.gateway.request.refusals import ApiError, ClientGone, body_too_large, shown

JsonObject = dict[str, Any]

CONTAINERS_MAX = 65_536
"""Arrays and objects a body may open. A million empty ones fit into few bytes, but hold up all streams while they are built."""

LARGE_BYTES = 1 << 16

BOM = b"\xef\xbb\xbf"
_HIGH, _LOW = rb"\\u[dD][89abAB][0-9a-fA-F]{2}", rb"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(rb"(?<!\\)((?:\\\\)*)(?:%b(?!\\u[dD][c-fC-F])|(?<!%b)%b)" % (_HIGH, _HIGH, _LOW))
"""One half of a character beyond U+FFFF, escaped, without the other one: clients that cut texts by UTF-16 send it."""

_decode = msgspec.json.Decoder().decode


async def read_json(request: Request, max_bytes: int, timeout_s: float) -> JsonObject:
    """The JSON object in the body. Raises ApiError, or ClientGone when the client leaves before it is complete."""
    _check_headers(request, max_bytes)
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, max_bytes)
    except TimeoutError:
        message = f"The body was not complete after {timeout_s:g} s. Send it faster."
        raise ApiError(408, "request_timeout", message) from None
    parsed = parse_object(body)
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
        message = f"The request body must be a JSON object, but is {shown(value)}."
        raise ApiError(400, "invalid_json", message)
    return value


def _decoded(body: bytes) -> Any:
    try:
        return _decode(body)
    except msgspec.DecodeError:
        mended = _HALF.sub(rb"\1\\ufffd", body)
        if mended == body:
            raise
        return _decode(mended)


def _check_headers(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length")
    if length is not None and length.isdecimal() and int(length[:20]) > max_bytes:
        raise body_too_large(max_bytes, length[:20])
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in ("", "application/json"):
        message = f"The body must be sent as application/json, but its Content-Type is {shown(kind)}."
        raise ApiError(400, "unsupported_content_type", message)
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        message = f"The body must be sent as it is, but its Content-Encoding is {shown(coding)}."
        raise ApiError(400, "unsupported_content_encoding", message)


async def _read(request: Request, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    n_bytes = 0
    while True:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        chunk = message.get("body", b"")
        n_bytes += len(chunk)
        if n_bytes > max_bytes:
            raise body_too_large(max_bytes, f"more than {max_bytes}")
        chunks.append(chunk)
        if not message.get("more_body", False):
            return b"".join(chunks)


def _invalid_json(why: str) -> ApiError:
    return ApiError(400, "invalid_json", f"The request body is not valid JSON: {why}.")
