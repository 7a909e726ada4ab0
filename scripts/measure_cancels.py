"""Cancel requests at random moments, by the thousand, and check that nothing is left of them.

    .venv/bin/python scripts/measure_cancels.py [--requests N] [--clients N] [--seed N]

Starts a server of the default model with four slots, so that requests are cancelled while they wait, are read, are answered,
are paused by an operator or are swapped out. Half of them are cancelled by request, half by a client that closes its
connection. Prints the cancel latency (from taking a choice back to the engine's word that its slot and cells are free), and
exits with 1 unless the books are clean in the end: no slot, no cell and no swapped entry is anybody's, no record is live, and the
engine is the one that began.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import aiohttp

from poise.operator_token import find_token

WORDS = "river stone paper window garden silver market winter "
SETTINGS = ("pools.short.slots=4", "classes.interactive.slots_max=4")


@contextlib.contextmanager
def serving() -> Iterator[str]:
    options = [x for setting in SETTINGS for x in ("--set", setting)]
    command = [sys.executable, "-m", "poise", "serve", "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        url = next((part for line in process.stdout for part in line.split() if part.startswith("http://")), "")
        try:
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


async def one(session: aiohttp.ClientSession, operator: dict[str, str], draw: random.Random, seen: Counter[str]) -> None:
    """Send a request, and end it after a while, in whatever state it is then."""
    leaves = draw.random() < 0.5
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": WORDS * draw.choice((1, 1, 10, 40))}],
        "max_tokens": 300,
        "ignore_eos": True,
        "stream": True,
        "service_tier": draw.choice(("default", "default", "flex")),
    }
    pause_s = draw.choice((0.0, 0.0, 0.05, 0.3, 1.0))
    async with session.post("/v1/chat/completions", json=body) as response:
        name = response.headers["X-Poise-Response-Id"]
        if draw.random() < 0.2:
            async with session.post(f"/admin/requests/{name}/pause", headers=operator):
                pass
        await asyncio.sleep(pause_s)
        async with session.get(f"/v1/requests/{name}") as told:
            seen[(await told.json())["state"]] += 1
        if leaves:
            response.close()
            return
        async with session.post(f"/v1/requests/{name}/cancel") as cancelled:
            cancelled.raise_for_status()
        text = (await response.read()).decode()
        assert '"outcome":"cancelled"' in text or '"finish_reason":"length"' in text, text[-300:]


async def cancel_all(url: str, arguments: argparse.Namespace) -> int:
    draw = random.Random(arguments.seed)  # noqa: S311
    seen, left = Counter[str](), arguments.requests
    timeout = aiohttp.ClientTimeout(total=300)
    operator = {"Authorization": f"Bearer {find_token(url)}"}
    async with aiohttp.ClientSession(url, timeout=timeout) as session:

        async def client() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await one(session, operator, draw, seen)

        await asyncio.gather(*(client() for _ in range(arguments.clients)))
        print(f"{sum(seen.values())} requests were cancelled, found as {dict(seen.most_common())}")
        problems = await clean(session, operator)
        async with session.get("/metrics") as response:
            print(latency(await response.text()))
    print("the books are clean" if not problems else f"WRONG: {problems}")
    return 1 if problems else 0


async def clean(session: aiohttp.ClientSession, operator: dict[str, str]) -> list[str]:
    """What is left, once the last word of the engine has come."""
    problems: list[str] = []
    for _ in range(100):
        async with session.get("/status") as response:
            status: dict[str, Any] = await response.json()
        async with session.get("/admin/requests", headers=operator) as response:
            n_live = len((await response.json())["data"])
        held = sum(pool["slots_held"] for pool in status["pools"])
        used = sum(sum(pool["cells_by_class"].values()) for pool in status["pools"])
        swapped = status["store"]["entries_by_purpose"].get("swap", 0)
        found = {
            "slots held": held,
            "cells of requests": used,
            "swapped entries": swapped,
            "live requests": n_live + status["live_choices"],
            "restarts": status["restarts"],
        }
        problems = [f"{name}: {n}" for name, n in found.items() if n]
        if not problems:
            return []
        await asyncio.sleep(0.1)
    return problems


def latency(metrics: str) -> str:
    """Of the histogram: how many were freed within which time."""
    rows = re.findall(r'^poise_cancel_seconds_bucket\{class="(\w+)",le="([^"]+)"\} ([0-9.]+)', metrics, re.MULTILINE)
    totals: dict[str, float] = {}
    for _, le, n in rows:
        totals[le] = totals.get(le, 0.0) + float(n)
    whole = totals.get("+Inf", 0.0)
    if not whole:
        return "no cancel latency was measured"
    shares = [f"{100 * n / whole:.1f} % within {1000 * float(le):g} ms" for le, n in totals.items() if le != "+Inf" and n]
    return f"cancel latency, {whole:.0f} of them: " + ", ".join(shares)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--clients", type=int, default=12)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with serving() as url:
        sys.exit(asyncio.run(cancel_all(url, arguments)))


if __name__ == "__main__":
    main()
