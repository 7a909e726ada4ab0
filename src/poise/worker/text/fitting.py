"""Conversations that are too long: rendered and tokenised with more and more left out, until they fit.

How long a conversation is, only rendering and tokenising all of it can tell, so that is done for each guess, about the logarithm
of their number of times. What is tokenised is mostly the same each time, and is remembered for as long as the job takes."""

from bisect import bisect_left
from collections.abc import Callable

import msgspec

from poise.wire import text as wire
from poise.worker.text.chat_template import TextRefused
from poise.worker.text.tokeniser import Runs, Tokeniser


def fit(tokeniser: Tokeniser, job: wire.Fit, on_rendered: Callable[[], None]) -> wire.Fitted:
    """Leave out the fewest turns. Raises TextRefused, also when there is no place for the message that stands for them."""
    return _Fitter(tokeniser, job, on_rendered).fit()


def cut(tokeniser: Tokeniser, job: wire.Cut, on_rendered: Callable[[], None]) -> wire.CutDown:
    """Cut the end of the summary off, as little as will do; all of it where that does not."""
    whole = job.summary.content
    runs: Runs = {}

    def ids(n_cut: int) -> list[int]:
        shorter = msgspec.structs.replace(job.summary, content=whole[: len(whole) - n_cut])
        messages = kept(job.messages, job.turns, job.n_dropped, shorter)
        return tokeniser.chat(messages, job.n_added, job.rendering, runs=runs, on_rendered=on_rendered)[0]

    def fits(n_cut: int) -> bool:
        return len(ids(n_cut)) <= job.room

    most = len(whole) - job.head_chars
    n_cut = 0 if fits(0) else fewest(most, fits) or most
    return wire.CutDown(n_cut, ids(n_cut))


class _Fitter:
    """One conversation, tokenised with more or fewer turns; what was found once is remembered."""

    def __init__(self, tokeniser: Tokeniser, job: wire.Fit, on_rendered: Callable[[], None]) -> None:
        self._tokeniser = tokeniser
        self._job = job
        self._on_rendered = on_rendered
        self._droppable = max(job.turns, default=0)
        self._runs: Runs = {}
        self._known: dict[tuple[int, bool], tuple[list[int], str]] = {}

    def fit(self) -> wire.Fitted:
        n = self._fewest()
        left_out = self._droppable if n is None else n
        (prompt, note), (plain, _), (whole, _) = self._prompt(left_out), self._chat(left_out), self._chat(0)
        # A prompt that still waits for its summary is tokenised again with it.
        is_whole = n is not None and (self._job.summary is None or n == 0)
        return wire.Fitted(n, len(whole), len(prompt), len(plain), prompt if is_whole else [], note)

    def _fewest(self) -> int | None:
        for room in self._job.rooms:

            def fits(n: int, room: int = room) -> bool:
                return len(self._prompt(n)[0]) + (self._job.reserve if n else 0) <= room

            if fits(0):
                return 0
            if (n := fewest(self._droppable, fits)) is not None:
                return n
        return None

    def _prompt(self, n_dropped: int) -> tuple[list[int], str]:
        """As it is to be measured: with the message that stands for the turns, where one does."""
        return self._chat(n_dropped, summary=n_dropped > 0 and self._job.summary is not None)

    def _chat(self, n_dropped: int, *, summary: bool = False) -> tuple[list[int], str]:
        """See `Tokeniser.chat`."""
        key = (n_dropped, summary)
        if key not in self._known:
            messages = kept(self._job.messages, self._job.turns, n_dropped, self._job.summary if summary else None)
            try:
                self._known[key] = self._tokeniser.chat(
                    messages, self._job.n_added, self._job.rendering, runs=self._runs, on_rendered=self._on_rendered
                )
            except TextRefused as error:
                if not summary or error.status != 400:
                    raise
                reason = f"The model's chat template has no place for a summary: {error.message} Use 'trim'."
                raise TextRefused(400, "invalid_messages", reason, param="context_policy") from None
        return self._known[key]


def kept(
    messages: list[wire.Message], turns: list[int], n_dropped: int, summary: wire.Message | None = None
) -> list[wire.Message]:
    """The conversation without its first turns, perhaps with a message that stands for them, right before the first kept."""
    left: list[wire.Message] = []
    for message, turn in zip(messages, turns, strict=True):
        if 0 <= turn < n_dropped:
            continue
        if turn >= 0 and summary is not None:
            left.append(summary)
            summary = None
        left.append(message)
    return left


def fewest(highest: int, fits: Callable[[int], bool]) -> int | None:
    """The smallest number from 1 to `highest` that fits, None if none does. What fits, fits with every larger number too.

    Asking is dear, so it is asked about the logarithm of `highest` times."""
    if highest < 1 or not fits(highest):
        return None
    return 1 + bisect_left(range(1, highest), True, key=fits)
