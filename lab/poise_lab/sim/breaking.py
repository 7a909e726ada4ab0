"""At which load a server stops keeping its promises, and what gives out: `poise sim --find-break`.

The load is scaled by a factor, arrival rates and numbers of closed-loop clients alike. From 1 the factor is doubled until a
class misses a target (or halved until none is missed), then bisected. A load of few clients is another one with each seed: what
counts is the median of several runs. All of it is virtual time: an hour of load takes about half a minute."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from poise.scheduler.request import RequestClass
from poise_lab.scenarios.model import Client, Scenario
from poise_lab.sim.pressure import Pressure
from poise_lab.sim.simulate import Simulation
from poise_lab.sim.world import RequestResult

FACTOR_MAX = 64.0
PRECISION = 1.05
REFUSALS = ("queue_full", "queue_share", "tenant_queue_full", "tenant_rate")
_TARGET = re.compile(r"(interactive|background)\.(?:(ttft|gap|e2e)_p(50|95|99)_ms|(refused)_pct)=([0-9.]+)")


@dataclass(frozen=True, slots=True)
class Target:
    """What a class is promised: a quantile of a time in milliseconds, or the share of its requests that are refused."""

    request_class: RequestClass
    measure: str
    quantile: int
    most: float

    def __str__(self) -> str:
        name = "refused_pct" if self.measure == "refused" else f"{self.measure}_p{self.quantile}_ms"
        return f"{self.request_class}.{name}={self.most:g}"

    def measured(self, records: Sequence[RequestResult]) -> float | None:
        """None: no request of the class gives a figure."""
        own = [r for r in records if r.request_class == self.request_class]
        match self.measure:
            case "refused":
                refused = sum(r.outcome in REFUSALS for r in own)
                return 100.0 * refused / len(own) if own else None
            case "ttft":
                values = [(r.first_ns - r.sent_ns) / 1e6 for r in own if r.first_ns is not None]
            case "gap":
                values = [gap / 1e6 for r in own for gap in r.gaps_ns]
            case _:
                values = [(r.finished_ns - r.sent_ns) / 1e6 for r in own if r.outcome == "length" and r.finished_ns]
        return float(np.percentile(values, self.quantile)) if values else None

    def is_missed(self, value: float | None) -> bool:
        return value is not None and value > self.most


Run = tuple[Simulation, dict[RequestClass, Pressure]]
"""A simulated load, and the pressure on each class in it."""

DEFAULT_TARGETS = (
    "interactive.ttft_p95_ms=2000",
    "interactive.gap_p95_ms=250",
    "interactive.refused_pct=1",
    "background.ttft_p95_ms=60000",
    "background.refused_pct=1",
)


def parse_target(text: str) -> Target:
    """Raises ValueError with one line."""
    found = _TARGET.fullmatch(text)
    if not found:
        raise ValueError(
            f"--target {text!r}: expected CLASS.MEASURE=NUMBER, where CLASS is interactive or background and MEASURE is "
            "ttft, gap or e2e with _p50_ms, _p95_ms or _p99_ms, or refused_pct"
        )
    request_class, measure, quantile, refused, most = found.groups()
    return Target(RequestClass(request_class), measure or refused, int(quantile or 0), float(most))


@dataclass(frozen=True, slots=True)
class Trial:
    """One factor: what each target came to in the median run, and the pressure on each class in the first run that misses one
    of the missed targets."""

    factor: float
    measured: dict[Target, float | None]
    pressure: dict[RequestClass, Pressure]

    @property
    def missed(self) -> list[Target]:
        return [t for t, value in self.measured.items() if t.is_missed(value)]

    @classmethod
    def of(cls, factor: float, targets: Sequence[Target], runs: Sequence[Run]) -> "Trial":
        """`runs` are those of one load, at least one."""
        values = {t: [t.measured(done.records) for done, _ in runs] for t in targets}
        known = {t: [v for v in found if v is not None] for t, found in values.items()}
        trial = cls(factor, {t: median(found) if found else None for t, found in known.items()}, runs[0][1])
        misses = (p for n, (_, p) in enumerate(runs) if any(t.is_missed(values[t][n]) for t in trial.missed))
        return replace(trial, pressure=next(misses, trial.pressure))


def find_break(
    scenario: Scenario, targets: Sequence[Target], run: Callable[[Scenario], Sequence[Run]], on_trial: Callable[[Trial], None]
) -> tuple[Trial | None, Trial | None]:
    """The greatest factor found that keeps every target and the least that misses one; None where there is none in range.

    `run` simulates a load, once or with several seeds."""

    tried: dict[Scenario, Trial] = {}

    def attempt(factor: float) -> Trial:
        load = scaled(scenario, factor)
        if load in tried:  # Few clients round to the same number for many factors.
            return replace(tried[load], factor=factor)
        trial = tried[load] = Trial.of(factor, targets, run(load))
        on_trial(trial)
        return trial

    kept: Trial | None = None
    broken: Trial | None = None
    factor = 1.0
    while (broken is None or kept is None) and 1 / FACTOR_MAX <= factor <= FACTOR_MAX:
        trial = attempt(factor)
        if trial.missed:
            broken, factor = trial, factor / 2
        else:
            kept, factor = trial, factor * 2
    while kept is not None and broken is not None and broken.factor / kept.factor > PRECISION:
        trial = attempt((kept.factor * broken.factor) ** 0.5)
        kept, broken = (kept, trial) if trial.missed else (trial, broken)
    return kept, broken


def scaled(scenario: Scenario, factor: float) -> Scenario:
    """The scenario with its load times `factor`. A number of clients is rounded, and at least one."""

    def client(one: Client) -> Client:
        if one.arrival.kind == "poisson":
            return replace(one, arrival=replace(one.arrival, rate_per_s=one.arrival.rate_per_s * factor))
        if one.arrival.kind == "trace":
            return replace(one, arrival=replace(one.arrival, time_scale=one.arrival.time_scale / factor))
        return replace(one, count=max(1, round(one.count * factor)))

    return replace(scenario, clients=tuple(client(one) for one in scenario.clients))


def explain(trial: Trial) -> list[str]:
    """Which target was missed by how much, and for what the class's requests waited."""
    lines = []
    for target in trial.missed:
        value = trial.measured[target]
        lines.append(f"{target}: {value:.4g}" if value is not None else f"{target}: nothing measured")
    for request_class in dict.fromkeys(t.request_class for t in trial.missed):
        pressure = trial.pressure[request_class]
        total_s = sum(pressure.waited_s.values())
        if pressure.first is None or total_s == 0:
            continue
        when = pressure.gave_out_s.get(pressure.first)
        at = f" at {when:.1f} virtual s" if when is not None else " (never for long)"
        shares = ", ".join(f"{r} {s / total_s:.0%}" for r, s in pressure.waited_s.items() if s > 0)
        lines.append(f"{request_class}: {pressure.first} gave out first{at}; its {total_s:.0f} s of waiting: {shares}")
    return lines
