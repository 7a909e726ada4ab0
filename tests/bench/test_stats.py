"""The figures: what counts as what, where a cut leaves a bound, how rounds and servers are compared."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise_lab.bench.record import CANCELLED, DISCONNECTED, NS_PER_MS, NS_PER_S, OK, UNFINISHED, Bound, Figure, RequestRecord
from poise_lab.bench.stats import Group, Summary, failures, groups_of, median, over_rounds, quantile, ratios, summarize
from poise_lab.scenarios.model import Arrival, Client, Length, RequestClass

EVERYBODY = Group("all", "", ("chat", "writer"))


def record(
    status: str,
    chunks_ms: list[float],
    *,
    end_ms: float = 0.0,
    start_ms: float = 0.0,
    client: str = "chat",
    planned: tuple[int, int] = (10, 3),
    usage: tuple[int, int] | None = None,
) -> RequestRecord:
    """A request as the load would have recorded it."""
    return RequestRecord(
        client=client,
        tenant="t",
        request_class="interactive",
        instance=0,
        index=0,
        n_prompt_planned=planned[0],
        n_output_planned=planned[1],
        start_ns=round(start_ms * NS_PER_MS),
        status=status,
        chunks_ns=[round(ms * NS_PER_MS) for ms in chunks_ms],
        end_ns=round((end_ms or max(chunks_ms, default=0.0)) * NS_PER_MS),
        n_prompt_reported=usage[0] if usage else None,
        n_output_reported=usage[1] if usage else None,
    )


def summary_of(*records: RequestRecord, window_ms: float = 1000.0) -> Summary:
    return summarize(EVERYBODY, records, round(window_ms * NS_PER_MS))


def check(records: list[RequestRecord], figure: str, value: float | None, bound: Bound = "") -> None:
    """The named figure of `records` is `value`, with that bound; None: there is no such figure."""
    found = summary_of(*records).figures.get(figure)
    if value is None:
        assert found is None
    else:
        assert found is not None
        assert found.value == pytest.approx(value)
        assert found.bound == bound


def test_quantiles_interpolate() -> None:
    """Between the two closest samples, linearly; one sample is every quantile; nothing has none."""
    samples = [Figure(value) for value in (40.0, 10.0, 20.0, 30.0)]
    assert quantile(samples, 0.5) == Figure(25.0)
    assert quantile(samples, 1.0) == Figure(40.0)
    assert quantile(samples, 0.95) == Figure(pytest.approx(38.5))  # type: ignore[arg-type]
    assert quantile([Figure(7.0)], 0.99) == Figure(7.0)
    assert quantile([], 0.5) is None


def test_a_high_lower_bound_leaves_the_median_exact() -> None:
    """Of three requests one never answered: the median is known, the 95th percentile is not."""
    records = [record(OK, [10]), record(OK, [20]), record(UNFINISHED, [], end_ms=500)]
    check(records, "ttft_ms_p50", 20.0)
    check(records, "ttft_ms_p95", 452.0, ">=")


def test_a_low_lower_bound_touches_everything() -> None:
    """A request cut soon after it was sent might have been the slowest: every quantile is a lower bound."""
    records = [record(OK, [100]), record(OK, [200]), record(UNFINISHED, [], end_ms=5)]
    check(records, "ttft_ms_p50", 100.0, ">=")
    check(records, "ttft_ms_p99", 198.0, ">=")


@given(
    exact=st.lists(st.integers(0, 50), max_size=8),
    cut=st.lists(st.tuples(st.integers(0, 50), st.integers(0, 100)), max_size=8),
    q=st.sampled_from([0.5, 0.95, 0.99, 1.0]),
)
def test_bounds_are_true(exact: list[int], cut: list[tuple[int, int]], q: float) -> None:
    """However much longer the cut requests would have taken, an exact quantile stays and a bound is not undercut."""
    found = quantile([*map(Figure, exact), *(Figure(value, ">=") for value, _ in cut)], q)
    truth = quantile([*map(Figure, exact), *(Figure(value + more) for value, more in cut)], q)
    if found is None or truth is None:
        assert found is truth
    elif found.bound:
        assert found.value <= truth.value or math.isclose(found.value, truth.value)
    else:
        assert found == truth


def test_times_of_a_complete_answer() -> None:
    """TTFT, raw gaps, the longest gap, the end and the pace of one stream."""
    records = [record(OK, [100, 150, 250], end_ms=260)]
    check(records, "ttft_ms_p50", 100.0)
    check(records, "gap_ms_p50", 75.0)
    check(records, "max_gap_ms_max", 100.0)
    check(records, "e2e_ms_p50", 260.0)
    check(records, "stream_tokens_per_s_p50", 2 / 0.150)


def test_longest_gap_is_per_stream() -> None:
    """Gaps are pooled; the longest gap has one sample for each stream."""
    records = [record(OK, [0, 10, 20, 30, 40]), record(OK, [0, 300])]
    check(records, "gap_ms_p50", 10.0)
    check(records, "max_gap_ms_p50", 155.0)
    check(records, "max_gap_ms_max", 300.0)


def test_silence_before_the_cut_is_a_gap() -> None:
    """A stream that stalled and was cut shows in the longest gap, though no chunk ended that gap."""
    check([record(UNFINISHED, [100, 110], end_ms=900)], "max_gap_ms_max", 790.0, ">=")
    check([record(UNFINISHED, [100, 300], end_ms=320)], "max_gap_ms_max", 200.0)
    check([record(UNFINISHED, [100], end_ms=150)], "max_gap_ms_max", 50.0, ">=")


@pytest.mark.parametrize(
    ("status", "ttft", "e2e"),
    [
        (OK, (100.0, ""), (300.0, "")),
        (UNFINISHED, (100.0, ""), (300.0, ">=")),
        (CANCELLED, (100.0, ""), None),
        (DISCONNECTED, (100.0, ""), None),
        ("error:200/engine", (100.0, ""), None),
    ],
)
def test_what_each_ending_contributes(status: str, ttft: tuple[float, Bound], e2e: tuple[float, Bound] | None) -> None:
    """First tokens always count; the time to the end only where the answer, and not the client, ended it."""
    records = [record(status, [100, 200], end_ms=300)]
    check(records, "ttft_ms_p50", *ttft)
    check(records, "e2e_ms_p50", *(e2e or (None,)))


def test_failures_without_a_token_are_counted_not_timed() -> None:
    """A quick refusal must not look like a quick answer."""
    summary = summary_of(record("error:429/rate_limit", [], end_ms=1), record(OK, [50, 60, 70]))
    assert summary.statuses == {"error:429/rate_limit": 1, "ok": 1}
    assert (failures(summary.statuses), summary.n_censored) == ({"error:429/rate_limit": 1}, 0)
    assert summary.figures["ttft_ms_p50"] == Figure(50.0)


def test_counts() -> None:
    """Failures are errors and lost connections; a cut without a token is censored; a short answer is noticed."""
    summary = summary_of(
        record(DISCONNECTED, [1]),
        record("error:500/x", []),
        record(CANCELLED, [1]),
        record(UNFINISHED, [], end_ms=9),
        record(UNFINISHED, [1], end_ms=9),
        record(OK, [1, 2, 3], usage=(12, 3)),
        record(OK, [1, 2], usage=(12, 2)),
    )
    assert failures(summary.statuses) == {DISCONNECTED: 1, "error:500/x": 1}
    assert (sum(summary.statuses.values()), summary.n_censored, summary.n_short) == (7, 1, 1)


def test_throughput_counts_what_arrived_in_the_window() -> None:
    """Chunks after the window are out, and a prompt counts when its first token arrives."""
    inside = record(OK, [100, 200, 300], usage=(40, 3))
    across = record(OK, [100, 200], start_ms=350, usage=(50, 2))
    after = record(OK, [100], start_ms=450, usage=(60, 1))
    summary = summary_of(inside, across, after, window_ms=500)
    assert summary.figures["output_tokens_per_s"].value == pytest.approx(4 / 0.5)
    assert summary.figures["prompt_tokens_per_s"].value == pytest.approx(90 / 0.5)


def test_chunks_of_several_tokens_are_scaled() -> None:
    """Where the usage reports six tokens in three chunks, each chunk is two."""
    records = [record(OK, [100, 200, 700], usage=(10, 6))]
    figures = summary_of(*records, window_ms=500).figures
    assert figures["output_tokens_per_s"].value == pytest.approx(4 / 0.5)
    assert figures["stream_tokens_per_s_p50"].value == pytest.approx(5 / 0.6)


def test_without_usage_chunks_and_plan_count() -> None:
    """A cancelled request never sees its usage."""
    figures = summary_of(record(CANCELLED, [100, 200], planned=(30, 99))).figures
    assert figures["output_tokens_per_s"].value == pytest.approx(2.0)
    assert figures["prompt_tokens_per_s"].value == pytest.approx(30.0)


def test_streams_too_short_for_a_pace_have_none() -> None:
    """One chunk, or chunks that arrived together, say nothing about a pace."""
    check([record(OK, [100]), record(OK, [100, 100])], "stream_tokens_per_s_p50", None)


def test_nothing_sent_has_no_times() -> None:
    """An empty group has rates of zero and no quantiles."""
    summary = summary_of()
    assert set(summary.figures) == {"output_tokens_per_s", "prompt_tokens_per_s"}
    assert summary.figures["output_tokens_per_s"] == Figure(0.0)


def client(name: str, tenant: str, request_class: RequestClass) -> Client:
    length = Length("constant", 1, 1)
    return Client(name, tenant, request_class, 1, Arrival("closed"), length, length, None, None, 0.8)


def test_groups() -> None:
    """All, then by class, tenant and name, in the file's order; each counts its own clients only."""
    clients = [client("w", "b", "background"), client("chat", "a", "interactive"), client("c2", "a", "interactive")]
    groups = groups_of(clients)
    assert [(group.kind, group.name, sorted(group.clients)) for group in groups] == [
        ("all", "", ["c2", "chat", "w"]),
        ("class", "background", ["w"]),
        ("class", "interactive", ["c2", "chat"]),
        ("tenant", "b", ["w"]),
        ("tenant", "a", ["c2", "chat"]),
        ("client", "w", ["w"]),
        ("client", "chat", ["chat"]),
        ("client", "c2", ["c2"]),
    ]
    records = [record(OK, [10], client="w"), record(OK, [20]), record(OK, [30], client="c2")]
    found = [summarize(group, records, NS_PER_S).figures["ttft_ms_p50"].value for group in groups]
    assert found == [20.0, 10.0, 25.0, 10.0, 25.0, 10.0, 20.0, 30.0]


