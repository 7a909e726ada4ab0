"""Measures what an edge box has to keep: memory, half a core, a duty, and rest (docs/edge.md, docs/lab-log.md).

    python scripts/measure_edge.py [--seconds 60] [--memory-mb 1536] [--cores 0.5]

Needs root and control groups of version 1. Four parts: starts in a group with so much memory and CPU; one client and three in
it; an idle server; and, outside, a duty of one half. The last line of each part says whether it is kept."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import psutil

GROUPS = Path("/sys/fs/cgroup")
PORT = int(os.environ.get("EDGE_PORT", "8977"))
URL = f"http://127.0.0.1:{PORT}"
ITL_TARGET_MS = 250
PROMPTS = ("Write a few sentences about the sea.", "What is a good name for a cat, and why?", "Tell me how bread is made.")


class Group:
    """A nested group with limits on memory and CPU, of version 1."""

    def __init__(self, memory_mb: int, cores: float, cache: str) -> None:
        self.cache = cache
        self.cpu, self.memory = (GROUPS / controller / "poise-edge" for controller in ("cpu", "memory"))
        for folder in (self.cpu / "inside", self.memory):
            folder.mkdir(parents=True, exist_ok=True)
        (self.cpu / "cpu.cfs_quota_us").write_text(str(int(cores * 100_000)))
        (self.memory / "memory.limit_in_bytes").write_text(str(memory_mb << 20))

    def enter(self) -> None:
        for folder in (self.cpu / "inside", self.memory):
            (folder / "cgroup.procs").write_text(str(os.getpid()))

    def periods(self) -> tuple[int, int]:
        rows = dict(line.split() for line in (self.cpu / "cpu.stat").read_text().splitlines())
        return int(rows["nr_periods"]), int(rows["nr_throttled"])

    def used(self) -> dict[str, int]:
        names = {"peak_mb": "memory.max_usage_in_bytes", "failures": "memory.failcnt"}
        found = {key: int((self.memory / name).read_text()) for key, name in names.items()}
        return found | {"peak_mb": found["peak_mb"] >> 20}

    def close(self) -> None:
        for folder in (self.cpu / "inside", self.cpu, self.memory):
            with contextlib.suppress(OSError):
                folder.rmdir()


def started(command: list[str], group: Group | None) -> subprocess.Popen[bytes]:
    """With what earlier starts have found out only where that is not what is measured: a group has a cache of its own."""
    enter, environment = (group.enter, {"XDG_CACHE_HOME": group.cache}) if group is not None else (None, {})
    return subprocess.Popen(  # noqa: S603 - of this script's making
        command, preexec_fn=enter, stdout=subprocess.DEVNULL, env=os.environ | environment
    )


@contextlib.asynccontextmanager
async def server(group: Group | None, *settings: str) -> AsyncIterator[tuple[int, float]]:
    """A server that is ready: its process and how long that took."""
    began_s = time.monotonic()
    options = [part for setting in settings for part in ("--set", setting)]
    command = [sys.executable, "-m", "poise", "serve", "--profile", "edge", "--port", str(PORT), *options]
    with started(command, group) as process:
        try:
            async with aiohttp.ClientSession() as session:
                while True:
                    with contextlib.suppress(aiohttp.ClientError):
                        async with session.get(URL + "/health") as answer:
                            if answer.status == 200:
                                break
                    if process.poll() is not None:
                        raise SystemExit(f"the server ended with {process.returncode}")
                    await asyncio.sleep(0.2)
            yield process.pid, time.monotonic() - began_s
        finally:
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGINT)
            process.wait(30)


async def client(number: int, until_s: float, found: dict[str, Any]) -> None:
    """Asks again and again, and notes what came of it and the gaps between tokens."""
    async with aiohttp.ClientSession() as session:
        while time.monotonic() < until_s:
            messages = [{"role": "user", "content": PROMPTS[number % len(PROMPTS)]}]
            body = {"model": "default", "messages": messages, "max_tokens": 60, "stream": True}
            found["sent"] += 1
            async with session.post(URL + "/v1/chat/completions", json=body) as answer:
                if answer.status != 200:
                    found["refused"].append(answer.status)
                    await asyncio.sleep(float(answer.headers.get("Retry-After", "1")))
                    continue
                before_s, ended = 0.0, False
                async for line in answer.content:
                    ended |= line.startswith(b"data: [DONE]")
                    if line.startswith(b"data: {") and b'"content":"' in line and b'"content":""' not in line:
                        now_s = time.monotonic()
                        found["tokens"] += 1
                        if before_s:
                            found["gaps"].append(now_s - before_s)
                        before_s = now_s
                found["whole"] += ended


async def load(n_clients: int, seconds: float) -> dict[str, Any]:
    found: dict[str, Any] = {"sent": 0, "whole": 0, "tokens": 0, "refused": [], "gaps": []}
    until_s = time.monotonic() + seconds
    await asyncio.gather(*(client(number, until_s, found) for number in range(n_clients)))
    return found


def processes(pid: int) -> Iterator[tuple[str, int]]:
    """The server's, by what each is."""
    yield "gateway", pid
    for child in psutil.Process(pid).children():
        yield "engine" if "poise.worker.engine.process" in child.cmdline() else "text", child.pid


