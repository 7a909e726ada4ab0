"""How much faster one model computes than another on this host: the passes of a busy server, both models taking turns.

Times are minima, as in `poise.llama.measure`: what else runs on the host only ever adds to them.
"""

from __future__ import annotations

from contextlib import ExitStack
from math import inf, prod

import msgspec

from poise.llama.measure import NEAR, Pass, Probe
from poise.llama.memory import PoolSpec
from poise.llama.model import Model
from poise.scheduler.policy import SHORT_POOL

ROUNDS = 6
DECODES = 4
"""A decode is short and easily disturbed: it is timed this many times in each round."""
PASSES = {"prompt": Pass(1, 64, NEAR), "decode": Pass(1, 1, NEAR), "decode_8": Pass(8, 1, NEAR)}
GAIN_MIN = 1.1
"""Less is not worth a second file, and not beyond the noise of a host with other work."""
LOSS_MAX = 0.85
"""No kind of pass may become slower than this; on a busy host a ratio is uncertain by a tenth."""


class Pace(msgspec.Struct, frozen=True):
    """Speed of a candidate, as a multiple of its source's: prompts, a lone decode, eight decodes together."""

    prompt: float
    decode: float
    decode_8: float

    @property
    def gain(self) -> float:
        """All three in one number, their geometric mean."""
        return prod((self.prompt, self.decode, self.decode_8)) ** (1 / 3)

    @property
    def problem(self) -> str:
        """Why it is not worth taking; empty if it is."""
        if self.gain < GAIN_MIN or min(self.prompt, self.decode, self.decode_8) < LOSS_MAX:
            return f"it is not faster on this host ({self})"
        return ""

    def __str__(self) -> str:
        return f"prompts x{self.prompt:.2f}, one decode x{self.decode:.2f}, eight x{self.decode_8:.2f}"


def compare_pace(source: Model, candidate: Model, *, threads: int, rounds: int = ROUNDS) -> Pace:
    """Time both, a pass of each in turn."""
    pool = PoolSpec(SHORT_POOL, 8, 2 * NEAR, flash_attention=True)
    best = [dict.fromkeys(PASSES, inf), dict.fromkeys(PASSES, inf)]
    with ExitStack() as stack:
        probes = [
            stack.enter_context(Probe(model, pool, "f16", threads, list(PASSES.values())))
            for model in (source, candidate)
        ]
        for _ in range(rounds):
            for name, timed in PASSES.items():
                for _ in range(1 if timed.n_tokens > 1 else DECODES):
                    for probe, times in zip(probes, best, strict=True):
                        times[name] = min(times[name], probe.time_us(timed))
    return Pace(**{name: best[0][name] / best[1][name] for name in PASSES})
