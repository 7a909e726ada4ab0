"""How an output whose allowance is nearly used up is completed: what is open in it is closed, in few tokens.

Half of a JSON text is of use to nobody, while one that says less can be read. The way is looked for token by token: forced ones,
else the end of a string, an object or an array, else a small value that is wanted; it is short, but not always the shortest. It
follows from the grammar and the output alone, so an engine that takes over finds the same one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llguidance import LLMatcher

WINDOW = 64
"""Tokens before the end of the allowance from which on it is looked at: what takes longer to close is cut."""
SPARE = 4
"""The way is taken when no more tokens than these are left beside it, since one more token may open several things."""
CHOICES = 32
"""Tokens of a way that are not forced: each may take a tenth of a millisecond to find, and the step waits for it."""
_ORDER = b'}]"0nt{[-,:xa A'
_QUOTE, _LETTER = b'"', b"x"


class Closers:
    """The tokens of single characters, or of bytes of them, which nearly every vocabulary has."""

    def __init__(self, names: Sequence[bytes]) -> None:
        found: Mapping[bytes, int] = {name: token for token, name in enumerate(names) if len(name) == 1}
        order = [bytes([char]) for char in (*_ORDER, *(char for char in range(32, 256) if char not in _ORDER))]
        self._tokens = [found[char] for char in order if char in found]
        self._quote, self._letter = found.get(_QUOTE), found.get(_LETTER)

    def way(self, matcher: LLMatcher, n_max: int) -> list[int] | None:
        """Tokens after which the output is complete; none where it is. None: no way with so few was found."""
        matcher, way, n_choices = matcher.deep_copy(), list[int](), 0
        while not matcher.is_accepting():
            if not (following := matcher.compute_ff_tokens()):
                following, n_choices = self._next(matcher), n_choices + 1
            is_found = following and n_choices <= CHOICES and len(way) + len(following) <= n_max
            if not is_found or not matcher.consume_tokens(following):
                return None
            way += following
        return way

    def _next(self, matcher: LLMatcher) -> list[int]:
        """Where a letter is possible that no literal of JSON has, a string is open, in which brackets end nothing."""
        in_string = self._letter is not None and matcher.validate_tokens([self._letter]) == 1
        tokens = [self._quote, *self._tokens] if in_string and self._quote is not None else self._tokens
        token = next((token for token in tokens if matcher.validate_tokens([token]) == 1), None)
        return [] if token is None else [token]
