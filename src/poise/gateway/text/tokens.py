"""A model's text side as the gateway sees it: texts to ids by way of the text workers, and ids to text by a table.

    text = TextModel(vocabulary, workers)
    counted = await text.of(account).chat(messages)

Whoever asks is named by its account, because the workers' time is shared out by it. Every method raises ApiError: for what the
chat template refuses, for what cannot be tokenised, and when no worker is to be had."""

import logging
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from operator import sub
from typing import Any, Protocol, TypeVar

import msgspec

from poise.gateway.request.refusals import ApiError, internal_error, new_error_id
from poise.gateway.text.answers import AnswerParser
from poise.gateway.text.reading.machine import ResponseParser
from poise.gateway.text.reading.templates import choose, read_template
from poise.metrics.early import TextMetrics
from poise.wire import text as wire
from poise.wire.to_engine import Thinking

log = logging.getLogger(__name__)

A = TypeVar("A", wire.Checked, wire.Ids, wire.Written, wire.Fitted, wire.CutDown)

TAIL = 32
"""Tokens at the end of a prompt among which reasoning may be opened."""
ALL = 1 << 31
"""However many ids there are, they are wanted."""


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    BUSY = "busy"
    WAITING = "waiting"
    """For the time after which it is started again."""


class TextWorkerRow(msgspec.Struct, frozen=True):
    pid: int | None
    """For operators."""
    state: WorkerState
    restarts: int


class TextFigures(msgspec.Struct, frozen=True):
    workers: list[TextWorkerRow]
    queued: int
    queued_bytes: int


class TextJobs(Protocol):
    """Runs jobs on text: what TextWorkers do, and a test's stand-in."""

    @property
    def metrics(self) -> TextMetrics: ...
    @property
    def deaths(self) -> Iterable[tuple[float, str]]:
        """When workers ended without being asked to, by the monotonic clock, and how."""

    async def run(self, job: wire.Job, account: str, n_bytes: int) -> wire.Answer:
        """The answer to a job with so much text in it. Raises ApiError when nobody can answer it."""

    def status(self) -> TextFigures:
        """The workers and the queue, for /status."""


class TextModel:
    """One model: what its tokens stand for, and the way to its tokeniser."""

    def __init__(self, vocabulary: wire.Vocabulary, jobs: TextJobs) -> None:
        self._jobs = jobs
        self.n_tokens = vocabulary.n_tokens
        self._names, self._hidden = vocabulary.names, vocabulary.hidden
        self._ends = array("I", [0])
        """Token t's name is names[ends[t] : ends[t + 1]]: no object for each token."""
        self._ends.frombytes(vocabulary.ends)
        self.longest = max(map(sub, self._ends[1:], self._ends), default=0)
        """Bytes of text that one token can stand for, at most."""
        self.turn_marks = tuple(vocabulary.turn_marks)
        """Texts that end an answer in a chat."""
        self.special = vocabulary.special
        """Tokens with a task, by its name."""
        self.chat_template = vocabulary.chat_template
        control = (token for token, hidden in enumerate(self._hidden) if hidden)
        self._control = {self.token_name(token).decode("utf-8", "replace"): token for token in control}
        knows_tools = vocabulary.knows_tools
        self.reading = choose(vocabulary.chat_template, vocabulary.ways, self._control, knows_tools=knows_tools)
        """How answers are read."""
        self.reasoning_start: tuple[int, ...] = ()
        self.reasoning_end: tuple[int, ...] = ()
        """Tokens of the marks around reasoning; none for a model that does not reason."""
        self.reasoning_closes = ""
        """The text of the mark that ends it."""
        self._blank_roles = wire.BLANK_ROLES if vocabulary.keeps_blanks else ()
        """Those whose contents are in a prompt with the white space around them."""

    def token_name(self, token: int) -> bytes:
        """A token as log probabilities show it: control tokens have their names."""
        return self._names[self._ends[token] : self._ends[token + 1]]

    def token_bytes(self, token: int) -> bytes:
        """A token as an answer shows it: control tokens are empty."""
        return b"" if self._hidden[token] else self._names[self._ends[token] : self._ends[token + 1]]

    def read_by(self, source: Mapping[str, Any]) -> None:
        """Answers are read by a template of the operator's. Raises ValueError."""
        self.reading = read_template(source, self._control)

    async def learn_reasoning(self) -> None:
        """Find the tokens of the marks around reasoning. Raises ApiError."""
        text, marks = self.of(""), (self.reading.reasoning_opens[:1], self.reading.reasoning_closes[:1])
        opened, closed = ["".join(self.reading.names.get(char, char) for mark in of for char in mark) for of in marks]
        if opened and closed:
            self.reasoning_start = tuple((await text.prompt(opened, add_special=False)).ids)
            self.reasoning_closes = closed
            self.reasoning_end = tuple((await text.prompt(closed, add_special=False)).ids)

    def budget(self, n_tokens: int, prompt: Sequence[int]) -> Thinking:
        """Of reasoning, in the answer to a prompt."""
        return Thinking(n_tokens, self.reasoning_end, () if self.begins_inside(prompt) else self.reasoning_start)

    def knows(self, variable: str) -> bool:
        """Whether the chat template looks at a variable."""
        return re.search(rf"\b{re.escape(variable)}\b", self.chat_template) is not None

    def begins_inside(self, prompt: Sequence[int]) -> bool:
        """Whether the end of a prompt has opened the reasoning, so that the answer begins inside of it."""
        marks = self.reading.marks
        tail = (marks.get(token) or self.token_bytes(token).decode("utf-8", "replace") for token in prompt[-TAIL:])
        return "".join(tail).rstrip().endswith(self.reading.reasoning_opens or ("\0",))

    def parser(self, prompt: Sequence[int], tools: Mapping[str, Mapping[str, Any]]) -> AnswerParser:
        """For the answer to a conversation. `tools`: schemas of arguments by name, as far as anything may be called."""
        if not (tools or self.reading.reasoning_opens):
            return AnswerParser()
        return ResponseParser(self.reading, tools, inside=self.begins_inside(prompt))

    def least_bytes(self, messages: Sequence[wire.Message]) -> int:
        """Bytes of a conversation's contents that are in its prompt for certain: white space at the edges may be left out."""
        return sum(text_bytes(m.content if m.role in self._blank_roles else m.content.strip()) for m in messages)

    def of(self, account: str) -> "Tokens":
        """Tokens for this account."""
        return Tokens(self._jobs, account)


