"""Where the body of a request ends: by the length that its head announced, or by its chunks.

Both take what is theirs from the beginning of a buffer, however the bytes are split, and leave what belongs to the next request.
"""

import re

from poise.gateway.http.connections.heads import Head
from poise.gateway.http.connections.refusals import malformed
from poise.gateway.request.refusals import ApiError

SIZE_LINE_MAX = 256
"""Bytes of a line with a chunk's size and its extensions, which mean nothing here."""
TRAILERS_MAX = 8192
"""Bytes after the last chunk; trailers mean nothing here, either."""
CHUNKS_MAX = 65_536
"""Chunks of a body: millions of them that have a byte each would cost more to find than to read."""

_SIZE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(;[\t\x20-\x7e\x80-\xff]*)?")


class Sized:
    """A body of so many bytes."""

    def __init__(self, length: int) -> None:
        self.left = length
        """Bytes that are still to come."""
        self.is_complete = length == 0

    def feed(self, buffer: bytearray) -> bytes:
        """Take from `buffer`, and return of it what is content. Raises ApiError (400)."""
        if len(buffer) <= self.left:
            data = bytes(buffer)
            buffer.clear()
        else:
            data = bytes(memoryview(buffer)[: self.left])
            del buffer[: self.left]
        self.left -= len(data)
        self.is_complete = self.left == 0
        return data


class Chunked:
    """A body in chunks (RFC 9112, 7.1), read strictly: each line ends with CR LF."""

    left = None
    """How many bytes are still to come is not known."""

    def __init__(self) -> None:
        self.is_complete = False
        self._chunk_left = 0
        """Of the chunk that is being read, with the line's end after it."""
        self._n_chunks = 0
        self._trailer_bytes: int | None = None
        """After the last chunk, how many there were."""

    def feed(self, buffer: bytearray) -> bytes:
        """As that of Sized."""
        parts, at = [], 0
        while at < len(buffer) and not self.is_complete:
            if self._chunk_left:
                end = min(at + self._chunk_left, len(buffer))
                parts.append(self._content(buffer, at, end))
                self._chunk_left -= end - at
                at = end
            else:
                line_end = buffer.find(b"\r\n", at)
                if line_end < 0:
                    self._check_line(len(buffer) - at)
                    break
                self._check_line(line_end - at)
                self._take_line(bytes(memoryview(buffer)[at:line_end]))
                at = line_end + 2
        del buffer[:at]
        return b"".join(parts)

    def _content(self, buffer: bytearray, at: int, end: int) -> bytes:
        """The part of `buffer[at:end]` that is content: the last two bytes of a chunk are the line's end."""
        n_content = max(0, min(end - at, self._chunk_left - 2))
        if at + n_content < end:
            begin = 2 - (self._chunk_left - n_content)
            found = bytes(memoryview(buffer)[at + n_content : end])
            if found != b"\r\n"[begin : begin + len(found)]:
                raise malformed("a chunk is not followed by the end of its line")
        return bytes(memoryview(buffer)[at : at + n_content])

    def _check_line(self, n_bytes: int) -> None:
        if n_bytes > (SIZE_LINE_MAX if self._trailer_bytes is None else TRAILERS_MAX):
            raise malformed("a line between its chunks is too long")

    def _take_line(self, line: bytes) -> None:
        if self._trailer_bytes is not None:
            self._trailer_bytes += len(line)
            if b"\n" in line or self._trailer_bytes > TRAILERS_MAX:
                raise malformed("what comes after its last chunk is no list of headers, or too long")
            self.is_complete = not line
            return
        found = _SIZE.fullmatch(line)
        if found is None:
            raise malformed("a chunk's size must be a hexadecimal number")
        size = int(found[1], 16)
        self._n_chunks += 1
        if size == 0:
            self._trailer_bytes = 0
            return
        if self._n_chunks > CHUNKS_MAX:
            raise ApiError(400, "malformed_request", f"The body has more than {CHUNKS_MAX} chunks. Send larger ones.")
        self._chunk_left = size + 2


Framing = Sized | Chunked


def framing_of(head: Head) -> Framing:
    return Chunked() if head.is_chunked else Sized(head.content_length)
