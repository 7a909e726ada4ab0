"""A client that plays fair: one short streamed chat at a time, read as it comes. What it sees, no attack may change."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from tests.attacks.peer import Peer, Site

PROMPT_WORDS, OUTPUT_TOKENS = 40, 24
"""As the polite tenant of scenarios/flood.toml: sixty tokens of prompt with what a template adds."""
WITHIN_S = 120.0
OK = "ok"


@dataclass
class Asked:
    """One request and what became of it. Times are those of `time.monotonic`.

    status  "ok"; "lost": accepted, and not answered to its end; else the status and code it was refused with, or "not connected"
    """

    began_s: float
    status: str = ""
    ended_s: float = 0.0
    token_s: list[float] = field(default_factory=list)
    response: str = ""
    """The response's id."""

    @property
    def ttft_s(self) -> float:
        return self.token_s[0] - self.began_s if self.token_s else float("inf")

    @property
    def gaps_s(self) -> list[float]:
        return [after - before for before, after in zip(self.token_s, self.token_s[1:], strict=False)]


async def ask(site: Site, key: str) -> Asked:
    """One streamed chat, to its end."""
    asked = Asked(time.monotonic())
    request = site.chat(site.words(PROMPT_WORDS), key=key, stream=True, max_tokens=OUTPUT_TOKENS, ignore_eos=True)
    try:
        async with asyncio.timeout(WITHIN_S):
            asked.status = await _asked(site, request, asked)
    except (OSError, TimeoutError) as error:
        asked.status = "not connected" if isinstance(error, ConnectionError) else f"lost: {error!r}"
    asked.ended_s = time.monotonic()
    return asked


async def _asked(site: Site, request: bytes, asked: Asked) -> str:
    with await Peer.connect(site) as peer:
        await peer.send(request)
        head, _, rest = (await _until(peer, b"\r\n\r\n")).partition(b"\r\n\r\n")
        if not head:
            return "lost: no answer"
        status = int(head.split()[1])
        if status != 200:
            return f"{status} {_code(rest + (await peer.receive(1.0) or b''))}".strip()
        asked.response = _field(head, b"x-poise-response-id")
        async for line in _lines(peer, rest):
            if line == b"data: [DONE]":
                return OK if asked.token_s else "lost: an empty answer"
            if line.startswith(b'data: {"error"'):
                return f"lost: {_code(line[6:])}"
            if line.startswith(b"data: ") and b'"content":"' in line:
                asked.token_s.append(time.monotonic())
    return "lost: the stream broke off"


async def _lines(peer: Peer, rest: bytes) -> AsyncIterator[bytes]:
    """Lines of the events. The borders of HTTP's chunks lie between lines here: each event is sent whole."""
    while True:
        *lines, rest = rest.split(b"\n")
        for line in lines:
            yield line.rstrip(b"\r")
        data = await peer.receive(WITHIN_S)
        if not data:
            return
        rest += data


async def _until(peer: Peer, end: bytes) -> bytes:
    data = b""
    while end not in data:
        more = await peer.receive(WITHIN_S)
        if not more:
            return b""
        data += more
    return data


def _field(head: bytes, name: bytes) -> str:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return next((value.strip().decode() for key, _, value in lines if key.lower() == name), "")


def _code(data: bytes) -> str:
    begin, end = data.find(b"{"), data.rfind(b"}")
    try:
        return str(json.loads(data[begin : end + 1])["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return "without a code"
