"""Templates: system prompts that the operator has declared, computed once by the engine and kept for all who may use them.

A template's tokens are those with which every conversation begins that has its text as system message. Where they end is
found by rendering conversations that differ right after the system message: what their tokens have in common at the
start is the template's. A request names its template only if its prompt really begins with these tokens, because a model's chat
template can do what it likes: write today's date before the system message, for instance.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from poise.config import TemplateSettings
from poise.gateway.errors import ApiError, invalid_value, template_not_found
from poise.gateway.parameters import SYSTEM_ROLES, Message
from poise.gateway.text import TextModel

log = logging.getLogger(__name__)

_USER_TEXTS = ("a", "Zebra", "7", "(", "é", " a", "\na")
"""Beginnings of a user's message that tokenisers join with what stands before them in different ways."""
_OTHER_TURNS = (
    [Message("system", "a"), Message("user", "a")],
    [Message("assistant", "a"), Message("user", "a")],
    [Message("tool", "a"), Message("user", "a")],
)
"""Other ways on after the system message: a summary, or a greeting. Not every chat template allows them."""


class TemplateUnusable(ValueError):
    """A declared template that the model's chat template cannot write."""


class Templates:
    """The declared templates, who may use them, and the tokens they come to."""

    def __init__(self, declared: Mapping[str, TemplateSettings]) -> None:
        self._declared = declared
        self._tokens: dict[str, list[int]] = {}

    def learn(self, text: TextModel) -> dict[str, list[int]]:
        """Find the tokens of each template, for the engine. Raises TemplateUnusable."""
        self._tokens = {name: common_tokens(text, name, template.text) for name, template in self._declared.items()}
        for name, tokens in self._tokens.items():
            if not tokens:
                log.warning("templates.%s: nothing of it can be kept, the chat template writes the user first", name)
        return {name: tokens for name, tokens in self._tokens.items() if tokens}

    def of_tenant(self, tenant: str) -> dict[str, int | None]:
        """The templates that a tenant may use, with their number of tokens (None: not known yet)."""
        return {
            name: len(self._tokens[name]) if name in self._tokens else None
            for name, template in self._declared.items()
            if not template.tenants or tenant in template.tenants
        }

    def apply(self, name: str, tenant: str, messages: list[Message]) -> list[Message]:
        """The conversation with the template's text as its system message. Raises ApiError."""
        known = self.of_tenant(tenant)
        if name not in known:
            raise template_not_found(name, known)
        for i, message in enumerate(messages):
            if message.role in SYSTEM_ROLES:
                rule = "be the whole system prompt, which is what makes it reusable: put further instructions into a user message"
                raise invalid_value("template", rule, None, f"messages[{i}] has the role '{message.role}'")
        return [Message("system", self._declared[name].text), *messages]

    def begins(self, name: str, ids: Sequence[int]) -> str:
        """The name, if it is one and a prompt begins with its tokens, else nothing."""
        tokens = self._tokens.get(name)
        return name if tokens and list(ids[: len(tokens)]) == tokens else ""


def common_tokens(text: TextModel, name: str, system: str) -> list[int]:
    """The tokens that conversations with this system message have in common. Raises TemplateUnusable."""
    first = Message("system", system)
    try:
        prompts = [text.chat_ids_now([first, Message("user", said)]) for said in _USER_TEXTS]
    except ApiError as error:
        raise TemplateUnusable(f"templates.{name} cannot be used with this model: {error.message}") from error
    for turns in _OTHER_TURNS:
        try:
            prompts.append(text.chat_ids_now([first, *turns]))
        except ApiError:
            continue  # no conversation can go on like this, so none needs to have the tokens in common
    shortest = min(map(len, prompts))
    differs = (i for i in range(shortest) if any(ids[i] != prompts[0][i] for ids in prompts))
    return prompts[0][: next(differs, shortest)]
