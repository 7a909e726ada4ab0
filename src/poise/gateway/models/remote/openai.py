"""OpenAI's format, as it, vLLM, SGLang, llama-server and others speak it: a request as its body, its answer as events."""

from collections.abc import Iterator
from typing import Annotated, Any

import msgspec

from poise.config.settings import SamplingSettings
from poise.gateway.models.remote.asked import REASONING, SAMPLING, answered_calls, is_strict, schema_of
from poise.gateway.models.remote.events import (
    ERROR,
    NO_ANSWER,
    AnswerReader,
    Called,
    Delta,
    Event,
    Failed,
    Used,
    failure,
    failure_of,
)
from poise.gateway.records.values import Logprob
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.tools import ToolMode, ToolUse
from poise.gateway.text.answers import EntryKind
from poise.wire.text import SYSTEM_ROLES, Message

STOPS_MAX = 4
"""More are looked for here alone, as all are."""
REASONS = {"length": "length", "max_tokens": "length", "content_filter": "content_filter"}
"""Any other is `stop`, also that of calls: whoever writes the answer sees that there are some."""
_BROKEN_OFF = ("error", "abort")
_DONE = b"[DONE]"
_NEUTRAL: tuple[tuple[str, float], ...] = (
    ("temperature", 1.0),
    ("top_p", 1.0),
    ("presence_penalty", 0.0),
    ("frequency_penalty", 0.0),
)
_OWN: tuple[tuple[str, str, float], ...] = (
    ("top_k", "top_k", 0),
    ("min_p", "min_p", 0.0),
    ("repetition_penalty", "repetition_penalty", 1.0),
    ("min_output", "min_tokens", 0),
    ("ignore_eos", "ignore_eos", False),
)
"""Of those, with their names: what only servers with the capability `sampling` know."""
_DEFAULTS = SamplingSettings()


def body(
    request: Generate,
    model: str,
    *,
    stream: bool,
    max_tokens: int | None,
    can: frozenset[str],
    defaults: SamplingSettings = _DEFAULTS,
) -> tuple[str, bytes, list[str]]:
    """Path, JSON, and the fields of the request that have no effect there, though its answer can be had: what it cannot do
    without is said by `asked.needs`. `can`: of the server. `defaults`: what nobody has asked for, where it is left out."""
    sampling, without = request.sampling, list[str]()
    sent: dict[str, Any] = {"model": model, "stream": stream}
    if stream:
        sent["stream_options"] = {"include_usage": True}
    sent |= {name: value for name, neutral in _NEUTRAL if (value := getattr(sampling, name)) != neutral}
    for attribute, name, neutral in _OWN:
        value = getattr(sampling, attribute)
        if value == neutral:
            continue
        if SAMPLING in can:
            sent[name] = value
        elif name == "top_k" and value == 1:
            sent |= {"temperature": 0.0}  # the likeliest token, in words that everybody knows
        elif value != getattr(defaults, attribute, neutral):
            without.append(name)
    if sampling.logit_bias:
        without.append("logit_bias")  # its ids are another model's
    if request.seed is not None:
        sent["seed"] = request.seed
    if request.stop:
        sent["stop"] = list(request.stop[:STOPS_MAX])
    if request.n > 1:
        sent["n"] = request.n
    if not isinstance(request.prompt, Conversation):
        return "/completions", _completion(request, sent, max_tokens), without
    if max_tokens is not None:
        sent["max_completion_tokens" if REASONING in can else "max_tokens"] = max_tokens
    _chat(request, request.prompt, sent, can, without)
    return "/chat/completions", msgspec.json.encode(sent), without


def _completion(request: Generate, sent: dict[str, Any], max_tokens: int | None) -> bytes:
    assert isinstance(request.prompt, list)
    sent["prompt"] = request.prompt[0] if len(request.prompt) == 1 else request.prompt
    if max_tokens is not None:
        sent["max_tokens"] = max_tokens
    if request.suffix:
        sent["suffix"] = request.suffix
    if request.sampling.n_logprobs >= 0:
        sent["logprobs"] = request.sampling.n_logprobs
    return msgspec.json.encode(sent)


