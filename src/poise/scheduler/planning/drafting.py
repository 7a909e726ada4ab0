"""Rule R10: how many guesses of a lone stream's next tokens are computed with the one that is due.

A pass of several tokens costs less than as many passes, so guesses pay where enough of them come true. How many do is learnt for
each request (`poise.scheduler.acceptance`), and what they cost is what the cost model says:

    length = argmax over k of (tokens of the step + expected to come true of k) / (cost of the step with k more rows)

The form is that of speculative decoding (Leviathan et al., arXiv 2211.17192), with the measured cost in place of a constant."""

from dataclasses import dataclass, field

from poise.scheduler.acceptance import FAILURES_MAX, PPM, Acceptance
from poise.scheduler.planning.budget import CostModel, StepBudget, attended_cells

MARGIN_PERCENT = 5
"""What a draft has to promise over none: no prediction of costs is better than that."""
BESIDE_DIVISOR = 2
"""Where another stream has its token in the step, drafts make that at most so much longer: a half."""


@dataclass(slots=True)
class Drafts:
    """The drafts of one step, whose streams come one after the other. `step_us`: what it takes without any, for `n_tokens`
    tokens; `n_left`: guesses that may still be computed in it."""

    budget: StepBudget
    step_us: int
    n_tokens: int
    n_left: int
    _brought: int = 0
    _room_us: int = field(init=False)

    def __post_init__(self) -> None:
        self._brought = self.n_tokens * PPM
        self._room_us = int(self.budget.left_us)
        if self.n_tokens > 1:
            self._room_us = min(self._room_us, self.step_us // BESIDE_DIVISOR)

    def add(self, acceptance: Acceptance, n_matched: int, most: int, pool: str, end: int, model: CostModel, draw_us: int) -> int:
        """How many guesses of a sequence are computed after position `end`, of `most` that there are; they are spent."""
        most = min(most, self.n_left, self.budget.tokens_left[pool])
        if most <= 0 or acceptance.n_failed >= FAILURES_MAX:
            acceptance.passed()
            return 0
        expected = acceptance.expected(n_matched, most)
        chunks_us = [int(model.chunk_us(is_prompt=False, start=end, n_tokens=k)) for k in range(most + 1)]
        prices_us = [chunk_us + draw_us * true // PPM for chunk_us, true in zip(chunks_us, expected, strict=True)]
        n, best, best_us = 0, self._brought * (100 + MARGIN_PERCENT) // 100, self.step_us
        for k in range(1, most + 1):
            brought, took_us = self._brought + expected[k], self.step_us + prices_us[k]
            if prices_us[k] <= self._room_us and brought * best_us > best * took_us:
                n, best, best_us = k, brought, took_us
        if n == 0 and acceptance.probes and prices_us[1] <= self._room_us:
            n = 1
        if n == 0:
            acceptance.passed()
            return 0
        self._room_us -= prices_us[n]
        self.step_us, self._brought, self.n_left = self.step_us + prices_us[n], self._brought + expected[n], self.n_left - n
        self.budget.spend_decodes(pool, n, attended_cells(end, n), draw_us * expected[n] / PPM)
        return n
