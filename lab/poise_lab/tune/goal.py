"""What tuning is for: a target figure that has to improve, and guardrails that must not worsen. Pure.

1. A change is kept when the whole 95 % interval of the target's ratio (candidate / before) lies on the better side of 1, every
   guardrail is kept, and the candidate fails no more requests than what was before.
2. A guardrail fails when no part of its interval keeps the limit, and also when the interval does not decide and the ratio
   itself is beyond the limit: what looks worse is not kept for want of rounds. One that no client of the scenario has is left
   out.
3. A ratio that is bounded in the direction in which it would have to be exact decides nothing."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from poise_lab.bench.comparison import HIGHER_IS_BETTER, Estimate, Guard, find, parse_guard
from poise_lab.bench.stats import failures
from poise_lab.scenarios.files import InputError

DEFAULT_TARGET = "interactive.ttft_p95"
DEFAULT_GUARDS = (
    "interactive.ttft_p95<=1.10",
    "interactive.gap_p99<=1.10",
    "all.output_tokens_per_s>=0.95",
    "background.output_tokens_per_s>=0.90",
    "background.ttft_p95<=1.25",
)
"""The last two are the price for others: background work may not be starved of its tokens, nor a long prompt of its turn."""
STEP = "step_us"
"""The geometric mean of all passes that were timed."""
PASS_RATIO_MAX = 1.05
PROMISING = 0.01
"""The least gain that the simulator must predict before a live server is asked: its own error is larger."""


Hopeless = Callable[[list[Estimate]], bool]
"""Whether figures so far are so bad that a comparison need not go on."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What a comparison brought. `failed` are the requests that failed before and with the candidate; a `problem` excludes the
    candidate whatever its figures are; `stopped` says why there are fewer rounds than were wanted."""

    estimates: Sequence[Estimate]
    seeds: tuple[int, ...] = ()
    failed: tuple[int, int] = (0, 0)
    problem: str = ""
    stopped: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a candidate is kept, and why or why not."""

    kept: bool
    reason: str
    target: Estimate | None
    guards: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Goal:
    """`target.limit` means nothing: it names a group and a figure."""

    target: Guard
    guards: tuple[Guard, ...]

    @property
    def name(self) -> str:
        return f"{self.target.group}.{self.target.figure}"

    def judge(self, measured: Measured, *, predicted: bool = False) -> Verdict:
        """See rule 1. With `predicted`, a gain by PROMISING is worth a live comparison, if no guardrail is broken."""
        estimate = find(measured.estimates, self.target)
        states, broken = self._guards(measured.estimates)
        if measured.problem:
            return Verdict(False, measured.problem, estimate, states)
        if estimate is None:
            absent = "is not predicted" if predicted else "was not measured on both sides"
            return Verdict(False, f"{self.name} {absent}", None, states)
        before, after = measured.failed
        if after > before:
            return Verdict(False, f"{after} requests failed, {before} before", estimate, states)
        shown, against = f"{self.name} {show(estimate)}", measured.stopped
        if not against and predicted and gain(estimate) < PROMISING:
            against = "no gain predicted"
        elif not against and not predicted and not is_better(estimate):
            against = "not exact, requests were cut" if estimate.bound else "no gain beyond noise"
        if against:
            return Verdict(False, f"{shown}: {against}", estimate, states)
        return Verdict(not broken, f"{shown}, but {broken}" if broken else shown, estimate, states)

    def is_hopeless(self, estimates: Sequence[Estimate]) -> bool:
        """Whether the target does not even look better so far."""
        estimate = find(estimates, self.target)
        return estimate is not None and gain(estimate) <= 0

    def _guards(self, estimates: Sequence[Estimate]) -> tuple[tuple[str, ...], str]:
        """Each guardrail in words, and the first that is broken."""
        lines: list[str] = []
        broken = ""
        for guard in self.guards:
            estimate = find(estimates, guard)
            if estimate is None:
                lines.append(f"{guard.text}: nobody to measure it on")
                continue
            state, reason = guard.judge(estimate)
            beyond = estimate.ratio > guard.limit if guard.is_upper else estimate.ratio < guard.limit
            lines.append(f"{guard.text}: {state}, {reason}")
            if not broken and (state == "violated" or (state == "undecided" and beyond)):
                broken = f"{guard.text} is {'violated' if state == 'violated' else 'not kept'}: {show(estimate)}"
        return tuple(lines), broken


def parse_goal(target: str, guards: Sequence[str]) -> Goal:
    """`target` as GROUP.FIGURE, or FIGURE of all clients. Raises InputError."""
    name = target if "." in target else f"all.{target}"
    try:
        wanted = parse_guard(f"{name}<=1")
    except InputError as error:
        figures = str(error).partition("FIGURE of ")[2]
        raise InputError(
            f"--target {target!r}: expected GROUP.FIGURE, GROUP a class, client, tenant or all; FIGURE of {figures}"
        ) from error
    return Goal(wanted, tuple(parse_guard(text) for text in guards))


def pass_goal(figures: Sequence[str]) -> Goal:
    """Of forward passes: faster in the geometric mean, and none of them slower by more than a twentieth."""
    guards = tuple(Guard(f"{figure}<={PASS_RATIO_MAX:g}", None, "all", figure, True, PASS_RATIO_MAX) for figure in figures)
    return Goal(Guard(STEP, None, "all", STEP, True, 1.0), guards)


def gain(estimate: Estimate) -> float:
    """How much better the candidate looks: 0.1 is a tenth, whichever direction is better."""
    return estimate.ratio - 1 if estimate.figure in HIGHER_IS_BETTER else 1 - estimate.ratio


def is_better(estimate: Estimate) -> bool:
    """Beyond noise. A ratio that can only be better still than what was measured counts."""
    if estimate.low is None or estimate.high is None:
        return False
    if estimate.figure in HIGHER_IS_BETTER:
        return estimate.low > 1 and estimate.bound in ("", ">=")
    return estimate.high < 1 and estimate.bound in ("", "<=")


def show(estimate: Estimate) -> str:
    """Ratio, interval and the two medians, in a few words."""
    interval = "" if estimate.low is None or estimate.high is None else f" [{estimate.low:.3g}, {estimate.high:.3g}]"
    bound = {"": "", ">=": "at least ", "<=": "at most ", "~": "about "}[estimate.bound]
    return f"x{bound}{estimate.ratio:.3g}{interval} ({estimate.a:.4g} -> {estimate.b:.4g})"


def count_failed(sides: Sequence[Mapping[str, Any]]) -> int:
    """Requests of one server's turns that ended in an error or without an end."""
    whole = [group for side in sides for group in side["groups"] if group["kind"] == "all"]
    return sum(sum(failures(group["statuses"]).values()) for group in whole)
