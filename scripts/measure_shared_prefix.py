"""Eight requests at once that begin with the same new text, cold and then warm, against another server.

    .venv/bin/python scripts/measure_shared_prefix.py URL [--against URL] [--rounds N] [--seed N]

Both servers take turns, each round with a text of its own. `cold`: nobody has asked for the text before; `warm`: eight more that
begin with it. Prints the seconds until all eight have answered, the prompt tokens that were computed, by their usage, and the
ratios."""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import time
from typing import Any

import aiohttp

WORDS = 1100
"""Of the shared text: some 1,400 tokens of the default model."""
REQUESTS, OUTPUT_TOKENS = 8, 16


def text_of(draw: random.Random, n_words: int) -> str:
    return " ".join(
        draw.choice(("river", "stone", "window", "garden", "letter", "music", "winter", "table")) for _ in range(n_words)
    )


async def asks(session: aiohttp.ClientSession, url: str, shared: str, task: str) -> tuple[int, int]:
    """Prompt tokens, and those of them that were found."""
    messages = [{"role": "system", "content": shared}, {"role": "user", "content": task}]
    body = {"model": "default", "messages": messages, "max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0}
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        answer: dict[str, Any] = await response.json()
        if response.status != 200:
            raise SystemExit(f"{url}: {response.status} {answer}")
    usage = answer["usage"]
    return usage["prompt_tokens"], (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)


async def crowd(session: aiohttp.ClientSession, url: str, shared: str, draw: random.Random) -> tuple[float, int, int]:
    """Seconds until all have answered, their prompt tokens, and how many of those were found."""
    tasks = [f"Task {i}: {text_of(draw, 12)}" for i in range(REQUESTS)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(asks(session, url, shared, task) for task in tasks))
    return time.perf_counter() - began, sum(n for n, _ in answers), sum(found for _, found in answers)


async def measure(urls: list[str], rounds: int, seed: int) -> dict[str, dict[str, list[float]]]:
    seconds: dict[str, dict[str, list[float]]] = {url: {"cold": [], "warm": []} for url in urls}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=600)) as session:
        for n in range(rounds):
            for url in urls if n % 2 == 0 else urls[::-1]:
                draw = random.Random(f"{seed} {n}")  # noqa: S311
                shared = text_of(draw, WORDS)
                for kind in ("cold", "warm"):
                    took_s, n_prompt, n_found = await crowd(session, url, shared, draw)
                    seconds[url][kind].append(took_s)
                    print(
                        f"round {n}  {kind}  {took_s:6.2f} s  {n_prompt - n_found:6,} of {n_prompt:,} computed  {url}", flush=True
                    )
    return seconds


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} ({min(values):.3g}-{max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--against", default="")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    urls = [options.url, *([options.against] if options.against else [])]
    seconds = asyncio.run(measure(urls, options.rounds, options.seed))
    for kind in ("cold", "warm"):
        line = "  against  ".join(f"{spread(seconds[url][kind])} s" for url in urls)
        if len(urls) == 2:
            line += f"  ratio {spread([a / b for a, b in zip(*(seconds[url][kind] for url in urls), strict=True)])}"
        print(f"{kind}: {line}")


if __name__ == "__main__":
    main()
