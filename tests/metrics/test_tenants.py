"""Metrics by tenant: everything is counted once, and never for more tenants than asked for."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from poise.metrics.story import ChoiceStory, RequestStory
from poise.metrics.tenants import TenantMetrics


def story(tenant: str, *, n_prompt: int = 10, n_output: int = 4, outcome: str = "stop") -> RequestStory:
    choice = ChoiceStory(outcome, n_output, 3, wait_s=1.0, first_s=102.0, last_s=104.0, ended_s=105.0)
    return RequestStory("id", "resp", tenant, "interactive", "chat", "", 100.0, n_prompt, [choice], [])


def test_a_request_is_counted_with_its_times() -> None:
    """Tokens by kind, outcomes, and sums of times; an answer that is not whole has no time of completion."""
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry, 5)
    metrics.ended(story("alice"))
    metrics.ended(story("alice", outcome="cancelled"))
    metrics.rejected("alice", "queue_full")

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"poise_tenant_{name}", {"tenant": "alice", **labels})

    for outcome in ("stop", "cancelled"):
        assert value("requests_total", **{"class": "interactive", "outcome": outcome}) == 1
    for kind, n in (("prompt", 20), ("cached", 6), ("output", 8)):
        assert value("tokens_total", **{"class": "interactive", "kind": kind}) == n
    assert value("rejected_total", reason="queue_full") == 1
    for name, total, n in (
        ("queue_wait", 2, 2),
        ("time_to_first_token", 4, 2),
        ("request_duration", 10, 2),
        ("complete_answer", 5, 1),
    ):
        assert value(f"{name}_seconds_sum", **{"class": "interactive"}) == total
        assert value(f"{name}_seconds_count", **{"class": "interactive"}) == n


def test_the_least_recent_makes_way_and_returns_from_nothing() -> None:
    """Its counts are the others' from then on."""
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry, 2)

    def prompts(tenant: str) -> float | None:
        labels = {"tenant": tenant, "class": "interactive", "kind": "prompt"}
        return registry.get_sample_value("poise_tenant_tokens_total", labels)

    for tenant in ("a", "b", "a", "c"):
        metrics.ended(story(tenant))
    assert [prompts(t) for t in ("a", "b", "c", "other")] == [20, None, 10, 10]
    metrics.ended(story("b"))
    assert [prompts(t) for t in ("a", "b", "c", "other")] == [None, 10, 10, 30]


def test_a_tenant_that_is_forgotten_is_among_the_others() -> None:
    """Its name is gone, its counts are not; one that is not known changes nothing."""
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry, 2)
    metrics.ended(story("a"))
    assert (metrics.forget("a"), metrics.forget("a"), metrics.forget("b")) == (1, 0, 0)
    tenants = [sample.labels["tenant"] for family in registry.collect() for sample in family.samples]
    assert set(tenants) == {"other"}
    labels = {"tenant": "other", "class": "interactive", "outcome": "stop"}
    assert registry.get_sample_value("poise_tenant_requests_total", labels) == 1


@given(st.lists(st.sampled_from(["a", "b", "c", "d", "other"]), max_size=30), st.integers(0, 3))
def test_nothing_is_lost_and_the_number_is_bounded(tenants: list[str], tenants_max: int) -> None:
    """Whoever comes in whatever order: the sum over all is what there was, and never goes back."""
    registry = CollectorRegistry()
    metrics = TenantMetrics(registry, tenants_max)
    for n, tenant in enumerate(tenants, start=1):
        metrics.ended(story(tenant, n_prompt=1))
        metrics.rejected(tenant, "queue_full")
        families = {family.name: family.samples for family in registry.collect()}
        tokens = [s for s in families["poise_tenant_tokens"] if s.labels["kind"] == "prompt"]
        assert sum(sample.value for sample in tokens) == n
        assert sum(sample.value for sample in families["poise_tenant_rejected"]) == n
        assert len({sample.labels["tenant"] for sample in tokens} - {"other"}) <= tenants_max