def test_rounds_are_not_pooled() -> None:
    """The median of the rounds' medians: one bad round of many requests does not outvote two good ones."""
    good = summary_of(record(OK, [10]))
    bad = summary_of(*[record(OK, [1000])] * 9)
    whole = over_rounds([good, bad, good])
    assert whole.figures["ttft_ms_p50"] == Figure(10.0)
    assert whole.statuses == {"ok": 11}


def test_a_figure_missing_in_a_round() -> None:
    """The median is over the rounds that have the figure."""
    whole = over_rounds([summary_of(), summary_of(record(OK, [10]))])
    assert whole.figures["ttft_ms_p50"] == Figure(10.0)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ([Figure(1), Figure(2), Figure(9, ">=")], Figure(2)),
        ([Figure(1), Figure(2, ">="), Figure(9)], Figure(2, ">=")),
        ([Figure(1, "<="), Figure(2), Figure(9)], Figure(2, "<=")),
        ([Figure(1, "<="), Figure(2, ">="), Figure(9)], Figure(2, "~")),
        ([Figure(1, "~")], Figure(1, "~")),
    ],
)
def test_median_of_bounds(figures: list[Figure], expected: Figure) -> None:
    """A median claims no more than its rounds do."""
    assert median(figures) == expected


def test_ratios_are_paired_by_round() -> None:
    """Each round is compared with itself; then the median and the spread are taken."""
    pairs = [(summary_of(record(OK, [ours])), summary_of(record(OK, [theirs]))) for ours, theirs in
             ((10, 20), (10, 100), (30, 40))]  # fmt: skip
    ratio = ratios(pairs)["ttft_ms_p50"]
    assert (ratio.median, ratio.bound, ratio.low, ratio.high, ratio.n_rounds) == (0.5, "", 0.1, 0.75, 3)


def test_ratios_inherit_bounds() -> None:
    """Theirs took at least so long: ours/theirs is at most so much."""

    def bounded(pairs: list[tuple[Summary, Summary]]) -> Figure:
        ratio = ratios(pairs)["ttft_ms_p50"]
        return Figure(ratio.median, ratio.bound)

    exact, cut = summary_of(record(OK, [10])), summary_of(record(UNFINISHED, [], end_ms=1000))
    assert bounded([(exact, cut)]) == Figure(0.01, "<=")
    assert bounded([(cut, exact)]) == Figure(100.0, ">=")
    assert bounded([(cut, cut)]) == Figure(1.0, "~")


def test_no_ratio_to_nothing() -> None:
    """Where theirs is zero or absent there is no ratio, and no division."""
    assert ratios([(summary_of(record(OK, [10])), summary_of())]) == {}
    assert ratios([]) == {}
