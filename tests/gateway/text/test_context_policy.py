"""Limits, turns and the search for the fewest to drop: for every conversation, not for chosen ones."""

from __future__ import annotations

import asyncio
from math import ceil, log2

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import UNSET

from poise.config import ClassSettings, Settings
from poise.gateway.api.openai.parameters import CONTEXT_POLICY, ROLES
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.models.local.prompts import Prompts
from poise.gateway.models.local.summary import split
from poise.gateway.models.local.templates import Templates
from poise.gateway.records.record import Origin
from poise.gateway.records.values import ContextNote
from poise.gateway.request.refusals import ApiError
from poise.gateway.text.context import Allowance, ContextLimits, ContextPolicy, Turns
from poise.scheduler.request import RequestClass
from poise.wire.messages import PoolInfo
from poise.wire.text import SYSTEM_ROLES, Message
from poise.worker.text.fitting import fewest, kept
from tests.gateway.fakes import ready, text_model, tokeniser

CONVERSATIONS = st.lists(st.sampled_from(ROLES), max_size=30).map(
    lambda roles: [Message(role, str(i)) for i, role in enumerate(roles)]
)


def limits(cells: int = 600, prompt: int = 0, context: int = 0, short: int = 0, heavy: int = 1024) -> ContextLimits:
    settings = ClassSettings(
        queue_max=1,
        itl_target_ms=100,
        slots_max=1,
        heavy_max=1,
        heavy_tokens=heavy,
        max_prompt_tokens=prompt,
        max_context_tokens=context,
    )
    return ContextLimits.of_class("interactive", settings, cells, short or cells)


@given(CONVERSATIONS, st.integers(0, 40))
def test_what_is_kept_is_a_suffix_and_the_system_messages(messages: list[Message], n: int) -> None:
    """In the order they came; what was dropped is all the rest."""
    turns = Turns(messages)
    stay, dropped = kept(messages, turns.numbers, n), turns.dropped(n)
    spoken = [message for message in messages if message.role not in SYSTEM_ROLES]
    assert dropped + [message for message in stay if message.role not in SYSTEM_ROLES] == spoken
    assert [m for m in stay if m.role in SYSTEM_ROLES] == [m for m in messages if m.role in SYSTEM_ROLES]
    assert stay == sorted(stay, key=messages.index)


@given(CONVERSATIONS, st.integers(0, 40))
def test_a_turn_stays_whole_and_the_last_one_stays(messages: list[Message], n: int) -> None:
    """What follows the cut begins with a user; the last user message and all after it can never go."""
    turns = Turns(messages)
    n = min(n, turns.droppable)
    spoken = [message for message in kept(messages, turns.numbers, n) if message.role not in SYSTEM_ROLES]
    assert not (n and spoken) or spoken[0].role == "user"
    last_user = max((i for i, message in enumerate(messages) if message.role == "user"), default=len(messages))
    assert all(message in kept(messages, turns.numbers, n) for message in messages[last_user:])
    assert turns.n == 0 or kept(messages, turns.numbers, n)


@given(CONVERSATIONS, st.integers(1, 40))
def test_a_summary_stands_where_the_turns_were(messages: list[Message], n: int) -> None:
    """Before the first turn that is kept, and nothing else changes."""
    turns = Turns(messages)
    n = min(n, turns.droppable)
    summary = Message("system", "in short")
    if n == 0:
        return
    stay = kept(messages, turns.numbers, n, summary)
    place = stay.index(summary)
    assert stay[:place] + stay[place + 1 :] == kept(messages, turns.numbers, n)
    assert all(message.role in SYSTEM_ROLES for message in stay[:place])
    assert stay[place + 1].role == "user"


@given(st.integers(0, 300), st.integers(0, 400))
def test_the_search_finds_the_smallest_with_few_questions(highest: int, threshold: int) -> None:
    """Whatever the threshold: a chat of 200 turns costs nine questions at the most."""
    asked = []

    def fits(n: int) -> bool:
        asked.append(n)
        return n >= threshold

    found = fewest(highest, fits)
    assert found == (max(1, threshold) if highest and threshold <= highest else None)
    assert len(asked) <= 1 + ceil(log2(max(highest, 1)))
    assert all(1 <= n <= highest for n in asked)


@given(
    st.integers(64, 5000), st.integers(0, 6000), st.integers(0, 6000), st.integers(1, 6000), st.integers(1, 2000), st.booleans()
)
def test_what_is_granted_fits(cells: int, prompt: int, context: int, n_prompt: int, n_output: int, named: bool) -> None:
    """Within all settings and the slot; a named number that there is room for is granted in full."""
    of_class = limits(cells, prompt, context)
    allowance = Allowance(n_output, is_named=named)
    granted = allowance.granted(of_class, n_prompt)
    if granted is None:
        assert of_class.left(n_prompt) < 1
        return
    assert granted == min(n_output, of_class.left(n_prompt), 4096)
    assert n_prompt + granted - 1 <= cells
    assert not prompt or n_prompt <= prompt
    assert not context or n_prompt + granted <= context or context > cells


