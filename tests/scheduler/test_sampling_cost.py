"""Drawing a token is paid for by the sequence that it is for, and a step's budget counts it."""

from __future__ import annotations

import pytest

from poise.scheduler.planning.plan import BatchResult, StepPlan, StepResult
from poise.scheduler.request import Finished, FinishReason, Request, RequestClass
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.books import check_scheduler
from tests.scheduler.driver import INTERACTIVE, policy

PASS_US, CHEAP_US, DEAR_US, ITL_US = 10_000, 30, 6_000, 400_000


class Pair:
    """Two tenants with one request each; the second one's tokens are dear to draw."""

    def __init__(self, dear_us: int = DEAR_US) -> None:
        self.scheduler = Scheduler(policy(slots=4, itl_us=ITL_US))
        self.now_ns = 0
        self.cost_us = {1: CHEAP_US, 2: dear_us}
        for request_id, tenant in ((1, "a"), (2, "b")):
            self.scheduler.add(Request(request_id, tenant, INTERACTIVE, 20, 200), 0)

    def step(self, *, errors: tuple[tuple[int, str], ...] = ()) -> tuple[StepPlan, list[Finished]]:
        plan = self.scheduler.plan(self.now_ns)
        results = []
        for batch in plan.batches:
            drawn = tuple((c.request_id, self.cost_us[c.request_id]) for c in batch.chunks if c.sample)
            cost_us = PASS_US + sum(us for _, us in drawn)
            results.append(BatchResult(cost_us, sampled_us=drawn, row_errors=errors))
            self.now_ns += cost_us * 1000
        events = self.scheduler.complete(plan, StepResult(tuple(results)), self.now_ns)
        check_scheduler(self.scheduler)
        return plan, [event for event in events if isinstance(event, Finished)]

    @property
    def served(self) -> dict[str, int]:
        return dict(self.scheduler._books.served[INTERACTIVE].tenants)


def test_who_draws_dearly_pays_for_it() -> None:
    """The pass is shared, the draws are not: the difference between the two accounts is that of their draws."""
    pair = Pair()
    pair.step()
    before = pair.served
    for _ in range(20):
        pair.step()
    spent = {tenant: us - before[tenant] for tenant, us in pair.served.items()}
    assert sum(spent.values()) == 20 * (PASS_US + CHEAP_US + DEAR_US)
    assert spent["b"] - spent["a"] == pytest.approx(20 * (DEAR_US - CHEAP_US), rel=0.02)


def test_the_budget_counts_what_drawing_will_take() -> None:
    """A prompt beside dear draws gets a shorter chunk than beside cheap ones, and the step's prediction includes them."""
    planned = {}
    for dear_us in (CHEAP_US, 150_000):
        pair = Pair(dear_us)
        for _ in range(30):
            pair.step()
        pair.scheduler.add(Request(3, "c", INTERACTIVE, 3000, 5), pair.now_ns)
        plan = pair.scheduler.plan(pair.now_ns)
        (n_tokens,) = [c.n_tokens for b in plan.batches for c in b.chunks if c.request_id == 3]
        planned[dear_us] = (n_tokens, sum(b.predicted_us for b in plan.batches))
    assert planned[150_000][0] < 0.75 * planned[CHEAP_US][0]
    assert planned[150_000][1] == pytest.approx(planned[CHEAP_US][1], rel=0.1), "the step is as long as it may be"


def test_the_cost_model_learns_the_pass_alone() -> None:
    """Otherwise every decode of the pool would look dear, and everybody would pay."""
    cheap, dear = Pair(CHEAP_US), Pair(50_000)
    for _ in range(100):
        cheap.step()
        dear.step()
    models = [pair.scheduler._books.models["short"] for pair in (cheap, dear)]
    assert models[1].decode_us == pytest.approx(models[0].decode_us, rel=0.01)
    assert models[1].fixed_us == pytest.approx(models[0].fixed_us, rel=0.01)


def test_a_row_that_fails_ends_alone_and_leaves_no_cells() -> None:
    """One terminal event with the reason; the other one of its batch goes on, and the slot is free."""
    pair = Pair()
    pair.step()
    _, ended = pair.step(errors=((2, "no token could be drawn"),))
    assert [(e.request_id, e.reason, e.detail) for e in ended] == [(2, FinishReason.FAILED, "no token could be drawn")]
    assert pair.served.keys() == {"a"}
    books = pair.scheduler.snapshot()
    assert sum(p.slots_held for p in books.pools.values()) == 1
    assert sum(p.slots_warm for p in books.pools.values()) == 0
    plan, ended = pair.step()
    assert [c.request_id for b in plan.batches for c in b.chunks] == [1]
    assert not ended
    assert books.classes[RequestClass.INTERACTIVE].running == 1
