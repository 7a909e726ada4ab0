"""What is made of an engine's counters and of what the gateway noted, second by second."""

from __future__ import annotations

from typing import Any

import msgspec

from poise.metrics.lately import Lately, RecentTtft
from poise.metrics.sample import (
    HistorySampler,
    ItlFigures,
    MemorySample,
    PoolSample,
    ReaderSample,
    Scene,
    StepSample,
    TtftFigures,
    quantile,
)
from poise.scheduler.request import PreemptionKind
from poise.scheduler.totals import Totals
from poise.wire.figures import Bottleneck, Distribution, StepFigures
from poise.wire.status import Status
from tests.gateway.fakes import status

STEPS = StepFigures(
    {"plan": 1_000_000, "forward": 3_000_000},
    Distribution((1.0, 2.0), (1, 3, 0), 7.0),
    Distribution((8.0,), (4, 0), 12.0),
    Distribution((8.0,), (4, 0), 6.0),
    Distribution((8.0,), (4, 0), 16.0),
    Distribution((8.0,), (4, 0), 6.0),
    Distribution((1.0,), (5, 0), 5.5),
)
S = 1_000_000_000


def scene(told: Status | None, lately: Lately | None = None, **fields: Any) -> Scene:
    classes, unclassed = (lately or Lately()).take()
    known: dict[str, Any] = {
        "seq": 0,
        "at": 0.0,
        "phase": "ready",
        "level": "normal",
        "restarts": 0,
        "n_recovering": 0,
        "n_behind": 0,
        "n_timeouts": 0,
        "gateway_rss_bytes": 77,
        "status": told,
        "classes": classes,
        "unclassed": unclassed,
    }
    return Scene(**known | fields)


def told(**fields: Any) -> Status:
    return msgspec.structs.replace(status(), **fields)


def numbers(value: Any) -> list[float]:
    """All numbers in a sample."""
    if isinstance(value, dict):
        return [n for part in value.values() for n in numbers(part)]
    if isinstance(value, list):
        return [n for part in value for n in numbers(part)]
    return [value] if isinstance(value, int | float) else []


def test_counters_become_what_one_second_brought() -> None:
    """Rates, shares and means of the time between two samples."""
    sampler = HistorySampler()
    sampler.sample(scene(told(steps=StepFigures(), totals=Totals())), 1.0, S)
    sample = sampler.sample(
        scene(told(step=11, prompt_tokens=300, steps=STEPS, totals=Totals({PreemptionKind.SWAP: 2}, stored_bytes=50))), 2.0, 3 * S
    )
    assert sample.prompt_tokens_per_s == 100.0
    assert sample.steps == StepSample(
        count=4,
        p50_ms=1333.3,
        p95_ms=1933.3,
        busy=1.0,
        parts={"plan": 0.25, "forward": 0.75},
        decode_tokens=3.0,
        prompt_tokens=1.5,
        sequences=4.0,
        cost_ratio=1.1,
    )
    assert (sample.preemptions, sample.stored_bytes, sample.loaded_bytes) == ({"swap": 2}, 50, 0)
    again = sampler.sample(
        scene(told(step=11, prompt_tokens=300, steps=STEPS, totals=Totals({PreemptionKind.SWAP: 2}, stored_bytes=50))), 1.0, 4 * S
    )
    assert (again.steps, again.preemptions, again.stored_bytes) == (None, {"swap": 0}, 0)
    assert again.prompt_tokens_per_s == 0.0


def test_levels_are_told_as_they_stand() -> None:
    """Pools, store, memory and classes, without a tenant."""
    sample = HistorySampler().sample(scene(status(), n_behind=2, n_timeouts=3), 1.0, S)
    assert sample.pools[0] == PoolSample("short", 4, 3, 1, 1200, 210, 40, 1)
    assert sample.store is not None
    assert sample.store.bytes_by_purpose == {"swap": 500, "prefix": 70, "template": 0}
    assert sample.memory == MemorySample(123_456, 23_456, 77)
    interactive = sample.classes["interactive"]
    assert (interactive.queued, interactive.running, interactive.paused, interactive.swapped) == (2, 3, 1, 0)
    assert (interactive.wait_estimate_ms, interactive.wait_error) == (250, 0.25)
    assert (interactive.jain, interactive.gap_ms) == (0.9, 250)
    assert sample.readers == ReaderSample(behind=2, timed_out=3)
    assert "local" not in msgspec.json.encode(sample).decode()


def test_a_new_engine_is_counted_from_zero() -> None:
    """Its counters are lower than those of the one before; nothing is negative, and nothing of it is lost."""
    sampler = HistorySampler()
    sampler.sample(scene(told(step=500, prompt_tokens=9000, steps=STEPS)), 1.0, S)
    lost = sampler.sample(scene(None, phase="restarting", restarts=1, n_recovering=4), 1.0, 2 * S)
    assert (lost.limit, lost.limited, lost.steps, lost.pools, lost.store) == (None, {}, None, [], None)
    assert (lost.restarts, lost.recovering, lost.memory.engine_rss_bytes) == (1, 4, None)
    sample = sampler.sample(scene(told(step=3, prompt_tokens=40, output_tokens=2), restarts=1), 1.0, 3 * S)
    assert sample.prompt_tokens_per_s == 40.0
    assert sample.stored_bytes == 5000
    assert min(numbers(msgspec.to_builtins([lost, sample]))) >= 0


