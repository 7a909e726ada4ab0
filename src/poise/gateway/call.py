"""One API request on its way through the local engine: perhaps a summary first, then its generation."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Sequence
from hashlib import sha256

import msgspec

from poise import __version__
from poise.gateway.auditing import RequestEntry
from poise.gateway.bugs import log_bug
from poise.gateway.engine_client import Engine
from poise.gateway.errors import ApiError, internal_error, invalid_value
from poise.gateway.following import Stage, Stop
from poise.gateway.generation import ChoiceRequest, Generation
from poise.gateway.prompts import Plan, Prompts
from poise.gateway.record import Record
from poise.gateway.records import Records
from poise.gateway.request.generate import Generate
from poise.gateway.summary import Summarizer
from poise.gateway.text.tokens import TextModel
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import Hold
from poise.wire.messages import Ready

log = logging.getLogger(__name__)

_SEEDS = 2**32 - 1
"""The engine's seeds are 32 bit, and llama.cpp takes the highest one to mean a random seed."""


class Call:
    """One API request that is ready for the engine: perhaps a summary first, then its generation. It is its record's work."""

    def __init__(
        self,
        record: Record,
        request: Generate,
        plan: Plan,
        prompts: Prompts,
        engine: Engine,
        text: TextModel,
        metrics: GatewayMetrics,
        records: Records,
    ) -> None:
        self.record = record
        self.is_late = plan.summary is not None
        """A summary comes first: too long to leave a stream without a sign of life."""
        self._asked: tuple[Generate, Plan] | None = (request, plan)
        """Until it starts: from then on the prompt is held by who works on it, and by nobody who outlives that."""
        self.notes = plan.headers
        """What the response is to say of how its prompt was made: header to value."""
        self._prompts = prompts
        self._engine = engine
        self._text = text
        self._metrics = metrics
        self._records = records
        self._generation = Generation(record, engine, text, metrics)
        self._summarizer: Summarizer | None = None
        self._task: asyncio.Task[None] | None = None
        self.entry: RequestEntry | None = None
        """What is put on record of it at its end."""

    def start(self) -> None:
        """Hand it to the engine. Whoever follows the record hears what comes of it."""
        assert self._asked is not None, "it has started"
        (request, plan), self._asked = self._asked, None
        self.record.start(self, self._ended)
        self._records.add(self.record)
        if plan.summary is None:
            self._submit(request, plan)
        else:
            self.record.note("summarizing", turns=plan.summary.n_turns)
            self._task = asyncio.create_task(self._summarize(request, plan), name="summary")

    def stop(self, why: Stop) -> None:
        if self._task is not None:
            self._task.cancel()
        self._generation.stop(why)

    def hold(self, level: Hold) -> None:
        self._generation.hold(level)

    def requests(self) -> list[tuple[int, int]]:
        """What the engine is computing for it now, the summary included."""
        if self._summarizer is not None and self._summarizer.running is not None:
            return self._summarizer.running.requests()
        return self._generation.requests()

    async def _summarize(self, request: Generate, plan: Plan) -> None:
        """Make the prompt that the summary belongs to, then go on as usual."""
        assert plan.summary is not None
        try:
            self._summarizer = Summarizer(self.record, self._engine, self._text, self._metrics)
            summary = await self._summarizer.summarize(plan.summary.pieces, plan.summary.n_output)
            self._summarizer = None
            await self._prompts.finish(plan, self._text.of(plan.account), summary)
            self._submit(request, plan)
        except ApiError as error:
            self._generation.fail(error)
        except Exception as bug:
            error_id = log_bug(log, self.record.origin.request_id, bug)
            self._generation.fail(internal_error(error_id))

    def _submit(self, request: Generate, plan: Plan) -> None:
        self.record.n_prompt = sum(len(ids) for ids in plan.ids)
        self.record.shape.notes = plan.notes
        self._generation.submit(_choices(plan, request), request.stop)

    def _ended(self, record: Record) -> None:
        """Nobody comes back for a request that was refused, unless its client has been told an id."""
        refused = record.stage is Stage.REFUSED
        if refused and record.failure is not None:
            tenant = None if record.erased else record.origin.tenant
            self._metrics.rejected(record.origin.request_class, record.failure.code, tenant)
        entry, self.entry, self._task = self.entry, None, None
        if entry is not None:
            entry.ended(record)
        self._records.finish(record, keep=not refused or self.is_late)


def _choices(plan: Plan, request: Generate) -> list[ChoiceRequest]:
    """One engine request for each choice of each prompt, in the order of their indices."""
    seed = secrets.randbits(32) if request.seed is None else request.seed
    requests = []
    for ids in plan.ids:
        max_output = plan.allowance.granted(plan.limits, len(ids))
        assert max_output is not None, "the plan fits"
        for i in range(request.n):
            sampling = msgspec.structs.replace(request.sampling, seed=(seed + i) % _SEEDS)
            requests.append(ChoiceRequest(ids, max_output, sampling, plan.template))
    return requests


def check_ids(ids: list[int], n_tokens: int, param: str) -> None:
    for token in (min(ids, default=0), max(ids, default=0)):
        if not 0 <= token < n_tokens:
            raise invalid_value(param, f"have token ids from 0 to {n_tokens - 1}", token, f"has {token}")


def fingerprint(model_name: str, ready: Ready) -> str:
    """Changes with the server's version and the model: what a repeated seed depends on."""
    parts: Sequence[str] = (__version__, model_name, ready.model_description, str(ready.model_bytes))
    return "fp_" + sha256("\n".join(parts).encode()).hexdigest()[:12]
