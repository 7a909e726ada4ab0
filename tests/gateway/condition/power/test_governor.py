"""The governor on virtual time: batteries, heat, watts and quotas, and what is left to be used."""

from __future__ import annotations

from typing import Any

import pytest

from poise.config.serving import PowerSettings
from poise.gateway.condition.power.governor import (
    DUTY_MIN_PPM,
    MAINS_STEADY_S,
    Governor,
    Limits,
    Moment,
    PowerState,
    Takes,
    power,
)
from poise.gateway.condition.power.sources import Kind, Quality, Reading
from poise.scheduler.power import FULL_PPM, Background

K = Kind


class Host:
    """Moments, a second apart, of a host whose readings a test changes."""

    def __init__(self, **policy: Any) -> None:
        self.governor = Governor(PowerSettings(enabled=True, **policy))
        self.now_s = 1000.0
        self.readings: dict[Kind, float] = {}
        self.more: dict[str, Any] = {}

    def look(self, seconds: int = 1, **readings: float | None) -> Limits:
        limits = Limits()
        for name, value in readings.items():
            self.readings.pop(Kind(name), None)
            if value is not None:
                self.readings[Kind(name)] = value
        for _ in range(seconds):
            self.now_s += 1
            given = {kind: Reading(kind, value) for kind, value in self.readings.items()}
            absent = {kind: Reading(kind, None, 0.0, Quality.ABSENT) for kind in Kind}
            limits = self.governor.look(Moment(self.now_s, absent | given, **self.more))
        return limits


def test_a_host_that_tells_nothing_is_not_held_back() -> None:
    """Nor is one on mains that is cool."""
    host = Host(reserve_percent=20, battery_streams=1)
    assert host.look(100) == Limits()
    assert host.look(100, mains=1, battery=5, temperature=40, trip=90, throttled=0) == Limits()


def test_on_battery() -> None:
    """As the policy says, down to the reserve; back on mains not before they are steady."""
    host = Host(battery_duty=0.5, battery_streams=2, battery_threads=3, reserve_percent=20)
    saving = host.look(mains=0, battery=80)
    assert (saving.state, saving.engine.duty_ppm, saving.engine.row_limit, saving.threads) == (PowerState.SAVING, 500_000, 2, 3)
    assert (saving.engine.background, saving.takes) == (Background.PAUSE, Takes.ALL)
    critical = host.look(battery=20)
    assert (critical.state, critical.engine.background) == (PowerState.CRITICAL, Background.PARK)
    assert (critical.takes, host.look(battery=10).takes) == (Takes.INTERACTIVE, Takes.NONE)
    assert critical.retry_after_s > 0
    assert host.look(battery=29).state is PowerState.CRITICAL
    assert host.look(battery=31).state is PowerState.SAVING
    assert host.look(int(MAINS_STEADY_S), mains=1).state is PowerState.SAVING
    assert host.look().state is PowerState.FULL


def test_mains_that_flap_change_nothing() -> None:
    """A loose plug is no mains."""
    host = Host(battery_duty=0.5)
    host.look(mains=0)
    states = [host.look(20, mains=n % 2).state for n in range(10)]
    assert states == [PowerState.SAVING] * 10
    assert host.look(100, mains=None).state is PowerState.SAVING


@pytest.mark.parametrize(("minute", "saves"), [(22 * 60, True), (3 * 60, True), (6 * 60 + 30, False), (12 * 60, False)])
def test_saving_hours(minute: int, saves: bool) -> None:
    """Also over midnight."""
    host = Host(battery_duty=0.4, hours=["22:00-06:30", "13:00-13:30"])
    host.more = {"minute": minute}
    limits = host.look()
    assert (limits.engine.duty_ppm == 400_000) is saves
    assert any("saving hours" in reason for reason in limits.reasons) is saves


def test_heat() -> None:
    """A tenth less every five seconds from five degrees below the trip point on; back slowly, when it is clearly cooler."""
    host = Host()
    assert host.look(10, temperature=89.9, trip=95).engine.duty_ppm == FULL_PPM
    assert host.look(temperature=90).engine.duty_ppm == 900_000
    assert host.look(4).engine.duty_ppm == 900_000
    assert host.look().engine.duty_ppm == 800_000
    assert host.look(30, temperature=88).engine.duty_ppm == 800_000
    assert host.look(5, temperature=86).engine.duty_ppm == 820_000
    host.more = {"interactive": True}
    assert host.look().engine.background is Background.PAUSE
    host.more = {}
    assert host.look().engine.background is Background.RUN
    assert host.look(100).state is PowerState.FULL


