"""The head of a request: its request line and headers, complete, as bytes. llhttp reads them; what it lets pass and HTTP/1.1 does
not (RFC 9112), or what two servers could read in two ways, is refused here.

llhttp is given heads only. Where a body ends follows from the head alone (`framing`), whatever the head says of upgrades: a
server that does not know a protocol ignores the offer (RFC 9110, 7.8), and what follows is the body that was announced."""

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
