"""Server-sent events out of bytes that may end anywhere, within bounds. Lines end with a newline, perhaps after a return."""

from collections.abc import Iterator
from typing import NamedTuple

LINE_BYTES_MAX = 1 << 20
"""Of a line, and of all data of one event."""


class TooLong(Exception):
    """More than an event may have."""


class ServerEvent(NamedTuple):
    name: str
    """Of its `event:` line; empty: it has none."""
    data: bytes


class EventLines:
    """Takes the bytes of one stream. What it keeps of them is at most an event that has not ended."""

    def __init__(self) -> None:
        self._line = bytearray()
        self._data = bytearray()
        self._has_data = False
        self._name = ""

    def feed(self, data: bytes) -> Iterator[ServerEvent]:
        """The events that have become complete, one by one. Raises TooLong after those that were not."""
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            self._keep(data[start:end])
            line, self._line = self._line, bytearray()
            start = end + 1
            yield from self._take(bytes(line.removesuffix(b"\r")))
        self._keep(data[start:])

    def flush(self) -> Iterator[ServerEvent]:
        """The stream is over. An event whose blank line never came is one all the same."""
        line, self._line = self._line, bytearray()
        yield from self._take(bytes(line.removesuffix(b"\r")))
        yield from self._take(b"")

    def _keep(self, part: bytes) -> None:
        self._line += part
        if len(self._line) + len(self._data) > LINE_BYTES_MAX:
            raise TooLong

    def _take(self, line: bytes) -> Iterator[ServerEvent]:
        if not line:
            if self._has_data:
                yield ServerEvent(self._name, bytes(self._data))
            self._data, self._has_data, self._name = bytearray(), False, ""
            return
        field, _, value = line.removeprefix(b"\xef\xbb\xbf").partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data += b"\n" + value if self._has_data else value
            self._has_data = True
        elif field == b"event":
            self._name = value.decode("utf-8", "replace")[:64]
