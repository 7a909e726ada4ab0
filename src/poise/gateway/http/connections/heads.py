"""The head of a request: its request line and headers, complete, as bytes; and where its body ends, by the length that the head
announced, or by its chunks. llhttp reads heads; what it lets pass and HTTP/1.1 does not (RFC 9112), or what two servers could
read in two ways, is refused here.

llhttp is given heads only. Where a body ends follows from the head alone, whatever the head says of upgrades: a server that does
not know a protocol ignores the offer (RFC 9110, 7.8), and what follows is the body that was announced. Bodies of both kinds take
what is theirs from the beginning of a buffer, however the bytes are split, and leave what belongs to the next request."""

import re
from dataclasses import dataclass
from types import SimpleNamespace
from urllib.parse import unquote

import httptools

from poise.config import ServerSettings
from poise.gateway.http.connections.refusals import head_too_large, line_too_long, malformed
from poise.gateway.request.refusals import ApiError, method_not_allowed

_REQUEST_LINE = re.compile(rb"([A-Z][A-Z-]*) ([!-~]+) HTTP/([0-9])\.([0-9])")
_LENGTH = re.compile(rb"[0-9]{1,18}")
METHODS = {"Allow": "GET, HEAD, POST, DELETE, OPTIONS"}

Headers = list[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Head:
    method: str
    path: str
    raw_path: bytes
    query: bytes
    version: str
    """1.0 or 1.1."""
    headers: Headers
    """Names in small letters, values without spaces around them, in the order they came in."""
    content_length: int
    """0 where no body is announced, and where it is chunked."""
    is_chunked: bool
    keep_alive: bool
    """The client can send another request on this connection."""
    expects_continue: bool
    """It waits for 100 Continue before it sends the body."""


def check(unread: bytearray, end: int, limits: ServerSettings) -> None:
    """The bounds of a head, as soon as they are passed. Raises ApiError: 400, 414 or 431.

    `unread` begins with it; `end` is where its last line ends, -1 where that has not come in yet."""
    length = end if end >= 0 else len(unread)
    if length > limits.request_line_max and unread.find(b"\r\n", 0, limits.request_line_max + 2) < 0:
        raise line_too_long(limits.request_line_max)
    if length > limits.header_bytes_max:
        raise head_too_large("bytes of headers", limits.header_bytes_max, "server.header_bytes_max")
    n_lines = unread.count(b"\n", 0, length)
    if n_lines > limits.header_fields_max:
        raise head_too_large("header fields", limits.header_fields_max, "server.header_fields_max")
    if n_lines != unread.count(b"\r\n", 0, length):
        raise malformed("its lines must end with CR LF")
    if unread.find(b"\0", 0, length) >= 0:
        raise malformed("it has a NUL")


def parse(data: bytes) -> Head:
    """`data` ends with the empty line. Raises ApiError: 400, 405, 501 or 505."""
    line = _REQUEST_LINE.fullmatch(data, 0, data.index(b"\r\n"))
    if line is None:
        raise malformed("its first line must be as in 'GET /path HTTP/1.1'")
    method, target, version = line[1].decode(), line[2], f"{line[3].decode()}.{line[4].decode()}"
    if version not in ("1.0", "1.1"):
        raise ApiError(505, "http_version_not_supported", f"This server speaks HTTP/1.1, not HTTP/{version}.")
    if method == "CONNECT":
        raise method_not_allowed(method, target.decode(), METHODS)
    headers = _fields(data)
    path, query = _split(target)
    length, is_chunked = _body(headers, version)
    tokens = {token.strip().lower() for value in _all(headers, b"connection") for token in value.split(b",")}
    hosts = len(_all(headers, b"host"))
    if hosts > 1 or (hosts == 0 and version == "1.1"):
        raise malformed(f"it must have one Host header, but has {hosts}")
    keeps = b"close" not in tokens and (version == "1.1" or b"keep-alive" in tokens)
    expects = version == "1.1" and b"100-continue" in (value.lower() for value in _all(headers, b"expect"))
    return Head(method, unquote(path.decode()), path, query, version, headers, length, is_chunked, keeps, expects)


def _fields(data: bytes) -> Headers:
    headers, ends = Headers(), list[bool]()
    collector = SimpleNamespace(
        on_header=lambda name, value: headers.append((name.lower(), value.strip(b" \t"))),
        on_headers_complete=lambda: ends.append(True),
    )
    try:
        httptools.HttpRequestParser(collector).feed_data(data)
    except httptools.HttpParserUpgrade:
        pass  # it takes the rest for another protocol; there is no rest
    except httptools.HttpParserError as error:
        raise malformed(str(error)) from None
    if not ends:
        raise malformed("its headers do not end where they seem to")
    return headers


def _split(target: bytes) -> tuple[bytes, bytes]:
    """Path and query."""
    if target == b"*":
        return target, b""
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise malformed("its target is no path") from None
    return url.path or b"/", url.query or b""


def _body(headers: Headers, version: str) -> tuple[int, bool]:
    """How long the body is, and whether it is chunked."""
    lengths, codings = _all(headers, b"content-length"), _all(headers, b"transfer-encoding")
    if codings:
        if lengths:
            raise malformed("it has both Content-Length and Transfer-Encoding")
        if version == "1.0":
            raise malformed("HTTP/1.0 has no Transfer-Encoding")
        if len(codings) > 1 or codings[0].lower() != b"chunked":
            message = "The only Transfer-Encoding that this server knows is 'chunked'."
            raise ApiError(501, "unsupported_transfer_encoding", message)
        return 0, True
    if not lengths:
        return 0, False
    if len(lengths) > 1 or not _LENGTH.fullmatch(lengths[0]):
        raise malformed("its Content-Length must be one number")
    return int(lengths[0]), False


def _all(headers: Headers, name: bytes) -> list[bytes]:
    return [value for field, value in headers if field == name]


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
