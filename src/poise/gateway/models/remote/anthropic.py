"""Anthropic's Messages format: a request as its body, its answer as events."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec

from poise.config.settings import SamplingSettings
from poise.gateway.models.remote.asked import REASONING, SAMPLING, answered_calls, called_before, schema_of
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
from poise.gateway.models.remote.openai import Count
from poise.gateway.request.generate import Conversation, Generate, ThinkingWish
from poise.gateway.request.tools import NO_PARAMETERS, ToolMode, ToolUse
from poise.gateway.text.answers import EntryKind
from poise.wire.text import SYSTEM_ROLES, Call, Message

REASONS = {"max_tokens": "length", "model_context_window_exceeded": "length", "refusal": "content_filter"}
"""Any other is `stop`, also that of calls."""
THINKING_MIN = 1024
EFFORTS = ("low", "medium", "high", "max")
_DEFAULTS = SamplingSettings()
_UNKNOWN = ("presence_penalty", "frequency_penalty", "repetition_penalty", "min_output", "ignore_eos")
"""Of the sampling, what the format has no word for."""
_FIELDS = {"min_output": "min_tokens"}


def body(
    request: Generate,
    model: str,
    *,
    stream: bool,
    max_tokens: int | None,
    can: frozenset[str],
    defaults: SamplingSettings = _DEFAULTS,
) -> tuple[str, bytes, list[str]]:
    """Path, JSON, and the fields of the request that have no effect there; as `openai.body`. `max_tokens` is needed here."""
    assert isinstance(request.prompt, Conversation), "prompts are not sent to servers of this format"
    assert max_tokens is not None, "the format wants a bound"
    chat, without = request.prompt, list[str]()
    sent: dict[str, Any] = {"model": model, "stream": stream, "max_tokens": max_tokens}
    system = [message.content for message in chat.messages if message.role in SYSTEM_ROLES and message.content]
    if system:
        sent["system"] = "\n\n".join(system)
    sent["messages"] = _turns(answered_calls(chat.messages), chat.rendering.continues)
    without += ["messages.name"] if any(m.name and m.role != "tool" for m in chat.messages) else []
    without += ["messages.reasoning_content"] if any(m.reasoning for m in chat.messages) else []
    # It refuses white space alone; such a stop string is looked for here, as all are.
    if stops := [stop for stop in request.stop if stop.strip()]:
        sent["stop_sequences"] = stops
    use = request.tools if request.tools.tools else called_before(chat.messages)
    if use.tools:
        sent |= _tools(use)
    config: dict[str, Any] = {}
    if request.structure is not None:
        config["format"] = {"type": "json_schema", "schema": schema_of(request.structure)}
    thinking = _thinking(chat, request.tools, max_tokens, config, without) if REASONING in can else None
    if thinking is not None:
        sent["thinking"] = thinking
    elif REASONING not in can:
        without += _named(chat.thinking)
    if config:
        sent["output_config"] = config
    _sampling(request, sent, can, defaults, without)
    without += ["chat_template_kwargs"] if chat.rendering.variables else []
    return "/messages", msgspec.json.encode(sent), without


def _sampling(
    request: Generate, sent: dict[str, Any], can: frozenset[str], defaults: SamplingSettings, without: list[str]
) -> None:
    """Temperature and top_p exclude each other in later models, and both thinking."""
    sampling, plain = request.sampling, type(request.sampling)()
    thinks = sent.get("thinking", {}).get("type") == "enabled"
    temperature = 0.0 if sampling.top_k == 1 and SAMPLING not in can else sampling.temperature
    if temperature != 1.0 and not thinks:
        sent["temperature"] = min(temperature, 1.0)
    elif sampling.top_p != 1.0 and not thinks:
        sent["top_p"] = sampling.top_p
    if SAMPLING in can and sampling.top_k > 0 and not thinks:
        sent["top_k"] = sampling.top_k
    for name in ("temperature", "top_p", "top_k", "min_p"):
        value = getattr(sampling, name)
        is_meant = value not in (getattr(plain, name), getattr(defaults, name))
        if is_meant and sent.get(name) != value and not (name == "top_k" and sent.get("temperature") == 0.0):
            without.append(name)
    without += [_FIELDS.get(name, name) for name in _UNKNOWN if getattr(sampling, name) != getattr(plain, name)]
    without += ["logit_bias"] if sampling.logit_bias else []
    without += ["seed"] if request.seed is not None else []


def _turns(messages: Sequence[Message], continues: bool) -> list[dict[str, Any]]:
    """Turns of users and assistants that alternate: what one says in several messages becomes one. Results come first."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        if message.role in SYSTEM_ROLES:
            continue
        role = "assistant" if message.role == "assistant" else "user"
        blocks = _blocks(message)
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        elif blocks:
            turns.append({"role": role, "content": blocks})
    for turn in turns:
        turn["content"].sort(key=lambda block: block["type"] != "tool_result")
    if continues and turns and turns[-1]["content"][-1]["type"] == "text":
        last = turns[-1]["content"][-1]
        last["text"] = last["text"].rstrip()  # it refuses white space at the end of what it is to go on with
    return turns


