"""An engine over simulated ports, driven message by message."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from queue import SimpleQueue
from typing import Any

import msgspec

from poise.config import Settings, to_policy
from poise.config.settings import PoolSettings, PoolsSettings
from poise.engine.arena import Arena
from poise.engine.core import Engine
from poise.scheduler.policy import CostPrior
from poise.scheduler.request import Started
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.messages import PoolInfo
from poise.wire.to_engine import SamplingParams
from poise_lab.sim.runner import VirtualClock
from tests.scheduler.books import check_scheduler
from tests.sim.exact_runner import CELL_BYTES, ExactRunner

GREEDY = SamplingParams(temperature=0.0, ignore_eos=True)


PAGE_S_MAX = 10.0
"""Only a failing test waits that long."""


class Mailboxes:
    """Inbox and Outbox: messages are put in by the test, and what the engine sends is kept."""

    def __init__(self) -> None:
        self.incoming: list[to_engine.ToEngine] = []
        self.sent: list[wire.ToGateway] = []
        self.pages: SimpleQueue[wire.JournalPage] = SimpleQueue()
        """Pages of the journal, which come from another thread."""
        self.blocked = 0
        self.waits: list[int | None] = []
        """Until when it would have waited, each time that there was nothing to do."""

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        if block and not self.incoming:
            self.blocked += 1
            self.waits.append(wait_until_ns)
        messages, self.incoming = self.incoming, []
        return messages

    def wake(self) -> None:
        """What a simulated runner prepares, it has at once."""

    def send(self, message: wire.ToGateway) -> None:
        if isinstance(message, wire.JournalPage):
            self.pages.put(message)
        else:
            self.sent.append(message)


class Bench:
    """An engine with the default policy (smaller slots) over a ExactRunner. `changes` are to the policy."""

    def __init__(
        self,
        *,
        slots: int = 10,
        end_rate: int = 0,
        echo: int = 0,
        n_vocab: int = 1000,
        runner: ExactRunner | None = None,
        clock: VirtualClock | None = None,
        secret: bytes = b"poise",
        rss_bytes: Callable[[], int] = lambda: 0,
        weights_bytes: int = 0,
        arena: Arena | None = None,
        **changes: Any,
    ) -> None:
        self.clock = clock or VirtualClock()
        self.mail = Mailboxes()
        pools = [PoolInfo("short", slots, 512, True, 0), PoolInfo("long", 2, 2048, False, 0)]
        self.runner = runner or ExactRunner(
            pools, n_vocab=n_vocab, clock=self.clock, cost=CostPrior(), end_rate=end_rate, echo=echo, arena=arena
        )
        short = PoolSettings(slots=slots, slot_tokens=512)
        settings = Settings(pools=PoolsSettings(short=short))
        policy = to_policy(
            settings,
            slot_cells={p.name: p.slot_cells for p in pools},
            cell_bytes=dict.fromkeys((p.name for p in pools), CELL_BYTES),
            lasts=arena is not None,
        )
        policy = replace(policy, **changes)
        self.scheduler = Scheduler(policy)
        self.engine = Engine(
            self.scheduler,
            self.runner,
            self.clock,
            self.mail,
            self.mail,
            rss_bytes=rss_bytes,
            weights_bytes=weights_bytes,
            secret=secret,
            arena=arena,
            fingerprint=b"the same",
        )
        self.engine.journal.record_policy(policy)

    def send(self, *messages: to_engine.ToEngine) -> None:
        """Messages for the next step."""
        self.mail.incoming += messages

    def submit(
        self,
        request_id: int,
        prompt: list[int],
        max_output: int = 20,
        sampling: SamplingParams = GREEDY,
        tenant: str = "a",
        request_class: str = "interactive",
        template: str = "",
        queue_timeout_ms: int = 0,
        output: Sequence[int] = (),
        suspect: bool = False,
        grammar: to_engine.Grammar | None = None,
        prediction: Sequence[int] = (),
    ) -> None:
        """With `output` or as a suspect it comes from an engine before this one."""
        message = to_engine.Submit(request_id, tenant, request_class, prompt, max_output, sampling, template, queue_timeout_ms)
        message = msgspec.structs.replace(message, grammar=grammar, prediction=list(prediction))
        if output or suspect:
            message = msgspec.structs.replace(message, output=list(output), readmitted=True, suspect=suspect)
        self.mail.incoming.append(message)

    def page(self, message: to_engine.ReadJournal) -> wire.JournalPage:
        """The answer to a reader of the journal."""
        self.mail.incoming.append(message)
        self.run()
        return self.mail.pages.get(timeout=PAGE_S_MAX)

    def journal(self, read_id: int = 1) -> list[str]:
        """All lines of the journal as a reader gets them."""
        page, lines = self.page(to_engine.ReadJournal(read_id, begins=True)), []
        while not page.is_last:
            lines += page.lines
            page = self.page(to_engine.ReadJournal(read_id))
        return lines

    def run(self, steps_max: int = 5000) -> None:
        """Step until the engine would wait for a message."""
        before = self.mail.blocked
        for _ in range(steps_max):
            self.engine.step()
            check_scheduler(self.scheduler)
            if self.mail.blocked > before:
                return
        raise AssertionError(f"still busy after {steps_max} steps")

    def step(self, n: int = 1) -> None:
        for _ in range(n):
            self.engine.step()
            check_scheduler(self.scheduler)

    def control(self, request_id: int, action: str) -> wire.Controlled:
        """An operator's word, and the engine's answer."""
        self.send(to_engine.Control(request_id, action))
        self.step()
        return [m for m in self.mail.sent if isinstance(m, wire.Controlled)][-1]

    @property
    def steps(self) -> list[wire.Step]:
        return [m for m in self.mail.sent if isinstance(m, wire.Step)]

    def tokens(self, request_id: int) -> list[int]:
        return [t.token for s in self.steps for t in s.tokens if t.request_id == request_id]

    def start(self, request_id: int) -> Started:
        """Its one start."""
        (start,) = [m for s in self.steps for m in s.starts if m.request_id == request_id]
        return start

    def changes(self, request_id: int) -> list[wire.Change]:
        return [c for s in self.steps for c in s.changes if c.request_id == request_id]

    def finishes(self, request_id: int) -> list[wire.Finish]:
        return [f for s in self.steps for f in s.finishes if f.request_id == request_id]

    def finish(self, request_id: int) -> wire.Finish:
        """Its one end."""
        (finish,) = self.finishes(request_id)
        return finish
