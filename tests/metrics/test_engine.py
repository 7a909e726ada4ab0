"""Counters of the engine as Prometheus sees them: they go on while it rests, and never go back."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import pytest

from poise.metrics.engine import EngineCollector, EngineReading
from poise.scheduler.totals import Totals
from poise.wire.figures import Bottleneck
from poise.wire.status import Status
from tests.gateway.fakes import status


@dataclass
class Scraped:
    """An engine whose status is given, and a clock that is set."""

    now_ns: int = 0
    restarts: int = 0
    told: Status | None = None

    def __post_init__(self) -> None:
        self._collector = EngineCollector(lambda: EngineReading(True, self.restarts, self.told), lambda: self.now_ns)

    def tell(self, limit: str, since_s: float, recomputed: int = 0, **limited_s: float) -> None:
        bottleneck = Bottleneck({name: int(s * 1e6) for name, s in limited_s.items()}, limit, int(since_s * 1e9))
        totals = Totals(recomputed_tokens=recomputed)
        self.told = msgspec.structs.replace(status(), bottleneck=bottleneck, totals=totals)

    def value(self, metric: str, **labels: str) -> float:
        (found,) = [
            sample.value
            for family in self._collector.collect()
            for sample in family.samples
            if sample.name == metric and sample.labels == labels
        ]
        return found

    def limited(self, resource: str) -> float:
        return self.value("poise_bottleneck_seconds_total", resource=resource)


def test_a_resting_engine_goes_on_being_idle() -> None:
    """It tells nothing for an hour; the counter moves all the same, so that shares of any window are right."""
    engine = Scraped()
    engine.tell("idle", 100.0, idle=40.0, compute=60.0)
    engine.now_ns = 100_000_000_000
    assert (engine.limited("idle"), engine.limited("compute")) == (40, 60)
    engine.now_ns += 3600_000_000_000
    assert (engine.limited("idle"), engine.limited("compute")) == (3640, 60)
    engine.tell("compute", 3700.5, idle=3640.5, compute=60.0)
    engine.now_ns = 3701_000_000_000
    assert (engine.limited("idle"), engine.limited("compute")) == pytest.approx((3640.5, 60.5))
    assert engine.value("poise_bottleneck", resource="compute") == 1
    assert engine.value("poise_bottleneck", resource="idle") == 0


def test_a_counter_never_goes_back_until_the_engine_is_a_new_one() -> None:
    """Its status was a little old, and it had gone on to something else."""
    engine = Scraped(now_ns=11_000_000_000)
    engine.tell("compute", 10.0, recomputed=50, idle=0.0, compute=10.0)
    assert engine.limited("compute") == 11
    engine.tell("idle", 11.5, recomputed=30, idle=1.0, compute=10.5)
    assert engine.limited("compute") == 11
    assert engine.value("poise_engine_recomputed_tokens_total") == 50
    engine.restarts = 1
    assert engine.limited("compute") == 10.5
    assert engine.value("poise_engine_recomputed_tokens_total") == 30
