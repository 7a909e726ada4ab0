"""Text to tokens and back, for a model whose weights need not be loaded.

A token's piece is bytes: one character can span several tokens, so only the caller who has them all can decode."""

import ctypes
from functools import cached_property

import numpy as np

from poise.llama.binding.library import Library, VocabPointer
from poise.wire.text import INFILL

PIECE_BYTES = 128


class Vocab:
    """A model's vocabulary. Safe to use from several threads; valid as long as its model is open."""

    def __init__(self, library: Library, pointer: VocabPointer) -> None:
        self._library = library
        self._pointer = pointer
        self.n_tokens = library.vocab_n_tokens(pointer)

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of `text`. What cannot be encoded (a lone surrogate) becomes a question mark.

        add_special    add the tokens that the model wants around a text (a beginning-of-text token, say)
        parse_special  read the names of control tokens in the text as those tokens"""
        data = text.encode("utf-8", "replace")
        n = self._tokenize(data, tokens := np.empty(len(data) + 8, np.int32), add_special, parse_special)
        if n < 0:
            n = self._tokenize(data, tokens := np.empty(-n, np.int32), add_special, parse_special)
        assert n >= 0, f"llama_tokenize wants {-n} tokens after it asked for {len(tokens)}"
        return [int(token) for token in tokens[:n].tolist()]

    def _tokenize(self, data: bytes, tokens: np.ndarray, add_special: bool, parse_special: bool) -> int:
        pointer = tokens.ctypes.data_as(ctypes.POINTER(ctypes.c_int32))
        return self._library.tokenize(self._pointer, data, len(data), pointer, len(tokens), add_special, parse_special)

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes a token stands for; with `special`, control tokens give their names instead of nothing."""
        assert 0 <= token < self.n_tokens, f"token {token} of {self.n_tokens}"
        buffer = ctypes.create_string_buffer(PIECE_BYTES)
        n = self._library.token_to_piece(self._pointer, token, buffer, PIECE_BYTES, 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = self._library.token_to_piece(self._pointer, token, buffer, -n, 0, special)
        return buffer.raw[:n]

    @property
    def addresses(self) -> tuple[int, int]:
        """Where the vocabulary is, and the function that tokenises with it: for another library in this process."""
        return self._pointer, ctypes.cast(self._library.tokenize, ctypes.c_void_p).value or 0  # type: ignore[arg-type]

    @cached_property
    def eog_tokens(self) -> list[int]:
        """All tokens that end a generation."""
        return [token for token in range(self.n_tokens) if self._library.vocab_is_eog(self._pointer, token)]

    @cached_property
    def special(self) -> dict[str, int]:
        """Tokens with a task, as far as there are any: `bos`, `eos` and `pad`, and for infilling `fim_prefix`, `fim_suffix` and
        `fim_middle`, which llama.cpp takes from the file or knows by their usual texts."""
        tasks = ("bos", "eos", "pad", "fim_pre", "fim_suf", "fim_mid")
        tokens = [getattr(self._library, f"vocab_{task}")(self._pointer) for task in tasks]
        return {n: t for n, t in zip((*tasks[:3], *INFILL), tokens, strict=True) if 0 <= t < self.n_tokens}

    @property
    def bos(self) -> int | None:
        """The beginning-of-text token."""
        return self.special.get("bos")

    def special_text(self, name: str) -> str:
        """A token with a task as text; empty where there is none."""
        return self.piece(self.special[name], special=True).decode("utf-8", "replace") if name in self.special else ""

    @cached_property
    def add_bos(self) -> bool:
        """Whether the model wants its beginning-of-text token in front of every prompt."""
        return self._library.vocab_get_add_bos(self._pointer)
