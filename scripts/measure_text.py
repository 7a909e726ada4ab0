"""Measure what a text worker adds to a request: the time from asking to the ids, beside the same work in this process.

    .venv/bin/python scripts/measure_text.py [--n N]

For short and long conversations: p50 and p95 of the round trip through a real worker, of the tokenising alone, and the
difference of the medians. The two take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time

from poise.config.serving import TextSettings
from poise.gateway.text.tokens import TextModel
from poise.gateway.text.workers import TextWorkers
from poise.llama.binding.model import Model
from poise.llama.files.default_model import default_model
from poise.wire.text import Message
from poise.worker.text.chat_template import ChatTemplate
from poise.worker.text.tokeniser import Tokeniser

CONVERSATIONS = {
    "a question (40 characters)": [Message("user", "What is the capital of France, and why?")],
    "20 turns (8,000 characters)": [Message(("user", "assistant")[i % 2], "one two three four " * 20) for i in range(21)],
    "one text (100,000 characters)": [Message("user", "one two three four " * 5263)],
}


async def measure(n: int) -> None:
    path = default_model()
    workers = TextWorkers(TextSettings(), str(path))
    workers.start()
    with Model.load(path, vocab_only=True) as model:
        here = Tokeniser(model.vocab, ChatTemplate(model.chat_template))
        there = TextModel(await workers.vocabulary(), workers).of("local")
        print(f"{'':<32}{'worker p50':>12}{'p95':>8}{'here p50':>12}{'p95':>8}{'added':>8}  ms")
        for name, messages in CONVERSATIONS.items():
            times: dict[str, list[float]] = {"there": [], "here": []}
            for _ in range(n):
                began_s = time.perf_counter()
                counted = await there.chat(messages)
                asked_s = time.perf_counter()
                ids = here.chat_ids(messages)
                times["there"].append(1000 * (asked_s - began_s))
                times["here"].append(1000 * (time.perf_counter() - asked_s))
                assert counted.ids == ids
            figures = [(statistics.median(each), statistics.quantiles(each, n=20)[-1]) for each in times.values()]
            (there_p50, there_p95), (here_p50, here_p95) = figures
            added = there_p50 - here_p50
            print(f"{name:<32}{there_p50:>12.2f}{there_p95:>8.2f}{here_p50:>12.2f}{here_p95:>8.2f}{added:>8.2f}")
    await workers.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--n", type=int, default=500, help="how often each is asked")
    asyncio.run(measure(parser.parse_args().n))


if __name__ == "__main__":
    main()
