"""One engine request of an API request, and the text that comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from poise.gateway.engine_client import ENGINE_LOST, RequestEvent, RequestHandle
from poise.gateway.responses import TokenEntry
from poise.gateway.text import Detokeniser, StopScanner, TextModel
from poise.scheduler.request import FinishReason
from poise.wire.messages import Finish, Start, Token


@dataclass(slots=True)
class Update:
    """What one batch of events brought to a choice: text that can be shown, and perhaps its end, good or bad."""

    text: str = ""
    entries: list[TokenEntry] | None = None
    finish_reason: str | None = None
    failure: Finish | None = None


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
        self._has_stops = bool(stop)
        self._n_decoded = 0
        self._n_shown = 0
        self._entries: deque[TokenEntry] = deque()
        self._backlog: list[RequestEvent] = []

    @property
    def ended(self) -> bool:
        return self.outcome is not None

    async def open(self) -> RequestEvent:
        """The engine's first word on the request. It waits for `feed`, with what came with it."""
        self._backlog = await self.handle.receive()
        return self._backlog[0]

    @property
    def has_news(self) -> bool:
        return bool(self._backlog or self.handle.events)

    def feed(self) -> Update:
        """The effect of what has come. Tokens after a stop string are not looked at; the engine is told to end."""
        events = self.handle.take()
        if self._backlog:
            events, self._backlog = self._backlog + events, []
        update = Update()
        shown = []
        for event in events:
            if type(event) is Token:
                shown.append(self._push(event))
                if self._has_stops and self._scanner.stopped:
                    self.handle.abort()
                    self._end("stop", FinishReason.STOP)
                    break
            elif type(event) is Start:
                self.wait_us = event.wait_us
            elif type(event) is Finish:
                shown.append(self._finish(event, update))
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
        return self._scanner.push(text) if self._has_stops else text

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
