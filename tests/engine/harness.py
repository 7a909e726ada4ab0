"""An engine over simulated ports, driven message by message."""

from __future__ import annotations

from poise.config import PoolSettings, PoolsSettings, Settings, to_policy
from poise.engine.core import Engine
from poise.scheduler.policy import CostPrior
from poise.scheduler.scheduler import Scheduler
from poise.sim.clock import VirtualClock
from poise.sim.runner import SimRunner
from poise.wire import messages as wire
from poise.wire.messages import PoolInfo, SamplingParams

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


class Mailboxes:
    """Inbox and Outbox: messages are put in by the test, and what the engine sends is kept."""

    def __init__(self) -> None:
        self.incoming: list[wire.ToEngine] = []
        self.sent: list[wire.ToGateway] = []
        self.blocked = 0

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[wire.ToEngine]:
        self.blocked += block and not self.incoming
        messages, self.incoming = self.incoming, []
        return messages

    def send(self, message: wire.ToGateway) -> None:
        self.sent.append(message)


class Bench:
    """An engine with the default policy (smaller slots) over a SimRunner."""

    def __init__(self, *, slots: int = 10, end_rate: int = 0, runner: SimRunner | None = None) -> None:
        self.clock = VirtualClock()
        self.mail = Mailboxes()
        pools = [PoolInfo("short", slots, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
        self.runner = runner or SimRunner(pools, clock=self.clock, cost=CostPrior(), end_rate=end_rate)
        short = PoolSettings(slots=slots, slot_tokens=512)
        settings = Settings(pools=PoolsSettings(short=short))
        policy = to_policy(settings, slot_cells={p.name: p.slot_cells for p in pools})
        self.scheduler = Scheduler(policy)
        self.engine = Engine(self.scheduler, self.runner, self.clock, self.mail, self.mail)

    def submit(
        self,
        request_id: int,
        prompt: list[int],
        max_output: int = 20,
        sampling: SamplingParams = GREEDY,
        tenant: str = "a",
        request_class: str = "interactive",
    ) -> None:
        self.mail.incoming.append(wire.Submit(request_id, tenant, request_class, prompt, max_output, sampling))

    def run(self, steps_max: int = 5000) -> None:
        """Step until the engine would wait for a message."""
        before = self.mail.blocked
        for _ in range(steps_max):
            self.engine.step()
            self.scheduler.check()
            if self.mail.blocked > before:
                return
        raise AssertionError(f"still busy after {steps_max} steps")

    def tokens(self, request_id: int) -> list[int]:
        steps = [m for m in self.mail.sent if isinstance(m, wire.Step)]
        return [t.token for s in steps for t in s.tokens if t.request_id == request_id]

    def finishes(self, request_id: int) -> list[wire.Finish]:
        steps = [m for m in self.mail.sent if isinstance(m, wire.Step)]
        return [f for s in steps for f in s.finishes if f.request_id == request_id]
