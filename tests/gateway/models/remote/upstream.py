"""A remote model before a scripted cloud, and its answers in records."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from poise.config import Settings
from poise.gateway.models.egress.door import Egress
from poise.gateway.models.egress.permit import Permit
from poise.gateway.models.money.ledger import Ledger
from poise.gateway.models.remote.answer import NotAnswered, RemoteAnswer
from poise.gateway.models.remote.model import RemoteModel
from poise.gateway.models.routing.policy import Switches, TenantPolicy, Wish, decide, permit
from poise.gateway.records.record import Follower, Origin, Record
from poise.gateway.records.values import Heading
from poise.gateway.request.generate import AnswerOptions, Conversation, Generate
from poise.gateway.request.labels import Label
from poise.metrics.engine import EngineReading
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.text import Message
from poise.wire.to_engine import SamplingParams
from tests.egress.cloud import Cloud

WAIT_S = 60.0
"""Only a failing test waits that long."""


def chat(text: str = "Say it.", **fields: Any) -> Generate:
    given: dict[str, Any] = {
        "model": "m",
        "prompt": Conversation([Message("user", text)]),
        "n": 1,
        "stream": True,
        "max_tokens": 20,
        "stop": (),
        "seed": None,
        "sampling": SamplingParams(),
        "request_class": RequestClass.INTERACTIVE,
        "queue_timeout_ms": 0,
        "background": False,
        "answer": AnswerOptions(),
    }
    return Generate(**(given | fields))


class Book:
    """An audit log that keeps its entries."""

    enabled = True

    def __init__(self) -> None:
        self.entries: list[tuple[str, dict[str, Any]]] = []

    async def written(self, event: str, **fields: Any) -> None:
        self.put(event, **fields)

    def put(self, event: str, **fields: Any) -> None:
        self.entries.append((event, fields))

    def last(self, event: str) -> dict[str, Any]:
        return next(fields for name, fields in reversed(self.entries) if name == event)


class Life(Follower):
    """A record, and an answer that is written into it."""

    def __init__(
        self, model: RemoteModel, request: Generate, n_choices: int, permit_of: Callable[[], Permit], tenant: str
    ) -> None:
        origin = Origin(
            "req", tenant, request.request_class, "messages", time.perf_counter(), request.queue_timeout_ms, operation="chat"
        )
        super().__init__(Record(origin, Heading("r", 0, "big", ""), n_choices))
        self.n_ends = 0
        self.record.on_end = self._ended
        self.answer: RemoteAnswer = model.answer(request, self.record, permit_of)
        self.record.start(self.answer)
        self.task = asyncio.create_task(self.answer.run())

    def _ended(self, record: Record) -> None:
        self.n_ends += 1

    async def until(self, condition: Callable[[Record], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition(self.record):
                await self._wakeup.wait()

    async def over(self) -> Record:
        """The record, when `run` has returned: it has ended, once."""
        async with asyncio.timeout(WAIT_S):
            await self.task
        assert (self.n_ends, self.record.is_ended, self.record.work) == (1, True, None)
        assert all(choice.outcome for choice in self.record.choices)
        return self.record

    async def refused(self) -> NotAnswered:
        """It was not answered: the record is as good as new."""
        async with asyncio.timeout(WAIT_S):
            await asyncio.wait([self.task])
        error = self.task.exception()
        assert isinstance(error, NotAnswered)
        record = self.record
        assert (self.n_ends, record.is_open, record.n_entries, record.place) == (0, False, 0, None)
        assert not any(choice.started or choice.outcome for choice in record.choices)
        return error

    @property
    def text(self) -> str:
        return self.record.answers()[0].text

    @property
    def moments(self) -> list[str]:
        return [moment.what for moment in self.record.timeline]


class Upstream:
    """All that is around one backend."""

    def __init__(self, cloud: Cloud, tenant: dict[str, Any], **backend: Any) -> None:
        of_backend = cloud.backend(**backend)
        self.settings = Settings.model_validate(
            {
                "egress": {"enabled": True},
                "backends": {"cloud": of_backend},
                "tenants": {"t": {"egress": "allowed", "data_class": "public"} | tenant},
            }
        )
        self.cloud, self.book = cloud, Book()
        self.metrics = GatewayMetrics(lambda: EngineReading(True, 0, None))
        self.egress = Egress(self.settings, self.book, self.metrics.egress, environ={})
        self.ledger = Ledger(self.settings, None)
        self.model = RemoteModel("cloud", self.settings, self.egress, self.ledger, self.metrics)

    def begin(self, request: Generate | None = None, n_choices: int = 1, tenant: str = "t") -> Life:
        return Life(self.model, request or chat(), n_choices, self.permit, tenant)

    async def whole(self, request: Generate | None = None, n_choices: int = 1) -> Life:
        life = self.begin(request, n_choices)
        await life.over()
        return life

    def permit(self) -> Permit:
        wish = Wish("cloud", label=Label.PUBLIC)
        views = [self.model.view(RequestClass.INTERACTIVE)]
        decision = decide(wish, TenantPolicy("allowed"), None, views, Switches.of(self.settings.egress), is_open=True)
        choice = decision.order[0]
        return permit(decision, choice, wish, "t", "req")

    @property
    def n_reserved(self) -> int:
        """Requests that money is set aside for."""
        return len(self.ledger._open)


PRICED: dict[str, Any] = {"price_input": "2", "price_cached": "1", "price_output": "10"}


@asynccontextmanager
async def upstream(tenant: dict[str, Any] | None = None, **backend: Any) -> AsyncIterator[Upstream]:
    """With prices: in nano-units, 2000 for a token of prompt, half of it for a cached one, 10000 for one of output."""
    async with Cloud() as cloud:
        made = Upstream(cloud, tenant or {}, **(PRICED | backend))
        try:
            yield made
        finally:
            await made.egress.close()
            made.ledger.close()
