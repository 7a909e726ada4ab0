"""What the simulated model answers, worked out without a scheduler: one sequence, alone, row after row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from poise.engine.ports import Row, Sampled
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import SamplingParams
from poise_lab.sim.runner import VirtualClock
from tests.sim.exact_runner import ExactRunner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


def answer(prompt: Sequence[int], n_output: int, sampling: SamplingParams = GREEDY) -> list[int]:
    """The tokens that must come, whatever happens to the request meanwhile."""
    runner = ExactRunner([PoolInfo("only", 1, len(prompt) + n_output, False, 0)], clock=VirtualClock())
    runner.open(1, prompt, sampling)
    (drawn,) = runner.execute("only", [Row(1, 0, 0, prompt, True)])
    output = [drawn.token.token]
    while len(output) < n_output:
        start = len(prompt) + len(output) - 1
        (drawn,) = runner.execute("only", [Row(1, 0, start, output[-1:], True)])
        output.append(drawn.token.token)
    return output


class CountingRunner(ExactRunner):
    """Counts the tokens that are really computed for each request."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.computed: Counter[int] = Counter()

    def execute(self, pool: str, rows: Sequence[Row]) -> list[Sampled]:
        sampled = super().execute(pool, rows)
        for row in rows:
            self.computed[row.request_id] += len(row.tokens)
        return sampled
