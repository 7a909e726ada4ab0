"""How much faster one model computes than another on this host: the passes of a busy server, both models taking turns.

What counts is a request, not a pass: a chat's prompt and answer, alone and as one of eight.

Times are minima, as in `poise.llama.choosing.measure`: what else runs on the host only ever adds to them."""

import time
from contextlib import ExitStack
from math import inf

import msgspec

from poise.llama.binding.model import Model
from poise.llama.choosing.measure import NEAR, Pass, Probe
from poise.llama.files.memory import PoolSpec
from poise.scheduler.policy import SHORT_POOL

ROUNDS = 6
DECODES = 4
"""A decode is short and easily disturbed: it is timed this many times in each round."""
PASSES = {"prompt": Pass(1, 64, NEAR), "decode": Pass(1, 1, NEAR), "decode_8": Pass(8, 1, NEAR)}
PROMPT_TOKENS, OUTPUT_TOKENS = 80, 128
"""A chat on a small host: the answer has the median of the Azure LLM 2023 conversation trace (129)."""
GAIN_MIN = 1.1
"""Less is not worth a second file, and not beyond the noise of a host with other work."""


class Pace(msgspec.Struct, frozen=True):
    """Speed of a candidate, as a multiple of its source's: of passes (prompts, a lone decode, eight together) and of requests."""

    prompt: float
    decode: float
    decode_8: float
    alone: float
    among_8: float

    @property
    def gain(self) -> float:
        """What it brings where it is needed: on a busy server."""
        return self.among_8

    def problem(self, alone_min: float) -> str:
        """Why it is not worth taking; empty if it is."""
        if self.gain < GAIN_MIN:
            return f"it is not faster on this host ({self})"
        if self.alone < alone_min:
            wanted = f"wanted is {alone_min:g} (model.weights_alone_min; {self})"
            return f"a lone request has {self.alone:.2f} of the file's speed, {wanted}"
        return ""

    def __str__(self) -> str:
        passes = f"prompts x{self.prompt:.2f}, one decode x{self.decode:.2f}, eight x{self.decode_8:.2f}"
        return f"a request among eight x{self.among_8:.2f}, alone x{self.alone:.2f} ({passes})"


def compare_pace(source: Model, candidate: Model, *, threads: int, limit_s: float = inf) -> Pace:
    """Time both, a pass of each in turn; after `limit_s` no further round begins."""
    deadline = time.perf_counter() + limit_s
    pool = PoolSpec(SHORT_POOL, 8, 2 * NEAR, flash_attention=True)
    best = [dict.fromkeys(PASSES, inf), dict.fromkeys(PASSES, inf)]
    with ExitStack() as stack:
        made = (Probe(model, pool, "f16", threads, list(PASSES.values())) for model in (source, candidate))
        probes = [stack.enter_context(probe) for probe in made]
        for done in range(ROUNDS):
            if done and time.perf_counter() > deadline:
                break
            for name, timed in PASSES.items():
                for _ in range(1 if timed.n_tokens > 1 else DECODES):
                    for probe, times in zip(probes, best, strict=True):
                        times[name] = min(times[name], probe.time_us(timed))
    return _pace(*best)


def _pace(source: dict[str, float], candidate: dict[str, float]) -> Pace:
    """From microseconds of each pass."""
    alone, among_8 = (_request_us(source, n) / _request_us(candidate, n) for n in (1, PASSES["decode_8"].n_rows))
    return Pace(**{name: source[name] / candidate[name] for name in PASSES}, alone=alone, among_8=among_8)


def _request_us(times: dict[str, float], n_rows: int) -> float:
    """Compute time of a request that decodes among so many; each has its share of a pass."""
    decode_us = times["decode"] if n_rows == 1 else times["decode_8"] / n_rows
    return PROMPT_TOKENS / PASSES["prompt"].n_tokens * times["prompt"] + OUTPUT_TOKENS * decode_us
