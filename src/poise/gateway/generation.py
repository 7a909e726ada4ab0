"""One API request on its way through the engine: token events in, text out, everything counted, nothing left running.

A `Choice` is one engine request. A `Generation` has all choices of an API request: it submits them, merges what they bring, and
on `close` takes back what is not finished, whatever the reason.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass

from poise.gateway.engine_client import ENGINE_LOST, EngineClient, EngineUnavailable, RequestEvent, RequestHandle
from poise.gateway.errors import ApiError, engine_lost, engine_unavailable, internal_error, refused
from poise.gateway.responses import DONE, Answer, ResponseFormat, TokenEntry, Usage, queue_comment
from poise.gateway.stream import new_error_id
from poise.gateway.text import Detokeniser, StopScanner, TextModel
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import FinishReason, RequestClass
from poise.wire.messages import Accepted, Finish, Refused, SamplingParams, Start, Token

log = logging.getLogger(__name__)

CANCELLED = "cancelled"
"""Outcome of a choice that nobody waits for any more."""
TOLD_WAIT_US = 500_000
"""A stream that will wait at least this long in the queue is told so."""


@dataclass(frozen=True, slots=True)
class ChoiceRequest:
    """What the engine is asked for."""

    prompt: list[int]
    max_output: int
    sampling: SamplingParams
    template: str = ""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an API request comes from, for the books and the log. `arrived_s` is of the clock `time.perf_counter`."""

    request_id: str
    tenant: str
    request_class: RequestClass
    prompt_param: str
    arrived_s: float


@dataclass(slots=True)
class Update:
    """What one batch of events brought to a choice: text that can be shown, and perhaps its end, good or bad."""

    text: str = ""
    entries: list[TokenEntry] | None = None
    finish_reason: str | None = None
    failure: Finish | None = None


