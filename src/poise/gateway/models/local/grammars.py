"""Grammars of requests, of their calls too: a text worker tries each one before the engine is given it. What was found is
remembered a while. Where nobody has asked for the form of a call, one that cannot be followed is let go."""

import os
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping
from hashlib import blake2b

import msgspec

from poise.gateway.request.generate import Generate
from poise.gateway.request.refusals import ApiError, invalid_structure
from poise.gateway.request.structure import Structure
from poise.gateway.request.tools import Tool, ToolMode
from poise.gateway.text.call_grammar import grammar_of, needs_grammar, schema_of
from poise.gateway.text.reading.templates import Template
from poise.gateway.text.tokens import Tokens, text_bytes

TENANTS_MAX = 128
"""Tenants whose grammars are remembered: those that asked last."""
GRAMMARS_MAX = 64
"""Of each one."""


class Grammars:
    """Remembers by a keyed digest that a grammar can be used (""), or why not; never its text."""

    def __init__(self, kb_max: int) -> None:
        self._bytes_max = kb_max << 10
        self._key = os.urandom(16)
        self._known: OrderedDict[str, OrderedDict[bytes, str]] = OrderedDict()

    async def tried(self, structure: Structure, tenant: str, text: Tokens) -> str:
        """The grammar as the engine takes it. Raises ApiError when it cannot be used."""
        n_bytes = text_bytes(structure.text)
        if n_bytes > self._bytes_max:
            why = f"it has {n_bytes} bytes as a grammar, and at most {self._bytes_max} are read (text.grammar_kb_max)"
            raise invalid_structure(structure.param, structure.kind, why)
        known = self._known.setdefault(tenant, OrderedDict())
        self._known.move_to_end(tenant)
        if len(self._known) > TENANTS_MAX:
            self._known.popitem(last=False)
        digest = blake2b(f"{structure.kind}\n{structure.text}".encode("utf-8", "replace"), key=self._key).digest()
        if (found := known.get(digest)) is None:
            try:
                if grammar := await text.grammar(structure.kind, structure.text):
                    return grammar  # it would have to be kept: GBNF is made anew each time
                found = ""
            except ApiError as error:
                if error.status != 400:
                    raise
                found = error.message
            known[digest] = found
            if len(known) > GRAMMARS_MAX:
                known.popitem(last=False)
        if found:
            raise invalid_structure(structure.param, structure.kind, found)
        return structure.text

    async def erase(self, tenant: str) -> Mapping[str, int]:
        """Forget them: why one was refused may quote it."""
        return {"grammars": len(self._known.pop(tenant, ()))}


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
