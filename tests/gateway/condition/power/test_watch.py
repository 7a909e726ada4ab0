"""What is done about power once a second: limits to the engine, refusals, energy, and pages that are given back."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace as changed
from prometheus_client import CollectorRegistry

from poise.config import Settings
from poise.config.serving import PowerSettings
from poise.gateway.condition.power.sampling import Sampling
from poise.gateway.condition.power.sources import Found, Kind, Probe
from poise.gateway.condition.power.watch import PowerWatch
from poise.gateway.request.refusals import ApiError
from poise.metrics.power import PowerMetrics
from poise.scheduler.request import RequestClass
from poise.wire.figures import StepFigures
from poise.wire.status import Status
from tests.gateway.fakes import FakeEngine

K = Kind


class Source:
    def __init__(self) -> None:
        self.found: Found = {}

    def read(self, now_s: float) -> Found:
        return dict(self.found)


class Inline(Sampling):
    """Reads at once, without a thread."""

    def ask(self) -> None:
        self.read()


class Watched:
    def __init__(self, **power: Any) -> None:
        self.now_s = 1000.0
        self.source, self.engine = Source(), FakeEngine()
        self.registry = CollectorRegistry()
        settings = Settings(power=PowerSettings(**power))
        sampling = Inline([Probe(tuple(Kind), self.source.read)], clock=self.clock)
        self.watch = PowerWatch(settings, self.engine, PowerMetrics(self.registry), sampling, self.clock, lambda: 0)

    def clock(self) -> float:
        return self.now_s

    def pass_time(self, seconds: int, **found: float) -> None:
        self.source.found |= {Kind(name): value for name, value in found.items()}
        for _ in range(seconds):
            self.now_s += 1.0
            self.watch.look()

    def sample(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    def refused(self, request_class: RequestClass) -> ApiError | None:
        try:
            self.watch.check(request_class)
        except ApiError as error:
            return error
        return None


def test_nothing_is_read_or_limited_unless_it_is_enabled() -> None:
    """And nobody is refused."""
    watched = Watched()
    watched.pass_time(10, mains=0, battery=1)
    assert watched.engine.limited == []
    assert watched.watch.body().readings == []
    assert watched.refused(RequestClass.BACKGROUND) is None


def test_limits_are_sent_when_they_change() -> None:
    """Once each time, and refusals say why and when to come back."""
    watched = Watched(enabled=True, battery_duty=0.5, battery_streams=2, reserve_percent=20)
    watched.pass_time(20, mains=1, battery=90)
    assert watched.engine.limited == []
    watched.pass_time(20, mains=0)
    (sent,) = watched.engine.limited
    assert (sent.limits.duty_ppm, sent.limits.row_limit, sent.limits.background) == (500_000, 2, "pause")
    assert watched.refused(RequestClass.BACKGROUND) is None
    watched.pass_time(10, battery=20)
    assert watched.engine.limited[-1].limits.background == "park"
    error = watched.refused(RequestClass.BACKGROUND)
    assert error is not None
    assert (error.status, error.code, error.headers["Retry-After"]) == (503, "power_saving", "600")
    assert "20 %" in error.message
    assert watched.refused(RequestClass.INTERACTIVE) is None
    watched.pass_time(10, battery=9)
    assert watched.refused(RequestClass.INTERACTIVE) is not None
    body = watched.watch.body()
    assert (body.state, body.takes, body.limits.duty_ppm) == ("critical", "none", 500_000)
    assert {row.kind: row.quality for row in body.readings}["temperature"] == "absent"


def test_energy_is_counted_with_its_quality() -> None:
    """Of what is measured; where nothing is, by the estimate, if there is one, and under its own name."""
    watched = Watched(enabled=True, watts_per_thread=4.0)
    busy = Status(1, {}, [], 0, 0, 0, 0, threads=2)
    watched.engine.state.status = busy
    watched.pass_time(1)
    for n in range(10):
        watched.engine.state.status = changed(busy, steps=StepFigures(parts_us={"forward": (n + 1) * 500_000}))
        watched.pass_time(1)
    assert watched.watch.joules == {("package_power", "estimated"): pytest.approx(40.0)}
    assert watched.watch.watts_busy == pytest.approx(4.0)
    watched.pass_time(6, package_power=10.0)
    assert watched.watch.joules["package_power", "measured"] == pytest.approx(10.0)  # idle, it is read every five seconds
    assert watched.sample("poise_power_watts", source="package_power", quality="measured") == 10.0
    assert watched.sample("poise_power_watts", source="package_power", quality="estimated") is None
    assert watched.sample("poise_energy_joules_total", source="package_power", quality="measured") == pytest.approx(10.0)
    watched.now_s += 3600
    before = dict(watched.watch.joules)
    watched.watch.look()
    assert watched.watch.joules == before


def test_an_idle_models_pages_are_given_back_once() -> None:
    """After the time, and again after the next request; never while something is live, or there is no engine."""
    watched = Watched(idle_release_s=30.0)
    watched.pass_time(29)
    assert watched.sample("poise_idle_releases_total") == 0
    watched.pass_time(10)
    assert watched.engine.state.is_released
    assert watched.sample("poise_idle_releases_total") == 1
    watched.engine.state.is_released = False
    watched.pass_time(60)
    assert watched.sample("poise_idle_releases_total") == 2


def test_readings_are_values() -> None:
    """What is shown of one has its unit and its age."""
    watched = Watched(enabled=True)
    watched.pass_time(3, temperature=61.5)
    row = next(row for row in watched.watch.body().readings if row.kind == "temperature")
    assert (row.value, row.unit, row.quality) == (61.5, "C", "measured")
