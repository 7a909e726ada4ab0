"""Measures whose outcome a test decides, and the figures they give."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from poise_lab.bench.comparison import Estimate, estimate
from poise_lab.bench.record import Bound, Figure
from poise_lab.tune.children import CannotMeasure
from poise_lab.tune.evidence import Method
from poise_lab.tune.goal import STEP, Measured
from poise_lab.tune.knobs import Changes, Knob, Value

NOISE = (0.99, 1.01, 1.0, 0.985, 1.015)
"""Of five rounds: an interval of about two percent around the middle."""


def figure(group: str, name: str, ratio: float, noise: Sequence[float] = NOISE, bound: Bound = "") -> Estimate:
    """A figure of a class (or of all) whose ratio is about `ratio`."""
    kind = "all" if group == "all" else "class"
    key = (kind, "" if group == "all" else group, name)
    return estimate(key, [(Figure(100.0), Figure(100.0 * ratio * n, bound)) for n in noise])


def live(
    ttft: float = 1.0, gap: float = 1.0, all_tokens: float = 1.0, jobs: float = 1.0, noise: Sequence[float] = NOISE
) -> list[Estimate]:
    """The figures that the default goal looks at."""
    return [
        figure("interactive", "ttft_ms_p95", ttft, noise),
        figure("interactive", "gap_ms_p99", gap),
        figure("all", "output_tokens_per_s", all_tokens),
        figure("background", "output_tokens_per_s", jobs),
    ]


def passes(ratio: float, **others: float) -> list[Estimate]:
    return [figure("all", STEP, ratio), *(figure("all", name, value) for name, value in others.items())]


class Clock:
    """Seconds that pass only when somebody measures."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class FakeMeasures:
    """Answers by what was changed. What is not in a table is no better and no worse.

    `asked` has every question: method, before and after. A KeyboardInterrupt or CannotMeasure in a table is raised.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        passed: Mapping[Value, Sequence[Estimate] | BaseException] | None = None,
        foretold: Mapping[Value, float] | None = None,
        judged: Mapping[Value, Sequence[Estimate] | BaseException] | None = None,
        verified: Sequence[Estimate] | BaseException | None = None,
        cost: Mapping[Method, float] | None = None,
    ) -> None:
        self.asked: list[tuple[str, Changes, Changes]] = []
        self.seeds: list[int] = []
        self._clock = clock
        self._passed, self._foretold, self._judged = passed or {}, foretold or {}, judged or {}
        self._verified = verified
        self._cost: Mapping[Method, float] = cost or {"passes": 10.0, "simulator": 1.0, "live": 100.0}

    def cost_s(self, method: Method, knob: Knob | None) -> float:
        return self._cost[method]

    def passes(self, before: Changes, after: Changes, knob: Knob, until: float) -> Measured:
        return self._answer("passes", before, after, self._passed.get(_new(before, after), passes(1.0, decode_1_us=1.0)))

    def forecast(self, before: Changes, after: Changes, seed: int) -> Measured:
        self.seeds.append(seed)
        return self._answer("simulator", before, after, live(ttft=self._foretold.get(_new(before, after), 1.0)))

    def live(
        self, before: Changes, after: Changes, seed: int, hopeless: Callable[[list[Estimate]], bool], until: float
    ) -> Measured:
        self.seeds.append(seed)
        if not before and self._verified is not None and len(self.asked) and self._is_verification(after):
            return self._answer("verify", before, after, self._verified)
        return self._answer("live", before, after, self._judged.get(_new(before, after), live()))

    def _is_verification(self, after: Changes) -> bool:
        """The same question as one that was answered before, or one about several changes."""
        return len(after) > 1 or any(asked[2] == after and asked[0] in ("live", "passes") for asked in self.asked)

    def _answer(
        self, method: Method | str, before: Changes, after: Changes, answer: Sequence[Estimate] | BaseException
    ) -> Measured:
        self.asked.append((method, dict(before), dict(after)))
        if isinstance(answer, BaseException):
            raise answer
        self._clock.now_s += self._cost["live" if method == "verify" else method]  # type: ignore[index]
        return Measured(list(answer), seeds=(1, 2, 3, 4, 5))


def _new(before: Changes, after: Changes) -> Value:
    """The value that a question is about."""
    changed = [value for key, value in after.items() if before.get(key) != value]
    return changed[-1]


__all__ = ["CannotMeasure", "Clock", "FakeMeasures", "figure", "live", "passes"]
