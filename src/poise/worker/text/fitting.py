"""Conversations that are too long: rendered and tokenised with more and more left out, until they fit.

How long a conversation is, only rendering and tokenising all of it can tell, so that is done for each guess, about the logarithm
of their number of times. What is tokenised is mostly the same each time, and is remembered for as long as the job takes."""

from bisect import bisect_left
from collections.abc import Callable
from functools import cache, partial

import msgspec

from poise.wire import text as wire
from poise.worker.text.chat_template import TextRefused
from poise.worker.text.tokeniser import Runs, Tokeniser


def fit(tokeniser: Tokeniser, job: wire.Fit, on_rendered: Callable[[], None]) -> wire.Fitted:
    """Leave out the fewest turns. Raises TextRefused, also when there is no place for the message that stands for them."""
    droppable = max(job.turns, default=0)
    runs: Runs = {}

    @cache
    def chat(n_dropped: int, *, with_summary: bool = False) -> tuple[list[int], str]:
        messages = kept(job.messages, job.turns, n_dropped, job.summary if with_summary else None)
        try:
            return tokeniser.chat(messages, job.n_added, job.rendering, runs=runs, on_rendered=on_rendered)
        except TextRefused as error:
            if not with_summary or error.status != 400:
                raise
            reason = f"The model's chat template has no place for a summary: {error.message} Use 'trim'."
            raise TextRefused(400, "invalid_messages", reason, param="context_policy") from None

    def measured(n_dropped: int) -> tuple[list[int], str]:
        """With the message that stands for the turns, where one does."""
        return chat(n_dropped, with_summary=True) if n_dropped and job.summary is not None else chat(n_dropped)

    def fits(room: int, n_dropped: int) -> bool:
        return len(measured(n_dropped)[0]) + (job.reserve if n_dropped else 0) <= room

    each = (0 if fits(room, 0) else fewest(droppable, partial(fits, room)) for room in job.rooms)
    n = next((n for n in each if n is not None), None)
    left_out = droppable if n is None else n
    (prompt, note), (plain, _), (whole, _) = measured(left_out), chat(left_out), chat(0)
    # A prompt that still waits for its summary is tokenised again with it.
    is_whole = n is not None and (job.summary is None or n == 0)
    return wire.Fitted(n, len(whole), len(prompt), len(plain), prompt if is_whole else [], note)


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
