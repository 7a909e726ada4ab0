"""The scheduler's parts by themselves: cost model, cost splitting, served cost, queues, slots."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.scheduler.fairness.fairness import ServedCost, split_cost
from poise.scheduler.memory.kv import KvPool
from poise.scheduler.memory.prefix import Prefix
from poise.scheduler.memory.reuse import Reusable
from poise.scheduler.planning.budget import BatchShape, CostModel, attended_cells
from poise.scheduler.policy import CostPrior, PoolPolicy, StorePolicy
from poise.scheduler.queues import WaitingQueue, order_key
from poise.scheduler.request import Request, RequestClass
from poise.scheduler.sequence import TRANSITIONS, Sequence, State
from tests.scheduler.books import check_pool, check_queue
from tests.scheduler.driver import COST

TRUTH = CostPrior(fixed_us=4000, decode_us=3500, prompt_us=2600, attended_us=0.9)


def random_shape(rng: random.Random) -> BatchShape:
    shape = BatchShape()
    for _ in range(rng.randint(0, 8)):
        shape.add(is_prompt=False, start=rng.randint(10, 2000), n_tokens=1)
    if rng.random() < 0.5 or shape.is_empty:
        shape.add(is_prompt=True, start=rng.randint(0, 3000), n_tokens=rng.randint(1, 64))
    return shape


def test_the_cost_model_learns_a_machine_from_noisy_steps() -> None:
    """After 300 steps with 15 % noise from a prior that is four times off, predictions are within 10 % in the median."""
    rng = random.Random(5)
    truth, model = CostModel(TRUTH), CostModel(CostPrior(16000, 800, 11000, 0.1))
    for _ in range(300):
        shape = random_shape(rng)
        model.observe(shape, int(truth.predict_us(shape) * rng.uniform(0.85, 1.15)))
    errors = []
    for _ in range(200):
        shape = random_shape(rng)
        errors.append(abs(model.predict_us(shape) / truth.predict_us(shape) - 1))
    assert sorted(errors)[100] < 0.10


def test_the_cost_model_follows_a_machine_that_slows_down() -> None:
    """A host that becomes three times slower is known to be so after some steps."""
    rng = random.Random(6)
    truth, model = CostModel(TRUTH), CostModel(TRUTH)
    for factor in (1, 3):
        for _ in range(150):
            shape = random_shape(rng)
            model.observe(shape, int(truth.predict_us(shape) * factor))
    shape = random_shape(rng)
    assert 2.5 < model.predict_us(shape) / truth.predict_us(shape) < 3.5


def test_no_noise_makes_prompt_tokens_free() -> None:
    """A step of a hundred times the usual time, then a quick one, once made a prompt token's price zero (division by it)."""
    model = CostModel(COST)
    for factor, n_tokens in ((20.0, 1), (20.0, 1), (0.2, 17)):
        shape = BatchShape()
        shape.add(is_prompt=True, start=0, n_tokens=n_tokens)
        model.observe(shape, int(CostModel(COST).predict_us(shape) * factor))
    assert model.prompt_us > 0
    assert model.prompt_tokens_within(100_000, 0) < 2000


def test_one_wild_step_does_not_ruin_the_model() -> None:
    """A step that took a hundred times its prediction moves the next prediction by less than a factor of two."""
    rng = random.Random(7)
    truth, model = CostModel(TRUTH), CostModel(TRUTH)
    for _ in range(100):
        shape = random_shape(rng)
        model.observe(shape, int(truth.predict_us(shape)))
    shape = random_shape(rng)
    before = model.predict_us(shape)
    model.observe(shape, int(100 * before))
    assert model.predict_us(shape) < 2 * before


@given(budget=st.floats(1, 1e7), start=st.integers(0, 10_000), attended=st.floats(0, 10), prompt=st.floats(10, 10_000))
def test_prompt_tokens_within_is_the_inverse_of_the_cost(budget: float, start: int, attended: float, prompt: float) -> None:
    """n tokens cost at most the budget (up to rounding), n + 1 tokens cost more."""
    model = CostModel(CostPrior(0, 0, prompt, attended))
    n = model.prompt_tokens_within(budget, start)
    assert model.chunk_us(is_prompt=True, start=start, n_tokens=n) <= budget * (1 + 1e-6) + 1e-6
    assert model.chunk_us(is_prompt=True, start=start, n_tokens=n + 1) > budget * (1 - 1e-6)


@given(start=st.integers(0, 50), n_tokens=st.integers(0, 50))
def test_attended_cells_counts_what_each_token_sees(start: int, n_tokens: int) -> None:
    """The closed form equals the sum over tokens."""
    assert attended_cells(start, n_tokens) == sum(start + i + 1 for i in range(n_tokens))


