"""Measure what an open dashboard costs the streams beside it.

    .venv/bin/python scripts/measure_dashboard.py [--rounds N] [--seconds S] [--streams N] [--browser]

Starts a server of the default model. In each round streams run for some seconds twice, in random order: alone, and
beside a dashboard, which is a program that asks for what the page asks for, as often; with --browser it is Chromium on this
machine, which also has to draw. Prints gap p50 and p99 and tokens a second of both, and the median ratio with its spread.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from statistics import median

import aiohttp
import numpy as np

from poise.operator_token import find_token

WARM_S = 2.0
ASKED = (("/status", 1.0), ("/status/history?since={next}", 1.0), ("/admin/requests?ended=20", 2.0))
"""What the page asks for, and every how many seconds."""


@contextlib.contextmanager
def serving() -> Iterator[str]:
    command = [sys.executable, "-m", "poise", "serve", "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - ourselves
        assert process.stdout is not None
        url = next((part for line in process.stdout for part in line.split() if part.startswith("http://")), "")
        try:
            yield url
        finally:
            process.send_signal(signal.SIGTERM)


async def stream(session: aiohttp.ClientSession, url: str, until_s: float, from_s: float, gaps_ms: list[float]) -> None:
    body = {
        "model": "default",
        "messages": [{"role": "user", "content": f"A story about {random.random()}"}],  # noqa: S311
        "max_tokens": 3000,
        "ignore_eos": True,
        "stream": True,
    }
    async with session.post(f"{url}/v1/chat/completions", json=body) as response:
        last_s = None
        async for line in response.content:
            now_s = time.perf_counter()
            if line.startswith(b"data: {") and b'"content"' in line:
                if last_s is not None and now_s >= from_s:
                    gaps_ms.append(1000 * (now_s - last_s))
                last_s = now_s
            if now_s > until_s:
                return


async def load(url: str, n_streams: int, seconds: float) -> tuple[float, float, float]:
    """Gap p50 and p99 in ms, and tokens a second."""
    gaps_ms: list[float] = []
    from_s = time.perf_counter() + WARM_S
    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(stream(session, url, from_s + seconds, from_s, gaps_ms) for _ in range(n_streams)))
    p50, p99 = np.percentile(gaps_ms, (50, 99))
    return float(p50), float(p99), len(gaps_ms) / seconds


@contextlib.asynccontextmanager
async def polling(url: str) -> AsyncIterator[None]:
    """The requests of a page that is open."""
    seen = {"next": 0}
    operator = {"Authorization": f"Bearer {find_token(url)}"}

    async def ask(session: aiohttp.ClientSession, path: str, period_s: float) -> None:
        while True:
            async with session.get(url + path.format(**seen), headers=operator) as response:
                told = await response.json()
                seen["next"] = told.get("next", seen["next"])
            await asyncio.sleep(period_s)

    async with aiohttp.ClientSession() as session:
        tasks = [asyncio.create_task(ask(session, path, period_s)) for path, period_s in ASKED]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def browsing(url: str) -> AsyncIterator[None]:
    from playwright.async_api import async_playwright

    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(f"{url}/dashboard")
        try:
            yield
        finally:
            await browser.close()


async def measure(url: str, arguments: argparse.Namespace) -> None:
    open_dashboard = browsing if arguments.browser else polling
    alone: list[Sequence[float]] = []
    beside: list[Sequence[float]] = []
    print("round   alone: gap p50, p99 ms, tokens/s   beside a dashboard")
    for number in range(arguments.rounds):
        for with_dashboard in random.sample((False, True), 2):
            context = open_dashboard(url) if with_dashboard else contextlib.nullcontext()
            async with context:
                found = await load(url, arguments.streams, arguments.seconds)
            (beside if with_dashboard else alone).append(found)
            await asyncio.sleep(1)
        texts = ("{:8.1f} {:8.1f} {:8.1f}".format(*side[-1]) for side in (alone, beside))
        print(f"{number + 1:5}   {'   '.join(texts)}", flush=True)
    for place, name in enumerate(("gap p50", "gap p99", "tokens/s")):
        ratios = [b[place] / a[place] for a, b in zip(alone, beside, strict=True)]
        print(f"{name:8} beside / alone {median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--browser", action="store_true")
    arguments = parser.parse_args()
    with serving() as url:
        asyncio.run(measure(url, arguments))


if __name__ == "__main__":
    main()
