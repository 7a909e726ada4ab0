"""From a live journal to a cost file: what this machine's steps cost, fitted to every batch that the journal holds.

The model is the scheduler's own (`poise.scheduler.planning.budget`): a fixed part per call, and parts per decoded token, per
prompt token and per attended cell, none of them negative. Unlike the scheduler's fit it sees the whole recording at once, weighs
every step's relative error alike, and gives little weight to steps in which the host was busy elsewhere (Huber's weights).
With four parts, the best non-negative fit is found by trying which of them are zero."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt

from poise.engine.journal import Entry, JournalError, read_journal
from poise.scheduler.planning.budget import BatchShape
from poise_lab.sim.costs import WAY_US

Array = npt.NDArray[np.float64]

BATCHES_MIN = 20
HUBER = 1.5
"""Relative errors beyond so many standard deviations (by the median) count less and less."""
ROUNDS = 20
N_GROUPS = 100
"""Of batches, from the fastest to the slowest for their size; each counts with its mean, so that the mean of all is kept."""
PARTS = ("fixed_us", "decode_us", "prompt_us", "attended_us")


@dataclass(frozen=True, slots=True)
class PoolFit:
    """The model of one pool and how well it fits: median and 95th percentile of |measured / predicted - 1|."""

    weights: tuple[float, ...]
    noise: tuple[float, ...]
    n_batches: int
    error_p50: float
    error_p95: float


@dataclass(frozen=True, slots=True)
class Calibration:
    pools: dict[str, PoolFit]
    step_us: float
    row_us: float
    n_steps: int
    carry_us_per_cell: float

    def toml(self) -> str:
        """The cost file; `poise_lab.sim.costs` says what is in it."""
        lines = ["# Fitted by poise sim --calibrate. All costs in microseconds."]
        for name, fit in self.pools.items():
            lines += ["", f"[pools.{name}]", f"# {fit.n_batches} batches; off by {fit.error_p50:.1%} in the median, "
                      f"{fit.error_p95:.1%} at the 95th percentile"]  # fmt: skip
            lines += [f"{part} = {weight:.4f}" for part, weight in zip(PARTS, fit.weights, strict=True)]
            lines.append("noise = [" + ", ".join(f"{q:.4f}" for q in fit.noise) + "]")
        lines += ["", "[host]", f"# {self.n_steps} steps that followed each other without a rest"]
        lines += [f"step_us = {self.step_us:.2f}", f"row_us = {self.row_us:.3f}"]
        lines.append(f"carry_us_per_cell = {self.carry_us_per_cell:.4f}")
        lines += ["# not in a journal: what is usual between a client and the engine", f"way_us = {WAY_US:.1f}"]
        return "\n".join(lines) + "\n"


@dataclass(slots=True)
class _Samples:
    """What the journal says of costs, collected."""

    batches: dict[str, list[tuple[BatchShape, int]]] = field(default_factory=dict)
    loops: list[tuple[int, float]] = field(default_factory=list)
    """Rows of a step, and the microseconds until the next one that were spent outside the runner."""
    carried_us: int = 0
    carried_cells: int = 0


def calibrate(lines: Iterable[str], n_before: int = 0) -> Calibration:
    """The first `n_before` entries that were ever recorded do not count. Raises JournalError when the rest is too little."""
    dump = read_journal(lines)
    samples = _collect(dump.entries[max(0, n_before - dump.n_dropped) :])
    pools = {name: _fit_pool(batches) for name, batches in sorted(samples.batches.items()) if len(batches) >= BATCHES_MIN}
    if not pools:
        most = max(map(len, samples.batches.values()), default=0)
        raise JournalError(f"the journal holds {most} measured batches of a pool; {BATCHES_MIN} are needed")
    step_us, row_us = _fit_loop(samples.loops)
    carry = samples.carried_us / samples.carried_cells if samples.carried_cells else 0.0
    return Calibration(pools, step_us, row_us, len(samples.loops), carry)


def _collect(entries: Iterable[Entry]) -> _Samples:
    samples = _Samples()
    plan: dict[str, Any] | None = None
    began_ns = 0
    previous: tuple[int, int, float] | None = None  # of the step before: its beginning, rows, time inside the runner
    for entry in entries:
        if entry.kind == "rest":
            previous = None
        elif entry.kind == "plan":
            if previous is not None:
                since_us = (entry.now_ns - previous[0]) / 1000
                samples.loops.append((previous[1], since_us - previous[2]))
            (plan,), began_ns, previous = entry.values, entry.now_ns, None
        elif entry.kind == "result" and plan is not None:
            (result,) = entry.values
            in_runner_us = float(result.get("carried_us", 0))
            n_rows = 0
            for batch, batch_result in zip(plan["batches"], result["batches"], strict=True):
                in_runner_us += batch_result["cost_us"]
                n_rows += len(batch["chunks"])
                if not batch_result["failed"] and not batch_result.get("row_errors"):
                    samples.batches.setdefault(batch["pool"], []).append((_shape(batch), batch_result["cost_us"]))
            samples.carried_us += result.get("carried_us", 0)
            samples.carried_cells += result.get("carried_cells", 0)
            previous, plan = (began_ns, n_rows, in_runner_us), None
    return samples


def _shape(batch: dict[str, Any]) -> BatchShape:
    shape = BatchShape()
    for chunk in batch["chunks"]:
        shape.add(is_prompt=chunk["is_prompt"], start=chunk["start"], n_tokens=chunk["n_tokens"] + chunk.get("n_drafted", 0))
    return shape


def _fit_pool(batches: list[tuple[BatchShape, int]]) -> PoolFit:
    features = np.array([(1.0, s.decode_tokens, s.prompt_tokens, s.attended_cells) for s, _ in batches])
    measured = np.maximum(1.0, np.array([cost_us for _, cost_us in batches], dtype=np.float64))
    weights = robust_fit(features, measured)
    # Noise is lopsided: a step is late more often than early. So the fit is a little low; half of all steps should lie above it.
    weights = weights * float(np.median(measured / np.maximum(1.0, features @ weights)))
    ratio = measured / np.maximum(1.0, features @ weights)
    error = np.abs(ratio - 1.0)
    groups = np.array_split(np.sort(ratio), min(N_GROUPS, len(ratio)))
    noise, quantiles = tuple(float(group.mean()) for group in groups), np.quantile(error, (0.5, 0.95))
    return PoolFit(tuple(map(float, weights)), noise, len(batches), float(quantiles[0]), float(quantiles[1]))


def robust_fit(features: Array, measured: Array) -> Array:
    """Non-negative weights that make features @ weights close to `measured`, by relative error, outliers discounted."""
    scaled = features / measured[:, None]
    importance = np.ones(len(measured))
    weights = np.zeros(features.shape[1])
    for _ in range(ROUNDS):
        root = np.sqrt(importance)
        weights = _non_negative(scaled * root[:, None], root)
        error = np.abs(scaled @ weights - 1.0)
        spread = max(1e-4, 1.4826 * float(np.median(error)))
        importance = np.minimum(1.0, HUBER * spread / np.maximum(error, 1e-12))
    return weights


def _non_negative(features: Array, target: Array) -> Array:
    """Least squares under weights >= 0: the best of the solutions with some weights zero that has no negative one."""
    n = features.shape[1]
    unit = np.maximum(1e-12, np.linalg.norm(features, axis=0))  # attended cells are a million times a call
    best, best_error = np.zeros(n), float(target @ target)
    for kept in product((True, False), repeat=n):
        columns = np.flatnonzero(kept)
        if not len(columns):
            continue
        part = np.linalg.lstsq(features[:, columns] / unit[columns], target, rcond=None)[0]
        if (part < 0).any():
            continue
        weights = np.zeros(n)
        weights[columns] = part / unit[columns]
        left = features @ weights - target
        if (error := float(left @ left)) < best_error * (1 - 1e-9):
            best, best_error = weights, error
    return best


def _fit_loop(loops: list[tuple[int, float]]) -> tuple[float, float]:
    """The loop's time per step and per row. A journal without rests has idle times in it: most steps decide, not the mean."""
    if len(loops) < BATCHES_MIN or np.median([us for _, us in loops]) < 1.0:
        return 0.0, 0.0
    features = np.array([(1.0, n_rows) for n_rows, _ in loops])
    spent = np.maximum(1.0, np.array([us for _, us in loops]))
    usual = float(np.median(spent))
    busy = spent < 10 * usual
    step_us, row_us = robust_fit(features[busy], spent[busy])
    return float(step_us), float(row_us)
