"""An entry of a record is not a token: a token makes one or several. Places count entries; usage and all figures count tokens."""

from __future__ import annotations

from typing import Any, cast

from poise.gateway.api.native.views import timeline_of
from poise.gateway.api.openai.writer import ChatWriter
from poise.gateway.records.reader import Reader
from poise.gateway.text.answers import EntryKind, Pieces
from tests.gateway.records.test_reader import STREAMS, Told, begun, rest

TEXT, OTHER = EntryKind.TEXT, cast("EntryKind", 1)


class InWords:
    """Holds text back until a word is complete; `+` makes what follows another word, of the other kind."""

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
    assert record.answers()[0].text == "abc"
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
    events = rest(Reader(record, STREAMS))
    assert [at for at, _ in events] == ["6", "8", "10", "10.1", "10.1"]
    assert [Told().all([event]).texts.get(0) for event in events[:3]] == ["a", "bc", "d"]


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
