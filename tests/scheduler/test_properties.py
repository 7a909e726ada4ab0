"""Random loads against the scheduler's invariants, checked after every step by the driver and by `tests.scheduler.books`."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from poise.scheduler.policy import LONG_POOL, SHORT_POOL, StorePolicy, TenantPolicy
from poise.scheduler.power import FULL_PPM, NO_LIMITS, Background, PowerLimits
from poise.scheduler.request import Control, Hold, Queued, RequestClass, Started
from poise.scheduler.scheduler import Scheduler
from tests.scheduler.books import check_scheduler
from tests.scheduler.driver import BACKGROUND, CELL_BYTES, COST, INTERACTIVE, Driver, blocks, policy


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, aborts, steps, failures and slow machines in any order."""

    @initialize(
        slots=st.integers(1, 6),
        long_slots=st.integers(1, 4),
        heavy_max=st.integers(1, 3),
        interactive_heavy_max=st.integers(1, 3),
        min_share=st.sampled_from([0.0, 0.15, 0.5]),
        itl_us=st.sampled_from([5_000, 100_000]),
        chunk_tokens=st.sampled_from([0, 64]),
        hole_steps=st.integers(1, 4),
        turn_us=st.sampled_from([1, 200_000]),
        preemptions_max=st.integers(0, 3),
        store_cells=st.sampled_from([0, 150, 1000, 100_000]),
        grain_us=st.sampled_from([1, 500_000]),
    )
    def build(
        self,
        slots: int,
        long_slots: int,
        heavy_max: int,
        interactive_heavy_max: int,
        min_share: float,
        itl_us: int,
        chunk_tokens: int,
        hole_steps: int,
        turn_us: int,
        preemptions_max: int,
        store_cells: int,
        grain_us: int,
    ) -> None:
        self.driver = Driver(
            Scheduler(
                policy(
                    slots=slots,
                    slot_cells=256,
                    long_slots=long_slots,
                    heavy_max=heavy_max,
                    interactive_heavy_max=interactive_heavy_max,
                    queue_max=8,
                    min_share=min_share,
                    background_slots=max(1, slots - 1),
                    heavy_tokens=100,
                    chunk_tokens=chunk_tokens,
                    itl_us=itl_us,
                    hole_steps=hole_steps,
                    turn_us=turn_us,
                    preemptions_max=preemptions_max,
                    store=StorePolicy(budget_bytes=store_cells * CELL_BYTES),
                    grain_us=grain_us,
                    tenants={"b": TenantPolicy(weight=2.0, running_max=2), "c": TenantPolicy(tokens_per_minute=2000)},
                    downgrade_output_tokens=30,
                )
            )
        )

    @rule(
        n_prompt=st.integers(1, 600),
        max_output=st.sampled_from([1, 3, 10, 25, 40, 300, 5000]),
        tenant=st.sampled_from("abc"),
        request_class=st.sampled_from(list(RequestClass)),
        text=st.sampled_from(["", "one", "two"]),
        template=st.booleans(),
        timeout_us=st.sampled_from([0, 0, 1, 3_000_000]),
        n_output=st.sampled_from([0, 0, 0, 1, 20]),
        suspect=st.booleans(),
    )
    def add(
        self,
        n_prompt: int,
        max_output: int,
        tenant: str,
        request_class: RequestClass,
        text: str,
        template: bool,
        timeout_us: int,
        n_output: int,
        suspect: bool,
    ) -> None:
        n_output = min(n_output, max_output - 1)
        answer = self.driver.offer(
            n_prompt,
            max_output,
            tenant,
            request_class,
            blocks=blocks(text or tenant, n_prompt + n_output),
            template="greeting" if template and n_prompt >= 40 else "",
            template_cells=40 if template and n_prompt >= 40 else 0,
            queue_timeout_us=timeout_us,
            n_output=n_output,
            readmitted=n_output > 0,
            suspect=suspect and n_output > 0,
        )
        if n_prompt + n_output > 512:
            assert not isinstance(answer, Queued), "what can never fit was accepted"

    @precondition(lambda self: self.driver.accepted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        self.driver.abort(data.draw(st.sampled_from(list(self.driver.accepted))))

    @rule(
        n=st.integers(1, 12),
        factor=st.sampled_from([0.2, 1.0, 20.0]),
        end=st.booleans(),
        fail=st.sampled_from("-----sl"),
        break_carrying=st.sampled_from([False, False, False, True]),
    )
    def step(self, n: int, factor: float, end: bool, fail: str, break_carrying: bool) -> None:
        failing = {"s": SHORT_POOL, "l": LONG_POOL}.get(fail)
        ended = list(self.driver.accepted)[::3] if end else []
        for _ in range(n):
            self.driver.step(ended, lambda batch: "broken" * (batch.pool == failing), factor, break_carrying)

    @precondition(lambda self: self.driver.accepted)
    @rule(data=st.data(), action=st.sampled_from(list(Control)))
    def control(self, data: st.DataObject, action: Control) -> None:
        self.driver.control(data.draw(st.sampled_from(list(self.driver.accepted))), action)

    @precondition(lambda self: self.driver.accepted)
    @rule(data=st.data(), level=st.sampled_from(list(Hold)))
    def hold(self, data: st.DataObject, level: Hold) -> None:
        self.driver.hold(data.draw(st.sampled_from(list(self.driver.accepted))), level)

    @rule(queue_share=st.sampled_from([0.01, 0.5, 1.0]), slots_share=st.sampled_from([0.01, 0.5, 1.0]))
    def adjust(self, queue_share: float, slots_share: float) -> None:
        self.driver.scheduler.adjust(queue_share, slots_share)
        check_scheduler(self.driver.scheduler)

    @rule(
        rows=st.sampled_from([0, 1, 3]),
        background=st.sampled_from(list(Background)),
        store_ppm=st.sampled_from([0, FULL_PPM]),
        step_us=st.sampled_from([0, 1, 30_000]),
    )
    def limit(self, rows: int, background: Background, store_ppm: int, step_us: int) -> None:
        """No duty: the driver's clock knows no pauses."""
        limits = PowerLimits(row_limit=rows, background=background, store_ppm=store_ppm, step_us=step_us)
        self.driver.scheduler.limit(limits)
        check_scheduler(self.driver.scheduler)

    @rule(pool=st.sampled_from([SHORT_POOL, LONG_POOL]))
    def declare(self, pool: str) -> None:
        self.driver.offer(40, 1, "", BACKGROUND, pins="greeting", pool=pool)

    @rule(tenant=st.sampled_from("abc"))
    def erase(self, tenant: str) -> None:
        self.driver.scheduler.erase(tenant)
        check_scheduler(self.driver.scheduler)

    @rule(seconds=st.integers(1, 100))
    def time_passes(self, seconds: int) -> None:
        self.driver.now_ns += seconds * 1_000_000_000

    def teardown(self) -> None:
        """Whatever happened, the rest finishes, everything ends once and nothing is left behind."""
        driver = getattr(self, "driver", None)
        if driver is not None:
            driver.scheduler.limit(NO_LIMITS)
            for request_id in driver.live:
                driver.control(request_id, Control.RESUME)
                driver.hold(request_id, Hold.RUN)
            driver.run()
            driver.assert_all_ended()


TestScheduler = SchedulerMachine.TestCase
TestScheduler.settings = settings(max_examples=60, stateful_step_count=40, suppress_health_check=list(HealthCheck))


def test_no_class_starves_while_work_keeps_coming() -> None:
    """Under endless arrivals of both classes and sizes no request waits longer than its queue takes at the class's share."""
    queue_max, share = 12, 0.2
    d = Driver(Scheduler(policy(slots=4, queue_max=queue_max, background_slots=2, min_share=share, ageing=0.5)))
    largest_us = COST.prompt_us * 900 + COST.attended_us * 900**2 / 2 + 12 * 1.5 * (COST.decode_us + COST.fixed_us)
    bound_ns = queue_max * largest_us / share * 1000
    born: dict[int, int] = {}
    for step in range(1500):
        for request_class in (INTERACTIVE, BACKGROUND):
            request_id = d._next_id
            sizes = (900, 12) if step % 9 == 0 else (40, 6)
            answer = d.offer(*sizes, tenant=f"t{step % 3}", request_class=request_class)
            if isinstance(answer, Queued):
                born[request_id] = d.now_ns
        d.step()
        for event in d.events:
            if isinstance(event, Started):
                born.pop(event.request_id, None)
        d.events.clear()
        assert d.now_ns - min(born.values()) <= bound_ns


def test_equal_inputs_give_equal_plans() -> None:
    """Invariant 9, within a process; tests/sim repeats it across hash seeds."""

    def plans() -> list[object]:
        d = Driver(Scheduler(policy(slots=3)))
        for i in range(12):
            request_class = BACKGROUND if i % 3 == 0 else INTERACTIVE
            d.add(20 + 7 * i, 5 + i, tenant=f"t{i % 4}", request_class=request_class)
        d.run()
        return list(d.plans)

    assert plans() == plans()
