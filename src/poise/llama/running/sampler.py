"""Draws the next token of one request from the model's logits.

The work is done in numpy rather than in a chain of llama.cpp samplers, which touch every candidate of the vocabulary in
every stage. Only a few candidates matter; finding them without sorting is what makes this fast:

    The k-th largest of the maxima of blocks of the row is at most the k-th largest value of the row. So the values that
    reach it, few more than k, contain the k largest, and finding them takes three passes of vector code.

Stages, in llama.cpp's usual order; each one after the first sees only what the one before left over:

    1  logit_bias, penalties, end-of-generation ban    a copy of the row, changed in few places
    2  temperature 0                                   the largest logit
    3  top_k   keep the k largest
    4  top_p   keep the smallest set of the most likely ones whose probabilities reach p, and of those the likeliest
               `candidates_max`: sorting a whole vocabulary for a tail that is hardly ever drawn from costs 50 times as much
    5  min_p   keep what is at least min_p times as likely as the likeliest
    6  temperature, then one draw

With a grammar the draw is made without looking at it, and stands when it is allowed, as most are. Else all that is not allowed
is taken out after stage 1 and the rest is done again, with other random numbers. An allowed token is drawn with its probability
p, or after a miss, of probability 1 - P, with p / P: p / P in all, which is its share of what is allowed. Where filters cut, they
cut before the mask in a first draw, and after it in a second one. (llama.cpp's sampling does the same by default.)

A draw depends on the logits, the parameters, the seed and the tokens so far, and on no state besides: the random numbers are a
hash of the seed and the token's position in the output. So a request that goes on in another engine, or is computed again,
draws what it would have drawn."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from math import log
from struct import Struct

import numpy as np
import numpy.typing as npt

from poise.engine.ports import RunnerError
from poise.engine.thinking import Budget
from poise.llama.running.grammar import Constraint
from poise.wire.messages import STRUCTURE_FAILED, TokenLogprob
from poise.wire.to_engine import SamplingParams

Floats = npt.NDArray[np.floating]
Ids = npt.NDArray[np.integer]

SEED_MASK = (1 << 64) - 1
_POSITION = Struct("<QQ")
_UNIT = 2.0**-53
TEMPERATURE_MIN = 1e-4
"""A lower temperature makes no difference any more, except that it overflows."""

FEW = 64
"""Likeliest tokens among which a nucleus is looked for at first."""
BLOCK = 256


@dataclass(frozen=True, slots=True)
class Drawn:
    """A token, and its log probability and the likeliest tokens when they were asked for."""

    token: int
    logprob: float | None = None
    top: list[TokenLogprob] = field(default_factory=list)
    forced: Sequence[int] = ()
    """What follows by the grammar, without a draw."""
    closes: bool = False
    """Nothing may come after that."""
    cut: bool = False
    """It closes what was open, since the allowance ends."""


class Sampler:
    """The sampling state of one request. `draw` returns the next token and remembers it."""

    def __init__(
        self,
        sampling: SamplingParams,
        prompt: Sequence[int],
        n_vocab: int,
        eog_tokens: Sequence[int],
        output: Sequence[int] = (),
        candidates_max: int = 1024,
        constraint: Constraint | None = None,
        budget: Budget | None = None,
    ) -> None:
        """`output`: what was drawn before, by this sampler's like elsewhere; it goes on after that, as `constraint` does."""
        self._constraint = constraint
        self._budget = budget
        self._sampling = sampling
        self._candidates_max = candidates_max
        self._eog = np.array(eog_tokens, np.int64)
        self._temperature = max(sampling.temperature, TEMPERATURE_MIN)
        self._bias_ids = np.array([token for token, _ in sampling.logit_bias], np.int64)
        with np.errstate(over="ignore"):  # a bias that is too large fails the draw, by name
            self._bias = np.array([bias for _, bias in sampling.logit_bias]).astype(np.float32)
        assert all(0 <= token < n_vocab for token, _ in sampling.logit_bias), "logit_bias names an unknown token"
        self._repeated = _TokenCounts([*prompt, *output]) if sampling.repetition_penalty != 1.0 else None
        counts_output = sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0
        self._output = _TokenCounts(output) if counts_output else None
        self._n_drawn = len(output)

    def draw(self, row: Floats) -> Drawn:
        """Draw from a row of logits, which is read and never written. Raises RunnerError when it holds no numbers."""
        logits = self._adjusted(row)
        forced = self._budget.forced if self._budget is not None else None
        token = self._choose(logits) if forced is None else forced
        run: list[int] = []
        closes = cut = False
        if self._constraint is not None and forced is not None:
            self._constraint.take(forced)
        elif self._constraint is not None:
            token, run, closes = self._constrained(self._constraint, logits, token)
            cut = self._constraint.is_cut
        self._remember(token)
        for following in run:
            self._remember(following)
        if self._sampling.n_logprobs < 0:
            return Drawn(token, forced=run, closes=closes, cut=cut)
        return replace(_with_logprobs(token, row, self._sampling.n_logprobs), forced=run, closes=closes, cut=cut)

    def _choose(self, logits: Floats, *, again: bool = False) -> int:
        if self._sampling.temperature != 0.0:
            return self._pick(logits, again)
        token = int(logits.argmax())
        _check(float(logits[token]))
        return token

    def _constrained(self, constraint: Constraint, logits: Floats, token: int) -> tuple[int, list[int], bool]:
        """The token, or another one that is allowed; what follows without a draw; and whether that is all."""
        end = int(self._eog[0])
        if constraint.is_over:
            return end, [], False
        if not constraint.allows(token):
            masked = constraint.masked(logits)
            if masked.max() == -np.inf:  # what is allowed is banned: by a bias, or it is the end and comes too early
                if constraint.may_end:
                    return end, [], False
                raise RunnerError(f"{STRUCTURE_FAILED}: no token fits")
            token = self._choose(masked, again=True)
        if token in self._eog:
            return token, [], False
        constraint.take(token)
        return token, constraint.forced(), constraint.is_over or constraint.is_cut

    def likelihood(self, token: int, row: Floats) -> Drawn:
        """How likely a token of the prompt is by the logits before it. Raises RunnerError as `draw` does."""
        return _with_logprobs(token, row, self._sampling.n_prompt_logprobs)

    def _remember(self, token: int) -> None:
        self._n_drawn += 1
        if self._budget is not None:
            self._budget.take(token)
        if self._repeated is not None:
            self._repeated.add(token)
        if self._output is not None:
            self._output.add(token)

    def _adjusted(self, row: Floats) -> Floats:
        """The row, or a changed copy of it."""
        banned = self._sampling.ignore_eos or self._n_drawn < self._sampling.min_output
        if not (banned or len(self._bias) or self._repeated or self._output):
            return row
        logits = row.copy()
        if len(self._bias):
            np.add.at(logits, self._bias_ids, self._bias)
        if self._repeated is not None:
            seen = self._repeated.tokens
            values, factor = logits[seen], self._sampling.repetition_penalty
            logits[seen] = np.where(values > 0, values / factor, values * factor)
        if self._output is not None:
            penalty = self._output.counts * self._sampling.frequency_penalty + self._sampling.presence_penalty
            logits[self._output.tokens] -= penalty.astype(np.float32)
        if banned:
            logits[self._eog] = -np.inf
        return logits

    def _pick(self, logits: Floats, again: bool) -> int:
        sampling = self._sampling
        best = float(logits.max())
        _check(best)
        first, second = random_pair(sampling.seed, self._n_drawn, again=again)
        filtered = 0 < sampling.top_k < len(logits) or sampling.top_p < 1.0 or sampling.min_p > 0.0
        if not filtered:
            return self._pick_from_all(logits, best, first, second)
        top_k, most = sampling.top_k, self._candidates_max
        if sampling.top_p == 1.0 and most < top_k < len(logits):
            return self._pick_from_all(logits, best, first, second, kth=_kth_largest(logits, top_k))
        ids = self._candidates(logits, best)
        if len(ids) > most:
            return self._pick_from_all(logits, best, first, second)
        return int(ids[_choose(np.exp((logits[ids].astype(np.float64) - best) / self._temperature), first)])

    def _candidates(self, logits: Floats, best: float) -> Ids:
        """The tokens that top_k, top_p and min_p keep; they are more than `candidates_max` where only min_p is set."""
        top_k, top_p, min_p = self._sampling.top_k, self._sampling.top_p, self._sampling.min_p
        most = self._candidates_max
        ids: Ids
        if top_p == 1.0 and min_p > 0.0:
            # The likely tokens are mostly fewer than top_k, which then need not be looked for.
            ids = np.flatnonzero(logits >= best + log(min_p))
            return ids[largest(logits[ids], top_k)] if 0 < top_k < len(ids) else ids
        if 0 < top_k < len(logits):
            ids = largest(logits, min(top_k, most))
            weights = np.exp(logits[ids] - np.float32(best))
            goal = top_p * float(weights.sum())
        else:
            goal = top_p * float(np.exp(logits - np.float32(best)).sum())
            for n in (min(FEW, most), most):  # mostly the model is so sure that few are enough
                ids = np.sort(largest(logits, n))
                weights = np.exp(logits[ids] - np.float32(best))
                if float(weights.sum() - weights.min()) >= goal:
                    break
        threshold = _nucleus_threshold(weights, goal) if top_p < 1.0 else 0.0
        kept: Ids = ids[weights >= max(threshold, min_p)]
        return kept

    def _pick_from_all(self, logits: Floats, best: float, first: float, second: float, kth: float = -np.inf) -> int:
        """Without sorting, from all that min_p keeps and that are not below the `kth` largest; its equals stay with it.

        Choose a block by its weight, then a token in it; one running sum would cost ten times that."""
        weights = np.exp((logits - np.float32(best)) / np.float32(self._temperature))
        floor = max(kth, best + log(self._sampling.min_p) if self._sampling.min_p else -np.inf)
        if floor > -np.inf:
            weights[logits < floor] = 0.0
        starts = np.arange(0, len(weights), BLOCK)
        start = int(starts[_choose(np.add.reduceat(weights, starts), first)])
        return start + _choose(weights[start : start + BLOCK], second)