def _chat(request: Generate, chat: Conversation, sent: dict[str, Any], can: frozenset[str], without: list[str]) -> None:
    sent["messages"] = [_message(message, REASONING in can) for message in answered_calls(chat.messages)]
    if REASONING not in can and any(message.reasoning for message in chat.messages):
        without.append("messages.reasoning_content")
    if request.sampling.n_logprobs >= 0:
        sent |= {"logprobs": True, "top_logprobs": request.sampling.n_logprobs}
    if request.tools:
        sent |= _tools(request.tools)
    if request.structure is not None:
        schema = schema_of(request.structure) or {}
        named = {"name": "answer", "schema": schema, "strict": is_strict(schema)}
        is_any = request.structure.kind == "json_object"
        sent["response_format"] = {"type": "json_object"} if is_any else {"type": "json_schema", "json_schema": named}
    for param, variables in chat.thinking.variables.items():
        if param == "reasoning_effort" and REASONING in can:
            sent[param] = variables[param]
        else:
            without.append(param)
    if chat.thinking.budget is not None:
        without.append(chat.thinking.budget_param)
    if chat.rendering.variables:
        without.append("chat_template_kwargs")


def _message(message: Message, with_reasoning: bool) -> dict[str, Any]:
    role = "system" if message.role in SYSTEM_ROLES else message.role
    sent: dict[str, Any] = {"role": role, "content": message.content}
    if message.name and message.role != "tool":
        sent["name"] = message.name
    if message.role == "tool":
        sent["tool_call_id"] = message.tool_call_id or ""
    if message.reasoning and with_reasoning:
        sent["reasoning_content"] = message.reasoning
    if message.calls:
        functions = [(call.id, {"name": call.name, "arguments": call.arguments}) for call in message.calls]
        sent["tool_calls"] = [{"id": id, "type": "function", "function": function} for id, function in functions]
        sent["content"] = message.content or None
    return sent


def _tools(use: ToolUse) -> dict[str, Any]:
    """Only those that may be called: to say that of some of the others is a word of few servers."""
    tools = [tool.as_shown() for tool in use.callable]
    for shown, tool in zip(tools, use.callable, strict=True):
        shown["function"] |= {"strict": True} if tool.strict else {}
    choice: Any = "required" if use.mode is ToolMode.REQUIRED else "auto"
    if use.mode is ToolMode.REQUIRED and len(tools) == 1:
        choice = {"type": "function", "function": {"name": use.callable[0].name}}
    return {"tools": tools, "tool_choice": choice} | ({} if use.parallel else {"parallel_tool_calls": False})


Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 40)]
Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    """vLLM's later name, and that of others."""
    refusal: str | None = None
    tool_calls: list[_Call] | None = None


class _Top(msgspec.Struct):
    token: str
    logprob: float
    raw: list[Byte] | None = msgspec.field(name="bytes", default=None)

    @property
    def piece(self) -> bytes:
        return self.token.encode("utf-8", "replace") if self.raw is None else bytes(self.raw)


class _Token(_Top):
    top_logprobs: list[_Top] | None = None


class _Logprobs(msgspec.Struct):
    """Of a chat; or of a completion, in lists beside each other."""

    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None

    def scored(self) -> Iterator[tuple[str, bytes, float, tuple[tuple[bytes, float], ...]]]:
        """Text, bytes and log probability of each token, and the likeliest ones."""
        for one in self.content or ():
            yield one.token, one.piece, one.logprob, tuple((top.piece, top.logprob) for top in one.top_logprobs or ())
        tops = self.top_logprobs or [None] * len(self.tokens or ())
        for token, logprob, top in zip(self.tokens or (), self.token_logprobs or (), tops, strict=False):
            likeliest = tuple((other.encode("utf-8", "replace"), value) for other, value in (top or {}).items())
            yield token, token.encode("utf-8", "replace"), float("nan") if logprob is None else logprob, likeliest


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Message | None = None
    message: _Message | None = None
    """Of an answer that is no stream."""
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None


