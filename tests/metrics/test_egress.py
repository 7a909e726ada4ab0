"""Metrics of other servers: what is sent, what it costs, what is left; every label is bounded."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from poise.metrics.egress import BUDGETS_MAX, BackendFigures, BudgetLeft, EgressMetrics


class Sample:
    def __init__(self) -> None:
        self.registry, self.operators = CollectorRegistry(), CollectorRegistry()
        self.metrics = EgressMetrics(self.registry, self.operators)

    def __call__(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)


def test_what_is_sent_is_counted_before_it_is_and_once_it_has_ended() -> None:
    """By label and outcome, with bytes, tokens and cost; an outcome of which nothing is known makes no series of its own."""
    sample = Sample()
    metrics = sample.metrics
    metrics.sent("cloud", "public")
    assert sample("poise_egress_sent_total", backend="cloud", label="public") == 1
    assert sample("poise_egress_requests_total", backend="cloud", label="public", outcome="done") is None
    metrics.ended("cloud", "public", "done", 100, 2000)
    for outcome in ("one", "two"):
        metrics.ended("cloud", "public", outcome, 1, 0)
    metrics.used("cloud", 10, 4, 3, 2_500_000_000)
    metrics.used("cloud", 1, 0, 1, 1)
    assert sample("poise_egress_requests_total", backend="cloud", label="public", outcome="done") == 1
    assert sample("poise_egress_requests_total", backend="cloud", label="public", outcome="other") == 2
    assert sample("poise_egress_bytes_total", backend="cloud", direction="sent") == 102
    assert sample("poise_egress_bytes_total", backend="cloud", direction="received") == 2000
    assert [sample("poise_egress_tokens_total", backend="cloud", kind=kind) for kind in ("prompt", "cached", "output")] == [
        11,
        4,
        4,
    ]
    assert sample("poise_egress_cost_units_total", backend="cloud") == 2.500000001


def test_levels_are_asked_for_when_they_are_read() -> None:
    """A backend that is watched has its series from the start."""
    sample, is_open = Sample(), True
    sample.metrics.is_open(lambda: is_open)
    sample.metrics.watch_backend("cloud", lambda: BackendFigures(8, 3, {"interactive": 0, "background": 5}, is_up=False))
    assert sample("poise_egress_open") == 1
    is_open = False
    assert sample("poise_egress_open") == 0
    assert [sample("poise_backend_slots", backend="cloud", state=state) for state in ("busy", "free")] == [3, 5]
    assert sample("poise_backend_queue", backend="cloud", **{"class": "background"}) == 5
    assert sample("poise_backend_up", backend="cloud") == 0
    assert sample("poise_egress_cost_units_total", backend="cloud") == 0


def test_of_budgets_the_scarcest_are_shown_to_operators() -> None:
    """However many tenants have one."""
    sample = Sample()
    budgets = [BudgetLeft("tenant", f"t{n}", "day", n * 1_000_000_000, 10_000_000_000_000) for n in range(5000)]
    sample.metrics.watch_budgets(lambda: budgets)
    (family,) = sample.operators.collect()
    assert [one.value for one in family.samples] == list(range(BUDGETS_MAX))
    assert all(one.name != "poise_budget_left_units" for family in sample.registry.collect() for one in family.samples)
