"""Older turns as a summary: what the model is asked to summarize, in how many pieces, and what comes of it.

A summary is background work of the same tenant through the same engine: it waits for its turn like any other, and is charged to
who asked for it. Its prompts are made before anything is sent to a client, so that what cannot be summarized is
refused at once; after that only the engine can fail, and then the request fails with its error."""

from collections.abc import Sequence
from math import ceil

from poise.gateway.request.refusals import context_length_exceeded
from poise.gateway.text.context import ContextLimits
from poise.gateway.text.tokens import Tokens
from poise.wire.text import Message, said

TOKENS_MAX = 256
CONTEXT_SHARE = 8
"""A summary takes at most this part of the context, and never more than TOKENS_MAX."""
PIECE_TOKENS = 16
"""Fewer tokens than this say nothing about a piece of a conversation; it bounds the number of pieces."""
HEADING = "Summary of the earlier conversation, which is no longer shown:\n"
INSTRUCTION = (
    "Summarize the following part of a conversation in a few sentences. Keep names, numbers, decisions and open questions. "
    "Write nothing but the summary.\n\n"
)


def tokens_max(limits: ContextLimits) -> int:
    """Most tokens that the summary of a conversation may have."""
    return max(PIECE_TOKENS, min(TOKENS_MAX, limits.context // CONTEXT_SHARE))


def summary_message(text: str) -> Message:
    """The message that stands for the turns that were summarized."""
    return Message("system", HEADING + text)


def transcript(messages: Sequence[Message]) -> str:
    """A conversation as a text that is to be read, not continued."""
    return "\n\n".join(f"{message.name or message.role}: {said(message)}" for message in messages)


def split(text: str, n_pieces: int) -> list[str]:
    """The text in pieces of nearly equal length, cut between messages, lines or words where one ends nearby."""
    pieces = []
    start = 0
    for i in range(1, n_pieces):
        end = max(start, len(text) * i // n_pieces)
        nearby = max(start, end - len(text) // (4 * n_pieces))
        for boundary in ("\n\n", "\n", " "):
            found = text.rfind(boundary, nearby, end)
            if found >= 0:
                end = found + len(boundary)
                break
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


async def piece_prompts(text: Tokens, messages: Sequence[Message], limits: ContextLimits, n_output: int) -> list[list[int]]:
    """The prompts whose answers, joined, are a summary of the messages. Raises ApiError when they are too long for that.

    `limits` are those of the class that computes summaries, `n_output` the tokens of the whole summary."""
    whole = transcript(messages)
    pieces_max = max(1, n_output // PIECE_TOKENS)
    # Each answer gets its part of `n_output` only; that room is kept for all of it is a margin.
    room = max(1, limits.room_for(n_output))
    n_pieces = 1
    while n_pieces <= pieces_max:
        asked = [[Message("user", INSTRUCTION + piece)] for piece in split(whole, n_pieces)]
        prompts = [await text.chat(one, ids_max=room) for one in asked]
        if max(prompt.n for prompt in prompts) <= room:
            return [prompt.ids for prompt in prompts]
        # At least so many are needed, because more pieces repeat the instruction more often.
        n_pieces = max(n_pieces + 1, ceil(sum(prompt.n for prompt in prompts) / room))
    raise context_length_exceeded(
        f"The older turns are too long to be summarized: they would need {n_pieces} pieces, each of which fits into the "
        f"{room} tokens that class '{limits.request_class}' has for them, but at most {pieces_max} are made.",
        "Shorten the conversation or use 'context_policy': 'trim'.",
        "messages",
    )
