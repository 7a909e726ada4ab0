"""What a step costs, and how much of its time budget is left.

The cost of a batch is taken as linear in four features (the form is common in the literature, for example SlidingServe,
arXiv 2606.05933): one fixed part per call, a part per decode token, per prompt token, and per attended cell. Without the
last, a chunk late in a long prompt is underestimated five times over. The weights are fitted online, for each pool, from
measured steps: least squares with exponential forgetting and weights kept non-negative. A pull towards the prior, scaled to
the machine's present speed, decides what the steps leave open: in a long run of like batches the features grow together, and
without it noise would share out the cost among them at random. Floating point is used, in a fixed order, so equal inputs
give equal plans."""

from dataclasses import dataclass
from math import sqrt

from poise.scheduler.policy import CostPrior

FORGETTING = 0.99
"""Weight of the past at each observed step: a memory of about 100 steps."""

PRIOR_STRENGTH = 0.05
"""Weight of the prior against one observed step; about 100 are remembered."""

SPEED_MEMORY = 0.95
"""How much of the estimate of the machine's speed, relative to the prior, survives a step."""

WEIGHT_FLOOR = (0.0, 0.1, 0.1, 0.0)
"""Least weights relative to the prior at the machine's speed. No token is free: noise that made prompt tokens look so would
have the next step swallow a whole prompt."""

OUTLIER_FACTOR = 3.0
"""A step that took more than this many times its prediction counts as this many times: the host was busy elsewhere."""

CHANGE_FACTOR, CHANGE_STEPS = 1.3, 6
"""So many steps in a row that all took this many times as long as predicted, or as many times as short: the machine's clock is
another one, because it is throttled or no longer is. What was learned holds in proportion, and counts for less."""
CHANGE_FORGETTING = 0.3

TYPICAL = (1.0, 8.0, 64.0, 16_000.0)
"""Feature values of a typical busy step; they scale the features so that the fit is well conditioned."""


@dataclass(slots=True)
class BatchShape:
    """The features of a batch. `attended_cells` sums, over its tokens, the cells each one attends to."""

    decode_tokens: int = 0
    prompt_tokens: int = 0
    attended_cells: int = 0

    def add(self, *, is_prompt: bool, start: int, n_tokens: int) -> None:
        if is_prompt:
            self.prompt_tokens += n_tokens
        else:
            self.decode_tokens += n_tokens
        self.attended_cells += attended_cells(start, n_tokens)

    @property
    def is_empty(self) -> bool:
        return not self.decode_tokens and not self.prompt_tokens


def attended_cells(start: int, n_tokens: int) -> int:
    """Cells attended to by tokens at positions [start, start + n_tokens): the sum of position + 1."""
    return n_tokens * start + n_tokens * (n_tokens + 1) // 2