class Tokens:
    """Texts to token ids, for one account."""

    def __init__(self, jobs: TextJobs, account: str) -> None:
        self._jobs = jobs
        self._account = account

    async def chat(
        self, messages: Sequence[wire.Message], n_added: int = 0, ids_max: int = ALL, rendering: wire.Rendering = wire.AS_USUAL
    ) -> wire.Ids:
        """The prompt of a conversation, of which `n_added` messages at the start are not the caller's."""
        job = wire.Chat(list(messages), n_added, ids_max, rendering)
        return await self._run(wire.Ids, job, conversation_bytes(messages, rendering))

    async def prompt(
        self, prompt: str, ids_max: int = ALL, *, add_special: bool = True, parse_special: bool = True, suffix: str = ""
    ) -> wire.Ids:
        """A raw prompt. It is the caller's whole prompt, so control tokens in it are meant, unless the caller says otherwise.

        With a `suffix`, what is between the two is to be filled in."""
        job = wire.Prompt(prompt, ids_max, add_special, parse_special, suffix)
        return await self._run(wire.Ids, job, text_bytes(prompt) + text_bytes(suffix))

    async def written(self, messages: Sequence[wire.Message], rendering: wire.Rendering) -> wire.Written:
        """The prompt of a conversation as text."""
        job = wire.Write(list(messages), rendering)
        return await self._run(wire.Written, job, conversation_bytes(messages, rendering))

    async def length(self, text: str) -> int:
        """Tokens of a text that stands for itself."""
        return (await self.prompt(text, 0, add_special=False, parse_special=False)).n

    async def opening(self, system: str) -> list[int]:
        """The tokens with which every conversation begins that has this system message."""
        return (await self._run(wire.Ids, wire.Opening(system), text_bytes(system))).ids

    async def grammar(self, kind: str, text: str) -> str:
        """The engine's form of a grammar, or nothing where this is it. Raises ApiError when it cannot be used."""
        return (await self._run(wire.Checked, wire.CheckGrammar(kind, text), text_bytes(text))).text

    async def fit(self, job: wire.Fit) -> wire.Fitted:
        """The conversation with the fewest turns left out."""
        return await self._run(wire.Fitted, job, conversation_bytes(job.messages, job.rendering))

    async def cut(self, job: wire.Cut) -> wire.CutDown:
        """The conversation with the end of one message cut off."""
        return await self._run(wire.CutDown, job, conversation_bytes(job.messages, job.rendering))

    async def _run(self, kind: type[A], job: wire.Job, n_bytes: int) -> A:
        answer = await self._jobs.run(job, self._account, n_bytes)
        if isinstance(answer, wire.Refused):
            if answer.trace:
                log.error("a text worker refused a job with %s: %s", answer.code, answer.trace)
            raise ApiError(answer.status, answer.code, answer.message, param=answer.param)
        if isinstance(answer, wire.Broken):
            log.error("internal error %s in a text worker: %s", error_id := new_error_id(), answer.trace)
            raise internal_error(error_id)
        assert isinstance(answer, kind)
        return answer


def text_bytes(text: str) -> int:
    """Bytes of the texts in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))


def conversation_bytes(messages: Sequence[wire.Message], rendering: wire.Rendering) -> int:
    """Bytes of all that is said in a conversation, and of its tools."""
    texts = (text for m in messages for text in (m.content, m.reasoning or "", *(call.arguments for call in m.calls)))
    return sum(map(text_bytes, texts)) + (len(msgspec.json.encode(rendering.tools)) if rendering.tools else 0)


@dataclass(slots=True)
class TextSlot:
    """Who makes tokens of texts, and where the text model appears once its vocabulary is there."""

    jobs: TextJobs
    current: TextModel | None = None
