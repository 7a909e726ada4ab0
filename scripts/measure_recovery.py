"""Measure how long streams are silent when their engine dies, and check that they lose nothing.

    .venv/bin/python scripts/measure_recovery.py [--repetitions N] [--streams N] [--tokens N] [--hang]

One server; in each repetition some greedy streams through the official client, and in the middle of them `kill -9` of the engine
(or, with --hang, a SIGSTOP, which the watchdog has to notice). Each answer must have as many tokens as were asked for, listed one
by one beside the server's running count of them, and the text that they make. A stream's recovery is its longest silence.
Exits with 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import ceil

import openai
import psutil

from poise.gateway.supervision.supervisor import ENGINE_COMMAND

WATCHDOG_S = 10.0
"""With --hang. Shorter, and a busy machine's slow pass is taken for a hang."""
SETTLED_S = 6.0
"""An engine that is lost within 5 s of its start is started again after a pause that grows; that is not what is measured."""
TIMEOUT_S = 300.0
PROMPT = "Write a long story about number {i} of a fleet of ships, its captain and its harbour."


@dataclass
class Recovery:
    """What came of one repetition."""

    silences_s: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    n_recovered: int = 0
    """Streams that were told of a recovery."""


@dataclass
class _Stream:
    index: int
    tokens: list[bytes] = field(default_factory=list)
    """The bytes of each, as the log probabilities list them."""
    counts: list[tuple[int, int]] = field(default_factory=list)
    """Tokens listed so far and tokens generated so far, as the server counts them, at each event."""
    at_s: list[float] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    problem: str = ""

    def faults(self, n_tokens: int) -> Iterator[str]:
        name = f"stream {self.index}"
        if self.problem:
            yield f"{name}: {self.problem}"
        if self.finish_reason != "length":
            yield f"{name}: ended with {self.finish_reason}"
        if len(self.tokens) != n_tokens:
            yield f"{name}: {len(self.tokens)} tokens, {n_tokens} were asked for"
        # Tokens that end within a character are counted before they are listed, and there are never more than three of them.
        if any(not 0 <= counted - listed <= 3 for listed, counted in self.counts):
            yield f"{name}: tokens listed and counted differ: {self.counts}"
        if b"".join(self.tokens).decode(errors="replace") != self.text:
            yield f"{name}: its text is not that of its tokens"

    @property
    def silence_s(self) -> float:
        return max((b - a for a, b in zip(self.at_s, self.at_s[1:], strict=False)), default=0.0)


def disturb(url: str, server: psutil.Process, how: signal.Signals, *, n_streams: int, n_tokens: int) -> Recovery:
    """Run the streams, and let the engine have the signal when each of them has a quarter of its tokens."""
    before = _recovered(url)
    streams = [_Stream(index) for index in range(n_streams)]
    asyncio.run(_run(url, server, how, streams, n_tokens))
    recovery = Recovery([stream.silence_s for stream in streams], [], _recovered(url) - before)
    recovery.problems = [fault for stream in streams for fault in stream.faults(n_tokens)]
    if recovery.n_recovered != n_streams:
        recovery.problems.append(f"{recovery.n_recovered} of {n_streams} streams were recovered: the signal came too late")
    return recovery


async def _run(url: str, server: psutil.Process, how: signal.Signals, streams: list[_Stream], n_tokens: int) -> None:
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", timeout=TIMEOUT_S, max_retries=0) as client:
        reading = [asyncio.create_task(_read(client, stream, n_tokens)) for stream in streams]
        while not all(len(stream.at_s) >= n_tokens // 4 or stream.problem for stream in streams):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        engine = next(child for child in server.children() if ENGINE_COMMAND[-1] in child.cmdline())
        engine.send_signal(how)
        await asyncio.gather(*reading)


async def _read(client: openai.AsyncOpenAI, stream: _Stream, n_tokens: int) -> None:
    try:
        chunks = await client.chat.completions.create(
            model="default",
            messages=[{"role": "user", "content": PROMPT.format(i=stream.index)}],
            max_tokens=n_tokens,
            temperature=0,
            logprobs=True,
            stream=True,
            extra_body={"ignore_eos": True, "stream_options": {"continuous_usage_stats": True}},
        )
        async for chunk in chunks:
            for choice in chunk.choices:
                stream.finish_reason = choice.finish_reason or stream.finish_reason
                stream.text += choice.delta.content or ""
                if choice.logprobs is not None and choice.logprobs.content:
                    stream.at_s.append(time.monotonic())
                    stream.tokens += [bytes(entry.bytes or ()) for entry in choice.logprobs.content]
                    stream.counts.append((len(stream.tokens), chunk.usage.completion_tokens if chunk.usage else 0))
    except openai.OpenAIError as error:
        stream.problem = f"{type(error).__name__}: {error}"


def _recovered(url: str) -> int:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310 - the server's own address
        metrics = response.read().decode()
    prefix = 'poise_recovery_seconds_count{class="interactive"} '
    return int(float(next(line.removeprefix(prefix) for line in metrics.splitlines() if line.startswith(prefix))))


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[str, psutil.Process]]:
    """A server of its own, which does not degrade however often its engine is killed."""
    command = [sys.executable, "-m", "poise", "serve", "--port", "0", "--set", "levels.crashes_max=10000", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603 - itself
        assert process.stdout is not None
        url = next((part for line in process.stdout for part in line.split() if part.startswith("http://")), "")
        try:
            yield url, psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)


def shown(values_s: list[float]) -> str:
    ordered = sorted(values_s)
    p95 = ordered[ceil(0.95 * len(ordered)) - 1]
    return f"median {statistics.median(ordered):.2f} s, p95 {p95:.2f} s, max {ordered[-1]:.2f} s"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=50)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--hang", action="store_true")
    arguments = parser.parse_args()
    how = signal.SIGSTOP if arguments.hang else signal.SIGKILL
    silences_s: list[float] = []
    n_problems = 0
    options = ["--set", f"engine.watchdog_s={WATCHDOG_S}"] if arguments.hang else []
    with serving(*options) as (url, server):
        for repetition in range(arguments.repetitions):
            recovery = disturb(url, server, how, n_streams=arguments.streams, n_tokens=arguments.tokens)
            silences_s += recovery.silences_s
            n_problems += len(recovery.problems)
            print(f"{repetition + 1:3}  {shown(recovery.silences_s)}", *recovery.problems, sep="\n     ", flush=True)
            time.sleep(SETTLED_S)
    n_streams = arguments.repetitions * arguments.streams
    print(f"\n{arguments.repetitions} times {how.name}, {n_streams} streams of {arguments.tokens} tokens")
    print(f"silence of a stream: {shown(silences_s)}")
    print("every stream complete, every token once" if not n_problems else f"WRONG: {n_problems} problems, see above")
    return 1 if n_problems else 0


if __name__ == "__main__":
    sys.exit(main())