def _blocks(message: Message) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": message.content}]
    said = [{"type": "text", "text": message.content}] if message.content.strip() else []
    return said + [{"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call)} for call in message.calls]


def _arguments(call: Call) -> dict[str, Any]:
    """An object, whatever the model has written."""
    try:
        found = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        found = None
    return found if isinstance(found, dict) else {"arguments": call.arguments}


def _tools(use: ToolUse) -> dict[str, Any]:
    """Where none may be called they are told all the same: earlier calls are refused without."""
    tools = []
    for tool in use.callable or use.tools:
        parameters = {"type": "object", **(tool.parameters or NO_PARAMETERS)}
        described = {"description": tool.description} if tool.description else {}
        tools.append({"name": tool.name, **described, "input_schema": parameters} | ({"strict": True} if tool.strict else {}))
    choice: dict[str, Any] = {"type": {ToolMode.NONE: "none", ToolMode.AUTO: "auto", ToolMode.REQUIRED: "any"}[use.mode]}
    if use.mode is ToolMode.REQUIRED and len(tools) == 1:
        choice = {"type": "tool", "name": tools[0]["name"]}
    if use.mode is not ToolMode.NONE and not use.parallel:
        choice["disable_parallel_tool_use"] = True
    return {"tools": tools, "tool_choice": choice}


def _thinking(
    chat: Conversation, tools: ToolUse, max_tokens: int, config: dict[str, Any], without: list[str]
) -> dict[str, Any] | None:
    """None: as the model likes. It cannot be had beside a call that is forced, after results, whose thinking is not kept here, or
    within few tokens."""
    wish = chat.thinking
    effort, is_on = _wish(wish)
    if effort in EFFORTS:
        config["effort"] = effort
    elif effort not in ("", "none"):
        without.append("reasoning_effort")
    if is_on is None:
        return None
    if not is_on:
        return {"type": "disabled"}
    is_forced = bool(tools) and tools.mode is ToolMode.REQUIRED
    if is_forced or chat.messages[-1].role == "tool" or chat.rendering.continues or max_tokens <= THINKING_MIN:
        without += [name for name in _named(wish) if name != "reasoning_effort"]
        return None
    wanted = wish.budget if wish.budget and wish.budget > 0 else max_tokens // 2
    return {"type": "enabled", "budget_tokens": min(max(THINKING_MIN, wanted), max_tokens - 1)}


def _named(wish: ThinkingWish) -> list[str]:
    """The fields that it came in."""
    return [*wish.variables, *([wish.budget_param] if wish.budget is not None else [])]


def _wish(wish: ThinkingWish) -> tuple[str, bool | None]:
    """In words, how much; and whether at all, where that is said."""
    effort = str(wish.variables.get("reasoning_effort", {}).get("reasoning_effort", ""))
    switches = [bool(values["thinking"]) for name, values in wish.variables.items() if name != "reasoning_effort"]
    if wish.budget is not None:
        return effort, wish.budget != 0 and all(switches)
    return effort, switches[0] if switches else (False if effort == "none" else None)


class _Block(msgspec.Struct):
    type: str = ""
    id: str = ""
    name: str = ""
    text: str = ""
    thinking: str = ""
    input: dict[str, Any] = {}


class _Delta(msgspec.Struct):
    type: str = ""
    text: str = ""
    thinking: str = ""
    partial_json: str = ""
    stop_reason: str | None = None


class _Usage(msgspec.Struct):
    input_tokens: Count | None = None
    cache_read_input_tokens: Count | None = None
    cache_creation_input_tokens: Count | None = None
    output_tokens: Count | None = None


class _Message(msgspec.Struct):
    usage: _Usage | None = None


class _Event(msgspec.Struct):
    type: str = ""
    index: int = 0
    message: _Message | None = None
    content_block: _Block | None = None
    delta: _Delta | None = None
    usage: _Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Event).decode


class Events(AnswerReader):
    """Reads a stream in this format. It has one choice."""

    def __init__(self, n_choices: int = 1) -> None:
        super().__init__(n_choices)
        self._usage = _Usage()
        self._calling: int | None = None
        """The block of the call that has come so far without arguments."""

    def _read(self, name: str, data: bytes) -> Iterator[Event]:
        event = _decode(data)
        kind = event.type or name
        if kind == "error" or event.error is not None:
            yield failure(event.error)
        elif kind == "message_start" and event.message is not None and event.message.usage is not None:
            yield self._used(event.message.usage)
        elif kind == "content_block_start" and event.content_block is not None:
            yield from self._start(event.index, event.content_block)
        elif kind == "content_block_delta" and event.delta is not None:
            yield from self._delta(event.delta)
        elif kind == "content_block_stop" and self._calling == event.index:
            self._calling = None
            yield Delta(0, EntryKind.CALL_ARGUMENTS, "{}")
        elif kind == "message_delta":
            if event.usage is not None:
                yield self._used(event.usage)
            if event.delta is not None and event.delta.stop_reason:
                yield from self._ended(0, REASONS.get(event.delta.stop_reason, "stop"))
        elif kind == "message_stop":
            yield from self._ended(0, "stop")
            self.is_over = True

    def _read_whole(self, body: bytes) -> Iterator[Event]:
        failed = failure_of(body)
        is_error = _decode(body).error is not None
        yield failed if is_error else Failed(NO_ANSWER, "the server answered with something other than a stream of events")

    def _start(self, index: int, block: _Block) -> Iterator[Event]:
        if block.type == "tool_use":
            if not block.name:
                yield Failed(ERROR, "the server called a function without a name")
                return
            self._calling = index
            yield Called(0, block.name, block.id)
            if block.input:
                self._calling = None
                yield Delta(0, EntryKind.CALL_ARGUMENTS, msgspec.json.encode(block.input).decode())
        elif block.text or block.thinking:
            yield Delta(0, EntryKind.REASONING if block.thinking else EntryKind.TEXT, block.thinking or block.text)

    def _delta(self, delta: _Delta) -> Iterator[Event]:
        if delta.type == "text_delta" and delta.text:
            yield Delta(0, EntryKind.TEXT, delta.text)
        elif delta.type == "thinking_delta" and delta.thinking:
            yield Delta(0, EntryKind.REASONING, delta.thinking)
        elif delta.type == "input_json_delta" and delta.partial_json:
            self._calling = None
            yield Delta(0, EntryKind.CALL_ARGUMENTS, delta.partial_json)

    def _used(self, usage: _Usage) -> Used:
        """Counts are of the whole message so far; one that is not repeated stands."""
        for name in _Usage.__struct_fields__:
            if (count := getattr(usage, name)) is not None:
                setattr(self._usage, name, count)
        cached, written = self._usage.cache_read_input_tokens or 0, self._usage.cache_creation_input_tokens or 0
        return Used((self._usage.input_tokens or 0) + cached + written, cached, self._usage.output_tokens or 0)
