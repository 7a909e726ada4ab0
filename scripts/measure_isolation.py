"""Can a tenant tell from the time of its answers what another tenant has asked? Against a running server without declared keys.

    poise serve --port 8000
    .venv/bin/python scripts/measure_isolation.py http://127.0.0.1:8000 --tries 200

In each try one tenant asks a new text, which makes its prefix warm. Then another tenant asks that text and a fresh one of as many
words, in a random order, and the times to the one token of the answer are compared: a pair. The same is done by the tenant that
asked first, as a control: it must see the difference, or the probe is blind. The test is the sign test: of n pairs without
a difference, the warm one is faster in about half.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import secrets
import statistics
import sys
import time
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from poise_lab.bench.prompts import prompt

SIGNIFICANT = 0.01
TOLD, NOT_TOLD, BLIND = "LEAK", "cannot tell", "the probe is blind"


@dataclass
class Pairs:
    """Times in ms of the warm and the fresh text of each try, and the cached tokens of the warm one."""

    warm_ms: list[float] = field(default_factory=list)
    fresh_ms: list[float] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        n_faster = sum(a < b for a, b in zip(self.warm_ms, self.fresh_ms, strict=True))
        return {
            "warm_ms": round(statistics.median(self.warm_ms), 2),
            "fresh_ms": round(statistics.median(self.fresh_ms), 2),
            "warm_faster": n_faster,
            "pairs": len(self.warm_ms),
            "p": sign_test(n_faster, len(self.warm_ms)),
            "cached_tokens": sum(self.cached),
        }


def sign_test(n_successes: int, n: int) -> float:
    """Two-sided p-value of a fair coin."""
    tail = sum(math.comb(n, k) for k in range(max(n_successes, n - n_successes), n + 1))
    return min(1.0, 2 * tail / 2**n)


def ask(url: str, key: str, text: str) -> tuple[float, int]:
    """Milliseconds to an answer of one token, and how many tokens of the prompt were cached."""
    body = {"model": "default", "prompt": text, "max_tokens": 1, "temperature": 0, "ignore_eos": True}
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    request = urllib.request.Request(f"{url}/v1/completions", json.dumps(body).encode(), headers)  # noqa: S310
    began_s = time.perf_counter()
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        answer = json.load(response)
    return (time.perf_counter() - began_s) * 1000, answer["usage"]["prompt_tokens_details"]["cached_tokens"]


def probe(url: str, n_tries: int, n_words: int, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)  # noqa: S311 - which comes first
    run = secrets.token_hex(8)
    owner, other = f"owner-{run}", f"other-{run}"
    texts = iter(range(seed << 20, 1 << 62))
    across, control = Pairs(), Pairs()
    for key in (owner, other):
        ask(url, key, prompt(next(texts), seed, n_words))  # connections, caches of the processor
    for i in range(n_tries):
        warm = prompt(next(texts), seed, n_words)
        ask(url, owner, warm)
        for key, pairs in ((other, across), (owner, control)):
            fresh = prompt(next(texts), seed, n_words)
            for text in rng.sample([warm, fresh], 2):
                took_ms, cached = ask(url, key, text)
                if text is warm:
                    pairs.warm_ms.append(took_ms)
                    pairs.cached.append(cached)
                else:
                    pairs.fresh_ms.append(took_ms)
        if sys.stderr.isatty():
            print(f"\r{i + 1} of {n_tries}", end="", file=sys.stderr)
    found = {"other": across.figures(), "owner": control.figures()}
    sees = found["owner"]["p"] < SIGNIFICANT
    told = found["other"]["p"] < SIGNIFICANT or found["other"]["cached_tokens"] > 0
    return found | {"verdict": TOLD if told else NOT_TOLD if sees else BLIND}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("--tries", type=int, default=200)
    parser.add_argument("--words", type=int, default=100)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = probe(options.url, options.tries, options.words, options.seed)
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{'who asks':<20} {'warm ms':>9} {'fresh ms':>9} {'warm faster':>14} {'p':>9} {'cached':>8}")
        for name, who in (("other", "another tenant"), ("owner", "the same (control)")):
            row = found[name]
            share = f"{row['warm_faster']} of {row['pairs']}"
            print(f"{who:<20} {row['warm_ms']:>9} {row['fresh_ms']:>9} {share:>14} {row['p']:>9.2g} {row['cached_tokens']:>8}")
        print(f"verdict: {found['verdict']}")
    return 0 if found["verdict"] == NOT_TOLD else 1


if __name__ == "__main__":
    sys.exit(main())
