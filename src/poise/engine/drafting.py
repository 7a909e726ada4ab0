"""Guesses of a request's next tokens: what followed the last time that its text went like this (prompt lookup; Saxena 2023).

An answer that quotes, edits or fills in repeats long runs of its prompt, and a forward pass of several tokens costs little more
than one of a single one. So the run that follows the same last tokens elsewhere is computed along, and what the request's own
sampler draws otherwise is thrown away: a guess changes when tokens come, and never which.

What is looked in is that request's own prompt and output, and the prediction that came with it. Never another's: how many guesses
come true can be told from outside, by the clock."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import islice

from poise.engine.ports import Sampled
from poise.wire.messages import Token

LONG, SHORT = 4, 3
"""Last tokens that are looked for: the longer ones first."""
MATCH_MAX = 16
"""So many equal tokens before a place are counted at most."""
TOKENS_MAX = 1 << 16
"""Of a longer text only its end is looked in, and of a longer prediction its beginning."""
_GAP = -1
"""Between two texts: no token, so no run reaches across it."""


class NgramIndex:
    """The places of all runs of a growing text, the latest of each: constant time for each token, without the text's length.

    Runs are known by their hashes. Two with one hash make a bad guess, which costs a little time."""

    def __init__(self, prediction: Sequence[int] = (), n_prompt: int = 0) -> None:
        """`prediction`: what the output will probably be, or be like, which begins after `n_prompt` tokens."""
        self._text: list[int] = [*prediction[:TOKENS_MAX], _GAP] if prediction else []
        self._n_predicted = max(0, len(self._text) - 1)
        self._places: dict[int, int] = {}
        self._n_prompt = n_prompt
        self._n_known = 0
        self._output_at = 0
        """Where the output begins."""
        self._index(0)

    def extend(self, tokens: Sequence[int]) -> None:
        """`tokens` is the whole text again, which has grown. Its end is not looked for in itself."""
        if self._n_known == 0:
            self._n_known = max(0, len(tokens) - TOKENS_MAX)
            self._output_at = len(self._text) + self._n_prompt - self._n_known
        begin = len(self._text)
        self._text += tokens[self._n_known :]
        self._n_known = len(tokens)
        self._index(begin)

    def guess(self, most: int) -> tuple[list[int], int]:
        """At most that many tokens that may come next, and of how many like the last ones they come after: MATCH_MAX at most."""
        text, end = self._text, len(self._text)
        n_output = end - self._output_at
        if 0 <= n_output < LONG and text[:n_output] == text[self._output_at :] and self._n_predicted > n_output:
            return text[n_output : min(n_output + most, self._n_predicted)], MATCH_MAX
        for n in (LONG, SHORT):
            place = self._places.get(hash(tuple(text[-n:])), end)
            if place < end and text[place - n : place] == text[-n:]:
                return list(islice(self._following(place), most)), self._matched(place, n)
        return [], 0

    def _following(self, place: int) -> Iterator[int]:
        """The text from there on. A run that reaches the end repeats itself: it is what it has made the end of."""
        period = len(self._text) - place
        for i in range(period):
            if self._text[place + i] == _GAP:
                return
            yield self._text[place + i]
        while True:
            yield from self._text[place:]

    def _matched(self, place: int, n: int) -> int:
        text, end = self._text, len(self._text)
        while n < min(MATCH_MAX, place) and text[place - 1 - n] == text[end - 1 - n]:
            n += 1
        return n

    def _index(self, begin: int) -> None:
        """What comes at `begin` and after it is now known to follow what is before it."""
        text, end = self._text, len(self._text)
        for n in (LONG, SHORT):
            first = max(begin, n)
            if first < end:
                runs = zip(*(text[first - n + i : end - n + i] for i in range(n)), strict=True)
                self._places.update(zip(map(hash, runs), range(first, end), strict=True))


def draw_along(guesses: Sequence[int], draw: Callable[[int], Sampled]) -> Sampled:
    """Draw a row's next tokens, as long as they are what was guessed: what is drawn then is drawn after the right tokens.

    `draw(i)` draws with the logits after `i` guesses. Where it fails after tokens were drawn, these stand, and the last of them
    is computed again, so that it fails for itself."""
    drawn = last = draw(0)
    tokens = [drawn.token, *drawn.further]
    n_true = _n_true(tokens, guesses)
    cost_ns, closes = drawn.cost_ns, drawn.closes
    while not (last.ends or last.closes or last.failed) and n_true == len(tokens) <= len(guesses):
        last = draw(n_true)
        cost_ns += last.cost_ns
        if last.failed:
            n_true -= 1
            break
        closes = last.closes or last.ends
        if not last.ends:
            tokens += (last.token, *last.further)
            n_true = _n_true(tokens, guesses)
    if drawn.ends or drawn.failed:
        return drawn
    return replace(drawn, cost_ns=cost_ns, further=tuple(tokens[1:]), closes=closes, cut=last.cut, n_accepted=n_true)


def _n_true(tokens: Sequence[Token], guesses: Sequence[int]) -> int:
    """How many of the guesses came true."""
    n = 0
    while n < min(len(tokens), len(guesses)) and tokens[n].token == guesses[n]:
        n += 1
    return n
