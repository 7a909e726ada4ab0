"""However the bytes of requests are split on their way, they are the same requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.gateway.http.connections.heads import CHUNKS_MAX, Chunked, Framing, Head, Sized, parse
from poise.gateway.request.refusals import ApiError


def fed(framing: Framing, data: bytes, cuts: list[int]) -> tuple[bytes, bytes]:
    """Content, and what was left."""
    buffer, content, at = bytearray(), b"", 0
    for cut in [*sorted({min(cut, len(data)) for cut in cuts}), len(data)]:
        buffer += data[at:cut]
        at = cut
        content += framing.feed(buffer) if not framing.is_complete else b""
    return content, bytes(buffer)


CUTS = st.lists(st.integers(0, 400), max_size=30)


@given(st.binary(max_size=100), st.binary(max_size=50), CUTS)
def test_a_body_of_a_length(body: bytes, rest: bytes, cuts: list[int]) -> None:
    framing = Sized(len(body))
    assert fed(framing, body + rest, cuts) == (body, rest)
    assert framing.is_complete


@given(
    st.lists(st.binary(min_size=1, max_size=40), max_size=6),
    st.sampled_from([b"", b";a=b", b' ;"x y"']),
    st.sampled_from([b"", b"A: b\r\n", b"A: b\r\nC:\r\n"]),
    st.binary(max_size=50),
    CUTS,
)
def test_a_body_in_chunks(parts: list[bytes], extension: bytes, trailer: bytes, rest: bytes, cuts: list[int]) -> None:
    """Extensions and trailers mean nothing; what comes after is left for the next request."""
    chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(part), extension, part) for part in parts)
    framing = Chunked()
    assert fed(framing, chunks + b"0\r\n" + trailer + b"\r\n" + rest, cuts) == (b"".join(parts), rest)
    assert framing.is_complete


@pytest.mark.parametrize(
    "data",
    [
        b"x\r\n", b"-1\r\n", b"0x1\r\n", b"\r\n", b"1\r\nab", b"1\r\na\n", b"1\na\r\n", b"5 5\r\n", b"1;\0\r\n",
        b"fffffffffffffffff\r\n", b"1;" + b"x" * 300, b"0\r\n" + b"A: " + b"x" * 9000, b"0\r\nA: b\nC: d\r\n\r\n",
        b"1\r\na\r\n" * (CHUNKS_MAX + 1),
    ],
)  # fmt: skip
@pytest.mark.parametrize("cuts", [[], list(range(40))])
def test_chunks_that_are_none(data: bytes, cuts: list[int]) -> None:
    with pytest.raises(ApiError) as caught:
        fed(Chunked(), data, cuts)
    assert (caught.value.status, caught.value.code) == (400, "malformed_request")


@pytest.mark.parametrize("cuts", [[], list(range(700))])
def test_a_line_that_only_could_become_a_chunk(cuts: list[int]) -> None:
    """Nothing is refused before it is wrong: a carriage return may be the last byte that came in."""
    framing = Chunked()
    assert fed(framing, b"2\r\nab\r", cuts) == (b"ab", b"")
    assert not framing.is_complete


def head(data: str) -> Head:
    return parse(data.replace("\n", "\r\n").encode("latin-1"))


def test_a_head() -> None:
    found = head("POST /a%20b/%C3%A4?x=1&y HTTP/1.1\nHost: x\nX-A:  b \t\nX-Empty:\nContent-Length: 12\n\n")
    assert (found.method, found.path, found.raw_path, found.query) == ("POST", "/a b/ä", b"/a%20b/%C3%A4", b"x=1&y")
    assert found.headers == [(b"host", b"x"), (b"x-a", b"b"), (b"x-empty", b""), (b"content-length", b"12")]
    assert (found.content_length, found.is_chunked, found.keep_alive) == (12, False, True)


@pytest.mark.parametrize(
    ("target", "path"), [("http://x.example/a?b", "/a"), ("*", "*"), ("//a", "//a"), ("http://x.example", "/")]
)
def test_targets(target: str, path: str) -> None:
    assert head(f"OPTIONS {target} HTTP/1.1\nHost: x\n\n").path == path


@pytest.mark.parametrize(
    ("version", "connection", "keep"),
    [("1.1", "", True), ("1.1", "close", False), ("1.1", "Foo, Close", False), ("1.0", "", False), ("1.0", "Keep-Alive", True)],
)
def test_whether_the_connection_stays(version: str, connection: str, keep: bool) -> None:
    assert head(f"GET / HTTP/{version}\nHost: x\nConnection: {connection}\n\n").keep_alive == keep
