"""Accounts over real engine processes: the gateway keeps what one engine says of them, and tells the next one."""

from __future__ import annotations

import os
import signal
import sys

from poise.config import Settings
from poise.config.serving import TenantSettings
from poise.config.settings import EngineSettings
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.supervision.supervisor import Supervisor
from poise.scheduler.fairness.accounts import Account
from poise.scheduler.request import RequestClass
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts
from tests.gateway.mailbox import Mailbox


def supervisor() -> Supervisor:
    settings = Settings(engine=EngineSettings(restart_delay_max_s=0.5), tenants={"t": TenantSettings(tokens_per_minute=60)})
    return Supervisor(settings, "model.gguf", (sys.executable, "-m", "tests.gateway.simulated_engine", "works"))


async def last_event(s: Supervisor, n_prompt: int) -> object:
    sampling = to_engine.SamplingParams(temperature=0.0, ignore_eos=True)
    prompt = list(range(1, n_prompt + 1))
    request_class = RequestClass.INTERACTIVE
    box = Mailbox(s.submit(to_engine.Submit(0, "t", request_class.value, prompt, 3, sampling)))
    received: list[object] = []
    while not (received and isinstance(received[-1], wire.Finish | wire.Refused)):
        received += await box.receive()
    return received[-1]


async def test_a_tenant_over_its_tokens_is_refused_by_the_engine_after_the_next_one_too() -> None:
    """Whoever can make engines die gets no tokens for it. Its erasure by an operator ends it."""
    s = supervisor()
    await s.start()
    try:
        await s.until(lambda state: state.is_settled)
        assert isinstance(await last_event(s, 3000), wire.Finish)
        for _ in range(2):  # the second is taken when the step that took the first has ended, with its report
            await s.forget("nobody")
        for restarts in (1, 2):
            assert s.state.ready is not None
            os.kill(s.state.ready.pid, signal.SIGKILL)
            await s.until(lambda state, n=restarts: state.restarts >= n and state.phase is EnginePhase.READY)  # type: ignore[misc]
            refused = await last_event(s, 3)
            assert isinstance(refused, wire.Refused), refused
            assert refused.reason == "tenant_rate"
        s.disown("t")
        await s.erase("t")
        assert isinstance(await last_event(s, 3), wire.Finish)
    finally:
        await s.stop()


def test_what_is_kept_of_a_tenant_is_erased() -> None:
    """Its entry alone, with an engine or without one."""
    s = supervisor()
    s._dispatch(Accounts(5, [Account("t", {}, -3.0), Account("u", {RequestClass.INTERACTIVE: 4})]))
    s.disown("t")
    assert s._accounts == Accounts(5, [Account("u", {RequestClass.INTERACTIVE: 4})])
