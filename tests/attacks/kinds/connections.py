"""Attacks on the connection layer: headers, silence, bodies that never come, answers nobody reads, pipelines, upgrades."""

from __future__ import annotations

import asyncio

from tests.attacks.kinds.kind import kind
from tests.attacks.peer import Peer, Site

TINY = 2048
"""A receive buffer that is full at once."""


async def _poured(site: Site, begin: bytes, part: bytes, parts: int) -> str:
    """Sends a request that does not end, until the server has had enough."""
    with await Peer.connect(site) as peer:
        await peer.send(begin)
        for _ in range(parts):
            if not await peer.send(part, 5.0):
                break
        answer = await peer.answer(site.hold_s)
        return str(answer.status) if answer is not None else "closed" if await peer.closed(1.0) else "taken"


@kind("P1", every_s=3.0, crew=2)
async def header_fields(site: Site) -> str:
    """Up to a megabyte of headers of four bytes each."""
    return await _poured(site, site.get("/health/live")[:-2], b"a:\r\n" * 4096, 64)


@kind("P1", every_s=3.0, crew=2)
async def header_value(site: Site) -> str:
    """One header of a megabyte."""
    return await _poured(site, site.get("/health/live")[:-2] + b"X-Long: ", b"v" * 16384, 64)


@kind("P1", every_s=3.0, crew=2)
async def request_line(site: Site) -> str:
    """A path of a megabyte."""
    return await _poured(site, b"GET /", b"p" * 16384, 64)


@kind("P2", every_s=1.0, crew=20)
async def slow_headers(site: Site) -> str:
    """A header, letter by letter."""
    with await Peer.connect(site) as peer:
        await peer.send(site.get("/health/live")[:-2] + b"X-Slow: ")
        return await _dripped(peer, site, b"s")


@kind("P2", every_s=0.5, crew=60)
async def silence(site: Site) -> str:
    """Connects and says nothing."""
    with await Peer.connect(site) as peer:
        return "closed" if await peer.closed(site.hold_s) else "held"


@kind("P2", every_s=0.5, crew=60)
async def empty_lines(site: Site) -> str:
    """After an answer, an empty line now and then, which begins no request."""
    with await Peer.connect(site) as peer:
        await peer.ask(site.get("/health/live"))
        return await _dripped(peer, site, b"\r\n")


@kind("P2", every_s=1.0, crew=20)
async def body_never_comes(site: Site) -> str:
    """Announces a body and keeps it: to a place that reads one, and to one that answers without."""
    path, method = site.rng.choice([("/v1/completions", "POST"), ("/nowhere", "POST"), ("/health", "GET")])
    with await Peer.connect(site) as peer:
        await peer.send(site.head(method, path, key=site.key(), length=1000) + b"{")
        return "closed" if await peer.closed(site.hold_s) else "held"


@kind("P2", every_s=2.0, crew=10)
async def slow_body(site: Site) -> str:
    """A body, byte by byte."""
    with await Peer.connect(site) as peer:
        await peer.send(site.head("POST", "/v1/chat/completions", key=site.key(), length=100_000))
        return await _dripped(peer, site, b" ")


async def _dripped(peer: Peer, site: Site, drop: bytes) -> str:
    loop = asyncio.get_running_loop()
    until_s = loop.time() + site.hold_s
    while loop.time() < until_s:
        if not await peer.send(drop):
            return "closed"
        if await peer.closed(min(1.0, site.hold_s / 10)):
            return "closed"
    return "held"


@kind("P3", every_s=1.0, crew=20)
async def unread_files(site: Site) -> str:
    """Asks for a file dozens of times in one go and reads nothing."""
    path = site.rng.choice(["/page/style.css", "/dashboard", "/", "/openapi.json"])
    return await _unread(site, [site.get(path)] * 40)


@kind("P3", every_s=1.0, crew=20)
async def unread_figures(site: Site) -> str:
    """The largest answers there are without a key, unread."""
    return await _unread(site, [site.get(site.rng.choice(["/status/history", "/metrics", "/openapi.json"]))] * 20)