class CostModel:
    """Predicts the cost of a batch in one pool, in microseconds, and learns from what was measured."""

    def __init__(self, prior: CostPrior) -> None:
        weights = (prior.fixed_us, prior.decode_us, prior.prompt_us, prior.attended_us)
        self._prior = [w * t for w, t in zip(weights, TYPICAL, strict=True)]
        self._weights = list(self._prior)
        self._gram = [[PRIOR_STRENGTH if i == j else 0.0 for j in range(4)] for i in range(4)]
        self._moment = [PRIOR_STRENGTH * w for w in self._prior]
        self._slowness = 1.0
        self._strange: list[float] = []
        """Measured over predicted cost of the last steps, while all of them are off in one direction."""
        self.n_observed = 0

    @property
    def fixed_us(self) -> float:
        return self._weights[0]

    @property
    def decode_us(self) -> float:
        """Cost of a decode token, its attention apart."""
        return self._weights[1] / TYPICAL[1]

    @property
    def prompt_us(self) -> float:
        """Cost of a prompt token, its attention apart."""
        return self._weights[2] / TYPICAL[2]

    @property
    def attended_us(self) -> float:
        return self._weights[3] / TYPICAL[3]

    def predict_us(self, shape: BatchShape) -> float:
        if shape.is_empty:
            return 0.0
        return self.fixed_us + self.marginal_us(shape)

    def marginal_us(self, shape: BatchShape) -> float:
        """The cost without the call's fixed part."""
        return (
            self.decode_us * shape.decode_tokens + self.prompt_us * shape.prompt_tokens + self.attended_us * shape.attended_cells
        )

    def chunk_us(self, *, is_prompt: bool, start: int, n_tokens: int) -> float:
        """What one chunk adds to a batch."""
        per_token = self.prompt_us if is_prompt else self.decode_us
        return per_token * n_tokens + self.attended_us * attended_cells(start, n_tokens)

    def prompt_tokens_within(self, budget_us: float, start: int) -> int:
        """The most prompt tokens from position `start` that a budget pays for."""
        if budget_us <= 0:
            return 0
        half = self.attended_us / 2
        linear = self.prompt_us + self.attended_us * (start + 0.5)
        # The root of half * n² + linear * n = budget, in the form that neither cancels nor divides by a small `half`.
        return int(2 * budget_us / (sqrt(linear * linear + 4 * half * budget_us) + linear))

    def observe(self, shape: BatchShape, cost_us: int) -> None:
        """Learn from one measured batch."""
        self._notice(cost_us / max(1.0, self.predict_us(shape)))
        cost = min(float(cost_us), OUTLIER_FACTOR * self.predict_us(shape)) if self.n_observed > 8 else float(cost_us)
        features = (1.0, shape.decode_tokens / TYPICAL[1], shape.prompt_tokens / TYPICAL[2],
                    shape.attended_cells / TYPICAL[3])  # fmt: skip
        usual = sum(f * w for f, w in zip(features, self._prior, strict=True))
        self._slowness = SPEED_MEMORY * self._slowness + (1 - SPEED_MEMORY) * cost / max(1.0, usual)
        # Relative error matters more than absolute error: a small step is weighted up to count like a large one.
        weight = 1.0 / max(0.05, sum(f * f for f in features))
        for i in range(4):
            row, scaled = self._gram[i], weight * features[i]
            for j in range(4):
                row[j] = FORGETTING * row[j] + scaled * features[j]
            self._moment[i] = FORGETTING * self._moment[i] + scaled * cost
            pull = (1 - FORGETTING) * PRIOR_STRENGTH
            row[i] += pull
            self._moment[i] += pull * self._prior[i] * self._slowness
        self.n_observed += 1
        self._solve()

    def _notice(self, ratio: float) -> None:
        """Follow a clock that has changed at once: with what is forgotten as time goes by, it would take a hundred steps."""
        turns = self._strange and (self._strange[0] > 1) != (ratio > 1)
        if self.n_observed <= 8 or turns or 1 / CHANGE_FACTOR < ratio < CHANGE_FACTOR:
            self._strange.clear()
            return
        self._strange.append(ratio)
        if len(self._strange) < CHANGE_STEPS:
            return
        change = sorted(self._strange)[CHANGE_STEPS // 2]
        self._strange.clear()
        self._slowness *= change
        self._weights = [weight * change for weight in self._weights]
        self._gram = [[CHANGE_FORGETTING * one for one in row] for row in self._gram]
        self._moment = [CHANGE_FORGETTING * change * one for one in self._moment]

    def _solve(self) -> None:
        """Two sweeps of non-negative coordinate descent from the last solution; steps follow each other closely."""
        for _ in range(2):
            for i in range(4):
                row = self._gram[i]
                rest = sum(row[j] * self._weights[j] for j in range(4) if j != i)
                floor = WEIGHT_FLOOR[i] * self._prior[i] * self._slowness
                self._weights[i] = max(floor, (self._moment[i] - rest) / row[i])


class StepBudget:
    """The time budget of one step, and the batches that fill it."""

    def __init__(self, models: dict[str, CostModel], target_us: int, batch_tokens: int) -> None:
        self._models = models
        self.left_us = float(target_us)
        self.tokens_left = dict.fromkeys(models, batch_tokens)
        self.shapes = {pool: BatchShape() for pool in models}
        self.sampling_us = dict.fromkeys(models, 0.0)
        """What drawing the step's tokens will take: no part of the pass, whose cost the models predict."""

    @property
    def marginal_us(self) -> float:
        """What the chunks put in so far cost, without the calls' fixed parts: what tenants are charged in proportion to."""
        passes_us = sum(self._models[pool].marginal_us(shape) for pool, shape in self.shapes.items())
        return passes_us + sum(self.sampling_us.values())

    def cap(self, left_us: float) -> None:
        """Leave at most that much of the budget."""
        self.left_us = min(self.left_us, left_us)

    def entry_us(self, pool: str) -> float:
        """What the pool's first chunk pays besides its own cost: the call's fixed part."""
        return self._models[pool].fixed_us if self.shapes[pool].is_empty else 0.0

    def spend_decodes(self, pool: str, n_tokens: int, attended: int, sampling_us: float) -> None:
        """Put decodes of `n_tokens` sequences into the step, whether or not the budget still covers them."""
        model, shape = self._models[pool], self.shapes[pool]
        self.left_us -= self.entry_us(pool) + n_tokens * model.decode_us + attended * model.attended_us + sampling_us
        self.sampling_us[pool] += sampling_us
        self.tokens_left[pool] -= n_tokens
        shape.decode_tokens += n_tokens
        shape.attended_cells += attended

    def spend_prompt(self, pool: str, start: int, n_tokens: int) -> None:
        """Put a chunk of a prompt into the step, whether or not the budget still covers it."""
        cost = self._models[pool].chunk_us(is_prompt=True, start=start, n_tokens=n_tokens)
        self.left_us -= self.entry_us(pool) + cost
        self.tokens_left[pool] -= n_tokens
        self.shapes[pool].add(is_prompt=True, start=start, n_tokens=n_tokens)
