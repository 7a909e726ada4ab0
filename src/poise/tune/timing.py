"""Engine knobs: reads the rounds of the child that times passes, and makes the figures of a comparison of them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import msgspec

from poise.bench.comparison import Estimate, estimate
from poise.bench.record import Figure
from poise.config import LoadedSettings, engine_settings
from poise.tune.children import CannotMeasure, end_process, start_passes
from poise.tune.goal import STEP, Measured
from poise.tune.knobs import KV_KNOB, Changes
from poise.tune.passes import Line, Order

START_S = 8.0
ROUND_S = 1.5
ROUND_LONG_S = 4.0

Times = Mapping[str, tuple[float, float]]


@dataclass(frozen=True, slots=True)
class PassJudge:
    """Compares two builds of the engine by their passes, each round a pair."""

    loaded: LoadedSettings
    rounds: int

    def cost_s(self, pools: Sequence[str]) -> float:
        """What a comparison will take with a small model; a round of the long pool costs most."""
        return START_S + self.rounds * (ROUND_LONG_S if "long" in pools else ROUND_S)

    def compare(
        self, before: Changes, after: Changes, key: str, pools: tuple[str, ...], until: float = float("inf")
    ) -> Measured:
        """Raises CannotMeasure."""
        order = Order(
            before=engine_settings(self.loaded.varied(before).settings),
            after=engine_settings(self.loaded.varied(after).settings),
            pools=pools,
            rounds=self.rounds,
            quality=key == KV_KNOB,
        )
        child = start_passes()
        try:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdin.write(msgspec.json.encode(order))
            child.stdin.close()
            return self._read(child.stdout, until)
        finally:
            end_process(child)

    def _read(self, lines: Iterable[bytes], until: float) -> Measured:
        rounds: list[Times] = []
        problem = stopped = ""
        for text in lines:
            try:
                line = msgspec.json.decode(text, type=Line)
            except msgspec.DecodeError:
                break  # it died in the middle of a line
            if line.same:
                raise CannotMeasure("it builds the same engine: what is measured at a start has chosen it already")
            problem = line.problem or problem
            if line.times:
                rounds.append(line.times)
            if time.monotonic() > until:
                stopped = "the time was over"
                break
        if problem and not rounds:
            raise CannotMeasure(problem)
        if not rounds:
            raise CannotMeasure("the process that times passes ended without a figure")
        if not stopped and len(rounds) < self.rounds:
            problem = problem or "the process that times passes ended early"
        return Measured(pass_estimates(rounds), problem=problem, stopped=stopped)


def pass_estimates(rounds: Sequence[Times]) -> list[Estimate]:
    """The geometric mean of all passes, and each of them."""
    names = list(rounds[0])
    whole = [
        (Figure(_mean([times[name][0] for name in names])), Figure(_mean([times[name][1] for name in names])))
        for times in rounds
    ]
    each = {name: [(Figure(times[name][0]), Figure(times[name][1])) for times in rounds] for name in names}
    return [estimate(("all", "", name), pairs) for name, pairs in ({STEP: whole} | each).items()]


def _mean(values: Sequence[float]) -> float:
    return float(prod(values) ** (1 / len(values)))
