"""Measure what a killed engine costs agents with long contexts, with copies that outlive it and without; and what copies cost.

    .venv/bin/python scripts/measure_survival.py [--agents N] [--words N] [--repetitions N]

Two servers one after the other, with `store.write_through` and without. On each some agents have a turn at once, so that the
context of each is warm in a slot and nowhere else. When the server rests, its engine is killed (`kill -9`), and all agents have
their next turn at once. Of each: the share of its context that was not computed again, and the time to its first token. Beside
them as many others have the same two turns without a kill in between.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import openai
import psutil
from scripts.measure_recovery import TIMEOUT_S, serving

from poise.gateway.supervision.supervisor import ENGINE_COMMAND
from poise.operator_token import find_token

WORDS = ("harbour", "captain", "letter", "winter", "garden", "engine", "market", "window", "candle", "silver", "story", "bridge")
POLL_S = 0.05


@dataclass
class Agent:
    """A conversation. Of its last turn: tokens of the prompt, those that were cached, the time to the first token, the answer."""

    name: str
    messages: list[Any] = field(default_factory=list)
    n_prompt: int = 0
    n_cached: int = 0
    n_context: int = 0
    """Tokens of the turn before: prompt and answer."""
    first_s: float = 0.0
    answer: str = ""

    @property
    def share(self) -> float:
        """Of the context that there was before this turn, what was not computed again."""
        return self.n_cached / self.n_context


async def have_turns(url: str, agents: list[Agent], said: str, n_tokens: int) -> None:
    """A turn of each, all at once."""
    await asyncio.gather(*(_have_turn(url, agent, said, n_tokens) for agent in agents))


async def _have_turn(url: str, agent: Agent, said: str, n_tokens: int) -> None:
    agent.messages.append({"role": "user", "content": said})
    began_s, agent.answer, agent.first_s = time.monotonic(), "", 0.0
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key=agent.name, timeout=TIMEOUT_S, max_retries=0) as client:
        chunks = await client.chat.completions.create(
            model="default",
            messages=agent.messages,
            max_tokens=n_tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True},
        )
        async for chunk in chunks:
            for choice in chunk.choices:
                agent.first_s = agent.first_s or time.monotonic() - began_s
                agent.answer += choice.delta.content or ""
            if chunk.usage is not None:
                usage = chunk.usage
    agent.messages.append({"role": "assistant", "content": agent.answer})
    details = usage.prompt_tokens_details
    agent.n_context, agent.n_prompt = agent.n_prompt or 1, usage.prompt_tokens + usage.completion_tokens
    agent.n_cached = details.cached_tokens or 0 if details else 0


def brief(name: str, n_words: int) -> str:
    """What an agent's first turn is about: words in an order of its own."""
    rng = random.Random(name)  # noqa: S311
    return " ".join(rng.choice(WORDS) for _ in range(n_words))


def figure(url: str, name: str) -> float:
    """One of the server's metrics."""
    request = urllib.request.Request(f"{url}/metrics", headers={"Authorization": f"Bearer {find_token(url)}"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310 - the server's own address
        lines = response.read().decode().splitlines()
    return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(name + " ")), 0.0)


def until(condition: Callable[[], bool], what: str) -> None:
    until_s = time.monotonic() + TIMEOUT_S
    while not condition():
        time.sleep(POLL_S)
        assert time.monotonic() < until_s, f"never came: {what}"


def kill_engine(server: psutil.Process, url: str) -> None:
    """And wait for the next one."""
    engine = next(child for child in server.children() if ENGINE_COMMAND[-1] in child.cmdline())
    restarts = figure(url, "poise_engine_restarts_total")
    engine.kill()
    until(lambda: figure(url, "poise_engine_restarts_total") > restarts and figure(url, "poise_engine_up") == 1.0, "an engine")


def measure(arguments: argparse.Namespace, *options: str) -> None:
    shares, firsts_s, warm_s, copied = list[float](), list[float](), list[float](), list[str]()
    with serving(*options) as (url, server):
        until(lambda: figure(url, "poise_engine_up") == 1.0, "an engine")
        for repetition in range(arguments.repetitions):
            for kills in (False, True):
                agents = [Agent(f"agent-{repetition}-{kills}-{i}") for i in range(arguments.agents)]
                for agent in agents:
                    agent.messages = [{"role": "system", "content": brief(agent.name, arguments.words)}]
                asyncio.run(have_turns(url, agents, "What is this about?", 16))
                if not kills:
                    asyncio.run(have_turns(url, agents, "Go on.", 16))
                    warm_s += [agent.first_s for agent in agents]
                time.sleep(2)  # no request: copies are made, and reports come
            kv_s = figure(url, 'poise_engine_step_part_seconds_total{part="kv"}')
            copied.append(f"{figure(url, 'poise_engine_stored_bytes_total') / 1e6:.0f} MB in {kv_s * 1e3:.0f} ms")
            kill_engine(server, url)
            asyncio.run(have_turns(url, agents, "Go on.", 16))
            shares += [agent.share for agent in agents]
            firsts_s += [agent.first_s for agent in agents]
            time.sleep(6)  # an engine that is lost soon after its start is started again after a pause
    name = " ".join(options) or "as it is"
    print(f"{name}: {arguments.repetitions} times {arguments.agents} agents of {agents[0].n_context} tokens")
    print(f"  not computed again: mean {statistics.mean(shares):.3f}, least {min(shares):.3f} of the context")
    print(f"  first token after the kill: median {statistics.median(firsts_s):.2f} s, max {max(firsts_s):.2f} s")
    print(f"  undisturbed: median {statistics.median(warm_s):.2f} s, max {max(warm_s):.2f} s")
    print(f"  carried by each engine: {', '.join(copied)}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--agents", type=int, default=6)
    parser.add_argument("--words", type=int, default=600)
    parser.add_argument("--repetitions", type=int, default=2)
    arguments = parser.parse_args()
    measure(arguments)
    measure(arguments, "--set", "store.write_through=false")
    return 0


if __name__ == "__main__":
    sys.exit(main())
