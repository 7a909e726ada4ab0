"""One engine request of an API request, and the text that comes of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from poise.gateway.engine_client import RequestEvent, RequestHandle
from poise.gateway.record import QUEUED, RUNNING, ChoiceRecord
from poise.gateway.text.answers import Detokeniser, StopScanner
from poise.gateway.text.tokens import TextModel
from poise.gateway.values import TokenEntry
from poise.scheduler.request import RequestClass
from poise.wire.messages import Change, Token

_STATES = {"pause": "paused", "stall": "paused", "swap": "swapped", "drop": QUEUED, "lost": QUEUED}
"""What a choice is after a change. One whose cells are gone is in the queue again."""
NOTHING: Sequence[TokenEntry] = ()


class Choice:
    """Turns tokens into text that can be shown. `record` is what others see of it."""

    def __init__(
        self, record: ChoiceRecord, handle: RequestHandle, text: TextModel, stop: Sequence[str], wants_logprobs: bool
    ) -> None:
        self.record = record
        self.handle = handle
        self.early: list[RequestEvent] = []
        """What has come before every choice of the request was taken."""
        self.tokens_at_s: float | None = None
        self.aborted_s: float | None = None
        """When it was taken back from the engine."""
        self._wants_logprobs = wants_logprobs
        self._text = text
        self._detokeniser = Detokeniser()
        self._scanner = StopScanner(stop)
        self._has_stops = bool(stop)
        self._n_decoded = 0
        self._n_shown = 0
        self._entries: deque[TokenEntry] = deque()

    @property
    def stopped(self) -> bool:
        """A stop string was found."""
        return self._scanner.stopped

    def push(self, token: Token) -> tuple[str, Sequence[TokenEntry]]:
        """A token of output. Returns the text, and the log probabilities, that become visible with it."""
        self.record.n_output += 1
        text = self._detokeniser.push(self._text.token_bytes(token.token))
        if not self._wants_logprobs:
            return (self._scanner.push(text) if self._has_stops else text), NOTHING
        offset = self._n_decoded
        self._n_decoded += len(text)
        # A token that ends within a character is all told when the character is.
        end = self._n_decoded + self._detokeniser.holds_bytes
        name = self._text.token_name
        top = tuple([(name(other.token), other.logprob) for other in token.top])
        logprob = token.logprob if token.logprob is not None else 0.0
        self._entries.append(TokenEntry(name(token.token), logprob, top, offset, end))
        shown = self._scanner.push(text) if self._has_stops else text
        return shown, self._take_entries(len(shown))

    def flush(self) -> tuple[str, Sequence[TokenEntry]]:
        """The answer ends here: what was held back of it."""
        text = self._scanner.push(self._detokeniser.flush()) + self._scanner.flush()
        return text, self._take_entries(len(text))

    def change(self, change: Change) -> None:
        if change.what == "downgrade":
            self.record.counts_as = RequestClass.BACKGROUND.value
        elif change.what in ("resume", "recover"):
            self.record.state = RUNNING if self.record.started else QUEUED
        else:
            self.record.state = _STATES.get(change.what, self.record.state)

    def _take_entries(self, n_shown: int) -> Sequence[TokenEntry]:
        """Of the tokens whose text has been shown: a token held back must not be told through its log probability."""
        self._n_shown += n_shown
        entries = []
        while self._entries and self._entries[0].end <= self._n_shown:
            entries.append(self._entries.popleft())
        return entries
