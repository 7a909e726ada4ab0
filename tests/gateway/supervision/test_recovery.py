"""Streams that survive engines: real processes that are killed, stopped and broken.

The simulated model's next token depends on every token before it: a stream that has lost, doubled or changed one goes on wrong.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from poise.config import Settings
from poise.gateway.supervision.engine import QUARANTINED, EnginePhase
from poise.gateway.supervision.life import Backoff
from poise.scheduler.request import Control
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts
from tests.engine.reference import answer
from tests.gateway.mailbox import Mailbox
from tests.gateway.simulated_engine import BUG_TOKEN, HANG_TOKEN, KILL_TOKEN, OPEN_TOKEN, PLAN_LENGTH
from tests.gateway.supervision.test_supervisor import events, pid_of, submit, supervisor, until_ready

LONG = 1500
WATCHDOG_S = 2.0
"""Longer than an engine has no turn on a busy host: what is taken for a hang there would be a death too many."""


def told(received: list[object]) -> list[str]:
    """Everything but the tokens, the waiting and what the scheduler did."""
    names = [event.what if isinstance(event, wire.Change) else type(event).__name__ for event in received]
    return [name for name in names if name in ("Accepted", "Started", "lost", "recover", "Finish")]


def tokens(received: list[object]) -> list[int]:
    return [event.token for event in received if isinstance(event, wire.Token)]


async def until_tokens(handle: Mailbox, n: int) -> list[object]:
    received: list[object] = []
    while len(tokens(received)) < n:
        received += await handle.receive()
    return received


def undisturbed(prompts: list[list[int]]) -> list[list[int]]:
    return [answer(prompt, LONG) for prompt in prompts]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP])
async def test_streams_go_on_with_their_next_token(how: signal.Signals) -> None:
    """Killed, crashed or stopped in the middle of eight: each has all its tokens once, those it would have had anyway."""
    prompts = [[10 + i, 20, 30] for i in range(8)]
    async with supervisor(watchdog_s=WATCHDOG_S) as s:
        await s.until(lambda state: state.is_settled)
        handles = [submit(s, prompt, LONG) for prompt in prompts]
        received = [await until_tokens(handle, 5) for handle in handles]
        os.kill(pid_of(s), how)
        for handle, begun in zip(handles, received, strict=True):
            begun += await events(handle)
        assert s.state.restarts == 1
        value = s.metrics.registry.get_sample_value
        cause = "hang" if how is signal.SIGSTOP else "crash"
        assert value("poise_engine_losses_total", {"cause": cause}) == 1
        n_lost = sum("lost" in told(each) for each in received)
        assert value("poise_recovered_requests_total", {"class": "interactive"}) == n_lost
        assert value("poise_recovery_seconds_count", {"class": "interactive"}) == n_lost
        assert value("poise_engine_down_seconds_count") == 1
    assert n_lost, "the kill came too late"
    for each in received:
        assert told(each) in (["Accepted", "Started", "lost", "recover", "Finish"], ["Accepted", "Started", "Finish"])
    assert [tokens(each) for each in received] == undisturbed(prompts)


async def test_a_hang_is_told_as_what_it_was() -> None:
    """Not as a SIGKILL, which was the watchdog's."""
    async with supervisor(watchdog_s=WATCHDOG_S) as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [1, 2, 3], LONG)
        await until_tokens(handle, 5)
        os.kill(pid_of(s), signal.SIGSTOP)
        await s.until(lambda state: state.phase is EnginePhase.RESTARTING)
        assert s.state.detail.startswith("the engine hung and was ended: it has ")
        await events(handle)


async def test_a_stopped_engine_without_work_is_noticed_by_the_next_message() -> None:
    """It rests; what tells is that the message stays where it is. The request is not lost with it."""
    async with supervisor(watchdog_s=WATCHDOG_S) as s:
        await s.until(lambda state: state.is_settled)
        os.kill(pid_of(s), signal.SIGSTOP)
        received = await events(submit(s, [1, 2, 3]))
        assert told(received) == ["Accepted", "Started", "Finish"], "it had no answer yet, so nothing was lost"
        assert s.state.restarts == 1


@pytest.mark.parametrize(("token", "deaths"), [(KILL_TOKEN, 3), (BUG_TOKEN, 2), (HANG_TOKEN, 2)])
async def test_a_request_that_kills_engines_is_quarantined_and_the_others_go_on(token: int, deaths: int) -> None:
    """It is found among others, ends with its own reason, and nobody else loses a token."""
    prompts = [[10, 2, 3], [11, 2, 3]]
    async with supervisor(watchdog_s=WATCHDOG_S) as s:
        await s.until(lambda state: state.is_settled)
        handles = [submit(s, prompt, LONG) for prompt in prompts]
        received = [await until_tokens(handle, 5) for handle in handles]
        culprit = submit(s, [token, 2, 3])
        last = (await events(culprit))[-1]
        assert isinstance(last, wire.Finish)
        assert last.reason == QUARANTINED
        assert s.state.restarts == deaths
        (report,) = s.quarantined()
        assert (report.deaths, report.engine_request, report.prompt_tokens) == (deaths, culprit.request_id, 3)
        for handle, begun in zip(handles, received, strict=True):
            begun += await events(handle)
    assert [tokens(each) for each in received] == undisturbed(prompts)