@pytest.mark.parametrize(
    ("settings", "n_prompt", "left"),
    [
        ((600, 0, 0), 600, 1),
        ((600, 0, 0), 601, 0),
        ((600, 0, 500), 499, 1),
        ((600, 0, 500), 500, 0),
        ((600, 0, 900), 600, 1),
        ((600, 100, 0), 100, 501),
        ((600, 100, 0), 101, 0),
        ((600, 900, 500), 400, 100),
    ],
)
def test_the_tighter_limit_counts(settings: tuple[int, int, int], n_prompt: int, left: int) -> None:
    """0 is what a slot holds, and a setting above that changes nothing."""
    assert limits(*settings).left(n_prompt) == left


def test_room_is_made_for_an_answer_not_for_one_token() -> None:
    """Without a number that can be meant: a page, or a quarter of the context. What cannot be had is not insisted on."""
    assert Allowance(4096, is_named=False).wanted(limits(8192)) == [512, 1]
    assert Allowance(300, is_named=False).wanted(limits(8192)) == [300, 1]
    assert Allowance(4096, is_named=False).wanted(limits(1024)) == [256, 1]
    assert Allowance(512, is_named=True).wanted(limits(1024)) == [512, 256, 1]
    assert Allowance(32_000, is_named=True).wanted(limits(8192)) == [512, 1]


@pytest.mark.parametrize(
    ("asked", "n_prompt", "granted"),
    [
        (None, 100, 501),  # what the short slot has left
        (None, 300, 701),  # a heavy prompt: what the long one has left
        (64_000, 100, 501),
        (64_000, 300, 701),
        (800, 100, 800),  # there is room in the context, so it is kept
        (901, 100, 901),
        (902, 100, 501),
        (64_000, 1000, 1),
        (64_000, 1001, None),
    ],
)
def test_the_allowance_is_a_ceiling(asked: int | None, n_prompt: int, granted: int | None) -> None:
    """What is named and fits is kept; what is too much, or not named, is cut to the slot that such a prompt runs in."""
    allowance = Allowance(asked or 4096, is_named=asked is not None)
    assert allowance.granted(limits(1000, short=600, heavy=200), n_prompt) == granted


@given(st.text(alphabet="ab \n", max_size=400), st.integers(1, 12))
def test_pieces_join_to_the_whole(text: str, n: int) -> None:
    """Nothing is lost or repeated, and no piece is much longer than its share."""
    pieces = split(text, n)
    assert len(pieces) == n
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= len(text) / n * 1.25 + 1


def test_pieces_end_between_messages_where_they_can() -> None:
    """Rather than in the middle of a word."""
    assert split("user: one two\n\nassistant: three", 2) == ["user: one two\n\n", "assistant: three"]
    assert split("aaaa bbbb", 2) == ["aaaa", " bbbb"] or split("aaaa bbbb", 2) == ["aaaa ", "bbbb"]


ORIGIN = Origin("req-1", "t", RequestClass.INTERACTIVE, "messages", 0.0, account="t")
PROMPTS = Prompts(Settings(), Templates({}), lambda _: None)
TEXT, TOKENISER = text_model(), tokeniser()
CHATS = st.lists(st.tuples(st.sampled_from(ROLES), st.integers(0, 60)), min_size=1, max_size=24).map(
    lambda turns: [Message(role, "x" * n) for role, n in turns]
)


@given(CHATS, st.integers(64, 900), st.one_of(st.none(), st.integers(1, 300)))
def test_what_is_trimmed_fits_and_is_the_least(messages: list[Message], cells: int, max_tokens: int | None) -> None:
    """With the real renderings of any conversation: one turn less would be too long, and every number is exact."""
    body = {"model": "toy", "messages": [{"role": m.role, "content": m.content} for m in messages]}
    parsed = RequestParser(Settings()).chat(body | {"max_tokens": max_tokens, "context_policy": "trim"})
    engine = msgspec.structs.replace(ready(), pools=[PoolInfo("long", 1, cells, True, 1)])
    turns = Turns(messages)
    sizes = [len(TOKENISER.chat(kept(messages, turns.numbers, n))[0]) for n in range(turns.droppable + 1)]
    if sizes[-1] > cells:
        with pytest.raises(ApiError, match=f" {sizes[-1]} tokens") as caught:
            asyncio.run(PROMPTS.plan(ORIGIN, parsed, engine, TEXT))
        assert caught.value.code == "context_length_exceeded"
        return
    plan = asyncio.run(PROMPTS.plan(ORIGIN, parsed, engine, TEXT))
    unchanged = ContextNote(policy="trim", dropped_turns=0, dropped_tokens=0, prompt_tokens=sizes[0])
    note = plan.notes.context if plan.notes is not None else unchanged
    assert note is not UNSET
    n = note.dropped_turns
    assert isinstance(n, int)
    assert plan.ids == [TOKENISER.chat(kept(messages, turns.numbers, n))[0]]
    assert (note.prompt_tokens, note.dropped_tokens) == (sizes[n], sizes[0] - sizes[n])
    assert sizes[n] <= cells
    reserve = min(max_tokens or 512, 512, cells // 4)
    wanted = [max_tokens, reserve, 1] if max_tokens and max_tokens <= cells else [reserve, 1]
    if n:
        assert sizes[n - 1] + next(w for w in wanted if sizes[-1] + w <= cells + 1) > cells + 1


def test_the_parameter_takes_every_policy() -> None:
    """The enumeration and the parameter name the same."""
    assert CONTEXT_POLICY.choices == tuple(ContextPolicy)
