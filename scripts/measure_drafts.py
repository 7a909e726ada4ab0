"""Measure what drafts for lone streams bring: one client, five kinds of work, with and without them in alternating rounds.

    .venv/bin/python scripts/measure_drafts.py [--rounds 5] [--sets chat,edit] [--temperature 0] [--streams 1] [--prediction]

Starts two servers with the default model, which differ in `speculation.max_streams` alone (0 and the default), and sends each
prompt of a set to one and then to the other, which of them first taking turns; half of the rounds with the one started first,
half with the other. Prompts are warm in both (each was sent once), so
what is compared is the time from the first token to the last. Printed for each set: the median over the rounds of how many times
as many tokens a second come with drafts, the least and the most, and of the guesses that were computed the share that came true.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

sys.path.insert(0, str(Path(__file__).parents[1]))
from scripts.draft_prompts import SETS, Prompt
from tests.e2e.server import PoiseServer

OFF = "speculation.max_streams=0"


@dataclass
class Sent:
    """One answer: its tokens, the seconds between the first and the last of them, and what became of guesses."""

    n_tokens: int
    took_s: float
    text: str
    n_accepted: int
    n_rejected: int

    @property
    def rate(self) -> float:
        return (self.n_tokens - 1) / self.took_s


async def send(client: AsyncOpenAI, prompt: Prompt, temperature: float, seed: int, *, predicts: bool) -> Sent:
    more: dict[str, Any] = {}
    if predicts and prompt.prediction:
        more["prediction"] = {"type": "content", "content": prompt.prediction}
    stream = await client.chat.completions.create(
        model="default", messages=[{"role": "user", "content": prompt.text}], max_tokens=prompt.max_tokens,
        temperature=temperature, seed=seed, stream=True, stream_options={"include_usage": True}, **more,
    )  # fmt: skip
    first_s = last_s = 0.0
    text, usage = "", None
    async for event in stream:
        usage = event.usage or usage
        if event.choices and event.choices[0].delta.content:
            last_s = time.perf_counter()
            first_s = first_s or last_s
            text += event.choices[0].delta.content
    assert usage is not None
    details = usage.completion_tokens_details
    accepted, rejected = (getattr(details, f"{how}_prediction_tokens", 0) or 0 for how in ("accepted", "rejected"))
    return Sent(usage.completion_tokens, last_s - first_s, text, accepted, rejected)


@dataclass
class Found:
    """What the rounds of one set have come to: how many times as many tokens a second, by round."""

    ratios: list[float] = field(default_factory=list)
    n_accepted: int = 0
    n_rejected: int = 0
    n_alike: int = 0
    n_answers: int = 0

    def line(self, name: str) -> str:
        n_drafted = self.n_accepted + self.n_rejected
        share = f"{self.n_accepted / n_drafted:.0%} of {n_drafted}" if n_drafted else "none"
        spread = f"x{statistics.median(self.ratios):.3f}  ({min(self.ratios):.3f} to {max(self.ratios):.3f})"
        return f"{name:8}  {spread}  guesses that came true: {share}; same text {self.n_alike}/{self.n_answers}"


async def measure(clients: Sequence[AsyncOpenAI], name: str, rounds: int, arguments: argparse.Namespace, found: Found) -> None:
    """Rounds of one set. `clients`: of the server without drafts, and of the one with them."""
    for i in range(rounds + 1):  # the first one warms the prompts' cells
        spent: list[list[Sent]] = [[], []]
        for k, prompt in enumerate(SETS[name]):
            for which in (0, 1) if (i + k) % 2 else (1, 0):
                asked = [
                    send(clients[which], prompt, arguments.temperature, 100 * k + j, predicts=arguments.prediction)
                    for j in range(arguments.streams)
                ]
                spent[which] += await asyncio.gather(*asked)
        if i == 0:
            continue
        # Tokens a second, by prompt: answers that came out otherwise are not as long.
        pairs = list(zip(*spent, strict=True))
        found.ratios.append(statistics.geometric_mean(on.rate / off.rate for off, on in pairs))
        found.n_accepted += sum(sent.n_accepted for sent in spent[1])
        found.n_rejected += sum(sent.n_rejected for sent in spent[1])
        found.n_alike += sum(off.text == on.text for off, on in pairs)
        found.n_answers += len(pairs)


async def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--streams", type=int, default=1, help="requests that are sent at once")
    parser.add_argument("--prediction", action="store_true", help="send predictions along, where there are any")
    parser.add_argument("--set", action="append", default=[], help="a setting of both servers")
    parser.add_argument("--on", action="append", default=[], help="a setting of the server with drafts")
    arguments = parser.parse_args()
    both = [option for setting in arguments.set for option in ("--set", setting)]
    mine = [option for setting in arguments.on for option in ("--set", setting)]
    found = {name: Found() for name in arguments.sets.split(",")}
    for half in range(2):  # who starts second may have the worse memory
        options = [[*both, "--set", OFF], [*both, *mine]]
        started = {which: PoiseServer.start(*options[which], quick=False) for which in ((0, 1), (1, 0))[half]}
        try:
            clients = [AsyncOpenAI(base_url=f"{started[which].url}/v1", api_key="none", timeout=600) for which in (0, 1)]
            for name, what in found.items():
                await measure(clients, name, (arguments.rounds + 1 - half) // 2, arguments, what)
        finally:
            for server in started.values():
                server.stop()
    for name, what in found.items():
        print(what.line(name), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