class _TokenCounts:
    """Distinct tokens and how often each occurred, as arrays that numpy can index with; adding one takes constant time."""

    def __init__(self, tokens: Sequence[int]) -> None:
        distinct, counts = np.unique(np.asarray(tokens, np.int64), return_counts=True)
        self._n = len(distinct)
        self._tokens = np.concatenate([distinct, np.zeros(64, np.int64)])
        self._counts = np.concatenate([counts, np.zeros(64, np.int64)])
        self._place = {int(token): i for i, token in enumerate(distinct)}

    def add(self, token: int) -> None:
        place = self._place.get(token)
        if place is None:
            if self._n == len(self._tokens):
                self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)])
                self._counts = np.concatenate([self._counts, np.zeros_like(self._counts)])
            place = self._place[token] = self._n
            self._tokens[place] = token
            self._n += 1
        self._counts[place] += 1

    @property
    def tokens(self) -> Ids:
        return self._tokens[: self._n]

    @property
    def counts(self) -> Ids:
        return self._counts[: self._n]


def random_pair(seed: int, position: int, *, again: bool = False) -> tuple[float, float]:
    """Two numbers, each uniform from 0 to below 1, that depend on seed and position only; `again`: two others. (Philox in numpy
    makes streams that can be entered anywhere, too, but entering one takes ten times as long as this hash.)"""
    person = b"redraw" if again else b""
    digest = blake2b(_POSITION.pack(seed & SEED_MASK, position), digest_size=16, person=person).digest()
    first, second = _POSITION.unpack(digest)
    return (first >> 11) * _UNIT, (second >> 11) * _UNIT


