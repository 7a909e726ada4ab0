"""The pulse: one loop for all that looks once a second, and the fault of one is no other's."""

from __future__ import annotations

import asyncio
import logging

import pytest
from prometheus_client.exposition import generate_latest

from poise.gateway.tasks.tasks import Pulse
from tests.gateway.fakes import FakeEngine, ask, make_app, status
from tests.gateway.tasks.test_tasks import Clockwork


async def test_all_look_once_a_second_in_their_order() -> None:
    """With one task for all of them, and a row in /status for each."""
    work, seen, done = Clockwork(), list[tuple[str, float]](), asyncio.Event()

    def look(name: str) -> None:
        seen.append((name, work.now_s))
        if len(seen) == 6:
            done.set()

    Pulse(work.tasks, {name: lambda name=name: look(name) for name in ("levels", "history")}).start()  # type: ignore[misc]
    await asyncio.wait_for(done.wait(), 5)
    assert seen[:6] == [(name, at) for at in (1.0, 2.0, 3.0) for name in ("levels", "history")]
    assert [row.name for row in work.tasks.rows()] == ["levels", "history", "pulse"]
    assert len(work.tasks._running) == 1
    await work.tasks.stop()


@pytest.mark.parametrize("error", [ValueError("a prompt"), asyncio.CancelledError()])
def test_the_fault_of_one_look_is_its_own(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """The others look at every beat. It is logged, counted and shown, tried again later each time, and forgiven when it works."""
    work, n_good, at = Clockwork(), 0, list[int]()

    def good() -> None:
        nonlocal n_good
        n_good += 1

    def bad() -> None:
        at.append(n_good)
        if len(at) <= 8:
            raise error

    pulse = Pulse(work.tasks, {"bad": bad, "good": good})
    for name in ("bad", "good"):
        work.tasks.watch(name)
    with caplog.at_level(logging.ERROR):
        for _ in range(26):
            pulse.beat()
            work.now_s += 1.0
    assert n_good == 26
    assert at == [0, 1, 2, 3, 4, 6, 10, 15, *range(20, 26)]
    assert (work.told("bad").failures, work.told("bad").state) == (8, "running")
    assert (work.told("good").failures, work.told("good").state) == (0, "running")
    assert b'poise_task_failures_total{task="bad"} 8.0' in generate_latest(work.tasks.metrics.registry)
    assert "a prompt" not in caplog.text
    assert caplog.text.count("raise error") == 1


async def test_what_the_gateway_looks_at_once_a_second() -> None:
    """A sample is taken of what the levels have just been judged by, and /status tells the rate of that sample."""
    engine = FakeEngine()
    engine.state.status = status(1000, 500)
    app = make_app(engine)
    async with app.running():
        names = [row["name"] for row in (await ask(app, "GET", "/status")).json()["tasks"]]
        assert names == ["levels", "power", "findings", "history", "records", "strangers", "pulse", "heap"]
    app.history.sample()
    body = (await ask(app, "GET", "/status")).json()
    rates = app.history.tokens_per_s
    assert body["tokens_per_s"] == {"prompt": rates.prompt, "output": rates.output}
    assert rates.prompt > rates.output > 0
