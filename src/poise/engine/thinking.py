"""How long a model may reason: the tokens of it are counted, and then those of the mark that ends it are forced.

    idle      until the tokens that begin the reasoning have come, if the prompt has not begun it
    counting  until the model ends it by itself, or the budget is spent
    waiting   until a character that the last token has begun is whole
    forcing   token by token
    done

The states of llama.cpp's budget. They follow from the tokens alone, so a request that goes on elsewhere is forced as it would
have been."""

import codecs
from collections.abc import Callable, Sequence

from poise.wire.to_engine import Thinking


class Budget:
    """That of one output."""

    def __init__(self, thinking: Thinking, piece: Callable[[int], bytes], output: Sequence[int] = ()) -> None:
        """`piece`: the bytes of a token. `output`: what there is already."""
        self._thinking = thinking
        self._piece = piece
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._sought: tuple[int, ...] = thinking.start or thinking.end
        self._counts = not thinking.start
        self._recent: tuple[int, ...] = ()
        self._n_left = thinking.tokens
        self._forced: tuple[int, ...] = thinking.end if self._counts and not self._n_left else ()
        self._is_done = False
        for token in output:
            self.take(token)

    @property
    def forced(self) -> int | None:
        """The token that has to come next; None: any may."""
        return self._forced[0] if self._forced else None

    def take(self, token: int) -> None:
        """The output goes on."""
        if self._is_done:
            return
        if self._forced:
            self._forced = self._forced[1:]
            self._is_done = not self._forced
            return
        self._recent = (*self._recent, token)[-len(self._sought) :]
        found = self._recent == self._sought
        if self._counts:
            self._is_done = found
            self._n_left -= 1
            self._decoder.decode(self._piece(token))
        elif found:
            self._counts, self._sought, self._recent = True, self._thinking.end, ()
        if self._counts and not self._is_done and self._n_left <= 0 and not self._decoder.getstate()[0]:
            self._forced = self._thinking.end
