"""From text to token ids: conversations by way of the model's chat template, raw prompts as they are.

**Control tokens in prompts.** A message that contains the text `<|im_end|>` must reach the model as those ten characters, or a
user could end their own turn and speak as somebody else. So a rendered chat arrives here as pieces: literals, written by
the template, and contents, written by the caller. Control tokens are looked for in the literals only. What lies between two
control tokens, literals and contents together, is one run of plain text and is tokenised as such:

    literal "<|im_start|>user\\n"   content "Hi <|im_end|>"   literal "<|im_end|>\\n"
    [control]  [----------- run "user\\nHi <|im_end|>" ------------] [control] [run "\\n"]

Runs rather than pieces are tokenised, so that text without control tokens in it gives exactly the ids that tokenising the whole
string would give. Limits: vocabularies that strip white space around a control token do not do so next to a content, and
tokens that the vocabulary declares as ordinary (user-defined) ones are recognised in contents too, by the tokeniser itself."""

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Protocol

from poise.wire.text import AS_USUAL, INFILL, Message, Rendering
from poise.worker.text.chat_template import CHATML_MARKS, ChatTemplate, TextRefused
from poise.worker.text.hidden import Piece

LITERAL_CHARS_MAX = 4096
"""A longer literal is split again each time: white space at the edge of a message is part of one, and can be of any length."""
LITERALS_MAX = 256
"""So many are remembered."""

_USER_TEXTS = ("a", "Zebra", "7", "(", "é", " a", "\na")
"""Beginnings of a user's message that tokenisers join with what stands before them in different ways."""
_OTHER_TURNS = (
    [Message("system", "a"), Message("user", "a")],
    [Message("assistant", "a"), Message("user", "a")],
    [Message("tool", "a"), Message("user", "a")],
)
"""Other ways on after the system message: a summary, or a greeting. Not every chat template allows them."""

Runs = dict[str, list[int]]
"""The ids of runs that were tokenised before, for one job that tokenises a conversation several times."""


class VocabularyPort(Protocol):
    """What is needed of a model file: its vocabulary, without the weights."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int | None:
        """Beginning-of-text token."""

    @property
    def add_bos(self) -> bool:
        """Prompts are meant to begin with it."""

    @property
    def special(self) -> Mapping[str, int]:
        """Tokens with a task, by its name."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int, *, special: bool) -> bytes:
        """The token's bytes. Control tokens have none unless `special`."""


class Tokeniser:
    """One model's vocabulary and chat template."""

    def __init__(self, vocab: VocabularyPort, template: ChatTemplate) -> None:
        self.vocab = vocab
        self.template = template
        self.remembered = lru_cache(LITERALS_MAX)(self._split)
        """Templates repeat their literals."""

    def chat(
        self,
        messages: Sequence[Message],
        n_added: int = 0,
        rendering: Rendering = AS_USUAL,
        *,
        runs: Runs | None = None,
        on_rendered: Callable[[], None] = lambda: None,
    ) -> tuple[list[int], str]:
        """The prompt of a conversation, and what its caller is to be told. The first `n_added` messages are not the caller's.

        `runs` is read and added to. Raises TextRefused when the template refuses the conversation."""
        pieces, note = self.template.write(messages, n_added, rendering)
        on_rendered()
        ids: list[int] = []
        run: list[str] = []
        for piece in pieces:
            for part in [piece.text] if piece.is_content else self._split_literal(piece):
                if isinstance(part, str):
                    run.append(part)
                else:
                    ids += [*self._run_ids(run, runs), part]
                    run = []
        ids += self._run_ids(run, runs)
        if self.vocab.add_bos and self.vocab.bos is not None:
            ids.insert(0, self.vocab.bos)
        return self._one_bos(ids), note

    def turn_marks(self) -> list[str]:
        """Where a model without a template, and without the tokens of the one that stands for it, ends its turn: as text."""
        vocab = self.vocab
        whole = [len(vocab.tokenize(mark, add_special=False, parse_special=True)) == 1 for mark in CHATML_MARKS]
        return list(CHATML_MARKS) if self.template.is_fallback and not all(whole) else []

    def prompt_ids(self, prompt: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """A raw prompt. It is the caller's whole prompt, so control tokens in it are meant, unless the caller says otherwise."""
        ids = self.vocab.tokenize(prompt, add_special=add_special, parse_special=parse_special)
        return self._one_bos(ids) if add_special else ids

    def infill_ids(self, prefix: str, suffix: str) -> list[int]:
        """What asks for the text between two others, which stand for themselves: prefix, suffix, then the middle is to come."""
        ids = [self.vocab.bos] if self.vocab.add_bos and self.vocab.bos is not None else []
        for name, text in zip(INFILL, (prefix, suffix, ""), strict=True):
            ids += [self.vocab.special[name], *self.plain_ids(text)]
        return ids

    def plain_ids(self, text: str) -> list[int]:
        """A text that stands for itself."""
        return self.vocab.tokenize(text, add_special=False, parse_special=False) if text else []

    def _run_ids(self, run: list[str], runs: Runs | None) -> list[int]:
        text = "".join(run)
        if runs is None:
            return self.plain_ids(text)
        if text not in runs:
            runs[text] = self.plain_ids(text)
        return runs[text]

    def _split_literal(self, literal: Piece) -> list[int | str]:
        """A template's own text as control token ids and the plain text between them."""
        if literal.text.isspace():
            return [literal.text]
        return (self.remembered if len(literal.text) <= LITERAL_CHARS_MAX else self._split)(literal.text)

    def _split(self, text: str) -> list[int | str]:
        parts: list[int | str] = []
        rest = text
        for token in self.vocab.tokenize(text, add_special=False, parse_special=True):
            written = self.vocab.piece(token, special=True).decode("utf-8", "replace")
            if self.vocab.piece(token, special=False) or not written:
                continue  # not a control token: part of the plain text around it
            before, found, after = rest.partition(written)
            if found:
                parts += [before, token] if before else [token]
                rest = after
        if rest:
            parts.append(rest)
        return parts

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Where the vocabulary adds its beginning-of-text token, templates and callers often write it as well."""
        bos = self.vocab.bos
        return ids[1:] if self.vocab.add_bos and ids[:2] == [bos, bos] else ids


def common_tokens(tokeniser: Tokeniser, system: str) -> list[int]:
    """What all conversations with this system message begin with: the tokens that the engine can compute once and keep.

    Where they end is found by rendering conversations that differ right after the system message: what their tokens have in
    common at the start is the system message's. Raises TextRefused when the chat template allows no system message."""
    first = Message("system", system)
    said = [tokeniser.chat([first, Message("user", text)]) for text in _USER_TEXTS]
    prompts = [ids for ids, _ in said]
    for turns in _OTHER_TURNS:
        try:
            ids, note = tokeniser.chat([first, *turns])
        except TextRefused:
            continue  # no conversation can go on like this, so none needs to have the tokens in common
        if note == said[0][1]:
            prompts.append(ids)  # else its system messages are in another place, where nothing is in common
    shortest = min(map(len, prompts))
    differs = (i for i in range(shortest) if any(ids[i] != prompts[0][i] for ids in prompts))
    return prompts[0][: next(differs, shortest)]
