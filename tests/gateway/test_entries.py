"""An entry of a record is not a token: a token makes one or several. Places count entries; usage and all figures count tokens."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poise.gateway.api.native.views import RequestMoment, timeline_of
from poise.gateway.api.openai.writer import ChatWriter
from poise.gateway.records.reader import Place, Reader
from poise.gateway.records.values import ToolCall
from poise.gateway.text.answers import EntryKind, Pieces
from tests.gateway.records.test_reader import STREAMS, begun, rest

SOURCE = Path(__file__).parents[2] / "src" / "poise" / "gateway"
TEXT, OTHER = EntryKind.TEXT, EntryKind.REASONING


class InWords:
    """Holds text back until a word is complete; `+` makes what follows another word, of the other kind."""

    marks: Mapping[int, str] = {}

    def __init__(self) -> None:
        self._held = ""

    def push(self, text: str) -> Pieces:
        self._held += text
        *words, self._held = self._held.split(" ")
        return [piece for word in words for piece in self._pieces(word)]

    def flush(self) -> Pieces:
        held, self._held = self._held, ""
        return self._pieces(held)

    def _pieces(self, word: str) -> list[tuple[EntryKind, str]]:
        return [(OTHER if n else TEXT, part) for n, part in enumerate(word.split("+"))]


def spoken(text: str, stop: tuple[str, ...] = ()) -> Any:
    """A record of a choice that said this, a token a letter, through a parser that works word by word."""
    record, (one,), generation = begun(1, ChatWriter, stop, -1)
    generation._choices[0]._parser = InWords()
    for letter in text:
        one.say(letter.encode())
    return record, one


def test_a_token_makes_several_entries_and_counts_once() -> None:
    """The token that completes a word has all its pieces; those before it have an entry without text."""
    record, _ = spoken("ab+c d")
    assert list(record.texts) == ["", "", "", "", "ab", "c", ""]
    assert list(record.kinds) == [TEXT, TEXT, TEXT, TEXT, TEXT, OTHER, TEXT]
    assert list(record.counts) == [1, 2, 3, 4, 5, 5, 6]
    assert (record.n_entries, record.n_tokens, record.usage().completion_tokens) == (7, 6, 6)
    assert record.choices[0].n_output == 6


def test_what_is_held_back_at_the_end_comes_without_tokens() -> None:
    """The last text goes with the end, and what is before it makes entries."""
    record, one = spoken("ab+c")
    one.finish("stop")
    assert (record.texts[-2:], record.ends[0].text) == (["ab", "c"], "")
    assert (record.n_entries, record.n_tokens) == (6, 4)
    (answer,) = record.answers()
    assert (answer.text, answer.reasoning) == ("ab", "c")
    record, one = spoken("x yz")
    one.finish("stop")
    assert (record.ends[0].text, record.n_entries, record.answers()[0].text) == ("yz", 4, "xyz")


def test_a_stop_string_lets_go_what_was_held_back() -> None:
    """Nothing that came before it is lost."""
    record, _ = spoken("ab END", stop=("END",))
    assert record.is_ended
    assert (record.answers()[0].text, record.n_tokens) == ("ab", 6)
    record, _ = spoken("abEND", stop=("END",))
    assert (record.answers()[0].text, record.ends[0].reason) == ("ab", "stop")


def test_an_event_has_entries_of_one_kind() -> None:
    """Ids count entries: whoever comes back with one misses nothing."""
    record, one = spoken("a+b+c d ")
    one.finish("stop")
    events = rest(Reader(record, STREAMS, has_ids=True))
    assert [at for at, _ in events] == ["0", "6", "8", "10", "10.1", "10.1"]
    said = [json.loads(data)["choices"][0]["delta"] for _, data in events[:4]]
    assert said == [{"role": "assistant", "content": ""}, {"content": "a"}, {"reasoning_content": "bc"}, {"content": "d"}]


def calls_of(n_sent: int) -> tuple[list[tuple[EntryKind, str]], list[tuple[EntryKind, str]]]:
    """What a writer is told of two calls: as sent before it came, and after; it comes behind `n_sent` entries."""
    told: tuple[list[tuple[EntryKind, str]], list[tuple[EntryKind, str]]] = ([], [])

    class Writes(ChatWriter):
        def passed(self, choice: int, text: str, kind: EntryKind = TEXT) -> None:
            told[0].append((kind, text))

        def text(self, n_entries: int, n_ends: int, choice: int, text: str, logprobs: Any, kind: EntryKind = TEXT) -> bytes:
            told[1].append((kind, text))
            return b"x"

    record, _, _ = begun(1, Writes, (), -1)
    for kind, text in CALLS:
        record.append(0, text, (), 0.0, kind)
    reader = Reader(record, STREAMS, place=Place(n_sent))
    while reader.take():
        pass
    return told


CALLS = [
    (EntryKind.REASONING, "hm"), (EntryKind.REASONING, "m"), (TEXT, ""), (EntryKind.CALL_NAME, "f"),
    (EntryKind.CALL_NAME, "g"), (EntryKind.CALL_ARGUMENTS, "{"), (EntryKind.CALL_ARGUMENTS, "}"), (TEXT, "so"),
]  # fmt: skip
TOLD = [
    (EntryKind.REASONING, "hmm"), (EntryKind.CALL_NAME, "f"), (EntryKind.CALL_NAME, "g"), (EntryKind.CALL_ARGUMENTS, "{}"),
    (TEXT, "so"),
]  # fmt: skip


@pytest.mark.parametrize("n_sent", range(len(CALLS) + 1))
def test_calls_are_never_joined(n_sent: int) -> None:
    """Names are pieces of their own, also for who comes back; everything else is told in runs of one kind."""
    before, after = calls_of(n_sent)
    joined: list[tuple[EntryKind, str]] = []
    for kind, text in before + after:
        if joined and joined[-1][0] is kind and kind is not EntryKind.CALL_NAME:
            text = joined.pop()[1] + text
        joined.append((kind, text))
    assert joined == TOLD
    assert n_sent or after == TOLD


def test_an_answer_has_its_calls() -> None:
    """In their order, with their arguments as the model wrote them."""
    record, _, _ = begun(1, ChatWriter, (), -1)
    for kind, text in CALLS:
        record.append(0, text, (), 0.0, kind)
    (answer,) = record.answers()
    assert (answer.text, answer.reasoning, answer.calls) == ("so", "hmm", [ToolCall("f"), ToolCall("g", "{}")])


def test_tokens_of_reasoning_are_counted() -> None:
    """Up to any place, and told where there are any."""
    record, _ = spoken("a+bc d ")
    assert [record.usage(n).reasoning_tokens for n in range(record.n_entries + 1)] == [0] * 9
    for text, kind, n_tokens in (("b", OTHER, 1), ("c", OTHER, 0), ("", OTHER, 1), ("d", TEXT, 1)):
        record.append(0, text, (), 0.0, kind, n_tokens)
    assert [record.usage(n).reasoning_tokens for n in range(8, 13)] == [0, 1, 1, 2, 2]
    assert json.loads(msgspec.json.encode(record.usage().as_sent()))["completion_tokens_details"] == {"reasoning_tokens": 2}


def test_a_timeline_has_room_for_all_that_is_noted() -> None:
    """Every detail that is noted of a record somewhere is a field of its moments, or a look at the request would fail."""
    noted = set()
    for path in SOURCE.rglob("*.py"):
        calls = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))
        notes = (call for call in calls if ast.unparse(call.func).endswith(("record.note", "self.note")))
        noted |= {(keyword.arg, path.name) for call in notes for keyword in call.keywords if keyword.arg}
    assert ("kind", "job.py") in noted
    assert {name for name, _ in noted} <= set(RequestMoment.__struct_fields__)


def test_a_timeline_counts_tokens() -> None:
    """What a request's timeline says of a place."""
    record, one = spoken("a+b c")
    one.finish("stop")
    assert record.timeline[-1].n_entries == record.n_entries == 6
    assert timeline_of(record)[-1].tokens == record.n_tokens == 5


def test_usage_up_to_a_place() -> None:
    """In tokens, too."""
    record, _ = spoken("a+b c ")
    assert [record.tokens_at(n) for n in range(record.n_entries + 1)] == [0, 1, 2, 3, 4, 4, 5, 6]
    assert record.usage(5).completion_tokens == 4