def test_throttling_counts_at_once() -> None:
    """The hardware has acted already."""
    host = Host()
    host.look(3, temperature=60, trip=95, throttled=0)
    limits = host.look(throttled=1)
    assert limits.engine.duty_ppm == 800_000
    assert host.look().engine.duty_ppm == 600_000
    assert host.look(50).engine.duty_ppm == DUTY_MIN_PPM
    assert host.look(throttled=0).engine.duty_ppm < 200_000


def test_at_the_trip_point_it_is_critical() -> None:
    """Background goes, and when no pause is left to be longer, nothing new is taken."""
    host = Host(max_celsius=70.0)
    limits = host.look(temperature=76)
    assert (limits.state, limits.takes, limits.engine.background) == (PowerState.CRITICAL, Takes.INTERACTIVE, Background.PARK)
    limits = host.look(60)
    assert (limits.engine.duty_ppm, limits.takes) == (DUTY_MIN_PPM, Takes.NONE)
    assert limits.retry_after_s == 30.0 + 5 * 9
    assert host.look(temperature=68).state is PowerState.CRITICAL
    assert host.look(temperature=66).state is PowerState.SAVING


@pytest.mark.parametrize(("idle_w", "busy_w"), [(3, 12), (10, 40), (0, 60), (14, 18)])
def test_a_budget_of_watts_is_kept(idle_w: float, busy_w: float) -> None:
    """On hosts of several kinds it settles near the budget, within half a minute."""
    host, budget = Host(max_watts=15.0), 15.0
    duty, watts = 1.0, busy_w
    seen = []
    for _ in range(120):
        watts = idle_w + (busy_w - idle_w) * duty
        duty = host.look(package_power=watts).engine.duty_ppm / FULL_PPM
        seen.append(watts)
    wanted = max(idle_w + (busy_w - idle_w) * 0.1, min(budget, busy_w))
    assert all(value == pytest.approx(wanted, rel=0.1) for value in seen[40:])


def test_power_that_cannot_be_read_is_estimated_and_said_to_be() -> None:
    """From how busy the threads were; without a figure for that it is absent, and said so."""
    seen = Moment(0.0, {}, busy_ppm=500_000, n_threads=4)
    estimated = power(seen, PowerSettings(watts_per_thread=6.0))
    assert (estimated.value, estimated.quality) == (12.0, Quality.ESTIMATED)
    assert power(seen, PowerSettings()).quality is Quality.ABSENT
    limits = Host(max_watts=5.0).look()
    assert limits.engine.duty_ppm == FULL_PPM
    assert "no power can be read" in limits.reasons[0]


def test_a_quota_of_less_than_a_core() -> None:
    """Pauses come from the server, not from the system: it takes less than the quota, in steps that fit into a period, and less
    still while periods are used up. Threads are never more than the quota has cores."""
    host = Host(battery_threads=8)
    limits = host.look(quota=0.5)
    assert (limits.engine.duty_ppm, limits.engine.step_us, limits.threads) == (400_000, 40_000, 1)
    assert host.look(quota_throttled=0.1).engine.duty_ppm == 400_000
    assert host.look(quota_throttled=0.3).engine.duty_ppm == 380_000
    assert host.look(20).engine.duty_ppm == 200_000
    assert host.look(quota_throttled=0.0).engine.duty_ppm == 210_000
    assert host.look(30).engine.duty_ppm == 400_000
    assert host.look(quota=2.7).threads == 2
    assert host.look(mains=0).threads == 2
    assert host.look(100, quota=None, mains=1, quota_throttled=None).engine.duty_ppm == FULL_PPM


def test_memory_pressure_shrinks_the_store() -> None:
    """By halves, and back when there has been none for a while."""
    host = Host()
    assert host.look(pressure_memory=9).engine.store_ppm == FULL_PPM
    assert host.look(pressure_memory=30).engine.store_ppm == 500_000
    assert host.look(4).engine.store_ppm == 500_000
    assert host.look(60).engine.store_ppm < 1000
    assert host.look(59, pressure_memory=0).engine.store_ppm < 1000
    assert host.look(2).engine.store_ppm == FULL_PPM // 8
    assert host.look(300).engine.store_ppm == FULL_PPM