def _choose(weights: Floats, random: float) -> int:
    """The index, with probability in proportion to its weight, that a random number from 0 to below 1 stands for."""
    sums = weights.cumsum(dtype=np.float64)
    # `random` is below 1, but its product with the sum can round up to the sum; a weight of 0 is never chosen.
    return int(min(sums.searchsorted(random * sums[-1], side="right"), np.flatnonzero(weights)[-1]))


def largest(row: Floats, k: int) -> Ids:
    """Indices of the k largest values, largest first; of equal ones, the lower index."""
    n_blocks = 64
    while n_blocks < 4 * k:
        n_blocks *= 2
    depth = len(row) // n_blocks
    if k >= len(row):
        ids = np.arange(len(row))
    elif depth < 4:
        ids = np.flatnonzero(row >= _kth_largest(row, k))
    else:
        maxima = row[: depth * n_blocks].reshape(depth, n_blocks).max(axis=0)
        maxima.partition(n_blocks - k)
        ids = np.flatnonzero(row >= maxima[n_blocks - k])
    return ids[np.argsort(-row[ids], kind="stable")[:k]]


def _kth_largest(row: Floats, k: int) -> float:
    return float(np.partition(row, len(row) - k)[len(row) - k])


def _nucleus_threshold(weights: Floats, goal: float) -> float:
    """The smallest weight of the nucleus: the heaviest ones that together reach `goal`. Equal weights stay together."""
    heaviest = np.sort(weights)[::-1]
    n = int(heaviest.cumsum(dtype=np.float64).searchsorted(goal))
    return float(heaviest[min(n, len(heaviest) - 1)])


def _with_logprobs(token: int, row: Floats, n_top: int) -> Drawn:
    """Log probabilities under the model's own distribution: before bias, penalties and temperature."""
    best = row.max()
    _check(float(best))
    normaliser = float(best) + log(float(np.exp(row - best).sum()))
    top = [TokenLogprob(int(i), float(row[i]) - normaliser) for i in largest(row, n_top)] if n_top else []
    return Drawn(token, float(row[token]) - normaliser, top)


def _check(best: float) -> None:
    """The largest logit is not a number if any of them is not."""
    if not -np.inf < best < np.inf:
        raise RunnerError(f"the model's logits are not numbers (the largest is {best})")
