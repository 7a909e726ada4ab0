"""Limits of power: pauses between steps, fewer rows, background that stands still or is put away, a smaller store."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.scheduler.bottleneck import Limit
from poise.scheduler.planning.budget import CHANGE_STEPS, BatchShape, CostModel
from poise.scheduler.planning.plan import StepPlan
from poise.scheduler.policy import StorePolicy
from poise.scheduler.power import FULL_PPM, NO_LIMITS, SAVED_NS, Background, Duty, PowerLimits
from poise.scheduler.request import Preempted, PreemptionReason, RequestClass
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.driver import BACKGROUND, COST, INTERACTIVE, Driver, policy

HALF = PowerLimits(duty_ppm=FULL_PPM // 2)


def planned(plan: StepPlan) -> list[int]:
    return [chunk.request_id for batch in plan.batches for chunk in batch.chunks]


def n_output(d: Driver, request_id: int) -> int:
    return d.scheduler._life.sequences[request_id].n_output


def step(d: Driver) -> StepPlan:
    """The next step that computes something, pauses passed over."""
    while True:
        plan = d.step()
        if not plan.is_empty:
            return plan
        assert plan.wake_at_ns is not None, "it rests"
        d.now_ns = plan.wake_at_ns


def finish(d: Driver) -> None:
    while d.live:
        step(d)
    d.run()
    d.assert_all_ended()


@pytest.mark.parametrize("duty_ppm", [100_000, 333_333, 500_000, 999_999])
@pytest.mark.parametrize("step_ns", [1_000, 7_654_321, 250_000_000])
def test_a_duty_is_kept_to(duty_ppm: int, step_ns: int) -> None:
    """Over many steps, whatever they take, and also where the clock is a little late for each."""
    duty, now_ns, worked_ns, n_late = Duty(), 5, 0, 0
    for n in range(2000):
        resumes_ns = duty.resumes_at(duty_ppm, now_ns)
        while resumes_ns is not None:
            assert resumes_ns > now_ns
            late_ns = n % 3 * 100_000
            now_ns, n_late = resumes_ns + late_ns, n_late + (late_ns > 0)
            resumes_ns = duty.resumes_at(duty_ppm, now_ns)
        now_ns, worked_ns = now_ns + step_ns, worked_ns + step_ns
        duty.worked(now_ns)
    share = worked_ns / (duty.resumes_at(duty_ppm, now_ns) or now_ns)
    assert share <= duty_ppm / FULL_PPM + SAVED_NS / now_ns + 1e-9
    if step_ns > 1_000:
        assert share == pytest.approx(duty_ppm / FULL_PPM, rel=0.01)
        assert n_late


def test_idle_time_is_not_saved_up() -> None:
    """Who has rested for an hour may not compute for half an hour."""
    duty = Duty()
    duty.resumes_at(500_000, 0)
    duty.resumes_at(500_000, 3_600 * 10**9)
    duty.worked(3_600 * 10**9 + 4 * SAVED_NS)
    assert duty.resumes_at(500_000, 3_600 * 10**9 + 4 * SAVED_NS) == 3_600 * 10**9 + 6 * SAVED_NS


def test_only_what_was_computed_is_paused_for() -> None:
    """Beside other programs a step takes long; what they had the processor for is not the server's."""
    duty = Duty()
    duty.resumes_at(500_000, 0)
    duty.worked(10 * SAVED_NS, busy_ns=8 * SAVED_NS)
    assert duty.resumes_at(500_000, 10 * SAVED_NS) == 16 * SAVED_NS


def test_a_pause_is_an_empty_plan() -> None:
    """It says when to ask again; nobody loses anything in it, and without requests there is none."""
    d = Driver(Scheduler(policy()))
    d.scheduler.limit(HALF)
    d.add(20, 5)
    assert d.step().batches
    took_ns = d.now_ns
    plan = d.scheduler.plan(d.now_ns)
    assert plan.is_empty
    assert plan.wake_at_ns == 2 * took_ns  # what was computed took so long, from 0 on
    assert d.scheduler.snapshot().limit is Limit.POWER
    finish(d)
    assert d.scheduler.plan(d.now_ns).wake_at_ns is None