class Generation:
    """All choices of one API request. Use: `open`, then either `events` or `body`; `close` always, at the end."""

    def __init__(
        self,
        origin: Origin,
        engine: EngineClient,
        text: TextModel,
        response: ResponseFormat,
        metrics: GatewayMetrics,
        *,
        n_prompt: int,
        stop: Sequence[str],
        include_usage: bool = False,
        continuous_usage: bool = False,
    ) -> None:
        self._origin = origin
        self._engine = engine
        self._text = text
        self._response = response
        self._metrics = metrics
        self._stop = stop
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._n_prompt = n_prompt
        self._choices: list[Choice] = []
        self._accepted: Accepted | None = None
        self._closed = False

    async def open(self, requests: Sequence[ChoiceRequest]) -> None:
        """Submit the choices and wait until the engine has taken each of them. Raises ApiError, with nothing left behind."""
        try:
            for index, request in enumerate(requests):
                handle = self._submit(request)
                wants_logprobs = request.sampling.n_logprobs >= 0
                self._choices.append(Choice(index, handle, self._text, self._stop, wants_logprobs))
            for choice in self._choices:
                first = await choice.open()
                if isinstance(first, Accepted):
                    self._accepted = first
                elif isinstance(first, Refused):
                    raise refused(first, self._origin.request_class, self._origin.prompt_param)
                elif isinstance(first, Finish) and first.reason == ENGINE_LOST:
                    raise self._error(first)
        except ApiError:
            for choice in self._choices:
                choice.handle.abort()
            self._closed = True  # it never began: it is counted among the rejected, not among the ended
            raise
        self._metrics.accepted(self._origin.request_class, self._n_prompt)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's events, [DONE] included. Raises ApiError when a choice fails: what was sent before stands."""
        if self._accepted is not None and self._accepted.eta_us >= TOLD_WAIT_US:
            yield queue_comment(self._accepted.position, self._accepted.eta_us // 1000)
        opened = [False] * len(self._choices)
        async with aclosing(self._updates()) as updates:
            async for choice, update in updates:
                usage = self.usage() if self._continuous_usage else None
                out = b""
                if update.text or update.entries or (update.finish_reason and not opened[choice.index]):
                    first, opened[choice.index] = not opened[choice.index], True
                    out = self._response.text_event(choice.index, update.text, update.entries, first=first, usage=usage)
                if update.finish_reason:
                    out += self._response.finish_event(choice.index, update.finish_reason, usage)
                if out:
                    yield out
                if update.failure:
                    raise self._error(update.failure)
        if self._include_usage:
            yield self._response.usage_event(self.usage())
        yield DONE

    async def body(self) -> bytes:
        """The response of a request that does not stream. Raises ApiError when a choice fails."""
        return self._response.body(await self.answers(), self.usage())

    async def answers(self) -> list[Answer]:
        """What every choice has come to. Raises ApiError when one fails."""
        texts: list[list[str]] = [[] for _ in self._choices]
        entries: list[list[TokenEntry]] = [[] for _ in self._choices]
        async with aclosing(self._updates()) as updates:
            async for choice, update in updates:
                if update.failure:
                    raise self._error(update.failure)
                texts[choice.index].append(update.text)
                entries[choice.index] += update.entries or []
        return [
            Answer(
                choice.index,
                "".join(texts[choice.index]),
                choice.finish_reason or "stop",
                entries[choice.index] if choice.wants_logprobs else None,
            )
            for choice in self._choices
        ]

    def close(self) -> None:
        """Abort what has not ended, and write the books. Any number of times."""
        if self._closed:
            return
        self._closed = True
        origin, now_s = self._origin, time.perf_counter()
        outcomes = [choice.outcome or CANCELLED for choice in self._choices]
        for choice, outcome in zip(self._choices, outcomes, strict=True):
            if not choice.ended:
                choice.handle.abort()
            self._metrics.ended(origin.request_class, outcome, now_s - origin.arrived_s)
        # When one choice fails the others are cancelled too, but then the client is still there.
        if CANCELLED in outcomes and ENGINE_LOST not in outcomes and FinishReason.FAILED not in outcomes:
            self._metrics.disconnected(origin.request_class)
        log.info(
            "[%s] %s %s: %d prompt and %d output tokens, %s, %.0f ms",
            origin.request_id,
            origin.tenant,
            origin.request_class,
            self._n_prompt,
            self.usage().completion_tokens,
            "+".join(outcomes),
            (now_s - origin.arrived_s) * 1000,
        )

    def _submit(self, request: ChoiceRequest) -> RequestHandle:
        try:
            return self._engine.submit(
                tenant=self._origin.tenant,
                request_class=self._origin.request_class,
                prompt=request.prompt,
                max_output=request.max_output,
                sampling=request.sampling,
                template=request.template,
            )
        except EngineUnavailable as error:
            raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None

    async def _updates(self) -> AsyncGenerator[tuple[Choice, Update], None]:
        """What the choices bring, as it comes, until each has ended. No event of a step waits for another choice's."""
        if len(self._choices) == 1:
            choice = self._choices[0]
            while not choice.ended:
                yield choice, self._feed(choice, await choice.receive())
            return
        waiting = {asyncio.ensure_future(choice.receive()): choice for choice in self._choices}
        try:
            while waiting:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in waiting if task.done()]:
                    choice = waiting.pop(task)
                    yield choice, self._feed(choice, task.result())
                    if not choice.ended:
                        waiting[asyncio.ensure_future(choice.receive())] = choice
        finally:
            for task in waiting:
                task.cancel()

    def _feed(self, choice: Choice, events: Sequence[RequestEvent]) -> Update:
        """Give a choice its events, and the metrics what they tell."""
        now_s = time.perf_counter()
        before = choice.n_output
        update = choice.feed(events)
        request_class = self._origin.request_class.value
        if choice.wait_us is not None:
            self._metrics.started(request_class, choice.wait_us / 1e6)
            choice.wait_us = None
        if choice.n_output > before:
            n_tokens = choice.n_output - before
            if choice.tokens_at_s is None:
                self._metrics.first_tokens(request_class, n_tokens, now_s - self._origin.arrived_s, now_s)
            else:
                self._metrics.more_tokens(request_class, n_tokens, now_s - choice.tokens_at_s)
            choice.tokens_at_s = now_s
        return update

    def _error(self, finish: Finish) -> ApiError:
        """A bad end, as the client is told. The engine's own words are for the log: they may name files and the like."""
        if finish.reason == FinishReason.FAILED:
            error_id = new_error_id()
            log.error("[%s] failed in the engine, %s: %s", self._origin.request_id, error_id, finish.detail)
            return internal_error(error_id)
        return engine_lost(self._engine.state.retry_after_s)

    def usage(self) -> Usage:
        """Tokens so far."""
        return Usage(self._n_prompt, sum(choice.n_output for choice in self._choices))


