"""Attacks by what is in a body: its size, its form, and text that is dear to tokenise."""

from __future__ import annotations

import asyncio

from poise_lab.bench.prompts import malformed_body
from tests.attacks.kinds.kind import kind
from tests.attacks.peer import Peer, Site, ask

ONE_TOKEN = 1
"""What fits is computed, and answered with no more than that."""


@kind("P6", every_s=4.0, crew=2)
async def endless_body(site: Site) -> str:
    """A body in chunks that is larger than any limit, or announced to be."""
    with await Peer.connect(site) as peer:
        if site.rng.random() < 0.5:
            return await peer.ask(site.head("POST", "/v1/completions", key=site.key(), length=1 << 40) + b"{")
        await peer.send(site.head("POST", "/v1/completions", key=site.key(), Transfer_Encoding="chunked"))
        for _ in range(100):
            if not await peer.send(b"10000\r\n" + b" " * 65536 + b"\r\n", 5.0):
                break
        answer = await peer.answer(site.hold_s)
        return f"{answer.status} {answer.code}" if answer is not None else "closed"


@kind("P6", every_s=2.0, crew=16)
async def unfinished_bodies(site: Site) -> str:
    """Three megabytes of a body that wants one byte more."""
    size = 3 << 20
    with await Peer.connect(site) as peer:
        await peer.send(site.head("POST", "/v1/completions", key=site.key(), length=size))
        if not await peer.send(b'{"prompt": "' + b"m" * (size - 13), 10.0):
            return "refused"
        return "closed" if await peer.closed(site.hold_s) else "held"


@kind("P7", every_s=6.0)
async def long_word(site: Site) -> str:
    """Letters without a space: a tokeniser that recurses by letter runs out of stack."""
    text = "a" * site.rng.choice([30_000, 80_000, 200_000])
    return await ask(site, site.chat(text, key=site.key(), max_tokens=ONE_TOKEN))


@kind("P7", every_s=4.0)
async def white_space(site: Site) -> str:
    """Nothing but blanks, each time another number of them."""
    blanks = " " * site.rng.randrange(200_000, 1_000_000)
    return await ask(site, site.chat(blanks, key=site.key(), max_tokens=ONE_TOKEN))


@kind("P8", every_s=2.0)
async def blank_margins(site: Site) -> str:
    """Messages with a lot of white space around them, each time another."""
    turns = [
        {"role": "user", "content": " " * site.rng.randrange(5_000, 50_000) + "x\n" * site.rng.randrange(1_000)}
        for _ in range(10)
    ]
    body = {"model": "default", "messages": turns, "max_tokens": ONE_TOKEN}
    return await ask(site, site.post("/v1/chat/completions", body, key=site.key()))


@kind("P7", every_s=4.0)
async def long_text(site: Site) -> str:
    """Words by the megabyte, which is far more than fits."""
    return await ask(site, site.completion(site.words(5_000) * 30, key=site.key(), max_tokens=1))


@kind("P8", every_s=3.0, crew=2)
async def long_text_and_gone(site: Site) -> str:
    """The same by a client that leaves as soon as it has sent it."""
    with await Peer.connect(site) as peer:
        await peer.send(site.completion(site.words(5_000) * 20, key=site.key(), max_tokens=1))
        await asyncio.sleep(site.rng.random() * 0.3)
        peer.reset()
    return "gone"


@kind("P7", every_s=8.0)
async def long_text_to_trim(site: Site) -> str:
    """A conversation of many long turns, to be shortened until it fits."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": site.words(400)} for i in range(101)]
    body = {"model": "default", "messages": turns, "max_tokens": 1, "context_policy": "trim"}
    return await ask(site, site.post("/v1/chat/completions", body, key=site.key()), 60.0)


@kind("P9", every_s=4.0)
async def many_parts(site: Site) -> str:
    """A message of a hundred thousand parts."""
    part = {"type": "text", "text": ""}
    return await ask(site, site.chat([part] * 90_000, key=site.key(), max_tokens=1))


@kind("P9", every_s=4.0)
async def many_messages(site: Site) -> str:
    """A conversation of tens of thousands of turns."""
    turns = [{"role": "user", "content": "x"}] * 80_000
    body = {"model": "default", "messages": turns, "max_tokens": 1}
    return await ask(site, site.post("/v1/chat/completions", body, key=site.key()))


@kind("P8", every_s=0.3, crew=2)
async def malformed(site: Site) -> str:
    """Bodies that are no requests."""
    path = site.rng.choice(["/v1/chat/completions", "/v1/completions"])
    return await ask(site, site.post(path, malformed_body(site.rng.randrange(1_000)), key=site.key()))


@kind("P1", every_s=0.5, crew=2)
async def random_bytes(site: Site) -> str:
    """What is no HTTP at all, and what nearly is."""
    data = bytearray(site.chat("x", max_tokens=1))
    for _ in range(site.rng.randrange(1, 40)):
        data[site.rng.randrange(len(data))] = site.rng.randrange(256)
    if site.rng.random() < 0.3:
        data = bytearray(site.rng.randbytes(2_000))
    with await Peer.connect(site) as peer:
        return (await peer.ask(bytes(data), site.hold_s)).split()[0]
