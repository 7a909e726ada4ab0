"""A backend without an engine: it says `0 1 2 ...` in every choice, a number a turn of the loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from itertools import count

from poise.gateway.models.backend import BackendState, Card
from poise.gateway.models.local.refusals import engine_unavailable
from poise.gateway.records.following import Stop
from poise.gateway.records.moments import End
from poise.gateway.records.record import CANCELLED, Origin, Record
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.refusals import ApiError, context_length_exceeded
from poise.scheduler.request import FinishReason, Hold

SUMMARY_TURNS = 20
"""Turns of the loop that a summary takes."""


class ScriptedBackend:
    """Takes conversations of so many characters; longer ones must be summarized first, if they may be."""

    def __init__(self, name: str = "scripted", chars_max: int = 1000) -> None:
        self.card = Card(name, chars_max)
        self._chars_max = chars_max
        self.state = BackendState(is_ready=True, retry_after_s=1.0)
        self.live: set[ScriptedWork] = set()
        self.ids = count(1)

    async def prepare(self, request: Generate, origin: Origin) -> ScriptedJob:
        """Raises ApiError."""
        self.check_ready()
        assert isinstance(request.prompt, Conversation)
        is_long = sum(len(message.content) for message in request.prompt.messages) > self._chars_max
        if is_long and request.prompt.context_policy != "summarize":
            raise context_length_exceeded("The conversation is too long.", "Shorten it.", origin.prompt_param)
        return ScriptedJob(self, request, is_late=is_long)

    def check_ready(self) -> None:
        """Raises ApiError."""
        if not self.state.is_ready:
            raise engine_unavailable("nobody plays", self.state.retry_after_s)


class ScriptedJob:
    """A request with as many numbers as it has tokens."""

    fingerprint = "fp_scripted"

    def __init__(self, backend: ScriptedBackend, request: Generate, *, is_late: bool) -> None:
        self.n_choices = request.n
        self.headers: Mapping[str, str] = {"X-Poise-Context": "summarize"} if is_late else {}
        self.ignored: tuple[str, ...] = ()
        self.is_late = is_late
        self._backend = backend
        self._n_tokens = request.max_tokens or 3

    def start(self, record: Record) -> None:
        work = ScriptedWork(self._backend, record, self._n_tokens)
        record.start(work)
        try:
            self._backend.check_ready()
        except ApiError as error:
            record.end(error)
        else:
            work.begin(late=self.is_late)


class ScriptedWork:
    """Plays one record."""

    def __init__(self, backend: ScriptedBackend, record: Record, n_tokens: int) -> None:
        self._backend = backend
        self._record = record
        self._n_tokens = n_tokens
        self._ids = [next(backend.ids) for _ in record.choices]
        self._is_free = asyncio.Event()
        self._is_free.set()
        self._task: asyncio.Task[None] | None = None

    def begin(self, *, late: bool) -> None:
        """Play it to its end."""
        self._backend.live.add(self)
        self._task = asyncio.create_task(self._play(late=late))

    def stop(self, why: Stop) -> None:
        """End it here."""
        record, outcome = self._record, why.value if why is Stop.READER_TIMEOUT else CANCELLED
        record.stopped_by = why
        self._end(CANCELLED, outcome)
        if self._task is not None:
            self._task.cancel()

    def hold(self, level: Hold) -> None:
        (self._is_free.set if level is Hold.RUN else self._is_free.clear)()

    def requests(self) -> list[tuple[int, int]]:
        """One for each choice."""
        return [(choice.index, self._ids[choice.index]) for choice in self._record.choices if choice.outcome is None]

    async def _play(self, *, late: bool) -> None:
        record = self._record
        if late:
            record.note("summarizing", turns=1)
            for _ in range(SUMMARY_TURNS):
                await asyncio.sleep(0)
        record.n_prompt = 7
        record.open()
        for i in range(self._n_tokens):
            for choice in record.choices:
                await self._is_free.wait()
                await asyncio.sleep(0)
                choice.n_output += 1
                record.append(choice.index, f"{i} ", (), time.perf_counter())
                record.notify()
        self._end(FinishReason.LENGTH.value, FinishReason.LENGTH.value)

    def _end(self, reason: str, outcome: str) -> None:
        record = self._record
        self._backend.live.discard(self)
        for choice in record.choices:
            record.end_choice(End(len(record.texts), choice.index, reason, "", ()), outcome)
        record.end()
