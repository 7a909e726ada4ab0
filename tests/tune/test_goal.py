"""When a change is kept: beyond noise, with every guardrail, and no request lost."""

from __future__ import annotations

import pytest

from poise_lab.scenarios.files import InputError
from poise_lab.tune.goal import DEFAULT_GUARDS, DEFAULT_TARGET, Measured, count_failed, parse_goal
from poise_lab.tune.loop import judge_passes
from tests.tune.fakes import figure, live, passes

GOAL = parse_goal(DEFAULT_TARGET, DEFAULT_GUARDS)
WIDE = (0.6, 1.5, 0.8, 1.3, 1.0)


@pytest.mark.parametrize(
    ("measured", "kept", "reason"),
    [
        (Measured(live(ttft=0.8)), True, "x0.8"),
        (Measured(live(ttft=1.0)), False, "no gain beyond noise"),
        (Measured(live(ttft=0.9, noise=WIDE)), False, "no gain beyond noise"),
        (Measured(live(ttft=1.2)), False, "no gain beyond noise"),
        (Measured(live(ttft=0.8, gap=1.3)), False, "interactive.gap_p99<=1.10 is violated"),
        (Measured(live(ttft=0.8, jobs=0.5)), False, "background.output_tokens_per_s>=0.90 is violated"),
        (Measured(live(ttft=0.8, all_tokens=0.96)), True, "x0.8"),
        (Measured(live(ttft=0.8), failed=(0, 1)), False, "1 requests failed, 0 before"),
        (Measured(live(ttft=0.8), failed=(2, 1)), True, "x0.8"),
        (Measured(live(ttft=0.8), problem="too far from f16"), False, "too far from f16"),
        (Measured(live(ttft=0.8), stopped="the time was over"), False, "the time was over"),
        (Measured([]), False, "was not measured on both sides"),
    ],
)
def test_what_is_kept(measured: Measured, kept: bool, reason: str) -> None:
    """The target's whole interval on the better side, and nothing else worse."""
    verdict = GOAL.judge(measured)
    assert verdict.kept is kept, verdict
    assert reason in verdict.reason


def test_a_guardrail_that_looks_worse_and_is_not_decided() -> None:
    """It is not kept for want of rounds; one that looks good enough is no obstacle."""
    noisy = [figure("interactive", "ttft_ms_p95", 0.8)]
    looks_worse = GOAL.judge(Measured([*noisy, figure("interactive", "gap_ms_p99", 1.2, WIDE)]))
    looks_fine = GOAL.judge(Measured([*noisy, figure("interactive", "gap_ms_p99", 1.0, WIDE)]))
    assert (looks_worse.kept, looks_fine.kept) == (False, True)
    assert "is not kept" in looks_worse.reason
    assert any("undecided" in line for line in looks_fine.guards)
    assert any("nobody to measure it on" in line for line in looks_fine.guards)


def test_higher_can_be_better() -> None:
    """A rate as the target, of everybody when no group is named."""
    goal = parse_goal("output_tokens_per_s", [])
    assert goal.name == "all.output_tokens_per_s"
    assert goal.judge(Measured(live(all_tokens=1.2))).kept
    assert not goal.judge(Measured(live(all_tokens=0.8))).kept
    assert goal.judge(Measured(live(all_tokens=1.05)), predicted=True).kept
    assert goal.is_hopeless(live(all_tokens=0.99))


def test_ratios_of_requests_that_were_cut() -> None:
    """A candidate whose times are lower bounds has shown nothing, however short they are."""
    verdict = GOAL.judge(Measured([figure("interactive", "ttft_ms_p95", 0.5, bound=">=")]))
    assert not verdict.kept
    assert "requests were cut" in verdict.reason


def test_predictions_only_say_what_is_worth_trying() -> None:
    """A gain within the noise is promising; a broken guardrail is not."""
    assert GOAL.judge(Measured(live(ttft=0.95, noise=WIDE)), predicted=True).kept
    assert not GOAL.judge(Measured(live(ttft=0.995)), predicted=True).kept
    assert not GOAL.judge(Measured(live(ttft=0.5, jobs=0.5)), predicted=True).kept
    assert not GOAL.judge(Measured([]), predicted=True).kept


def test_passes_are_faster_together_and_none_is_slower() -> None:
    """The mean decides, and no single kind of pass may pay for it."""
    assert judge_passes(Measured(passes(0.8, decode_1_us=0.9, prompt_64_us=0.7))).kept
    assert not judge_passes(Measured(passes(0.8, decode_1_us=1.2, prompt_64_us=0.5))).kept
    assert not judge_passes(Measured(passes(1.0, decode_1_us=1.0))).kept


@pytest.mark.parametrize("target", ["interactive", "interactive.speed", "a b.ttft_p95", ""])
def test_a_target_that_is_none(target: str) -> None:
    """One line that says what there is."""
    with pytest.raises(InputError, match=r"--target .*expected GROUP\.FIGURE.*ttft_p95"):
        parse_goal(target, [])


def test_failures_are_counted_once() -> None:
    """Of all clients together, and not again in each group; whoever left or was cut has not failed."""
    statuses = {"ok": 5, "cancelled": 1, "unfinished": 2, "refused": 1, "error:500/x": 2, "disconnected": 1}
    side = {"groups": [{"kind": kind, "statuses": statuses} for kind in ("all", "class")]}
    assert count_failed([side, side]) == 6
