"""Is B better than A: the ratio of each figure with a confidence interval, and guardrails held against it. Pure.

1. Rounds are pairs: A's and B's turn with the same requests. Rounds of equal seeds are paired, others are left out.
2. A figure's ratio is B / A, its estimate the geometric mean over the pairs. The 95 % interval is Student's t on the logarithms
   of the ratios: ratios of times spread evenly on that scale, and few rounds are normal here, where a bootstrap is too sure of
   itself. One pair has no interval.
3. A guardrail is kept when the whole interval keeps it, violated when no part of the interval does, else undecided. A ratio that
   is only bounded (requests were cut) decides nothing in the direction in which it is open."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median, stdev
from typing import Any, Literal

from poise_lab.bench.record import Bound, Figure
from poise_lab.bench.stats import CORRECTED, GOODPUT, LATER, MEASURES, RATES, ratio_bound
from poise_lab.scenarios.files import InputError

State = Literal["kept", "violated", "undecided"]
METHOD = "geometric mean of B/A over paired rounds, 95 % interval by Student's t on the logarithms"

# Two-sided 95 % quantiles of Student's t for 1, 2, ... degrees of freedom.
_T95 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
    2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip
FIGURES = (*(f"{m}_{q}" for m, quantiles in (MEASURES | CORRECTED | LATER).items() for q in quantiles), *RATES, *GOODPUT)
HIGHER_IS_BETTER = frozenset((*RATES, *GOODPUT))
_GUARD = re.compile(r"\s*(?:([a-z0-9_-]+):)?([a-z0-9_-]+)\.([a-z0-9_]+)\s*(<=|>=)\s*([0-9]+(?:\.[0-9]+)?)\s*")


@dataclass(frozen=True, slots=True)
class Estimate:
    """One figure of one group of clients. `low` and `high` are None when there are too few pairs for an interval."""

    kind: str
    group: str
    figure: str
    a: float
    b: float
    ratio: float
    low: float | None
    high: float | None
    n_pairs: int
    bound: Bound

    @property
    def verdict(self) -> str:
        """What the interval says: better, worse, or that no difference is shown."""
        if self.low is None or self.high is None or self.bound or self.low <= 1.0 <= self.high:
            return "no difference shown"
        return "better" if (self.ratio > 1.0) == (self.figure in HIGHER_IS_BETTER) else "worse"


@dataclass(frozen=True, slots=True)
class Guard:
    """A limit on a figure's ratio B / A, as in `interactive.ttft_p95<=1.1` or `mixed:chat.output_tokens_per_s>=0.95`."""

    text: str
    scenario: str | None
    group: str
    figure: str
    is_upper: bool
    limit: float

    def judge(self, estimate: Estimate) -> tuple[State, str]:
        """What the estimate says of this guardrail, and why."""
        if estimate.low is None or estimate.high is None:
            return "undecided", f"{estimate.n_pairs} round(s) have no confidence interval"
        within = f"ratio {estimate.ratio:.3g} [{estimate.low:.3g}, {estimate.high:.3g}]"
        kept = estimate.high <= self.limit if self.is_upper else estimate.low >= self.limit
        violated = estimate.low > self.limit if self.is_upper else estimate.high < self.limit
        if not kept and not violated:
            return "undecided", f"{within} holds the limit: more rounds would decide"
        state: State = "kept" if kept else "violated"
        if estimate.bound in (">=" if kept == self.is_upper else "<=", "~"):
            return "undecided", f"{within}, but requests were cut and the true ratio may differ ({estimate.bound})"
        return state, within


def parse_guard(text: str) -> Guard:
    """Raises InputError. `_ms` may be left out of a figure's name."""
    found = _GUARD.fullmatch(text)
    short = {name.replace("_ms", ""): name for name in FIGURES}
    if found is None or (found[3] not in FIGURES and found[3] not in short):
        raise InputError(
            f"guard {text!r}: expected [SCENARIO:]GROUP.FIGURE<=RATIO (or >=), GROUP a class, client, tenant or all; FIGURE of "
            + ", ".join(short)
        )
    scenario, group, figure, sign, limit = found.groups()
    return Guard(text.strip(), scenario, group, short.get(figure, figure), sign == "<=", float(limit))


def compare(
    a: Sequence[Mapping[str, Any]], a_side: str, b: Sequence[Mapping[str, Any]], b_side: str
) -> tuple[list[Estimate], int]:
    """Every figure that both have, and how many rounds were paired. `a` and `b` are the rounds of one scenario's results."""
    by_seed = {finished["seed"]: finished["sides"][b_side] for finished in b if b_side in finished["sides"]}
    pairs = [
        (_figures(finished["sides"][a_side]), _figures(by_seed[finished["seed"]]))
        for finished in a
        if a_side in finished["sides"] and finished["seed"] in by_seed
    ]
    keys = dict.fromkeys(key for one, other in pairs for key in one if key in other)
    estimates = []
    for key in keys:
        own = [(one[key], other[key]) for one, other in pairs if key in one and key in other]
        usable = [(x, y) for x, y in own if x.value > 0 and y.value > 0]
        if usable:
            estimates.append(estimate(key, usable))
    return estimates, len(pairs)


def find(estimates: Iterable[Estimate], guard: Guard) -> Estimate | None:
    """The estimate that a guardrail is about: of a class of that name, else of a client, else of a tenant."""
    named = {e.kind: e for e in estimates if e.figure == guard.figure and guard.group == (e.group or "all")}
    return next((named[kind] for kind in ("all", "class", "client", "tenant") if kind in named), None)


def estimate(key: tuple[str, str, str], pairs: Sequence[tuple[Figure, Figure]]) -> Estimate:
    """One figure's ratio from pairs of values above 0, of which there is at least one; `key` is kind, group and figure."""
    logs = [math.log(y.value / x.value) for x, y in pairs]
    middle, low, high = fmean(logs), None, None
    if len(logs) > 1:
        half = t95(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
        low, high = math.exp(middle - half), math.exp(middle + half)
    bounds = {ratio_bound(y, x) for x, y in pairs} - {""}
    a, b = (median(pair[side].value for pair in pairs) for side in (0, 1))
    bound: Bound = "" if not bounds else bounds.pop() if len(bounds) == 1 else "~"
    return Estimate(*key, a, b, math.exp(middle), low, high, len(logs), bound)


def t95(df: int) -> float:
    """Beyond the table a series in 1/df, exact to three digits there."""
    return _T95[df - 1] if df <= len(_T95) else 1.95996 + 2.3722 / df + 2.8225 / df**2


def _figures(side: Mapping[str, Any]) -> dict[tuple[str, str, str], Figure]:
    return {
        (group["kind"], group["name"], name): Figure(figure["value"], figure["bound"])
        for group in side["groups"]
        for name, figure in group["figures"].items()
        if name in FIGURES
    }
