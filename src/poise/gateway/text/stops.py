"""Stop strings: where an answer ends that was to be written no further, and what may not be shown before that is certain."""

from collections.abc import Sequence


class StopScanner:
    """Lets text through up to the first stop string, however the text is cut into pieces.

    The first stop string is the one that is complete first; of several complete at the same character, the longest. Text
    that may still become a stop string is held back until that is decided, so no part of one is ever let through. Each
    stop string is a Knuth-Morris-Pratt automaton: the work per character does not depend on the length of the strings."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._borders = [_borders(stop) for stop in stops]
        self._matched = [0] * len(stops)
        """Of each stop string, how many characters the text seen so far ends with."""
        self._held = ""
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that can be shown now. After a stop string there is none any more."""
        if self.stopped:
            return ""
        if not self._stops:
            return text
        seen = self._held + text
        for i, char in enumerate(text, start=len(self._held) + 1):
            length = self._advance(char)
            if length:
                self.stopped = True
                self._held = ""
                return seen[: i - length]
        n_shown = len(seen) - max(self._matched)
        self._held = seen[n_shown:]
        return seen[:n_shown]

    def flush(self) -> str:
        """The text ended: what was held back was no stop string after all."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Length of the longest stop string that this character completes, else 0."""
        complete = 0
        for i, stop in enumerate(self._stops):
            n = self._matched[i]
            while n and stop[n] != char:
                n = self._borders[i][n - 1]
            n += stop[n] == char
            self._matched[i] = n
            if n == len(stop):
                complete = max(complete, n)
        return complete


def _borders(text: str) -> list[int]:
    """For each prefix of `text`, the length of its longest proper prefix that is also its suffix."""
    borders = [0] * len(text)
    for i in range(1, len(text)):
        n = borders[i - 1]
        while n and text[n] != text[i]:
            n = borders[n - 1]
        borders[i] = n + (text[n] == text[i])
    return borders