def test_what_is_freed_in_a_pause_is_freed_at_once() -> None:
    """Nothing is computed, but cells and memory do not wait for that: erasing is one of what frees them."""
    d = Driver(Scheduler(policy()))
    d.scheduler.limit(HALF)
    gone, stays = d.add(60, 50), d.add(60, 50)
    for _ in range(3):
        step(d)
    while not d.step().is_empty:
        pass
    assert d.scheduler.snapshot().limit is Limit.POWER, "it does not pause"
    d.abort(gone)
    plan = d.step()
    assert plan.operations
    assert not plan.batches
    assert d.live == {stays}
    finish(d)


def test_steps_shrink_with_the_duty() -> None:
    """So that a chat has its token in time, the pause included; and a quota's part is not exceeded."""
    lengths = []
    for limits in (NO_LIMITS, HALF, PowerLimits(step_us=30_000)):
        d = Driver(Scheduler(policy(itl_us=300_000)))
        d.scheduler.limit(limits)
        d.add(10, 50)
        while n_output(d, 1) < 2:
            step(d)
        d.add(900, 5, "b")
        while 2 not in planned(plan := step(d)):
            pass
        lengths.append(sum(batch.predicted_us for batch in plan.batches))
    assert lengths[0] > 250_000
    assert 100_000 < lengths[1] <= 150_000
    assert lengths[2] <= 36_000


@pytest.mark.parametrize("request_class", [INTERACTIVE, BACKGROUND])
def test_short_steps_are_taken_in_turns(request_class: RequestClass) -> None:
    """Rows that do not fit into one go in several, evenly, and a prompt beside them has its part; no step is longer."""
    d = Driver(Scheduler(policy(slots=16, background_slots=16, itl_us=1_000_000)))
    ids = [d.add(10, 100, f"t{n}", request_class) for n in range(12)]
    while not all(n_output(d, i) for i in ids):
        d.step()
    step_us = int(COST.fixed_us + 5.5 * COST.decode_us)
    d.scheduler.limit(PowerLimits(step_us=step_us))
    before, late, n_steps = [n_output(d, i) for i in ids], d.add(400, 5, "late", request_class), 0
    while not n_output(d, late):
        (batch,) = step(d).batches
        assert batch.predicted_us <= 1.2 * step_us
        n_steps += 1
    got = [n_output(d, i) - n for i, n in zip(ids, before, strict=True)]
    assert max(got) - min(got) <= 1
    assert sum(got) == pytest.approx(15 / 4 * n_steps, abs=15)  # five in each of three steps, then the prompt
    finish(d)


def test_few_rows_at_once() -> None:
    """No more start than may run; who runs already goes on; everybody has a turn."""
    d = Driver(Scheduler(policy()))
    d.scheduler.limit(PowerLimits(row_limit=2))
    ids = [d.add(10, 10, tenant) for tenant in "aabbcc"]
    d.add(10, 10, "d", BACKGROUND)
    while d.live:
        plan = d.step()
        running = [i for i in planned(plan) if i in ids]
        assert len(running) <= 2
        assert len(planned(plan)) <= 2
    d.run()
    d.assert_all_ended()


def test_background_pauses_where_it_is() -> None:
    """Its cells stay in its slot, interactive work goes on, and then it goes on, too."""
    d = Driver(Scheduler(policy()))
    job = d.add(10, 200, "jobs", BACKGROUND)
    for _ in range(5):
        d.step()
    before = n_output(d, job)
    d.scheduler.limit(PowerLimits(background=Background.PAUSE))
    assert d.scheduler.plan(d.now_ns).is_empty
    assert d.scheduler.snapshot().limit is Limit.POWER
    chat = d.add(10, 10)
    while chat in d.live:
        d.step()
    assert n_output(d, job) == before
    assert d.scheduler.snapshot().pools["short"].slots_held == 1
    d.scheduler.limit(NO_LIMITS)
    d.run()
    d.assert_all_ended()


