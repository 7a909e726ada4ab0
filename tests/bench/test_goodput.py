"""Goodput: which request kept its targets, what is left open, and that times count from the plan."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poise_lab.bench.record import CANCELLED, DISCONNECTED, OK, REFUSED, UNFINISHED, Figure, RequestRecord
from poise_lab.bench.stats import Goodput, Group, by_class, failures, goodput, judge, over_rounds, summarize
from poise_lab.scenarios.model import Targets
from tests.bench.test_stats import record

TARGETS = Targets("interactive", ttft_ms=100, itl_p99_ms=50, e2e_ms=300)
BY_CLASS = {"interactive": TARGETS}
LATE_MS = 30
NS = 1_000_000


def planned(one: RequestRecord) -> RequestRecord:
    """The request of an open-loop client, sent 30 ms after its time."""
    return replace(one, is_open_loop=True, late_ns=LATE_MS * NS)


@pytest.mark.parametrize(
    ("one", "met"),
    [
        (record(OK, [90, 140, 190], end_ms=200), True),
        (record(OK, [101, 140, 150], end_ms=200), False),
        (record(OK, [90, 141, 150], end_ms=200), False),
        (record(OK, [90, 140, 190], end_ms=301), False),
        (planned(record(OK, [90, 140, 190], end_ms=200)), False),
        (planned(record(OK, [60, 110, 160], end_ms=271)), False),
        (record(DISCONNECTED, [10, 20], end_ms=30), False),
        (record("error:429/queue_full", [], end_ms=3), False),
        (record(UNFINISHED, [10, 20], end_ms=30), None),
        (record(UNFINISHED, [], end_ms=99), None),
        (record(UNFINISHED, [], end_ms=101), False),
        (record(UNFINISHED, [90, 95], end_ms=301), False),
        (record(CANCELLED, [90, 95], end_ms=96), True),
        (record(CANCELLED, [90, 200], end_ms=201), False),
        (record(CANCELLED, [], end_ms=99), None),
        (record(CANCELLED, [], end_ms=101), False),
        (replace(record(OK, [90, 900], end_ms=901), is_slow_reader=True), True),
        (replace(record(OK, [101, 120], end_ms=130), is_slow_reader=True), False),
    ],
)
def test_each_request_is_judged(one: RequestRecord, met: bool | None) -> None:
    """Every target, every way to end, and what cannot be said."""
    assert judge(one, TARGETS) is met


def test_p99_of_a_request_is_its_own() -> None:
    """One gap of a hundred may be longer than the target, two may not."""
    chunks = [10.0 + 10 * n for n in range(101)]
    late_once = [*chunks[:-1], chunks[-1] + 100]
    late_twice = [*chunks[:-2], chunks[-2] + 100, chunks[-1] + 200]
    only_gaps = Targets("interactive", itl_p99_ms=50)
    assert judge(record(OK, late_once), only_gaps) is True
    assert judge(record(OK, late_twice), only_gaps) is False


def test_share_and_rate() -> None:
    """The share is of those that can be judged; the rate counts those that ended while load was generated."""
    records = [
        record(OK, [90], end_ms=200),
        record(OK, [90], end_ms=200, start_ms=900),
        record(OK, [190], end_ms=200),
        record(UNFINISHED, [], end_ms=10),
        replace(record(REFUSED, [], end_ms=3), is_malformed=True),
    ]
    window_ns = 1000 * NS
    assert goodput(records, BY_CLASS, window_ns) == Goodput(n_met=2, n_missed=1, n_undecided=1, n_met_within=1)
    assert goodput(records, {"background": TARGETS}, window_ns) is None
    chat = Group("all", "", ("chat",))
    summary = summarize(chat, records, window_ns, BY_CLASS)
    assert summary.figures["goodput_share"] == Figure(2 / 3, "~")
    assert summary.figures["goodput_per_s"] == Figure(1.0)
    assert (sum(summary.statuses.values()), failures(summary.statuses)) == (5, {})
    assert over_rounds([summary, summary]).goodput == Goodput(4, 2, 2, 2)
    assert "goodput_share" not in summarize(chat, records, window_ns).figures


def test_later_targets_win() -> None:
    """A target on the command line replaces the file's for the same thing and leaves the others."""
    found = by_class([TARGETS], [Targets("interactive", ttft_ms=5), Targets("background", e2e_ms=9)])
    assert found["interactive"] == Targets("interactive", ttft_ms=5, itl_p99_ms=50, e2e_ms=300)
    assert found["background"] == Targets("background", e2e_ms=9)


def test_an_open_loop_counts_from_its_plan() -> None:
    """Coordinated omission: a request that the client sent late has waited since it was planned; a closed loop's has not."""
    late = planned(record(OK, [100, 150], end_ms=200))
    assert (late.ttft_ms(), late.e2e_ms()) == (Figure(130), Figure(230))
    closed = replace(late, is_open_loop=False)
    assert (closed.ttft_ms(), closed.e2e_ms(), closed.ttft_corrected_ms()) == (Figure(100), Figure(200), None)
    paced = replace(closed, is_paced=True)
    assert (paced.ttft_ms(), paced.ttft_corrected_ms(), paced.e2e_corrected_ms()) == (
        Figure(100), Figure(130), Figure(230),
    )  # fmt: skip
    cut = replace(record(UNFINISHED, [], end_ms=50), is_paced=True, late_ns=LATE_MS * NS)
    assert cut.ttft_corrected_ms() == Figure(80, ">=")
