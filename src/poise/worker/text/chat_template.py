"""Chat templates: a conversation to the text that the model was trained on, without letting contents pass for template.

The template never sees what a message says. It is given a placeholder of private-use characters in its place, and the
placeholders are exchanged for the contents only after rendering, as pieces of their own (`hidden`). So the result says, for every
character, whether the template or the caller wrote it, and the tokeniser looks for control tokens in the template's part.

A template that looks deeper into a content (to cut reasoning out of it, say) finds the texts there that it names itself. A
template that drops a content altogether is an error that the caller is sent. One that refuses the system messages where they
are gets them in another place (`elsewhere`); tools and calls are given to it in the manner that it takes (`tools`)."""

import logging
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

import jinja2
import msgspec

from poise.wire.text import AS_USUAL, BLANK_ROLES, SYSTEM_ROLES, Message, Rendering
from poise.worker.text import tools
from poise.worker.text.dialect import Dialect, TemplateRefusal
from poise.worker.text.hidden import HIDDEN, CutError, Hidden, Piece

log = logging.getLogger(__name__)

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""For model files without a template: the commonest format."""
CHATML_MARKS = ("<|im_end|>", "<|im_start|>")

OUTPUT_CHARS_MAX = 1 << 24
FAILED = "chat_template_failed"
MERGED = "the system messages were joined into one at the beginning: the model's chat template takes no others"
FOLDED = "the system messages were put into the first user message: the model's chat template takes none"


@dataclass(eq=False)
class TextRefused(Exception):
    """An error for the caller, with the status and the code of the API. `trace`: see `trace_of`."""

    status: int
    code: str
    message: str
    param: str | None = field(default=None, kw_only=True)
    trace: str = field(default="", kw_only=True)


def trace_of(error: BaseException) -> str:
    """Kind and places of an error for the log, without its message, which could quote a request."""
    return "".join([type(error).__name__, "\n", *traceback.format_tb(error.__traceback__)])


class ChatTemplate:
    """A model's chat template, compiled once. Raises ValueError for a source that is no template."""

    def __init__(
        self, source: str | None, *, bos_text: str = "", eos_text: str = "", now: Callable[[], datetime] = datetime.now
    ) -> None:
        if not source:
            log.warning("the model file has no chat template: conversations are written in ChatML")
        self.is_fallback = not source
        self.source = source or CHATML
        # Names that templates ask for by `is none`: without them they would be undefined, which is not none.
        self._variables = {"bos_token": bos_text, "eos_token": eos_text, "documents": None}
        self._dialect = Dialect(now)
        self._manner = tools.Manner()
        """In which it took calls the last time."""
        try:
            self._template, self._marks = self._dialect.compiled(source or CHATML)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the model's chat template is broken in line {error.lineno}: {error.message}") from error

    @cached_property
    def knows_tools(self) -> bool:
        """It shows the model which tools there are."""
        try:
            pieces, _ = self._placed([Message("user", "Hi")], 0, Rendering(tools=[tools.PROBE]), tools.Manner())
        except TextRefused:
            return False
        return any(tools.PROBE["function"]["name"] in piece.text for piece in pieces)

    def keeps_blanks(self) -> bool:
        """Whether it leaves the white space around what is said where it is, whoever says it."""
        said = [Message(role, f" \n {role}s \n ") for role in (*BLANK_ROLES, "user")]
        try:
            rendered = "".join(piece.text for piece in self.write(said)[0])
        except TextRefused:
            return False  # it takes no such conversation, so nothing is known
        return all(rendered.count(message.content) == 1 + (message.role == "user") for message in said)

    def write(self, messages: Sequence[Message], n_added: int = 0, rendering: Rendering = AS_USUAL) -> tuple[list[Piece], str]:
        """As `render`, with what the template refuses given in another way; and what is to be said of that."""
        if rendering.tools and not self.knows_tools:
            written = tools.generic(tools.with_names(messages), rendering.tools)
            n_more = messages[0].role not in SYSTEM_ROLES
            return self._placed(written, n_added + n_more, msgspec.structs.replace(rendering, tools=[]), tools.Manner())
        if not any(message.calls or message.role == "tool" for message in messages):
            return self._placed(messages, n_added, rendering, tools.Manner())
        refusals = []
        named = tools.with_names(messages)
        for manner in sorted(tools.manners(messages), key=lambda manner: manner != self._manner):
            try:
                done = self._placed(named, n_added, rendering, manner)
            except TextRefused as refused:
                refusals.append(refused)
            else:
                self._manner = manner
                return done
        try:
            return self._placed(tools.generic(named, []), n_added, rendering, tools.Manner())
        except TextRefused:
            raise refusals[0] from None

    def _placed(
        self, messages: Sequence[Message], n_added: int, rendering: Rendering, manner: tools.Manner
    ) -> tuple[list[Piece], str]:
        """With system messages in another place where the template refuses them."""
        try:
            return self.render(messages, n_added, rendering, manner), ""
        except TextRefused as refused:
            if refused.code == FAILED:
                raise
            for moved, note in elsewhere(messages):
                try:
                    return self.render(moved, 0, rendering, manner), note
                except TextRefused:
                    continue
            raise

    def plain(self, messages: list[dict[str, Any]], **variables: Any) -> str:
        """What it makes of messages of our own; nothing where it fails at them."""
        try:
            return self._template.render(self._variables | {"messages": messages, "tools": None} | variables)
        except Exception:  # as in `_render`
            return ""

    def render(
        self,
        messages: Sequence[Message],
        n_added: int = 0,
        rendering: Rendering = AS_USUAL,
        manner: tools.Manner = tools.Manner(),  # noqa: B008 (it is a tuple)
    ) -> list[Piece]:
        """The prompt as pieces, ending where the assistant is to speak. Raises TextRefused.

        The first `n_added` messages are not the caller's: errors give the others the places that the caller knows."""
        if rendering.continues and not messages[-1].content.strip():
            # nothing is to be continued
            messages, rendering = messages[:-1], msgspec.structs.replace(rendering, opens_answer=True, continues=False)
        hidden = Hidden(self._marks)
        shown = [_variables(message, i, len(messages), hidden, manner) for i, message in enumerate(messages)]
        self._dialect.hidden = hidden
        try:
            written = self._render(shown, rendering, hidden)
        finally:
            self._dialect.hidden = Hidden()  # no text of a conversation outlives its rendering
        try:
            pieces = hidden.pieces(written)
        except CutError:
            raise _broken("it cuts a message in two") from None
        if sum(len(piece.text) for piece in pieces) > OUTPUT_CHARS_MAX:
            raise _broken(f"it writes more than {OUTPUT_CHARS_MAX} characters")
        for owner in hidden.left_out():
            is_call, owner = divmod(owner, len(messages))  # the calls of messages are counted after all messages
            if not is_call and owner in hidden.marked and messages[owner].role == "assistant":
                continue  # a thought without an answer: what is shown of it is the template's to say
            place = f"messages[{owner - n_added}]" if owner >= n_added else "the added message"
            why = f"The model's chat template has no place for {place} (role '{messages[owner].role}'). "
            why += "Remove it or put its text into another message."
            raise TextRefused(400, "message_left_out", why, param=place if owner >= n_added else "messages")
        return _open_ended(pieces, messages[-1].content) if rendering.continues else pieces

    def _render(self, messages: list[dict[str, Any]], rendering: Rendering, hidden: Hidden) -> str:
        pieces = []
        n_chars = 0
        variables = hidden.value(rendering.variables) | self._variables | {"messages": messages}
        variables["tools"] = hidden.value(rendering.tools) or None
        variables["add_generation_prompt"] = rendering.opens_answer and not rendering.continues
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                n_chars += len(piece)
                if n_chars > OUTPUT_CHARS_MAX:
                    raise _broken(f"it writes more than {OUTPUT_CHARS_MAX} characters")
        except TemplateRefusal as error:
            text = f"The model's chat template refuses this conversation: {error}"
            raise TextRefused(400, "invalid_messages", text, param="messages") from None
        except TextRefused:
            raise
        except Exception as error:  # a template is a program of the model's maker and may fail in any way
            why = HIDDEN.sub("…", f"{type(error).__name__}: {error}")[:300]
            raise _broken(why, trace_of(error)) from error
        return "".join(pieces)


