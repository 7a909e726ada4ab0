"""Grammars of requests: a text worker tries each one before the engine is given it. What was found is remembered a while."""

import os
from collections import OrderedDict
from collections.abc import Mapping
from hashlib import blake2b

from poise.gateway.request.refusals import ApiError, invalid_structure
from poise.gateway.request.structure import Structure
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
