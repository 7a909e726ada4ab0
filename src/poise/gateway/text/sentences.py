"""Where sentences begin and end in running text that arrives in pieces.

A full stop ends a sentence when white space follows and then something that can begin another one. What stands before the stop
can speak against it: an abbreviation, an initial, a number that begins a line. In doubt there is no end: a sentence that is
too long disturbs a reader less than one that is cut in two."""

import re
from dataclasses import dataclass

_STOPS = ".!?…。！？"
_STRONG = "!?…"
_WIDE = "。！？"
"""Chinese and Japanese put no space behind them."""
_CLOSERS = "\"')]}*_”’»›」』）】"
_OPENERS = "\"'([{*_“‘«‹„"
_RUN = re.compile(rf"[^\s`{re.escape(_STOPS)}]+")
_CODE_RUN = re.compile(r"[^\s`]+")
_DOTTED = re.compile(r"(?:\w\.)+\w")
_WORD_MAX = 24
"""Characters of a word that are looked at."""

_ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "dr", "prof", "rev", "hon", "gen", "col", "lt", "sgt", "capt", "st", "mt", "vs", "cf", "viz", "approx",
    "ed", "eds", "dept", "est", "bzw", "vgl", "usw", "ggf", "inkl", "evtl", "mme", "mlle",
))  # fmt: skip
"""Lower case, without the last stop. Those with stops inside ("e.g.", "U.S.") are known by them."""
_ABBREVIATIONS_OF_NUMBERS = frozenset((
    "no", "nos", "nr", "fig", "figs", "abb", "eq", "eqs", "sec", "vol", "ch", "p", "pp", "ca",
    "jan", "feb", "mar", "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec",
))  # fmt: skip
"""These are abbreviations before a digit only: "No. 5", but "No. Never."."""


@dataclass(slots=True)
class _Stop:
    """A stop that may be the end, and what has come behind it."""

    word: str
    """What stands before it."""
    is_alone: bool
    """That is all there is of the sentence."""
    end: int
    is_strong: bool
    is_wide: bool
    is_spaced: bool = False

    def ends_before(self, char: str) -> bool:
        """Whether the sentence is over when this comes behind the white space."""
        if char.islower():
            return False
        if self.is_strong:
            return True
        word = self.word.lstrip(_OPENERS)
        is_initial = len(word) == 1 and word.isupper()
        is_number = self.is_alone and word.isdecimal()
        word = word.lower()
        is_short = word in _ABBREVIATIONS or (char.isdecimal() and word in _ABBREVIATIONS_OF_NUMBERS)
        return not (is_initial or is_number or is_short or _DOTTED.fullmatch(word))


class Sentences:
    """The sentences of one run of text at a time. `feed` tells where they begin and end, `close` ends the run."""

    def __init__(self) -> None:
        self.is_open = False
        self._ink = 0
        """Offset behind the last character that is not white space."""
        self._word = ""
        self._is_first_word = True
        self._in_code = False
        self._stop: _Stop | None = None

    def feed(self, text: str, at: int) -> list[tuple[bool, int]]:
        """What the next characters make certain: (True, offset) where a sentence begins, (False, offset) where one has ended.

        `at` is the offset of the first character."""
        found: list[tuple[bool, int]] = []
        i = 0
        while i < len(text):
            char = text[i]
            if self._stop is not None:
                ends = self._decide(self._stop, char)
                if ends is None:
                    i += 1
                    continue
                if ends:
                    found.append((False, self._stop.end))
                    self.is_open = False
                self._stop = None
            if char.isspace():
                self._space(char)
                i += 1
                continue
            if not self.is_open:
                found.append((True, at + i))
                self.is_open, self._is_first_word, self._word = True, True, ""
            i = self._take(text, i, at)
            self._ink = at + i
        return found

    def close(self) -> int:
        """The text of this run is over. Returns where its last sentence ends, which must be open."""
        end = self._ink
        self.is_open, self._in_code, self._stop, self._word = False, False, None, ""
        return end

    def _take(self, text: str, i: int, at: int) -> int:
        """Go on over one character of weight, or a run of others. Returns the index behind."""
        char = text[i]
        if char == "`":
            self._in_code = not self._in_code
        elif char in _STOPS and not self._in_code:
            self._stop = _Stop(self._word, self._is_first_word, at + i + 1, char in _STRONG, char in _WIDE)
        else:
            run = (_CODE_RUN if self._in_code else _RUN).match(text, i)
            assert run is not None, "neither white space, backtick nor stop"
            self._word = (self._word + run[0])[-_WORD_MAX:]
            return run.end()
        self._word = (self._word + char)[-_WORD_MAX:]
        return i + 1

    def _decide(self, stop: _Stop, char: str) -> bool | None:
        """Whether the stop is an end, now that `char` comes behind it. None: not known yet."""
        if not stop.is_spaced and (char in _CLOSERS or char in _STOPS):
            stop.is_strong |= char in _STOPS  # an ellipsis, or several marks
            stop.is_wide |= char in _WIDE
            stop.end += 1
            self._ink = stop.end
            return None
        if stop.is_wide:
            return True
        if char.isspace():
            stop.is_spaced = True
            self._space(char)
            return None
        return stop.is_spaced and stop.ends_before(char)

    def _space(self, char: str) -> None:
        self._word, self._is_first_word = "", False
        if char == "\n":
            self._in_code = False  # a backtick that nothing closes is one of its line only
