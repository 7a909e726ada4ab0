"""What all conversations with one system message begin with: the tokens that the engine can compute once and keep.

Where they end is found by rendering conversations that differ right after the system message: what their tokens have in common
at the start is the system message's."""

from poise.wire.text import Message
from poise.worker.text.chat_template import TextRefused
from poise.worker.text.tokeniser import Tokeniser

_USER_TEXTS = ("a", "Zebra", "7", "(", "é", " a", "\na")
"""Beginnings of a user's message that tokenisers join with what stands before them in different ways."""
_OTHER_TURNS = (
    [Message("system", "a"), Message("user", "a")],
    [Message("assistant", "a"), Message("user", "a")],
    [Message("tool", "a"), Message("user", "a")],
)
"""Other ways on after the system message: a summary, or a greeting. Not every chat template allows them."""


def common_tokens(tokeniser: Tokeniser, system: str) -> list[int]:
    """The tokens that conversations with this system message have in common.

    Raises TextRefused when the chat template allows no system message."""
    first = Message("system", system)
    said = [tokeniser.chat([first, Message("user", text)]) for text in _USER_TEXTS]
    prompts = [ids for ids, _ in said]
    for turns in _OTHER_TURNS:
        try:
            ids, note = tokeniser.chat([first, *turns])
        except TextRefused:
            continue  # no conversation can go on like this, so none needs to have the tokens in common
        if note == said[0][1]:
            prompts.append(ids)  # else its system messages are in another place, where nothing is in common
    shortest = min(map(len, prompts))
    differs = (i for i in range(shortest) if any(ids[i] != prompts[0][i] for ids in prompts))
    return prompts[0][: next(differs, shortest)]
