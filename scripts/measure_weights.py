"""Compare a model as it is with the weights that poise chose for it: speed and quality, both taking turns.

    .venv/bin/python scripts/measure_weights.py [--rounds 7] [--quality] [--model FILE] [--candidate FILE ...]

For each round and each file in turn: prompt tokens/s (512 tokens in chunks of 64, 128 in chunks of 16), and decoded tokens/s of
1 and of 8 sequences (64 steps, from position 128 on). Prints medians, the spread, and the median of the rounds' ratios. Files
named with --candidate are compared as well. With --quality also perplexity and KL divergence on the text that ships with poise.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from poise.config import Settings
from poise.config.settings import ModelSettings
from poise.engine.ports import Row
from poise.llama.binding.context import PoolContext
from poise.llama.binding.model import Model
from poise.llama.choosing.quality import compare
from poise.llama.files.memory import PoolSpec
from poise.llama.fitting.fit import chooser, model_path

SLOTS = 8
NEAR = 128
PROMPT = 512
CHUNK = 64
STEPS = 64


class Bench:
    """A model with a pool of eight slots, each filled to position 128."""

    def __init__(self, path: Path, stack: ExitStack) -> None:
        self.model = stack.enter_context(Model.load(path))
        spec = PoolSpec("short", SLOTS, NEAR + PROMPT, flash_attention=True)
        self._context = PoolContext(self.model, spec, batch_tokens=NEAR, threads=0, kv_type="f16")
        stack.callback(self._context.close)
        for slot in range(SLOTS):
            self._compute(slot, 0, NEAR)

    def prompt(self) -> float:
        """Tokens/s of a prompt in chunks."""
        return self._timed(PROMPT, lambda: self._chunks(CHUNK, PROMPT // CHUNK), [0])

    def short_prompt(self) -> float:
        """Tokens/s of the smallest chunk that the scheduler computes."""
        return self._timed(8 * 16, lambda: self._chunks(16, 8), [0])

    def decode(self, n: int) -> float:
        """Tokens/s of `n` sequences together."""
        return self._timed(n * STEPS, lambda: self._steps(n), list(range(n)))

    def _steps(self, n: int) -> None:
        for step in range(STEPS):
            self._context.compute([Row(slot, slot, NEAR + step, [100 + step], True) for slot in range(n)])

    def _chunks(self, size: int, n: int) -> None:
        for i in range(n):
            self._compute(0, NEAR + i * size, size)

    def _compute(self, slot: int, start: int, n: int) -> None:
        self._context.compute([Row(slot, slot, start, list(range(100, 100 + n)), True)])

    def _timed(self, n_tokens: int, work: Callable[[], None], slots: list[int]) -> float:
        began = time.perf_counter()
        work()
        elapsed = time.perf_counter() - began
        for slot in slots:
            self._context.truncate(slot, NEAR)
        return n_tokens / elapsed


KINDS: dict[str, Callable[[Bench], float]] = {
    "prompt, chunks of 64": Bench.prompt,
    "prompt, chunks of 16": Bench.short_prompt,
    "decode, 1 sequence": lambda bench: bench.decode(1),
    "decode, 8 sequences": lambda bench: bench.decode(SLOTS),
}


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--quality", action="store_true")
    parser.add_argument("--model", default="")
    parser.add_argument("--candidate", type=Path, action="append", default=[])
    arguments = parser.parse_args()
    settings = Settings(model=ModelSettings(path=arguments.model))
    source = model_path(settings)
    chosen = chooser(source, settings).planned()
    print(f"as-is: {source}\nauto:  {chosen.name} ({chosen.reason})\n")
    files = [source, *([chosen.path] if chosen.path != source else []), *arguments.candidate]
    with ExitStack() as stack:
        benches = [Bench(path, stack) for path in files]
        speeds: list[dict[str, list[float]]] = [{kind: [] for kind in KINDS} for _ in benches]
        for _ in range(arguments.rounds):
            for kind, measure in KINDS.items():
                for bench, figures in zip(benches, speeds, strict=True):
                    figures[kind].append(measure(bench))
        print(f"tokens/s, {arguments.rounds} rounds: median (spread); ratio to as-is: median of rounds (spread)")
        for path, figures in zip(files, speeds, strict=True):
            print(f"\n{path.name}")
            for kind, values in figures.items():
                ratios = [ours / theirs for ours, theirs in zip(values, speeds[0][kind], strict=True)]
                print(f"  {kind:<22} {spread(values, 0):>18}   x{spread(ratios, 2)}")
        for bench in benches[1:] if arguments.quality else []:
            began = time.perf_counter()
            quality = compare(benches[0].model, bench.model)
            print(f"\n{bench.model.path.name}, {quality.n_positions} positions, {time.perf_counter() - began:.1f} s")
            print(f"  perplexity {quality.perplexity:.3f}, the source's {quality.source_perplexity:.3f}:", end=" ")
            print(f"x{quality.perplexity_ratio:.4f} (± {quality.error:.4f})")
            print(f"  KL divergence {quality.kl:.4f}, same likeliest token {quality.same_top:.1%}")


if __name__ == "__main__":
    main()
