"""Who waits gets a share, whoever arrives: invariant 7 over the scenario of newcomers, and that it is no empty promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from poise.config import Settings
from poise.scheduler.fairness.fairness import ServedCost
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.policy import TenantPolicy
from poise.scheduler.request import RequestClass
from poise_lab.scenarios.model import Scenario
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.report import figures
from poise_lab.sim.simulate import SimulationFailure, sim_policy
from tests.sim.checking.shares import FairShares
from tests.sim.checking.simulate import simulate

SCENARIO = Path(__file__).parents[2] / "scenarios" / "newcomers.toml"
GRAIN_MS = 100
"""A small one: the bound is mostly grains, and a short run reaches it."""
SETTINGS = Settings.model_validate({"scheduler": {"fairness_grain_ms": GRAIN_MS}})


def scenario(n_newcomers: int, request_class: RequestClass) -> Scenario:
    """So many newcomers at a time, all of one class. No tenant asks for more than another at a time but the patient one."""
    found = load_scenario(SCENARIO)
    clients = tuple(
        replace(c, request_class=request_class.value, count=n_newcomers if c.fresh_tenants else c.count) for c in found.clients
    )
    return replace(found, clients=clients)


@pytest.mark.parametrize("request_class", list(RequestClass))
@pytest.mark.parametrize("n_newcomers", [8, 40])
def test_a_key_for_each_request_takes_nobodys_share(n_newcomers: int, request_class: RequestClass) -> None:
    """One that always waits has its part of what is computed for those that are there, and the bound holds in every step."""
    done = simulate(scenario(n_newcomers, request_class), SETTINGS, 1)
    records = done.records
    assert len({r.tenant for r in records if r.client == "newcomers"}) > 200
    assert {r.outcome for r in records} == {"length"}
    clients = figures(done)["clients"]
    assert isinstance(clients, dict)
    assert clients["patient"]["token_share"] >= 0.8 / (n_newcomers + 2)
    assert sum(c["token_share"] for c in clients.values()) == pytest.approx(1.0)


def test_newcomers_who_start_below_each_other_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each a grain below the least served, who is the newcomer before it: whoever waits, waits for all of them."""

    def enter(self: ServedCost, tenant: str, *, returns: bool = False) -> None:
        if tenant not in self._served:
            least = min(self._served.values(), default=0)
            self._served[tenant] = max(self._departed.pop(tenant, 0), least - self._grain_us)
            self._weights += self._units(tenant)
        self._n_active[tenant] = self._n_active.get(tenant, 0) + 1

    def queue(self: ServedCost, tenant: str, *, returns: bool = False) -> None:
        self._n_queued[tenant] = self._n_queued.get(tenant, 0) + 1

    monkeypatch.setattr(ServedCost, "enter", enter)
    monkeypatch.setattr(ServedCost, "queue", queue)
    with pytest.raises(SimulationFailure) as caught:
        simulate(scenario(16, RequestClass.INTERACTIVE), SETTINGS, 1)
    assert "waits and is" in str(caught.value.__cause__)
    assert "(invariant 7)" in str(caught.value.__cause__)


def test_the_bound_is_the_documents() -> None:
    """docs/scheduler.md: with the defaults (12 slots, grain 500 ms, turn 2 s) and before the first step."""
    policy = sim_policy(Settings())
    shares = FairShares(policy, {c: ServedCost(policy.grain_us) for c in RequestClass})
    n_background = policy.classes[RequestClass.BACKGROUND].slots_max
    grains = {RequestClass.INTERACTIVE: 5 + 12 / 2 + 4, RequestClass.BACKGROUND: 5 + n_background / 2 + 4}
    assert {c: shares.bound_us(c) for c in RequestClass} == {c: n * 500_000 for c, n in grains.items()}


@pytest.mark.parametrize("limits", [TenantPolicy(running_max=1), TenantPolicy(weight=2.0)])
def test_accounts_with_limits_are_promised_nothing(limits: TenantPolicy) -> None:
    """The document's conditions: one that may not run more may be behind by any time, and weights move the bound."""
    policy = replace(sim_policy(Settings()), tenant_default=limits)
    served = ServedCost(policy.grain_us)
    shares = FairShares(policy, dict.fromkeys(RequestClass, served))
    for account in "ab":
        served.enter(account)
        served.queue(account)
    served.charge("a", 1_000_000_000)
    shares.after_step(StepPlan(0, (), ()))
