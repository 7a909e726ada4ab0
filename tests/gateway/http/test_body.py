"""Bodies that come packed: unpacked within the bounds of all others, while they come in."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.config import Settings
from poise.gateway.http.body import PIECE_BYTES, Packed
from tests.gateway.fakes import FakeEngine, Reply, ask, chat_body, make_app, says
from tests.gateway.http.serving import served
from tests.gateway.http.test_over_http import connect, read

CHAT = "/v1/chat/completions"
BODY = json.dumps(chat_body("Hi " * 60)).encode()
PACK = gzip.compress(BODY)


def bare(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "gzip": ("gzip", gzip.compress),
    "its old name": ("X-GZIP", gzip.compress),
    "deflate": ("deflate", zlib.compress),
    "deflate without its head": ("deflate", bare),
    "named beside nothing": ("identity, gzip", gzip.compress),
}


async def sent(coding: str, *parts: bytes, max_bytes: int = 4096) -> Reply:
    app = make_app(FakeEngine(says("x")), Settings.model_validate({"server": {"max_body_bytes": max_bytes}}))
    return await ask(app, "POST", CHAT, list(parts), headers={"content-encoding": coding})


@pytest.mark.parametrize(("coding", "pack"), PACKED.values(), ids=PACKED)
async def test_packed_bodies_are_read(coding: str, pack: Callable[[bytes], bytes]) -> None:
    """Whole, and byte by byte."""
    data = pack(BODY)
    assert (await sent(coding, data)).status == 200
    assert (await sent(coding, *(data[i : i + 1] for i in range(len(data))))).status == 200


@given(st.binary(max_size=2 * PIECE_BYTES), st.sampled_from(sorted(PACKED)), st.integers(1, 5000))
def test_any_cut_gives_the_same(data: bytes, name: str, size: int) -> None:
    coding, pack = PACKED[name]
    packed = Packed("deflate" if coding == "deflate" else "gzip")
    sent = pack(data * 3)
    cuts = [sent[i : i + size] for i in range(0, len(sent), size)]
    found = [piece for i, part in enumerate(cuts) for piece in packed.unpack(part, i == len(cuts) - 1)]
    assert b"".join(found) == data * 3
    assert max(map(len, found), default=0) <= PIECE_BYTES


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
def test_a_bomb_is_taken_apart_no_further_than_somebody_wants(pack: Callable[[bytes], bytes]) -> None:
    """Sixty-four megabytes in sixty-four kilobytes: each piece is bounded, and the rest stays packed."""
    pieces = Packed("gzip").unpack(pack(bytes(64 << 20)), True)
    assert [len(next(pieces)) for _ in range(3)] == [PIECE_BYTES] * 3


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_bomb_is_refused_at_the_bound(coding: str) -> None:
    pack = gzip.compress if coding == "gzip" else zlib.compress
    reply = await sent(coding, pack(b'{"a": "' + b"x" * (8 << 20) + b'"}'), max_bytes=65_536)
    assert (reply.status, reply.error["code"]) == (413, "request_too_large")
    assert "65536, unpacked" in reply.error["message"]


@pytest.mark.parametrize(
    "data",
    [b"", b"no", BODY, PACK[:-1], PACK + b"x", PACK * 2, PACK[:-8] + b"badcheck"],
    ids=["nothing", "short", "plain", "cut", "more behind", "two", "bad sum"],
)  # fmt: skip
async def test_what_is_not_packed_as_it_says(data: bytes) -> None:
    reply = await sent("gzip", data)
    assert (reply.status, reply.error["code"]) == (400, "invalid_content_encoding")


@pytest.mark.parametrize("coding", ["zstd", "br", "gzip, gzip", "x"])
async def test_other_codings_are_told_which_there_are(coding: str) -> None:
    reply = await sent(coding, BODY)
    assert (reply.status, reply.error["code"]) == (415, "unsupported_content_encoding")
    assert reply.headers["accept-encoding"] == "gzip, deflate"
    assert "gzip, deflate" in reply.error["message"]


async def test_what_is_unpacked_counts() -> None:
    """For the bound on all bodies together: small ones that grow are not free."""
    made = Settings.model_validate({"server": {"max_body_bytes": 65_536, "body_bytes_total": 16_384}})
    body = gzip.compress(json.dumps(chat_body("x" * 60_000)).encode())
    head = f"POST {CHAT} HTTP/1.1\nHost: localhost\nContent-Encoding: gzip\nContent-Length: {len(body)}"
    async with served(make_app(FakeEngine(says("x")), made), made) as port:
        for _ in range(2):  # what the first one had is given back
            reader, writer = await connect(port, head, body)
            assert b"429" in await read(reader, b"\r\n")
            assert b"too_many_body_bytes" in await read(reader, b"}}")
            writer.close()