@kind("P3", every_s=1.0, crew=20)
async def unread_streams(site: Site) -> str:
    """A stream of an answer, unread."""
    parameters = {"stream": True, "max_tokens": 400, "ignore_eos": True, "logprobs": True, "top_logprobs": 10}
    return await _unread(site, [site.chat(site.words(12), key=site.key(), **parameters)])


@kind("P4", every_s=1.0, crew=20)
async def pipelined_streams(site: Site) -> str:
    """Two streams in one go, unread: the second request hides the loss of the connection from the first."""
    parameters = {"stream": True, "max_tokens": 400, "ignore_eos": True, "logprobs": True, "top_logprobs": 10}
    return await _unread(site, [site.chat(site.words(12), key=site.key(), **parameters)] * 2)


async def _unread(site: Site, requests: list[bytes]) -> str:
    """Whether the answers are given up shows when they are read after all: then not all of them come."""
    with await Peer.connect(site, rcvbuf=TINY) as peer:
        await peer.send(b"".join(requests), 5.0)
        await asyncio.sleep(site.hold_s)
        for _ in requests:
            if await peer.answer(2.0) is None:
                return "closed" if await peer.closed(2.0) else "held"
        return "held"


@kind("P4", every_s=0.7, crew=4)
async def pipelined_and_gone(site: Site) -> str:
    """Two requests in one go by a client that leaves."""
    with await Peer.connect(site) as peer:
        one = site.chat(site.words(12), key=site.key(), stream=True, max_tokens=400, ignore_eos=True)
        await peer.send(one + one)
        await peer.receive(2.0)
        peer.reset()
    return "gone"


@kind("P5", every_s=2.0, crew=2)
async def upgrade_with_body(site: Site) -> str:
    """`Upgrade: h2c` as Java's client offers it, with a body in a packet of its own that looks like a request."""
    inner = b"GET /health/live HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
    more = {"Connection": "Upgrade, HTTP2-Settings", "HTTP2_Settings": "AAEAAEAAAAIAAAAA", "Upgrade": "h2c"}
    with await Peer.connect(site) as peer:
        await peer.send(site.head("POST", "/v1/chat/completions", key=site.key(), length=len(inner), **more))
        await asyncio.sleep(0.1)
        await peer.send(inner)
        answer = await peer.answer(site.hold_s)
        second = await peer.answer(1.0)
        if second is not None:
            return "smuggled"
        return str(answer.status) if answer is not None else "no answer"


@kind("P5", every_s=2.0, crew=4)
async def upgrade_to_websocket(site: Site) -> str:
    """Asks for a WebSocket, which nobody here speaks, and stays."""
    more = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA=="}
    with await Peer.connect(site) as peer:
        await peer.send(site.get("/v1/models", Sec_WebSocket_Version="13", **more))
        answer = await peer.answer(site.hold_s)
        return str(answer.status) if answer is not None else "no answer"


@kind("P5", every_s=1.0, crew=2)
async def smuggled(site: Site) -> str:
    """Requests whose end is told twice, or wrongly. Never is the inner one answered."""
    host = f"Host: 127.0.0.1:{site.port}\r\n".encode()
    begin = b"POST /v1/chat/completions HTTP/1.1\r\n" + host
    inner = b"GET /health/live HTTP/1.1\r\n" + host + b"\r\n"
    request = site.rng.choice(
        [
            begin + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
            begin + b"Content-Length: %d\r\nContent-Length: 0\r\n\r\n" % len(inner) + inner,
            begin + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n" + inner,
            begin + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + inner,
            begin + b"Content-Length: -1\r\n\r\n" + inner,
        ]
    )
    with await Peer.connect(site) as peer:
        await peer.send(request)
        first, second = await peer.answer(site.hold_s), await peer.answer(1.0)
        answered = [a for a in (first, second) if a is not None]
        if any(a.status == 200 for a in answered):
            return "smuggled"
        return str(answered[0].status) if answered else "closed"


@kind("P2", every_s=2.0, crew=2)
async def connection_storm(site: Site) -> str:
    """Thirty connections at once, reset at once."""
    peers = []
    try:
        for _ in range(30):
            peers.append(await Peer.connect(site))  # noqa: PERF401 - those that came until an error are reset, too
    finally:
        for peer in peers:
            peer.reset()
    return "gone"
