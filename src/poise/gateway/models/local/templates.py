"""Templates: system prompts by name. Those that the operator has declared are computed once by the engine and kept.

A template's tokens are those with which every conversation begins that has its text as system message; a text worker finds them
(`common_tokens`). A request names its template only if its prompt really begins with these tokens, because a model's chat
template can do what it likes: write today's date before the system message, for instance.

A few templates are shipped. They are short and perhaps never used, so nothing of them is kept: a request with one computes it as
it would any system message, and finds it among its tenant's own prefixes the next time. An operator who declares a template of
the same name replaces the shipped one, and has it kept."""

import logging
from collections.abc import Mapping, Sequence

from poise.config.serving import TemplateSettings
from poise.gateway.models.local.refusals import template_not_found
from poise.gateway.request.refusals import ApiError, invalid_value
from poise.gateway.text.tokens import TextModel
from poise.wire.text import SYSTEM_ROLES, Message

log = logging.getLogger(__name__)

OUTLINE_FIRST = "outline-first"
SHIPPED = {
    OUTLINE_FIRST: (
        "Answer in two steps. First write the outline: the heading '# Outline', and below it a numbered list with a short title "
        "for each part of your answer. Then write the answer itself: for each part a heading, '## ' and its title, and below it "
        "the detail. Write Markdown. When one or two sentences are enough, answer with these and without an outline."
    )
}
"""Names and texts of the templates that everybody may use, unless the operator has declared others of these names."""

OPERATOR = ""
"""Whose account the work for templates is: nobody's among the callers."""


class TemplateUnusable(ValueError):
    """A template that the model's chat template cannot write."""


class Templates:
    """The templates, who may use them, and the tokens they come to."""

    def __init__(self, declared: Mapping[str, TemplateSettings]) -> None:
        self._declared = declared
        self._shipped = {name: text for name, text in SHIPPED.items() if name not in declared}
        self._tokens: dict[str, list[int]] = {}

    async def learn(self, text: TextModel) -> dict[str, list[int]]:
        """Find the tokens of each template. Returns those that the engine is to keep. Raises TemplateUnusable.

        A shipped one that the model cannot have goes."""
        asked = text.of(OPERATOR)
        for name, said in [*((name, one.text) for name, one in self._declared.items()), *self._shipped.items()]:
            try:
                self._tokens[name] = await asked.opening(said)
            except ApiError as error:
                if error.status == 503:
                    raise  # nothing is wrong with it: there was no worker
                if name in self._declared:
                    problem = f"templates.{name} cannot be used with this model: {error.message}"
                    raise TemplateUnusable(problem) from error
                del self._shipped[name]
                log.info("the shipped template '%s' is not offered: %s", name, error.message)
            else:
                if name in self._declared and not self._tokens[name]:
                    log.warning("templates.%s: nothing of it can be kept, the chat template writes the user first", name)
        return {name: self._tokens[name] for name in self._declared if self._tokens[name]}

    def of_tenant(self, tenant: str) -> dict[str, tuple[int | None, bool]]:
        """The templates that a tenant may use: the operator's first. Of each, its tokens (None: not known yet), and whether they
        are kept and need no computing."""
        declared = [n for n, template in self._declared.items() if not template.tenants or tenant in template.tenants]
        return {
            name: (len(self._tokens[name]) if name in self._tokens else None, name in self._declared)
            for name in [*declared, *self._shipped]
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
        text = self._declared[name].text if name in self._declared else self._shipped[name]
        return [Message("system", text), *messages]

    def begins(self, name: str, ids: Sequence[int]) -> str:
        """The name, if the engine keeps its tokens and a prompt begins with them, else nothing."""
        tokens = self._tokens.get(name) if name in self._declared else None
        return name if tokens and list(ids[: len(tokens)]) == tokens else ""