def test_background_is_put_away_and_comes_back() -> None:
    """To the host store: nothing is computed twice, it counts as no turn, and the slots are free."""
    d = Driver(Scheduler(policy(preemptions_max=0)))
    jobs = [d.add(200, 50, "jobs", BACKGROUND) for _ in range(3)]
    while not all(n_output(d, i) for i in jobs):
        d.step()
    d.scheduler.limit(PowerLimits(background=Background.PARK))
    d.step()
    assert d.scheduler.snapshot().pools["short"].slots_held == 0
    assert d.scheduler.plan(d.now_ns).is_empty
    d.scheduler.limit(NO_LIMITS)
    d.run()
    why = [event.why for event in d.events if isinstance(event, Preempted)]
    assert why == [PreemptionReason.POWER] * 3
    assert d.scheduler.snapshot().totals.recomputed_tokens == 0
    d.assert_all_ended()


def test_the_store_shrinks() -> None:
    """Prefixes go, the oldest first; and it grows again."""
    d = Driver(Scheduler(policy(slots=1, store=StorePolicy(budget_bytes=1_000_000))))
    for n in range(4):
        d.add(100, 5, f"t{n}", blocks=tuple(range(n * 1000, n * 1000 + 12)))
        d.run()
    before = d.scheduler.snapshot().store
    assert sum(before.bytes_by_purpose.values())
    d.scheduler.limit(PowerLimits(store_ppm=0))
    d.step()
    after = d.scheduler.snapshot().store
    assert (after.budget_bytes, sum(after.bytes_by_purpose.values())) == (0, 0)
    d.scheduler.limit(NO_LIMITS)
    assert d.scheduler.snapshot().store.budget_bytes == 1_000_000


def test_estimates_are_those_of_the_duty() -> None:
    """Who computes half of the time takes twice as long."""
    d = Driver(Scheduler(policy(slots=1)))
    for _ in range(6):
        d.add(100, 50)
    whole_us = d.scheduler.wait_estimate_us(d.accepted[1].request_class)
    d.scheduler.limit(HALF)
    assert d.scheduler.wait_estimate_us(d.accepted[1].request_class) == 2 * whole_us > 0


def _taught(model: CostModel, factor: Callable[[int], float], n: int) -> float:
    """Steps of a machine; returns how the last prediction compares with what it took."""
    ratio = 0.0
    true = CostModel(COST)
    for i in range(n):
        shape = BatchShape()
        for _ in range(1 + i % 4):
            shape.add(is_prompt=False, start=100 + i, n_tokens=1)
        if i % 5 == 0:
            shape.add(is_prompt=True, start=0, n_tokens=16 + i % 32)
        took_us = true.predict_us(shape) * factor(i)
        ratio = model.predict_us(shape) / took_us
        model.observe(shape, int(took_us))
    return ratio


@pytest.mark.parametrize("change", [3.0, 2.0, 1 / 2, 1 / 3])
def test_the_cost_model_follows_a_clock_in_both_directions(change: float) -> None:
    """Within a few steps; and noise is no change of clock."""
    model = CostModel(COST)
    assert _taught(model, lambda i: (0.8, 1.3, 1.0)[i % 3], 150) == pytest.approx(1.0, abs=0.35)
    assert _taught(model, lambda _: change, CHANGE_STEPS + 8) == pytest.approx(1.0, abs=0.2)
    assert _taught(model, lambda _: 1.0, CHANGE_STEPS + 8) == pytest.approx(1.0, abs=0.35)


def test_rows_that_take_turns_are_so_many_that_tokens_come_in_time() -> None:
    """The others wait for a slot, and are told so; everybody has a turn."""
    d = Driver(Scheduler(policy(itl_us=50_000)))
    d.scheduler.limit(PowerLimits(duty_ppm=FULL_PPM * 4 // 5, step_us=20_000))
    ids = [d.add(10, 30, tenant) for tenant in "aabbccdd"]
    most = int((40_000 - 20_000) / (COST.decode_us + COST.fixed_us / 3))
    while d.live:
        plan = step(d)
        assert len(d.scheduler._books.running[INTERACTIVE]) <= most < len(ids)
        assert sum(batch.predicted_us for batch in plan.batches) <= 21_000
    d.run()
    d.assert_all_ended()
    assert PowerLimits(step_us=20_000, row_limit=2).rows(10**9, 0.0, 1000.0) == 2
    assert PowerLimits(step_us=20_000).rows(1000, 3000.0, 90_000.0) == 1
