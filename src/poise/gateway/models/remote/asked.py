"""What a request asks for that not every server can do, and what both formats make of it."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from poise.config.hybrid import BackendSettings
from poise.gateway.request.generate import Conversation, Generate
from poise.gateway.request.structure import Structure
from poise.gateway.request.tools import NO_PARAMETERS, Tool, ToolMode, ToolUse
from poise.wire.text import SYSTEM_ROLES, Call, Message

TOOLS, STRUCTURED, REASONING, LOGPROBS = "tools", "structured", "reasoning", "logprobs"
CHOICES, COMPLETIONS, SAMPLING = "choices", "completions", "sampling"
"""What an operator says that a server can do."""
JSON_OBJECT, CONTINUED, ANY_TURNS = "json_object", "continued", "any_turns"
"""What follows from its format: JSON without a schema; an answer that goes on with the last message; turns in any order."""
GRAMMAR, TOKEN_IDS, ECHO, TEMPLATE, NO_OUTPUT = "grammar", "token_ids", "echo", "template", "no_output"
"""What no other server is asked for: regular expressions, choices and grammars; prompts as ids; the prompt in the answer; a
template that is kept here; a prompt that is only computed."""
_FORMATS: Mapping[str, tuple[frozenset[str], frozenset[str]]] = {
    "openai": (
        frozenset({TOOLS, STRUCTURED, REASONING, LOGPROBS, CHOICES, COMPLETIONS, SAMPLING}),
        frozenset({JSON_OBJECT, ANY_TURNS}),
    ),
    "anthropic": (frozenset({TOOLS, STRUCTURED, REASONING, SAMPLING}), frozenset({CONTINUED})),
}
"""By format, what can be said in it if the server can do it, and what goes without saying."""
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def capabilities_of(backend: BackendSettings) -> frozenset[str]:
    """What can be asked of it: what the operator says that it can do, as far as its format has words for that."""
    can_say, implied = _FORMATS[backend.format]
    can = frozenset(backend.capabilities) & can_say
    return can | (implied if STRUCTURED in can else implied - {JSON_OBJECT})


def needs(request: Generate) -> frozenset[str]:
    """What a server must be able to do. What it may leave undone, as a wish for reasoning, is said by each format's `body`."""
    wanted = {
        LOGPROBS: request.sampling.n_logprobs >= 0,
        CHOICES: request.n > 1 or (isinstance(request.prompt, list) and len(request.prompt) > 1),
        ECHO: request.echo,
        NO_OUTPUT: request.max_tokens == 0,
    }
    if request.structure is not None:
        kinds = {"schema": STRUCTURED, "json_object": JSON_OBJECT}
        wanted[kinds.get(request.structure.kind, GRAMMAR)] = True
    chat = request.prompt
    if isinstance(chat, Conversation):
        roles = [message.role for message in chat.messages if message.role not in SYSTEM_ROLES]
        is_new_turn = bool(roles) and roles[0] == "user" and roles[-1] != "assistant"
        wanted |= {
            TOOLS: bool(request.tools) or any(message.calls or message.role == "tool" for message in chat.messages),
            TEMPLATE: bool(chat.template),
            CONTINUED: chat.rendering.continues or not chat.rendering.opens_answer,
            ANY_TURNS: not is_new_turn and not (roles[:1] == ["user"] and chat.rendering.continues),
        }
    else:
        wanted |= {COMPLETIONS: True, TOKEN_IDS: not isinstance(chat[0], str)}
    return frozenset(name for name, is_wanted in wanted.items() if is_wanted)


def schema_of(structure: Structure) -> dict[str, Any] | None:
    """The JSON Schema that an answer must have, as it was asked for; None: it is held to something else."""
    if structure.kind not in ("schema", "json_object"):
        return None
    schema: dict[str, Any] = msgspec.json.decode(structure.text)["grammars"][0]["json_schema"]
    return {name: value for name, value in schema.items() if name != "x-guidance"}


def is_strict(schema: Any) -> bool:
    """Whether OpenAI's strict mode takes it: objects without further properties, all of them required, wherever they are."""
    if isinstance(schema, list):
        return all(map(is_strict, schema))
    if not isinstance(schema, dict):
        return True
    if "properties" in schema or schema.get("type") == "object":
        properties, required = schema.get("properties"), schema.get("required")
        if schema.get("additionalProperties") is not False or not isinstance(properties, dict):
            return False
        if not isinstance(required, list) or set(map(str, required)) != set(properties):
            return False
    return all(map(is_strict, schema.values()))


def answered_calls(messages: Sequence[Message]) -> list[Message]:
    """The messages with ids that every server takes: a call without one gets its number, and a result that names none is that of
    the first call that has no result."""
    known: dict[str, str] = {}
    waiting: list[str] = []
    found = []
    for i, message in enumerate(messages):
        if message.calls:
            ids = [_id(call.id, f"call_{i}_{j}") for j, call in enumerate(message.calls)]
            known |= {call.id: new for call, new in zip(message.calls, ids, strict=True) if call.id}
            waiting = list(ids)
            calls = tuple(Call(new, call.name, call.arguments) for call, new in zip(message.calls, ids, strict=True))
            message = msgspec.structs.replace(message, calls=calls)
        elif message.role == "tool":
            given = message.tool_call_id
            answered = known.get(given, _id(given, given)) if given else next(iter(waiting), f"call_{i}")
            waiting = [one for one in waiting if one != answered]
            message = msgspec.structs.replace(message, tool_call_id=answered)
        found.append(message)
    return found


def _id(given: str, instead: str) -> str:
    return given if _ID.fullmatch(given) else re.sub(r"[^A-Za-z0-9_-]", "_", instead)[:64]


def called_before(messages: Sequence[Message]) -> ToolUse:
    """The functions that a conversation has calls of, as far as these show them: for servers that must be told of some."""
    names = dict.fromkeys(call.name for message in messages for call in message.calls)
    return ToolUse(tuple(Tool(name, parameters=NO_PARAMETERS) for name in names), ToolMode.NONE)
