"""Between text and token ids: the vocabulary, prompts in, and answers out piece by piece.

**Control tokens in prompts.** A message that contains the text `<|im_end|>` must reach the model as those ten characters, or a
user could end their own turn and speak as somebody else. So a rendered chat arrives here as segments: literals, written by
the template, and contents, written by the caller. Control tokens are looked for in the literals only. What lies between two
control tokens, literals and contents together, is one run of plain text and is tokenised as such:

    literal "<|im_start|>user\\n"   content "Hi <|im_end|>"   literal "<|im_end|>\\n"
    [control]  [----------- run "user\\nHi <|im_end|>" ------------] [control] [run "\\n"]

Runs rather than segments are tokenised, so that text without control tokens in it gives exactly the ids that tokenising the whole
string would give. Limits: vocabularies that strip white space around a control token do not do so next to a content, and
tokens that the vocabulary declares as ordinary (user-defined) ones are recognised in contents too, by the tokeniser itself.

**Answers.** Tokens are bytes. `Detokeniser` holds back an incomplete character, `StopScanner` what may become a stop string.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol, TypeVar

from poise.gateway.chat import ChatTemplate, Segment
from poise.gateway.parameters import Message

T = TypeVar("T")

INLINE_CHARS = 16_384
"""A longer text is tokenised in a thread: it would hold up the running streams for more than a few milliseconds."""
INLINE_MESSAGES = 64
_LITERALS_MAX = 1024


class Vocabulary(Protocol):
    """What the gateway needs of a model file: its vocabulary, without the weights. It is used from two threads."""

    @property
    def n_tokens(self) -> int: ...
    @property
    def bos(self) -> int | None:
        """Beginning-of-text token."""
        ...

    @property
    def add_bos(self) -> bool:
        """Prompts are meant to begin with it."""
        ...

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...
    def piece(self, token: int, *, special: bool) -> bytes:
        """The token's bytes. Control tokens have none unless `special`."""
        ...


class TextModel:
    """One model's text side: prompts to ids, by way of its chat template, and ids to text."""

    def __init__(self, vocab: Vocabulary, template: ChatTemplate, executor: Executor) -> None:
        self.vocab = vocab
        self._template = template
        self._executor = executor
        self._literals: dict[str, list[int | str]] = {}

    async def chat_ids(self, messages: Sequence[Message], n_added: int = 0, *, in_thread: bool = False) -> list[int]:
        """The prompt of a conversation, of which `n_added` messages at the start are not the caller's.

        `in_thread`: one of many, which together would hold up the running streams. Raises ApiError when the template refuses
        the conversation.
        """
        n_chars = sum(len(message.content) for message in messages)
        large = in_thread or n_chars > INLINE_CHARS or len(messages) > INLINE_MESSAGES
        return await self._run(large, lambda: self.chat_ids_now(messages, n_added))

    def chat_ids_now(self, messages: Sequence[Message], n_added: int = 0) -> list[int]:
        """The same at once, for a caller who may wait."""
        return self._tokenise(self._template.render(messages, n_added))

    async def plain_length(self, text: str) -> int:
        """Tokens of a text that stands for itself."""
        return await self._run(len(text) > INLINE_CHARS, lambda: len(self._plain_ids([text])))

    async def prompt_ids(self, prompt: str) -> list[int]:
        """A raw prompt. It is the caller's whole prompt, so control tokens in it are meant."""
        return await self._run(
            len(prompt) > INLINE_CHARS,
            lambda: self._one_bos(self.vocab.tokenize(prompt, add_special=True, parse_special=True)),
        )

    def token_bytes(self, token: int) -> bytes:
        """As it shows in an answer: control tokens are empty."""
        return self.vocab.piece(token, special=False)

    def token_name(self, token: int) -> bytes:
        """As it shows among log probabilities: control tokens have their names."""
        return self.vocab.piece(token, special=True)

    async def _run(self, large: bool, work: Callable[[], T]) -> T:
        if not large:
            return work()
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def _tokenise(self, segments: Sequence[Segment]) -> list[int]:
        ids: list[int] = []
        run: list[str] = []
        for segment in segments:
            for part in [segment.text] if segment.is_content else self._split_literal(segment.text):
                if isinstance(part, str):
                    run.append(part)
                else:
                    ids += [*self._plain_ids(run), part]
                    run = []
        ids += self._plain_ids(run)
        if self.vocab.add_bos and self.vocab.bos is not None:
            ids.insert(0, self.vocab.bos)
        return self._one_bos(ids)

    def _plain_ids(self, run: list[str]) -> list[int]:
        text = "".join(run)
        return self.vocab.tokenize(text, add_special=False, parse_special=False) if text else []

    def _split_literal(self, text: str) -> list[int | str]:
        """A template's own text as control token ids and the plain text between them. Templates repeat theirs: remembered."""
        parts = self._literals.get(text)
        if parts is None:
            parts = []
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
            if len(self._literals) < _LITERALS_MAX:
                self._literals[text] = parts
        return parts

    def _one_bos(self, ids: list[int]) -> list[int]:
        """Where the vocabulary adds its beginning-of-text token, templates and callers often write it as well."""
        bos = self.vocab.bos
        return ids[1:] if self.vocab.add_bos and ids[:2] == [bos, bos] else ids


@dataclass(slots=True)
class TextSlot:
    """Where the text model appears once its vocabulary is loaded."""

    current: TextModel | None = None


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
        return self._decoder.decode(b"", final=True)


class StopScanner:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    The first stop string is the one that is complete first; of several complete at the same character, the longest. Text
    that may still become a stop string is held back until that is decided, so no part of one is ever let through. Each
    stop string is a Knuth-Morris-Pratt automaton: the work per character does not depend on the length of the strings.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(stops)
        """Of each stop string, how many characters the text seen so far ends with."""
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now. After a stop string there is none any more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for i, char in enumerate(text, start=len(self._held) + 1):
            length = self._advance(char)
            if length:
                self.stopped = True
                self._held = ""
                return seen[: i - length]
        n_shown = len(seen) - max(self._matched)
        self._held = seen[n_shown:]
        return seen[:n_shown]

    def flush(self) -> str:
        """The text ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Length of the longest stop string that this character completes, else 0."""
        complete = 0
        for i, stop in enumerate(self._stops):
            n = self._matched[i]
            while n and stop[n] != char:
                n = self._borders[i][n - 1]
            n += stop[n] == char
            self._matched[i] = n
            if n == len(stop):
                complete = max(complete, n)
        return complete


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    for i in range(1, len(text)):
        n = borders[i - 1]
        while n and text[n] != text[i]:
            n = borders[n - 1]
        borders[i] = n + (text[n] == text[i])
    return borders
