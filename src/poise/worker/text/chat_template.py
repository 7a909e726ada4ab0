"""Chat templates: a conversation to the text that the model was trained on, without letting contents pass for template.

The template never sees what a message says. It is given a placeholder of private-use characters in its place, and the
placeholders are exchanged for the contents only after rendering, as pieces of their own. So the result says, for every
character, whether the template or the caller wrote it, and the tokeniser looks for control tokens in the template's part.

White space around a content stays outside its placeholder, so that `trim` and its like work as intended, and an empty content
stays empty for `if message.content`. A template that looks deeper into a content (to cut reasoning out of it, say) sees
the placeholder and leaves the content whole. A template that drops a content altogether is an error that the caller is sent.
"""

from __future__ import annotations

import json
import logging
import re
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from poise.wire.text import Message

log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For model files without a template: the commonest format."""

OUTPUT_CHARS_MAX = 1 << 24
_OPEN, _CLOSE = "\uf8f0", "\uf8f1"
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


class TextRefused(Exception):
    """An error for the caller, with the status and the code of the API. `trace`: see `trace_of`."""

    def __init__(self, status: int, code: str, message: str, *, param: str | None = None, trace: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.param = param
        self.trace = trace


def trace_of(error: BaseException) -> str:
    """Kind and places of an error for the log, without its message, which could quote a request."""
    return "".join([type(error).__name__, "\n", *traceback.format_tb(error.__traceback__)])


@dataclass(frozen=True, slots=True)
class Piece:
    """Text of a rendered conversation, and whether it is a caller's content or the template's own literal."""

    text: str
    is_content: bool


class ChatTemplate:
    """A model's chat template, compiled once. Raises ValueError for a source that is no template."""

    def __init__(
        self,
        source: str | None,
        *,
        bos_text: str = "",
        eos_text: str = "",
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        if not source:
            log.warning("the model file has no chat template: conversations are written in ChatML")
        self._variables = {"bos_token": bos_text, "eos_token": eos_text, "add_generation_prompt": True}
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _raise_exception
        environment.globals["strftime_now"] = lambda fmt: now().strftime(fmt)
        try:
            self._template = environment.from_string(source or CHATML)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the model's chat template is broken in line {error.lineno}: {error.message}") from error

    def render(self, messages: Sequence[Message], n_added: int = 0) -> list[Piece]:
        """The prompt as pieces, ending where the assistant is to speak. Raises TextRefused.

        The first `n_added` messages are not the caller's: errors give the others the places that the caller knows.
        """
        contents: list[str] = []
        owners: list[int | None] = []

        def hide(text: str, owner: int | None = None) -> str:
            core = text.strip()
            if not core:
                return text
            start = text.index(core)
            contents.append(core)
            owners.append(owner)
            return f"{text[:start]}{_OPEN}{len(contents) - 1}{_CLOSE}{text[start + len(core) :]}"

        variables = [_variables(message, i, hide) for i, message in enumerate(messages)]
        pieces, used = _split(self._render(variables), contents)
        for index, owner in enumerate(owners):
            if owner is not None and index not in used:
                place = f"messages[{owner - n_added}]" if owner >= n_added else "the added message"
                raise TextRefused(
                    400,
                    "message_left_out",
                    f"The model's chat template has no place for {place} (role '{messages[owner].role}'). "
                    "Remove it or put its text into another message.",
                    param=place if owner >= n_added else "messages",
                )
        return pieces

    def _render(self, messages: list[dict[str, str]]) -> str:
        pieces = []
        n_chars = 0
        try:
            for piece in self._template.generate(messages=messages, **self._variables):
                pieces.append(piece)
                n_chars += len(piece)
                if n_chars > OUTPUT_CHARS_MAX:
                    raise _broken(f"it writes more than {OUTPUT_CHARS_MAX} characters")
        except _TemplateRefusedError as error:
            text = f"The model's chat template refuses this conversation: {_PLACEHOLDER.sub('…', str(error))}"
            raise TextRefused(400, "invalid_messages", text, param="messages") from None
        except TextRefused:
            raise
        except Exception as error:  # a template is a program of the model's maker and may fail in any way
            raise _broken(type(error).__name__, trace_of(error)) from error
        return "".join(pieces)


class _TemplateRefusedError(Exception):
    """Raised by templates, with their own words, by calling raise_exception."""


def _variables(message: Message, index: int, hide: Callable[..., str]) -> dict[str, str]:
    # Only OpenAI's own models know the role `developer`; it replaced `system` there.
    role = "system" if message.role == "developer" else message.role
    variables = {"role": role, "content": hide(message.content, index)}
    if message.name is not None:
        variables["name"] = hide(message.name)
    if message.tool_call_id is not None:
        variables["tool_call_id"] = hide(message.tool_call_id)
    return variables


def _split(rendered: str, contents: list[str]) -> tuple[list[Piece], set[int]]:
    """Segments with the contents back in their places, and which contents were used."""
    pieces: list[Piece] = []
    used: set[int] = set()
    for i, part in enumerate(_PLACEHOLDER.split(rendered)):
        if i % 2:  # the split alternates literals and the numbers in the placeholders
            used.add(int(part))
            pieces.append(Piece(contents[int(part)], is_content=True))
        elif part:
            if _OPEN in part or _CLOSE in part:
                raise _broken("it cuts a message in two")
            pieces.append(Piece(part, is_content=False))
    if sum(len(piece.text) for piece in pieces) > OUTPUT_CHARS_MAX:
        raise _broken(f"it writes more than {OUTPUT_CHARS_MAX} characters")
    return pieces, used


def _broken(why: str, trace: str = "") -> TextRefused:
    message = f"The model's chat template failed: {why}. /v1/completions takes a prompt that is written out."
    return TextRefused(500, "template_failed", message, trace=trace)


def _raise_exception(message: object) -> NoReturn:
    raise _TemplateRefusedError(str(message)[:500])


def _to_json(value: Any, indent: int | None = None, **_: Any) -> str:
    """Plain JSON: Jinja's own filter escapes it for HTML."""
    return json.dumps(value, ensure_ascii=False, indent=indent)
