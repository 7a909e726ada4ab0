"""Templates: system prompts by name. Those that the operator has declared are computed once by the engine and kept.

A template's tokens are those with which every conversation begins that has its text as system message. Where they end is
found by rendering conversations that differ right after the system message: what their tokens have in common at the
start is the template's. A request names its template only if its prompt really begins with these tokens, because a model's chat
template can do what it likes: write today's date before the system message, for instance.

A few templates are shipped. They are short and perhaps never used, so nothing is done for them at the start and nothing of them
is kept: a request with one computes it as it would any system message, and finds it among its tenant's own prefixes the next
time. An operator who declares a template of the same name replaces the shipped one, and has it kept.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from poise.config import TemplateSettings
from poise.gateway.errors import ApiError, invalid_value, template_not_found
from poise.gateway.parameters import SYSTEM_ROLES, Message
from poise.gateway.text import TextModel

log = logging.getLogger(__name__)

OUTLINE_FIRST = "outline-first"
SHIPPED = {
    OUTLINE_FIRST: (
        "Answer in two steps. First write the outline: the heading '# Outline', and below it a numbered list with a short title "
        "for each part of your answer. Then write the answer itself: for each part a heading, '## ' and its title, and below it "
        "the detail. Write Markdown. When one or two sentences are enough, answer with these and without an outline."
    ),
}
"""Names and texts of the templates that everybody may use, unless the operator has declared others of these names."""

_USER_TEXTS = ("a", "Zebra", "7", "(", "é", " a", "\na")
"""Beginnings of a user's message that tokenisers join with what stands before them in different ways."""
_OTHER_TURNS = (
    [Message("system", "a"), Message("user", "a")],
    [Message("assistant", "a"), Message("user", "a")],
    [Message("tool", "a"), Message("user", "a")],
)
"""Other ways on after the system message: a summary, or a greeting. Not every chat template allows them."""


class TemplateUnusable(ValueError):
    """A template that the model's chat template cannot write."""


@dataclass(frozen=True, slots=True)
class TemplateInfo:
    """What a caller is told of a template. `n_tokens` None: not known yet. `kept`: they need no computing."""

    n_tokens: int | None
    kept: bool


class Templates:
    """The templates, who may use them, and the tokens they come to."""

    def __init__(self, declared: Mapping[str, TemplateSettings]) -> None:
        self._declared = declared
        self._shipped = {name: text for name, text in SHIPPED.items() if name not in declared}
        self._tokens: dict[str, list[int]] = {}
        self._text: TextModel | None = None

    def learn(self, text: TextModel) -> dict[str, list[int]]:
        """Find the tokens of each template. Returns those that the engine is to keep. Raises TemplateUnusable."""
        kept = {name: common_tokens(text, name, template.text) for name, template in self._declared.items()}
        for name, tokens in kept.items():
            if not tokens:
                log.warning("templates.%s: nothing of it can be kept, the chat template writes the user first", name)
        self._tokens, self._text = dict(kept), text
        return {name: tokens for name, tokens in kept.items() if tokens}

    def of_tenant(self, tenant: str) -> dict[str, TemplateInfo]:
        """The templates that a tenant may use: the operator's first."""
        self._learn_shipped()
        declared = [n for n, template in self._declared.items() if not template.tenants or tenant in template.tenants]
        return {
            name: TemplateInfo(len(self._tokens[name]) if name in self._tokens else None, kept=name in self._declared)
            for name in [*declared, *self._shipped]
        }

    def _learn_shipped(self) -> None:
        """Find the tokens of shipped templates, when somebody asks for the first time. One that the model cannot have goes."""
        if self._text is None:
            return
        for name in [name for name in self._shipped if name not in self._tokens]:
            try:
                self._tokens[name] = common_tokens(self._text, name, self._shipped[name])
            except TemplateUnusable as error:
                del self._shipped[name]
                log.info("the shipped template '%s' is not offered: %s", name, error)

    def apply(self, name: str, tenant: str, messages: list[Message]) -> list[Message]:
        """The conversation with the template's text as its system message. Raises ApiError."""
        known = self.of_tenant(tenant)
        if name not in known:
            raise template_not_found(name, known)
        for i, message in enumerate(messages):
            if message.role in SYSTEM_ROLES:
                rule = "be the whole system prompt, which is what makes it reusable: put further instructions into a user message"
                raise invalid_value("template", rule, None, f"messages[{i}] has the role '{message.role}'")
        text = self._declared[name].text if name in self._declared else self._shipped[name]
        return [Message("system", text), *messages]

    def begins(self, name: str, ids: Sequence[int]) -> str:
        """The name, if the engine keeps its tokens and a prompt begins with them, else nothing."""
        tokens = self._tokens.get(name) if name in self._declared else None
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
