"""System messages where a chat template has no place for them: several, a later one, or any at all.

Templates of many families take one system message, first, or none. Agents send several, and where they like. So the same
instructions go where the template does take them, and the caller is told."""

from collections.abc import Iterator, Sequence

import msgspec

from poise.wire.text import SYSTEM_ROLES, Message

MERGED = "the system messages were joined into one at the beginning: the model's chat template takes no others"
FOLDED = "the system messages were put into the first user message: the model's chat template takes none"


def elsewhere(messages: Sequence[Message]) -> Iterator[tuple[list[Message], str]]:
    """The conversation with its system messages in other places, each with what the caller is to be told of it."""
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