def test_a_new_engine_may_be_faster_than_the_old_one_was() -> None:
    """Its counters are its own, however high they are."""
    sampler = HistorySampler()
    sampler.sample(scene(told(step=500, prompt_tokens=90)), 1.0, S)
    assert sampler.sample(scene(told(step=501, prompt_tokens=100), restarts=1), 1.0, 2 * S).prompt_tokens_per_s == 100.0


def test_counters_that_went_back_unannounced_are_those_of_a_new_engine() -> None:
    """Also when no restart was told in between."""
    sampler = HistorySampler()
    sampler.sample(scene(told(step=500, prompt_tokens=9000)), 1.0, S)
    assert sampler.sample(scene(told(step=3, prompt_tokens=40)), 1.0, 2 * S).prompt_tokens_per_s == 40.0


def test_shares_of_what_limits_progress_add_up_to_one() -> None:
    """An engine that rests tells nothing, and goes on being idle; what was told too much is never taken back."""
    sampler = HistorySampler()
    computing = Bottleneck({"compute": 0, "idle": 1_000_000}, "compute", 10 * S)
    sampler.sample(scene(told(bottleneck=computing)), 1.0, 10 * S)
    assert sampler.sample(scene(told(bottleneck=computing)), 1.0, 11 * S).limited == {"compute": 1.0, "idle": 0.0}
    resting = Bottleneck({"compute": 500_000, "idle": 1_000_000}, "idle", 10 * S + S // 2)
    sample = sampler.sample(scene(told(bottleneck=resting)), 1.0, 12 * S)
    assert (sample.limit, sample.limited) == ("idle", {"compute": 0.0, "idle": 1.0})
    halved = Bottleneck({"compute": 500_000, "idle": 3_250_000}, "compute", 12 * S + 3 * S // 4)
    sample = sampler.sample(scene(told(bottleneck=halved)), 1.0, 13 * S)
    assert sample.limited == {"compute": 0.25, "idle": 0.75}


def test_what_the_gateway_noted_is_told_once() -> None:
    """Times by class, endings and refusals of one second; the next one begins empty."""
    lately, sampler = Lately(), HistorySampler()
    for ms in range(1, 101):
        lately.next_token("interactive", ms / 1000)
    lately.first_token("interactive", 0.25, 0.0)
    lately.ended("background", "stop")
    lately.refused("background", "queue_full")
    lately.refused("interactive", "queue_full")
    lately.refused(None, "invalid_json")
    sample = sampler.sample(scene(status(), lately), 2.0, S)
    interactive, background = sample.classes["interactive"], sample.classes["background"]
    assert interactive.itl_ms == ItlFigures(100, p50=50.0, p99=99.0, max=100.0)
    assert interactive.ttft_ms == TtftFigures(1, p50=250.0, p95=250.0, max=250.0)
    assert (interactive.output_tokens_per_s, sample.output_tokens_per_s) == (50.5, 50.5)
    assert (background.ttft_ms, background.itl_ms, background.finished) == (None, None, {"stop": 1})
    assert background.refused == {"queue_full": 1}
    assert sample.refused == {"invalid_json": 1, "queue_full": 2}
    after = sampler.sample(scene(status(), lately), 1.0, 2 * S)
    assert (after.classes["interactive"].itl_ms, after.refused) == (None, {})
    assert after.classes["background"].finished == {}


def test_times_to_first_tokens_are_kept_for_a_minute() -> None:
    """Percentiles by nearest rank, whatever samples are taken meanwhile; of those, each has what came since the one before."""
    lately = Lately()
    for i in range(1, 101):
        lately.first_token("interactive", i / 1000, 0.0)
    assert lately.ttft_ms("interactive", 60.0) == RecentTtft(50.0, 95.0, 100)
    assert lately.take()[0]["interactive"].n_tokens == 100
    lately.first_token("interactive", 0.007, 30.0)
    assert lately.ttft_ms("interactive", 61.0) == RecentTtft(7.0, 7.0, 1)
    taken = lately.take()[0]["interactive"]
    assert (taken.n_tokens, list(taken.ttft_s)) == (1, [0.007])
    assert not lately.take()[0]["interactive"].ttft_s
    assert lately.ttft_ms("interactive", 91.0) == RecentTtft(None, None, 0)


def test_the_rate_of_tokens_is_that_of_the_last_samples() -> None:
    """Each counts by its time; a new engine starts from nothing, and one that says nothing computes nothing."""
    sampler = HistorySampler()
    assert sampler.tokens_per_s == (0.0, 0.0)
    for second in range(11):
        n = second + 1
        sampler.sample(scene(told(prompt_tokens=100 * n, output_tokens=10 * n * n)), 1.0, n * S)
    assert sampler.tokens_per_s == (100.0, 170.0)
    sampler.sample(scene(told(prompt_tokens=1200, output_tokens=1210)), 5.0, 16 * S)
    assert sampler.tokens_per_s == (round(500 / 9, 1), round((10 * (121 - 49)) / 9, 1))
    sampler.sample(scene(told(prompt_tokens=20, output_tokens=3), restarts=1), 2.0, 18 * S)
    assert sampler.tokens_per_s == (10.0, 1.5)
    sampler.sample(scene(None, restarts=1), 2.0, 20 * S)
    assert sampler.tokens_per_s == (0.0, 0.0)


def test_a_quantile_is_estimated_within_its_bucket() -> None:
    """Beyond the last bound it is that bound."""
    assert quantile(Distribution((1.0, 2.0), (0, 4, 0), 6.0), 0.5) == 1.5
    assert quantile(Distribution((1.0, 2.0), (1, 0, 9), 50.0), 0.95) == 2.0
    assert quantile(Distribution((1.0, 2.0), (2, 0, 2), 9.0), 0.5) == 1.0
