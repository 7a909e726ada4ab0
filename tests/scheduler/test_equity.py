"""How evenly tenants were served: the index, its window, and the gap between those that wait."""

from __future__ import annotations

import pytest

from poise.scheduler.fairness.equity import SLICE_NS, WINDOW_NS, RecentService, jain
from poise.scheduler.policy import TenantPolicy
from poise.scheduler.request import RequestClass
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import Driver, policy


@pytest.mark.parametrize(
    ("served", "index"), [([], 1.0), ([0, 0], 1.0), ([5], 1.0), ([3, 3, 3], 1.0), ([7, 0, 0, 0], 0.25), ([1, 3], 0.8)]
)
def test_jains_index(served: list[int], index: float) -> None:
    """1 when all had the same, 1/n when one had everything."""
    assert jain(served) == pytest.approx(index)


def test_the_window_forgets() -> None:
    """What is older than a minute is gone, at the latest a slice later; who is here and gets nothing counts."""
    recent = RecentService()
    recent.roll(0)
    recent.charge("a", 100)
    recent.charge("b", 0)
    assert recent.jain() == 0.5
    recent.roll(WINDOW_NS - SLICE_NS)
    recent.charge("b", 100)
    assert recent.by_tenant() == {"a": 100, "b": 100}
    recent.roll(WINDOW_NS)
    assert recent.by_tenant() == {"b": 100}
    recent.roll(10 * WINDOW_NS)
    assert recent.by_tenant() == {}


def test_equal_tenants_are_served_alike_and_a_heavier_one_by_its_weight() -> None:
    """Under a flood from all of them the index is near 1, as service is divided by weight."""
    d = Driver(Scheduler(policy(queue_max=1000, tenants={"b": TenantPolicy(weight=2.0)})))
    for _ in range(80):
        for tenant in "abc":
            d.add(60, 60, tenant)
    while d.now_ns < 60_000_000_000:
        assert not d.step().is_empty
    figures = d.scheduler.snapshot().classes[RequestClass.INTERACTIVE]
    assert figures.jain > 0.95
    assert 0 < figures.gap_us < 5_000_000
    assert figures.served_us == pytest.approx(60_000_000, rel=0.05)


def test_only_tenants_that_wait_are_compared() -> None:
    """One whose tokens all come in every step has what it asked for, however much another had."""
    d = Driver(Scheduler(policy()))
    d.add(900, 100, "busy")
    d.add(10, 300, "modest")
    for _ in range(60):
        d.step()
    assert d.scheduler.snapshot().classes[RequestClass.INTERACTIVE].gap_us == 0