def seconds_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def wakes_of(pid: int) -> int:
    texts = [(task / "status").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    return sum(int(line.split()[1]) for text in texts for line in text.splitlines() if line.startswith("voluntary"))


def rss_mb(pid: int) -> tuple[int, int]:
    rows = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(rows["VmRSS"].split()[0]) >> 10, int(rows["RssFile"].split()[0]) >> 10


def p99_ms(gaps: list[float]) -> float:
    return sorted(gaps)[int(0.99 * (len(gaps) - 1))] * 1000 if gaps else 0.0


def kept(what: str, holds: bool) -> None:
    print(f"  {'kept' if holds else 'NOT KEPT'}: {what}", flush=True)


async def in_group(group: Group, seconds: float) -> None:
    for start in ("first", "second"):
        async with server(group) as (_, took_s):
            print(f"{start} start: {took_s:.1f} s", flush=True)
            if start == "first":
                continue
            kept("ready within 60 s from the second time", took_s <= 60)
            await load(1, 5)
            for n_clients, share in ((1, 0.95), (3, 0.8)):
                before = group.periods()
                found = await load(n_clients, seconds)
                periods, throttled = (now - then for now, then in zip(group.periods(), before, strict=True))
                rate, itl = found["tokens"] / seconds, p99_ms(found["gaps"])
                print(
                    f"{n_clients} client(s): {found['whole']} of {found['sent']} answered, refused {found['refused']}, "
                    f"{rate:.1f} tokens/s, ITL p99 {itl:.0f} ms; throttled in {throttled} of {periods} periods; {group.used()}",
                    flush=True,
                )
                kept(f"{share:.0%} answered", found["whole"] >= share * found["sent"] > 0)
                kept(f"ITL p99 within {ITL_TARGET_MS} ms", itl <= ITL_TARGET_MS)
                kept("throttled in at most 20 % of periods", throttled <= 0.2 * max(1, periods))


async def idle(seconds: float) -> None:
    async with server(None, "power.idle_release_s=10") as (pid, _):
        await load(1, 5)
        await asyncio.sleep(15)
        before = {name: (seconds_of(p), wakes_of(p)) for name, p in processes(pid)}
        await asyncio.sleep(seconds)
        cores = 0.0
        for name, p in processes(pid):
            cpu_s, wakes = seconds_of(p) - before[name][0], (wakes_of(p) - before[name][1]) / seconds
            cores += cpu_s / seconds
            print(f"idle: {name}: {wakes:.2f} wakes/s, {cpu_s:.2f} s of CPU, RSS and file pages {rss_mb(p)} MiB", flush=True)
            kept("at most two wakes a second", wakes <= 2)
            if name == "engine":
                rss, pages = rss_mb(p)
                kept("RSS within 150 MiB and the pages of files", rss - pages <= 150)
        kept(f"{cores:.2%} of a core, less than 0.5 %", cores < 0.005)


async def duty(seconds: float) -> None:
    async with server(None, "power.hours=00:00-12:00,12:00-00:00", "power.battery_duty=0.5", "engine.threads=1") as (pid, _):
        await load(1, 5)
        engine = dict(processes(pid))["engine"]
        before_s, began_s = seconds_of(engine), time.monotonic()
        loads = [asyncio.create_task(load(1, seconds)) for _ in range(2)]
        await asyncio.sleep(seconds)
        share = (seconds_of(engine) - before_s) / (time.monotonic() - began_s)
        one, two = await asyncio.gather(*loads)
        itl = p99_ms(one["gaps"] + two["gaps"])
        print(f"duty 0.5: {share:.3f} of a core, tokens {one['tokens']} and {two['tokens']}, ITL p99 {itl:.0f} ms", flush=True)
        kept("CPU time within 5 % of the duty", abs(share - 0.5) <= 0.025)
        kept("tokens fairly shared", min(one["tokens"], two["tokens"]) >= 0.8 * max(one["tokens"], two["tokens"]))
        kept(f"ITL p99 within {ITL_TARGET_MS} ms", itl <= ITL_TARGET_MS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--memory-mb", type=int, default=1536)
    parser.add_argument("--cores", type=float, default=0.5)
    parser.add_argument("--only", choices=("group", "idle", "duty"))
    asked = parser.parse_args()
    if asked.only in (None, "group"):
        with tempfile.TemporaryDirectory() as cache:
            group = Group(asked.memory_mb, asked.cores, cache)
            try:
                asyncio.run(in_group(group, asked.seconds))
            finally:
                group.close()
    if asked.only in (None, "idle"):
        asyncio.run(idle(asked.seconds))
    if asked.only in (None, "duty"):
        asyncio.run(duty(asked.seconds))


if __name__ == "__main__":
    main()
