"""What an answer is held to where functions may be called: tried by a text worker, and let go where nobody has asked for it."""

from collections.abc import Awaitable, Callable

import msgspec

from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError
from poise.gateway.request.structure import Structure
from poise.gateway.request.tools import Tool, ToolMode
from poise.gateway.text.call_grammar import grammar_of, needs_grammar, schema_of
from poise.gateway.text.reading.templates import Template

CONTENT = "content"
Try = Callable[[Structure], Awaitable[str]]


async def structure_of(request: Generate, template: Template, tried: Try) -> Structure | None:
    """What the answer to a request must be, its calls included; None: anything. `template`: how the model writes calls; `tried`:
    raises ApiError for what cannot be followed.

    Where the schema of a function cannot be, and calls of it have to follow it, that is the caller's error; otherwise its
    arguments are the model's own."""
    use, own = request.tools, request.structure
    if not use.callable or not (own or needs_grammar(use, template)):
        return own
    is_forced = use.mode is ToolMode.REQUIRED
    own = None if is_forced else own  # it is of what is said, and nothing will be
    if own is not None and own.kind == "gbnf":
        message = f"'{own.param}' is GBNF, which cannot be combined with tools. Send the grammar in Lark, or a JSON Schema."
        raise ApiError(400, "conflicting_parameters", message, param=own.param)
    free: set[str] = set()
    while True:
        lark = grammar_of(use, template, free, f"@{CONTENT}" if own is not None else "")
        grammars = [{"lark_grammar": lark}]
        if own is not None:
            grammars += [{"name": CONTENT, **one} for one in msgspec.json.decode(own.text)["grammars"]]
        structure = Structure("tools", msgspec.json.encode({"grammars": grammars}).decode(), "tools")
        try:
            await tried(structure)
        except ApiError as error:
            if error.status != 400:
                raise
            broken = {tool.name for tool in use.callable if not await _can_be(tool, is_forced, free, tried)} - free
            if not broken and (is_forced or own is not None):
                raise
            if not broken:
                return None
            free |= broken
        else:
            return structure


async def _can_be(tool: Tool, is_forced: bool, free: set[str], tried: Try) -> bool:
    """Whether the schema of a function can be followed. Raises ApiError where it cannot and has to be."""
    if tool.name in free:
        return False
    is_held = is_forced or tool.strict
    grammar = {"grammars": [{"json_schema": schema_of(tool, lenient=not is_held)}]}
    param = f"{tool.param.removesuffix('.name')}.parameters"
    try:
        await tried(Structure("schema", msgspec.json.encode(grammar).decode(), param))
    except ApiError as error:
        if error.status != 400 or is_held:
            raise ApiError(error.status, error.code, f"Function '{tool.name}': {error.message}", param=param) from None
        return False
    return True
