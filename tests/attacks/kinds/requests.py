"""Attacks by requests that are all right one by one: too many, too dear, unread, cancelled, refused."""

from __future__ import annotations

import asyncio
import json

from tests.attacks.kinds.kind import kind
from tests.attacks.peer import Peer, Site, ask


@kind("P11", every_s=0.05, crew=40)
async def fresh_keys(site: Site) -> str:
    """A new key with every request: each one would be a tenant that has had nothing yet."""
    key = f"fresh-{site.rng.getrandbits(64):016x}"
    return await ask(site, site.chat(site.words(20), key=key, max_tokens=48, ignore_eos=True), site.hold_s)


@kind("P10", every_s=0.02, crew=16)
async def flood(site: Site) -> str:
    """The hog of scenarios/flood.toml: one tenant that keeps 16 requests in flight. Alone, it is what a siege is held against."""
    prompt = site.words(site.rng.randrange(40, 80))
    return await ask(site, site.chat(prompt, key=site.keys[-1], max_tokens=100, ignore_eos=True), 120.0)


@kind("P10", every_s=0.05, crew=150)
async def backlog(site: Site) -> str:
    """One tenant with hundreds of long requests in flight."""
    return await ask(site, site.chat(site.words(30), key=site.keys[0], max_tokens=1500, ignore_eos=True), site.hold_s)


@kind("P10", every_s=2.0, crew=12)
async def background_backlog(site: Site) -> str:
    """The same in the background class."""
    body = {"model": "default", "prompt": site.words(200), "max_tokens": 800, "service_tier": "flex"}
    return await ask(site, site.post("/v1/completions", body, key=site.keys[0]), site.hold_s)


@kind("P12", every_s=2.0, crew=10)
async def dripping_streams(site: Site) -> str:
    """Streams that are read so slowly that each is held, and fast enough that none is given up."""
    request = site.completion(site.words(300), key=site.key(), stream=True, max_tokens=500, ignore_eos=True)
    with await Peer.connect(site, rcvbuf=2048) as peer:
        await peer.send(request)
        loop = asyncio.get_running_loop()
        until_s = loop.time() + 2 * site.hold_s
        while loop.time() < until_s:
            if await peer.receive(1.0, 256) == b"":
                return "closed"
            await asyncio.sleep(min(0.5, site.hold_s / 10))
    return "held"


@kind("P12", every_s=2.0, crew=6)
async def dear_sampling(site: Site) -> str:
    """Sampling parameters that cost a hundred times the usual."""
    dear: dict[str, object] = site.rng.choice(
        [
            {"top_k": 49_000, "top_p": 0.9999, "logprobs": 5},
            {"top_k": 0, "top_p": 0.9999, "min_p": 0.0},
            {"logit_bias": {str(i): 1 for i in range(300)}, "top_k": 40},
        ]
    )
    body = {"model": "default", "prompt": site.words(10), "max_tokens": 150, "ignore_eos": True, **dear}
    return await ask(site, site.post("/v1/completions", body, key=site.key()), site.hold_s)


@kind("P9", every_s=8.0)
async def giant_logprobs(site: Site) -> str:
    """An answer whose log-probabilities are megabytes."""
    parameters = {"max_tokens": 300, "ignore_eos": True, "logprobs": True, "top_logprobs": 20, "n": 4}
    return await ask(site, site.chat(site.words(10), key=site.key(), **parameters), 2 * site.hold_s)


@kind("P14", every_s=1.0, crew=2)
async def raw_token_ids(site: Site) -> str:
    """Prompts of arbitrary token ids, some of which no text has."""
    ids = [site.rng.randrange(49_152) for _ in range(site.rng.randrange(1, 200))]
    return await ask(site, site.completion(ids, key=site.key(), max_tokens=8), site.hold_s)


@kind("P13", every_s=0.1, crew=20)
async def cancel_storm(site: Site) -> str:
    """Requests with a longest wait, by clients that leave at once."""
    body = site.chat(site.words(20), key=site.key(), max_tokens=400, stream=True, queue_timeout=3600)
    with await Peer.connect(site) as peer:
        await peer.send(body)
        await peer.receive(site.rng.random() * 0.5)
        peer.reset()
    return "gone"


@kind("P8", "P13", every_s=0.2, crew=4)
async def refused(site: Site) -> str:
    """Requests that are refused, each for another reason."""
    requests = [
        site.chat(site.words(9_000), key=site.key(), max_tokens=10),
        site.chat("x", key=site.key(), max_tokens="many"),
        site.chat("x", key=site.key(), model="no-such-model"),
        site.chat("x", key=site.key(), temperature=99),
        site.chat("x", key=site.key(), template="no-such-template"),
        site.chat([{"type": "image_url", "image_url": {"url": "x"}}], key=site.key()),
        site.completion([10**9], key=site.key()),
        site.post("/v1/embeddings", {"input": "x"}, key=site.key()),
    ]
    return await ask(site, site.rng.choice(requests))


@kind("P12", every_s=5.0, crew=2)
async def summaries(site: Site) -> str:
    """Conversations to be summed up, which makes background work."""
    turns = [{"role": ("user", "assistant")[i % 2], "content": site.words(300)} for i in range(31)]
    body = {"model": "default", "messages": turns, "max_tokens": 4, "context_policy": "summarize"}
    return await ask(site, site.post("/v1/chat/completions", body, key=site.key()), site.hold_s)


@kind("P4", every_s=2.0, crew=3)
async def read_again(site: Site) -> str:
    """A response that goes on without its client, read again by many who stop reading."""
    key = site.key()
    parameters = {"max_tokens": 200, "ignore_eos": True, "logprobs": True, "top_logprobs": 5}
    with await Peer.connect(site) as peer:
        await peer.send(site.chat(site.words(10), key=key, **parameters))
        answer = await peer.answer(site.hold_s)
    if answer is None or answer.status != 200:
        return "no answer" if answer is None else str(answer.status)
    name = json.loads(answer.body)["id"]
    again = site.get(f"/v1/requests/{name}/stream", key=key)
    peers = [await Peer.connect(site, rcvbuf=2048) for _ in range(5)]
    try:
        for peer in peers:
            await peer.send(again + again)
        await asyncio.sleep(site.hold_s / 2)
    finally:
        for peer in peers:
            peer.reset()
    return "200"
