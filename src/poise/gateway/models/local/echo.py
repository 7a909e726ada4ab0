"""The prompt as the beginning of an answer, with the log probabilities of its tokens where they are wanted.

Programs that score texts (lm-eval and its like) send prompt and answer as one prompt, and read how likely its tokens are."""

import time
from collections.abc import Sequence
from itertools import islice
from math import nan

from poise.gateway.records.record import Record
from poise.gateway.records.values import Logprob
from poise.gateway.text.answers import Detokeniser
from poise.gateway.text.tokens import TextModel
from poise.wire.messages import PromptLogprobs

LOGPROBS_IN_AN_ENTRY = 128


class Echo:
    """Of one choice. It becomes entries of the record once it is complete."""

    def __init__(
        self, text: str | None, ids: Sequence[int], model: TextModel, record: Record, choice: int, wants_logprobs: bool
    ) -> None:
        """`text` None: there is none. Empty: what the tokens say."""
        self._record, self._choice = record, choice
        self._is_wanted = text is not None
        self._names = list(map(model.token_name, ids)) if self._is_wanted else []
        self._name_of = model.token_name
        said = b"".join(self._names).decode("utf-8", "replace")
        self.text = text or said
        self._n_before = max(0, len(said) - len(self.text))
        """Characters of tokens that the caller has not written: one for the beginning of a text."""
        self._found: list[tuple[float, tuple[tuple[bytes, float], ...]]] = [(nan, ())]
        self._wants_logprobs = wants_logprobs

    def begin(self) -> None:
        """The answer begins."""
        if self._is_wanted and self._is_complete:
            self._write()

    @property
    def _is_complete(self) -> bool:
        return not self._wants_logprobs or len(self._found) >= len(self._names)

    def add(self, scored: PromptLogprobs) -> None:
        """Some more of the log probabilities; those that are known come again from another engine."""
        if self._is_complete:
            return
        pairs = zip(scored.logprobs, scored.top, strict=True)
        for logprob, top in islice(pairs, len(self._found) - scored.start, None):
            self._found.append((logprob, tuple([(self._name_of(other.token), other.logprob) for other in top])))
        if len(self._found) == len(self._names):
            self._write()

    def _write(self) -> None:
        """Make it entries, which are no output tokens."""
        logprobs, decoder, end = list[Logprob](), Detokeniser(), -self._n_before
        if self._wants_logprobs:
            for name, (logprob, top) in zip(self._names, self._found, strict=True):
                offset, end = end, end + len(decoder.push(name))
                logprobs.append(Logprob(name, logprob, top, max(0, offset), max(0, end)))
        for begin in range(0, max(1, len(logprobs)), LOGPROBS_IN_AN_ENTRY):
            some = logprobs[begin : begin + LOGPROBS_IN_AN_ENTRY]
            self._record.append(self._choice, "" if begin else self.text, some, time.perf_counter(), n_tokens=0)
        self._names, self._found = [], []