@given(cost=st.integers(0, 10**9), shares=st.lists(st.floats(1, 1e6), min_size=1, max_size=70))
def test_split_cost_loses_nothing(cost: int, shares: list[float]) -> None:
    """Parts are non-negative integers, add up exactly and follow the shares."""
    parts = split_cost(cost, shares)
    assert sum(parts) == cost
    assert all(p >= 0 for p in parts)
    assert all(abs(p - cost * s / sum(shares)) <= 2 for p, s in zip(parts, shares, strict=True))


def test_a_tenant_that_returns_gets_a_head_start_and_no_more() -> None:
    """Absence earns one grain: a returning tenant starts just below the least-served active one (after VTC)."""
    served = ServedCost(grain_us=500)
    served.enter("a")
    served.enter("b")
    served.charge("a", 1000)
    served.charge("b", 400)
    served.leave("b")
    served.charge("a", 5000)
    served.enter("b")
    assert (served["a"], served["b"]) == (6000, 5500)
    assert served.rank("b") < served.rank("a")


def test_leaving_and_returning_does_not_wipe_out_what_was_served() -> None:
    """A tenant that sends one request at a time keeps its counter between them."""
    served = ServedCost(grain_us=500)
    served.enter("steady")
    for _ in range(10):
        served.enter("a")
        served.charge("a", 300)
        served.leave("a")
    served.enter("a")
    assert served["a"] == 3000


def test_departed_tenants_are_forgotten_in_the_end() -> None:
    """A key for every request does not grow the books without bound."""
    served = ServedCost()
    for i in range(5000):
        served.enter(f"t{i}")
        served.charge(f"t{i}", 10)
        served.leave(f"t{i}")
    assert len(served._departed) <= 1024
    assert served.tenants == {}


def test_an_idle_class_remembers_its_floor() -> None:
    """When everybody has left, a new tenant starts at most a grain below those before it."""
    served = ServedCost(grain_us=100)
    served.enter("a")
    served.charge("a", 700)
    served.leave("a")
    served.enter("b")
    assert served["b"] == 600


def test_order_key_is_ageing_in_disguise() -> None:
    """cost + ageing * arrival orders like cost - ageing * waited, at any time."""
    entries = [(9000.0, 0), (100.0, 50_000_000), (4000.0, 10_000_000)]
    now_ns = 80_000_000
    by_key = sorted(entries, key=lambda e: order_key(e[0], e[1], 0.3))
    by_definition = sorted(entries, key=lambda e: e[0] - 0.3 * (now_ns - e[1]) / 1000)
    assert by_key == by_definition


def sequence(request_id: int, tenant: str = "a", n_prompt: int = 10, pool: str = "short") -> Sequence:
    request = Request(request_id, tenant, RequestClass.INTERACTIVE, n_prompt, 5)
    return Sequence(request, pool, 0, float(n_prompt))


def test_a_storm_of_cancels_leaves_no_entries_behind() -> None:
    """Removed requests behind a head that stays do not pile up in the heap."""
    served = ServedCost()
    queue = WaitingQueue(served, 1024, Reusable(StorePolicy(), lambda pool, keys: None), lambda s: s.order_key)
    served.enter("a")
    queue.push(sequence(0, n_prompt=1))
    for i in range(1, 5000):
        late = sequence(i, n_prompt=50)
        queue.push(late)
        queue.remove(late)
        late.to(State.FINISHED)
        check_queue(queue)
    assert queue.n_queued == 1
    assert queue._n_entries <= 70


def test_books_of_slots_balance() -> None:
    """Taking, releasing in the middle and closing the hole keep the pool's books exact."""
    pool = KvPool("short", PoolPolicy(4, 100))
    sequences = [sequence(i) for i in range(3)]
    for slot, s in enumerate(sequences):
        s.to(State.RUNNING)
        pool.take(s, slot)
    assert [s.slot for s in sequences] == [0, 1, 2]
    sequences[0].to(State.FINISHED)
    assert pool.release(sequences[0]) == 0
    assert [pool.has_held_holes(1) for _ in range(4)] == [False, True, False, True]
    assert pool.move(2, 0) is sequences[2]
    assert list(pool.free) == [2, 3]
    assert not pool.has_held_holes(1)
    check_pool(pool)
    assert pool.books().slots_held == 2
    sequences[1].to(State.PAUSED)
    pool.warm[3] = Prefix("t", "short", (1,), 42, slot=3)
    occupied = [(slot.slot, slot.state, slot.request_class, slot.cells) for slot in pool.books().occupied]
    assert occupied == [
        (0, "running", RequestClass.INTERACTIVE, 0),
        (1, "paused", RequestClass.INTERACTIVE, 0),
        (3, "warm", "", 42),
    ]


@pytest.mark.parametrize("state", list(State))
def test_only_the_table_s_transitions_are_legal(state: State) -> None:
    """Everything that the table does not list asserts."""
    for target in State:
        s = sequence(1)
        s.state = state
        if target in TRANSITIONS[state]:
            s.to(target)
        else:
            with pytest.raises(AssertionError):
                s.to(target)