class _OfPrompt(msgspec.Struct):
    cached_tokens: Count | None = None


class _OfOutput(msgspec.Struct):
    reasoning_tokens: Count | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: Count | None = None
    completion_tokens: Count | None = None
    prompt_tokens_details: _OfPrompt | None = None
    completion_tokens_details: _OfOutput | None = None

    def used(self) -> Used:
        prompt, output = self.prompt_tokens or 0, self.completion_tokens or 0
        cached = self.prompt_tokens_details.cached_tokens if self.prompt_tokens_details else 0
        reasoning = self.completion_tokens_details.reasoning_tokens if self.completion_tokens_details else 0
        return Used(prompt, min(cached or 0, prompt), output, min(reasoning or 0, output))


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class Events(AnswerReader):
    """Reads an answer in this format, of a chat or of a completion. `n_choices`: of all prompts."""

    def __init__(self, n_choices: int = 1) -> None:
        super().__init__(n_choices)
        self._n_chars = [0] * n_choices
        """Of each choice's text so far."""
        self._called: dict[int, tuple[int | None, str]] = {}
        """By choice, index and id of the call that it has come to."""

    def _read(self, name: str, data: bytes) -> Iterator[Event]:
        if data.strip() == _DONE:
            for choice in sorted(self._open):
                yield from self._ended(choice, "stop")
            self.is_over = True
            return
        if name == "error":  # llama-server's way
            yield failure_of(data)
            return
        yield from self._chunk(_decode(data))

    def _read_whole(self, body: bytes) -> Iterator[Event]:
        chunk = _decode(body)
        if chunk.choices is None:
            yield failure_of(body)
            return
        yield from self._chunk(chunk)

    def _chunk(self, chunk: _Chunk) -> Iterator[Event]:
        if chunk.error is not None:
            yield failure(chunk.error)
            return
        for choice in chunk.choices or ():
            if not 0 <= choice.index < self._n_choices:
                yield Failed(NO_ANSWER, "the server answered with a choice that was not asked for")
                return
            yield from self._choice(choice)
        if chunk.usage is not None:
            yield chunk.usage.used()

    def _choice(self, choice: _Choice) -> Iterator[Event]:
        said = choice.delta or choice.message or _Message()
        if thought := said.reasoning_content or said.reasoning:
            yield Delta(choice.index, EntryKind.REASONING, thought)
        text = choice.text or said.content or said.refusal or ""
        logprobs = self._logprobs(choice.index, choice.logprobs) if choice.logprobs else ()
        if text or logprobs:
            self._n_chars[choice.index] += len(text)
            yield Delta(choice.index, EntryKind.TEXT, text, logprobs)
        for call in said.tool_calls or ():
            yield from self._call(choice.index, call)
        if choice.finish_reason in _BROKEN_OFF:
            yield Failed(ERROR, "the server gave the answer up")
        elif choice.finish_reason:
            yield from self._ended(choice.index, REASONS.get(choice.finish_reason, "stop"))

    def _logprobs(self, choice: int, given: _Logprobs) -> list[Logprob]:
        found, offset = [], self._n_chars[choice]
        for token, piece, logprob, top in given.scored():
            found.append(Logprob(piece, logprob, top, offset, offset + len(token)))
            offset += len(token)
        return found

    def _call(self, choice: int, call: _Call) -> Iterator[Event]:
        """Some servers number all calls 0, or none, and tell them apart by ids."""
        function, before = call.function or _Function(), self._called.get(choice)
        is_new = before is None or (call.index is not None and call.index != before[0]) or (call.id and call.id != before[1])
        if is_new and not function.name:
            yield Failed(NO_ANSWER, "the server went back to a call that it had left, or began one without a name")
            return
        if is_new:
            self._called[choice] = (call.index, call.id or "")
            yield Called(choice, function.name or "", call.id or "")
        arguments = function.arguments
        if isinstance(arguments, dict):
            arguments = msgspec.json.encode(arguments).decode()
        if arguments:
            yield Delta(choice, EntryKind.CALL_ARGUMENTS, arguments)
