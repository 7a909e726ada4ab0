"""One engine request of an API request: how far it has come, and the text that comes of it.

Nothing is shown before the engine has taken every choice, so that a refusal is an ordinary HTTP error:

    stage       the engine says                      what is done                        next stage
    ASKED       a refusal (`is_refusal`)             REFUSE: the API request fails       TAKEN_BACK
                anything else                        KEEP it                             TAKEN
    TAKEN       anything                             KEEP it                             TAKEN
                (no choice is ASKED any more)        what was kept is written            LIVE
    LIVE        a Finish                             WRITE it into the record            OVER
                anything else                        WRITE it into the record            LIVE
    TAKEN_BACK  a Finish                             SETTLE: what it cost is charged     OVER
                anything else                        IGNORE it                           TAKEN_BACK
    OVER        anything                             IGNORE it                           OVER

What is not over is TAKEN_BACK from the engine when a stop string is found, the client leaves, or another choice fails."""

from collections import deque
from collections.abc import Sequence
from enum import Enum

from poise.gateway.models.local.echo import Echo
from poise.gateway.records.changes import MEANINGS, RequestState
from poise.gateway.records.moments import ChoiceRecord
from poise.gateway.records.values import Logprob
from poise.gateway.supervision.engine import ENGINE_LOST, QUARANTINED, SERVER_STOPPING, RequestEvent, RequestHandle
from poise.gateway.text.answers import NO_TEXT, AnswerParser, Detokeniser, Pieces, StopScanner
from poise.gateway.text.tokens import TextModel
from poise.scheduler.request import RequestClass
from poise.wire.changes import ChangeKind
from poise.wire.messages import Change, Finish, Refused, Token

NOTHING: Sequence[Logprob] = ()


class Stage(Enum):
    """How far a choice has come."""

    ASKED = "asked"
    """The engine has not said a word of it."""
    TAKEN = "taken"
    """The engine has it, and not every other one yet."""
    LIVE = "live"
    TAKEN_BACK = "taken back"
    """It has ended here, and an abort was sent. The engine's last word may still come."""
    OVER = "over"


class Act(Enum):
    """What is done with an event of the engine."""

    REFUSE = "refuse"
    KEEP = "keep"
    WRITE = "write"
    SETTLE = "settle"
    IGNORE = "ignore"


def act_on(stage: Stage, event: RequestEvent) -> Act:
    """What an event means for a choice that has come so far."""
    match stage:
        case Stage.ASKED:
            return Act.REFUSE if is_refusal(event) else Act.KEEP
        case Stage.TAKEN:
            return Act.KEEP
        case Stage.LIVE:
            return Act.WRITE
        case Stage.TAKEN_BACK:
            return Act.SETTLE if type(event) is Finish else Act.IGNORE
        case Stage.OVER:
            return Act.IGNORE


def is_refusal(event: RequestEvent) -> bool:
    """Said at first, it means that the request was never begun: it may be sent again."""
    if type(event) is Finish:
        return event.reason in (ENGINE_LOST, SERVER_STOPPING, QUARANTINED)
    return type(event) is Refused


class Choice:
    """Turns tokens into text that can be shown. `record` is what others see of it."""

    def __init__(
        self,
        record: ChoiceRecord,
        handle: RequestHandle,
        text: TextModel,
        stop: Sequence[str],
        wants_logprobs: bool,
        echo: Echo,
        parser: AnswerParser | None = None,
    ) -> None:
        """`parser` None: all of it is text. `echo`: what it begins with."""
        self.record = record
        self.handle = handle
        self.stage = Stage.ASKED
        """TAKEN_BACK and OVER exactly where the record has an outcome."""
        self.early: list[RequestEvent] = []
        """What has come before every choice of the request was taken."""
        self.is_mute = False
        """It may have no output: its prompt is computed, and that is all."""
        self.tokens_at_s: float | None = None
        self.aborted_s: float | None = None
        """When it was taken back from the engine."""
        self._wants_logprobs = wants_logprobs
        self._text = text
        self._detokeniser = Detokeniser()
        self._scanner = StopScanner(stop)
        self._has_stops = bool(stop)
        self._parser = parser or AnswerParser()
        self._marks = self._parser.marks
        self.echo = echo
        self._n_decoded = self._n_shown = len(echo.text)
        self._logprobs: deque[Logprob] = deque()

    @property
    def stopped(self) -> bool:
        """A stop string was found."""
        return self._scanner.stopped

    def push(self, token: Token) -> tuple[Pieces, Sequence[Logprob]]:
        """A token of output. Returns the pieces, at least one, and the log probabilities that become visible with it."""
        self.record.n_output += 1
        if self._marks and token.token in self._marks:
            text = self._detokeniser.flush() + self._marks[token.token]
        else:
            text = self._detokeniser.push(self._text.token_bytes(token.token))
        if not self._wants_logprobs:
            return self._parser.push(self._scanner.push(text) if self._has_stops else text) or NO_TEXT, NOTHING
        offset = self._n_decoded
        self._n_decoded += len(text)
        # A token that ends within a character is shown as a whole when the character is.
        end = self._n_decoded + self._detokeniser.holds_bytes
        name = self._text.token_name
        top = tuple([(name(other.token), other.logprob) for other in token.top])
        logprob = token.logprob if token.logprob is not None else 0.0
        self._logprobs.append(Logprob(name(token.token), logprob, top, offset, end))
        shown = self._scanner.push(text) if self._has_stops else text
        return self._parser.push(shown) or NO_TEXT, self._take_logprobs(len(shown))

    def flush(self) -> tuple[Pieces, Sequence[Logprob]]:
        """The answer ends here: what was held back of it."""
        text = self._scanner.push(self._detokeniser.flush()) + self._scanner.flush()
        return (*self._parser.push(text), *self._parser.flush()), self._take_logprobs(len(text))

    def change(self, change: Change) -> None:
        if change.what == ChangeKind.DOWNGRADE:
            self.record.counts_as = RequestClass.BACKGROUND.value
            return
        runs_as = RequestState.RUNNING if self.record.started else RequestState.QUEUED
        self.record.state = MEANINGS[change.what].leads_to or runs_as

    def _take_logprobs(self, n_shown: int) -> Sequence[Logprob]:
        """Of the tokens whose text has been shown: a token held back must not be seen through its log probability."""
        self._n_shown += n_shown
        logprobs = []
        while self._logprobs and self._logprobs[0].end <= self._n_shown:
            logprobs.append(self._logprobs.popleft())
        return logprobs