def _variables(message: Message, index: int, n: int, hidden: Hidden, manner: tools.Manner) -> dict[str, Any]:
    """What a template is given of one of `n` messages."""
    # Only OpenAI's own models know the role `developer`; it replaced `system` there.
    role = "system" if message.role == "developer" else message.role
    variables: dict[str, Any] = {"role": role, "content": hidden.hide(message.content, index)}
    if message.calls:
        variables["tool_calls"] = tools.call_variables(message, n + index, hidden, manner)
        variables["content"] = variables["content"] or manner.empty
    if message.name is not None:
        variables["name"] = hidden.hide(message.name)
    if message.tool_call_id is not None:
        variables["tool_call_id"] = tools.shown_id(message.tool_call_id, hidden, manner)
    if message.reasoning is not None:
        thought = hidden.hide(message.reasoning)
        # Families have different names for it; each template asks for one of them.
        variables |= {"reasoning_content": thought, "reasoning": thought, "thinking": thought}
    return variables


def _open_ended(pieces: list[Piece], content: str) -> list[Piece]:
    """Without what the template writes after the last content: the model goes on with it."""
    last = max(i for i, piece in enumerate(pieces) if piece.is_content)
    blanks = content[len(content.rstrip()) :]
    kept = [Piece(blanks, is_content=False)] if blanks and pieces[last + 1 : last + 2] else []
    return pieces[: last + 1] + [piece for piece in kept if pieces[last + 1].text.startswith(blanks)]


def _broken(why: str, trace: str = "") -> TextRefused:
    """No error of the server's: it would fail again however often it is sent."""
    message = f"The model's chat template failed: {why}. /v1/completions takes a prompt that is written out."
    return TextRefused(400, FAILED, message, param="messages", trace=trace)


def elsewhere(messages: Sequence[Message]) -> Iterator[tuple[list[Message], str]]:
    """The conversation with its system messages in other places, each with what the caller is to be told of it.

    Templates of many families take one system message, first, or none. Agents send several, and where they like. So the same
    instructions go where the template does take them."""
    systems = [message for message in messages if message.role in SYSTEM_ROLES]
    others = [message for message in messages if message.role not in SYSTEM_ROLES]
    if not systems:
        return
    text = "\n\n".join(message.content for message in systems if message.content.strip())
    if len(systems) > 1 or messages[0] is not systems[0]:
        yield [Message("system", text), *others], MERGED
    first = next((i for i, message in enumerate(others) if message.role == "user"), None)
    if first is None:
        yield [Message("user", text), *others], FOLDED
        return
    said = others[first].content
    joined = f"{text}\n\n{said}" if text and said.strip() else text or said
    others[first] = msgspec.structs.replace(others[first], content=joined)
    yield others, FOLDED