@pytest.mark.parametrize(
    ("prompt", "engines"), [([OPEN_TOKEN, 2, 3], 2), (list(range(1, PLAN_LENGTH + 1)), 4)], ids=["opening", "planning"]
)
async def test_outside_of_a_pass_the_one_to_blame_is_found_as_well(prompt: list[int], engines: int) -> None:
    """Where the engine had said whom it dealt with, at the second death; where it had not, when each is tried alone."""
    prompts = [[first, *range(2, 40)] for first in (10, 11)]
    async with supervisor(watchdog_s=WATCHDOG_S) as s:
        await s.until(lambda state: state.is_settled)
        handles = [submit(s, each, LONG) for each in prompts]
        received = [await until_tokens(handle, 5) for handle in handles]
        culprit = submit(s, prompt)
        last = (await events(culprit))[-1]
        assert isinstance(last, wire.Finish)
        assert last.reason == QUARANTINED
        assert s.state.restarts == engines
        assert [report.engine_request for report in s.quarantined()] == [culprit.request_id]
        for handle, begun in zip(handles, received, strict=True):
            begun += await events(handle)
    assert [tokens(each) for each in received] == undisturbed(prompts)


async def test_what_waits_is_readmitted() -> None:
    """More requests than slots: those in the queue keep their order and lose nothing."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        handles = [submit(s, [10 + i, 2, 3], 200 if i < 12 else 5) for i in range(30)]
        await until_tokens(handles[0], 5)
        os.kill(pid_of(s), signal.SIGKILL)
        for i, handle in enumerate(handles):
            received = await events(handle)
            if i:  # some of the first one's have been taken
                assert len(tokens(received)) == (200 if i < 12 else 5)
            assert isinstance(received[-1], wire.Finish)
            assert received[-1].reason == "length"


async def test_an_abort_while_there_is_no_engine_ends_the_request() -> None:
    """At once; the next engine never hears of it."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [1, 2, 3], LONG)
        await until_tokens(handle, 5)
        os.kill(pid_of(s), signal.SIGKILL)
        await s.until(lambda state: state.phase is EnginePhase.RESTARTING)
        handle.abort()
        last = (await events(handle))[-1]
        assert isinstance(last, wire.Finish)
        assert last.reason == "aborted"
        assert s.n_live == 0
        await until_ready(s, restarts=1)


async def test_an_operator_s_pause_outlives_the_engine() -> None:
    """The new engine is told before it computes anything of the request."""
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        handle = submit(s, [1, 2, 3], LONG)
        received = await until_tokens(handle, 5)
        await s.control(handle.request_id, Control.PAUSE)
        os.kill(pid_of(s), signal.SIGKILL)
        await until_ready(s, restarts=1)
        resumed = await s.control(handle.request_id, Control.RESUME)
        assert resumed.detail == "", "it was paused"
        received += await events(handle)
        assert len(tokens(received)) == LONG


async def test_the_next_engine_has_what_is_in_force(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other settings, lowered shares; an engine that is replaced on purpose is no loss."""
    sent: list[to_engine.ToEngine] = []
    async with supervisor() as s:
        await s.until(lambda state: state.is_settled)
        send = s._send

        def noting(message: to_engine.ToEngine) -> None:
            sent.append(message)
            send(message)

        monkeypatch.setattr(s, "_send", noting)
        s.adjust(0.5, 0.25)
        lower = Settings()
        s.use(lower)
        s.restart("for a test")
        assert s.state.detail == "for a test"
        await until_ready(s, restarts=1)
        assert sent[:2] == [to_engine.Adjust(0.5, 0.25), to_engine.Shutdown()]
        assert sent[2] == to_engine.Configure(lower.model_dump_json(), "model.gguf", weights="works", secret=s._store.secret)
        assert sent[3] == to_engine.Inherit()
        assert isinstance(sent[4], Accounts)
        assert sent[5] == to_engine.Adjust(0.5, 0.25)
        assert not s.metrics.registry.get_sample_value("poise_engine_losses_total", {"cause": "exit"})


def test_back_off() -> None:
    """At once after a stable time, then half a second, doubling to the limit."""
    backoff = Backoff(3.0)
    unstable: Callable[[], float] = lambda: backoff.after(stable=False)  # noqa: E731
    assert [unstable() for _ in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]
    assert backoff.after(stable=True) == 0.0
    assert [unstable() for _ in range(2)] == [0.5, 1.0]
