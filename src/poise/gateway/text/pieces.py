"""What each token stands for, as bytes: all that turning ids into text needs. No C, and no object for each token."""

import codecs
from array import array

from poise.wire.text import Vocabulary


class Pieces:
    """The table of one model's tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.n_tokens = vocabulary.n_tokens
        self._names = vocabulary.names
        self._hidden = vocabulary.hidden
        self._ends = array("I", [0])
        """Token t's name is names[ends[t] : ends[t + 1]]."""
        self._ends.frombytes(vocabulary.ends)
        self.longest = max((end - start for start, end in zip(self._ends, self._ends[1:], strict=False)), default=0)
        """Bytes of text that one token can stand for, at most."""

    def control(self) -> dict[str, int]:
        """The control tokens by name."""
        return {self.name(i).decode("utf-8", "replace"): i for i, hidden in enumerate(self._hidden) if hidden}

    def name(self, token: int) -> bytes:
        """The token as log probabilities show it: control tokens have their names."""
        return self._names[self._ends[token] : self._ends[token + 1]]

    def shown(self, token: int) -> bytes:
        """The token as an answer shows it: control tokens are empty."""
        return b"" if self._hidden[token] else self._names[self._ends[token] : self._ends[token + 1]]


class Detokeniser:
    """Bytes in, text out, never half a character. Invalid bytes become U+FFFD."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self.holds_bytes = False
        """Whether an incomplete character is held back."""

    def push(self, piece: bytes) -> str:
        if not self.holds_bytes and piece.isascii():
            return piece.decode("ascii")  # past the decoder, which is written in Python
        text = self._decoder.decode(piece)
        self.holds_bytes = bool(self._decoder.getstate()[0])
        return text

    def flush(self) -> str:
        """What an answer that ends here still has: an incomplete character as U+FFFD."""
        self.holds_bytes = False
        return self._decoder.decode(b"", final=True)
