"""One engine request of an API request, and the text that comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from poise.gateway.engine_client import ENGINE_LOST, RequestEvent, RequestHandle
from poise.gateway.responses import TokenEntry
from poise.gateway.text import Detokeniser, StopScanner, TextModel
from poise.scheduler.request import FinishReason
from poise.wire.messages import Change, Finish, Start, Token, Waiting

QUEUED, RUNNING = "queued", "running"
_STATES = {"pause": "paused", "swap": "swapped", "drop": QUEUED}
"""What a choice is after it was preempted. One that was dropped is in the queue again."""


@dataclass(slots=True)
class Update:
    """What one batch of events brought to a choice: text that can be shown, and perhaps its end, good or bad."""

    text: str = ""
    entries: list[TokenEntry] | None = None
    changes: list[Change] | None = None
    waits: bool = False
    """It is still queued, at a new `place`."""
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
        self.n_cached = 0
        """Tokens of its prompt that were not computed for it."""
        self.state = QUEUED
        self.started = False
        """It has left the queue once."""
        self.place: Waiting | None = None
        """The last that was told of its place in the queue, while it is there."""
        self.downgraded = False
        self.tokens_at_s: float | None = None
        self.queued_us: int | None = None
        self.ttft_s: float | None = None
        """From the request's arrival to the first token."""
        self.served_us = 0
        self.n_preempted = 0
        self.text = ""
        """The whole answer so far, where somebody keeps it."""
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
                self.wait_us, self.n_cached = event.wait_us, event.n_cached
                self.queued_us = event.wait_us
                self.started, self.state, self.place = True, RUNNING, None
            elif type(event) is Finish:
                shown.append(self._finish(event, update))
            elif type(event) is Waiting and not self.started:
                self.place, update.waits = event, True
            elif type(event) is Change:
                self._change(event)
                update.changes = [*(update.changes or ()), event]
        update.text = "".join(shown)
        update.finish_reason = self.finish_reason
        if self.wants_logprobs:
            self._n_shown += len(update.text)
            update.entries = self._take_entries()
        return update

    def _change(self, change: Change) -> None:
        if change.what == "downgrade":
            self.downgraded = True
        elif change.what == "resume":
            self.state = RUNNING if self.started else QUEUED
        else:
            self.n_preempted += change.what in _STATES
            self.state = _STATES.get(change.what, self.state)

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
        self.served_us = finish.served_us
        if finish.reason in (FinishReason.STOP, FinishReason.LENGTH):
            self.n_cached = finish.n_cached
            text = self._scanner.push(self._detokeniser.flush()) + self._scanner.flush()
            self._end("stop" if self._scanner.stopped else finish.reason, finish.reason)
            return text
        update.failure = finish
        told = finish.reason in (FinishReason.FAILED, FinishReason.EXPIRED)
        # A request ended by an engine that is shutting down counts as lost, too: the caller did not ask for it.
        self._end(None, finish.reason if told else ENGINE_LOST)
        return ""

    def _end(self, finish_reason: str | None, outcome: str) -> None:
        self.finish_reason, self.outcome = finish_reason, str(outcome)
