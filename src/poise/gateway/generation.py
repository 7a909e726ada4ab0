"""One API request on its way through the engine: token events in, text out, everything counted, nothing left running.

A `Choice` is one engine request. A `Generation` has all choices of an API request: it submits them, merges what they bring, and
on `close` takes back what is not finished, whatever the reason.
"""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass

from poise.gateway.choice import Choice, Update
from poise.gateway.engine_client import ENGINE_LOST, EngineClient, EngineUnavailable, RequestHandle, Wakeup
from poise.gateway.errors import ApiError, engine_lost, engine_unavailable, internal_error, queue_timeout, refused
from poise.gateway.responses import DONE, Answer, ResponseFormat, TokenEntry, Usage, change_comment, queue_comment
from poise.gateway.segments import Mark, Segmenter
from poise.gateway.stream import new_error_id
from poise.gateway.text import TextModel
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import FinishReason, RequestClass
from poise.wire.messages import Accepted, Change, Finish, Refused, SamplingParams

log = logging.getLogger(__name__)

CANCELLED = "cancelled"
"""Outcome of a choice that nobody waits for any more."""
_BAD_ENDS = frozenset((ENGINE_LOST, FinishReason.FAILED, FinishReason.EXPIRED))
POSITION_HEADER, ETA_HEADER = "X-Poise-Queue-Position", "X-Poise-Queue-Eta-Ms"
TOLD_WAIT_US = 500_000
"""A client whose request will wait at least this long in the queue is told so."""
TOLD_AGAIN = 0.2
"""A waiting stream is told again when the estimate has moved by more than this share of what it was told last."""


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
    queue_timeout_ms: int = 0
    """How long each of its engine requests may wait for a slot; 0: for ever."""


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
        segments: bool = False,
    ) -> None:
        self._origin = origin
        self._engine = engine
        self._text = text
        self._response = response
        self._metrics = metrics
        self._stop = stop
        self._include_usage = include_usage
        self._continuous_usage = continuous_usage
        self._wants_segments = segments
        self._n_prompt = n_prompt
        self._choices: list[Choice] = []
        self._running: list[Choice] = []
        self._wakeup = Wakeup()
        self._accepted: Accepted | None = None
        self._told: tuple[int, int] | None = None
        """Place and estimate, in ms, that the stream was told last."""
        self._closed = False

    @property
    def choices(self) -> Sequence[Choice]:
        return self._choices

    @property
    def headers(self) -> dict[str, str]:
        """Of the response: what the engine said of the wait when it accepted the request, if that was worth telling."""
        accepted = self._accepted
        if accepted is None or accepted.eta_us < TOLD_WAIT_US:
            return {}
        return {POSITION_HEADER: str(accepted.position), ETA_HEADER: str(accepted.eta_us // 1000)}

    async def open(self, requests: Sequence[ChoiceRequest]) -> None:
        """Submit the choices and wait until the engine has taken each of them. Raises ApiError, with nothing left behind."""
        try:
            for index, request in enumerate(requests):
                handle = self._submit(request)
                handle.wakeup = self._wakeup
                wants_logprobs = request.sampling.n_logprobs >= 0
                self._choices.append(Choice(index, handle, self._text, self._stop, wants_logprobs))
            for choice in self._choices:
                first = await choice.open()
                if isinstance(first, Accepted):
                    self._accepted = self._accepted or first  # what comes first decides when something comes
                elif isinstance(first, Refused):
                    raise refused(first, self._origin.request_class, self._origin.prompt_param)
                elif isinstance(first, Finish) and first.reason == ENGINE_LOST:
                    raise self._error(first)
        except ApiError:
            for choice in self._choices:
                choice.handle.abort()
            self._closed = True  # it never began: it is counted among the rejected, not among the ended
            raise
        self._running = list(self._choices)
        self._metrics.accepted(self._origin.request_class, self._n_prompt)

    async def events(self) -> AsyncGenerator[bytes, None]:
        """The stream's events, [DONE] included. Raises ApiError when a choice fails: what was sent before stands."""
        if self._accepted is not None and self._accepted.eta_us >= TOLD_WAIT_US:
            yield self._tell(self._accepted.position, self._accepted.eta_us)
        opened = [False] * len(self._choices)
        segments = [Segmenter() if self._wants_segments else None for _ in self._choices]
        while self._running:
            for choice, update in await self._updates():
                usage = self.usage() if self._continuous_usage else None
                out = self._comments(choice, update) if update.changes or update.waits else b""
                if update.text or update.entries or (update.finish_reason and not opened[choice.index]):
                    first, opened[choice.index] = not opened[choice.index], True
                    marks = self._marks(choice, segments[choice.index], update.text)
                    out += self._response.text_event(
                        choice.index, update.text, update.entries, first=first, usage=usage, marks=marks
                    )
                if update.finish_reason:
                    marks = self._marks(choice, segments[choice.index], None)
                    out += self._response.finish_event(choice.index, update.finish_reason, usage, marks)
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
        while self._running:
            for choice, update in await self._updates():
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
        if CANCELLED in outcomes and not _BAD_ENDS.intersection(outcomes):
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

    def _marks(self, choice: Choice, segmenter: Segmenter | None, text: str | None) -> Sequence[Mark]:
        """What has become certain of the segments of a choice with this text; None: with its end."""
        if segmenter is None:
            return ()
        n_complete = segmenter.n_complete
        marks = segmenter.flush() if text is None else segmenter.push(text)
        if n_complete == 0 and segmenter.n_complete:
            waited_s = time.perf_counter() - self._origin.arrived_s
            self._metrics.first_segment(self._class_of(choice).value, waited_s)
        return marks

    def _comments(self, choice: Choice, update: Update) -> bytes:
        """What a stream is told besides the answer: how the wait goes, and what is done with what runs."""
        several = len(self._choices) > 1
        out = b"".join(
            change_comment(change.what, change.why, choice.index if several else None)
            for change in update.changes or ()
        )
        # The wait is over when something begins to come; until then it is that of the first choice in the queue.
        if update.waits and not any(other.started for other in self._choices):
            place = min((other.place for other in self._choices if other.place), key=lambda place: place.position)
            if self._is_news(place.position, place.eta_us // 1000):
                out += self._tell(place.position, place.eta_us)
        return out

    def _is_news(self, position: int, eta_ms: int) -> bool:
        if self._told is None:
            return True
        told_position, told_ms = self._told
        return position != told_position or abs(eta_ms - told_ms) > TOLD_AGAIN * told_ms

    def _tell(self, position: int, eta_us: int) -> bytes:
        self._told = position, eta_us // 1000
        return queue_comment(*self._told)

    def _submit(self, request: ChoiceRequest) -> RequestHandle:
        try:
            return self._engine.submit(
                tenant=self._origin.tenant,
                request_class=self._origin.request_class,
                prompt=request.prompt,
                max_output=request.max_output,
                sampling=request.sampling,
                template=request.template,
                queue_timeout_ms=self._origin.queue_timeout_ms,
            )
        except EngineUnavailable as error:
            raise engine_unavailable(str(error), error.retry_after_s, permanent=error.permanent) from None

    async def _updates(self) -> list[tuple[Choice, Update]]:
        """What the choices bring, as soon as one of them has something. None waits for another."""
        while True:
            updates = [(choice, self._feed(choice)) for choice in self._running if choice.has_news]
            if updates:
                self._running = [choice for choice in self._running if not choice.ended]
                return updates
            await self._wakeup.wait()

    def _feed(self, choice: Choice) -> Update:
        """What has come for a choice; the metrics are told as well."""
        now_s = time.perf_counter()
        before = choice.n_output
        update = choice.feed()
        request_class = self._class_of(choice).value
        if update.changes:
            self._note_changes(update.changes)
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

    def _class_of(self, choice: Choice) -> RequestClass:
        """What a downgraded choice does is background's: it would spoil the figures of the class that it came in."""
        return RequestClass.BACKGROUND if choice.downgraded else self._origin.request_class

    def _note_changes(self, changes: Sequence[Change]) -> None:
        for change in changes:
            self._metrics.changed(self._origin.request_class, change.what)
        if any(change.what == "downgrade" for change in changes):
            self._response.downgrade()

    def _error(self, finish: Finish) -> ApiError:
        """A bad end, as the client is told. The engine's own words are for the log: they may name files and the like."""
        if finish.reason == FinishReason.FAILED:
            error_id = new_error_id()
            log.error("[%s] failed in the engine, %s: %s", self._origin.request_id, error_id, finish.detail)
            return internal_error(error_id)
        if finish.reason == FinishReason.EXPIRED:
            status = self._engine.state.status
            figures = status.classes.get(self._origin.request_class) if status is not None else None
            return queue_timeout(
                self._origin.queue_timeout_ms / 1000, figures.wait_estimate_us / 1e6 if figures else 1.0
            )
        return engine_lost(self._engine.state.retry_after_s)

    def usage(self) -> Usage:
        """Tokens so far."""
        choices = self._choices
        return Usage(
            self._n_prompt,
            sum(choice.n_output for choice in choices),
            sum(choice.n_cached for choice in choices),
        )