class Choice:
    """One engine request and the text that has come of it."""

    def __init__(
        self, index: int, handle: RequestHandle, text: TextModel, stop: Sequence[str], wants_logprobs: bool
    ) -> None:
        self.index = index
        self.handle = handle
        self.wants_logprobs = wants_logprobs
        self.n_output = 0
        self.finish_reason: str | None = None
        self.outcome: str | None = None
        """How the engine request ended, once it has."""
        self.wait_us: int | None = None
        """Set when the choice leaves the queue; taken by who books it."""
        self.tokens_at_s: float | None = None
        self._text = text
        self._detokeniser = Detokeniser()
        self._scanner = StopScanner(stop)
        self._n_decoded = 0
        self._n_shown = 0
        self._entries: deque[TokenEntry] = deque()
        self._backlog: list[RequestEvent] = []

    @property
    def ended(self) -> bool:
        return self.outcome is not None

    async def open(self) -> RequestEvent:
        """The engine's first word on the request. What came with it waits for `receive`."""
        first, *self._backlog = await self.handle.receive()
        if isinstance(first, Finish | Start | Token):
            self._backlog.insert(0, first)
        return first

    async def receive(self) -> Sequence[RequestEvent]:
        if self._backlog:
            events, self._backlog = self._backlog, []
            return events
        return await self.handle.receive()

    def feed(self, events: Sequence[RequestEvent]) -> Update:
        """The next events' effect. Tokens after a stop string are not looked at; the engine is told to end."""
        update = Update()
        shown = []
        for event in events:
            match event:
                case Token():
                    shown.append(self._push(event))
                    if self._scanner.stopped:
                        self.handle.abort()
                        self._end("stop", FinishReason.STOP)
                        break
                case Start():
                    self.wait_us = event.wait_us
                case Finish():
                    shown.append(self._finish(event, update))
                case _:
                    pass
        update.text = "".join(shown)
        update.finish_reason = self.finish_reason
        if self.wants_logprobs:
            self._n_shown += len(update.text)
            update.entries = self._take_entries()
        return update

    def _push(self, token: Token) -> str:
        self.n_output += 1
        text = self._detokeniser.push(self._text.token_bytes(token.token))
        if self.wants_logprobs:
            offset = self._n_decoded
            self._n_decoded += len(text)
            # A token that ends within a character is all told when the character is.
            end = self._n_decoded + self._detokeniser.holds_bytes
            name = self._text.token_name
            top = [(name(other.token), other.logprob) for other in token.top]
            logprob = token.logprob if token.logprob is not None else 0.0
            self._entries.append(TokenEntry(name(token.token), logprob, top, offset, end))
        return self._scanner.push(text)

    def _take_entries(self) -> list[TokenEntry]:
        """Of the tokens whose text has been shown: a token held back must not be told through its log probability."""
        entries = []
        while self._entries and self._entries[0].end <= self._n_shown:
            entries.append(self._entries.popleft())
        return entries

    def _finish(self, finish: Finish, update: Update) -> str:
        """The text that was held back, if the end is a good one; else notes the failure."""
        if finish.reason in (FinishReason.STOP, FinishReason.LENGTH):
            text = self._scanner.push(self._detokeniser.flush()) + self._scanner.flush()
            self._end("stop" if self._scanner.stopped else finish.reason, finish.reason)
            return text
        # A request ended by an engine that is shutting down counts as lost, too: the caller did not ask for it.
        update.failure = finish
        self._end(None, FinishReason.FAILED if finish.reason == FinishReason.FAILED else ENGINE_LOST)
        return ""

    def _end(self, finish_reason: str | None, outcome: str) -> None:
        self.finish_reason, self.outcome = finish_reason, str(outcome)
