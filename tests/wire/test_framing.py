"""Frames: what goes in comes out, however the bytes are cut; garbage is an error."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from poise.scheduler.memory.kv import PoolStatus
from poise.scheduler.request import RequestClass, Started
from poise.scheduler.snapshot import ClassStatus
from poise.wire import messages as wire
from poise.wire import status as wire_status
from poise.wire import to_engine
from poise.wire.framing import FrameDecoder, FrameError, encode_frame

MESSAGES: list[wire.ToGateway] = [
    wire.Loading(0.5, "loading"),
    wire.Accepted(1, 2, 3),
    wire.Refused(1, "too_long", 10, 5, 0),
    wire.Step(
        7,
        [Started(1, 20, "short")],
        [wire.Token(1, 5), wire.Token(2, 6, -0.5, [wire.TokenLogprob(6, -0.5)])],
        [wire.Finish(1, "stop", 3, 4, 500)],
        [wire.Change(2, "swap")],
        [wire.Prefill(3, 64, 12_000, 7)],
    ),
    wire_status.Status(1, {RequestClass.INTERACTIVE: ClassStatus(1, 2, 3)}, [PoolStatus("short", 1, 2, 3, 4)], 1, 2, 3, 4),
    wire.Fatal("gone", True),
]


@given(cuts=st.lists(st.integers(1, 40), min_size=1))
def test_messages_survive_any_cut_of_the_stream(cuts: list[int]) -> None:
    """Frames may arrive byte by byte or many at once."""
    stream = b"".join(encode_frame(m) for m in MESSAGES)
    reader: FrameDecoder[wire.ToGateway] = FrameDecoder(wire.ToGateway)
    received: list[wire.ToGateway] = []
    position = 0
    while position < len(stream):
        for cut in cuts:
            received += reader.feed(stream[position : position + cut])
            position += cut
    assert received == MESSAGES
    assert list(reader.feed(b"")) == []


@pytest.mark.parametrize(
    "garbage", [b"\xff\xff\xff\xff", b"\x03\x00\x00\x00abc", b"\x02\x00\x00\x00\x91\xa1x", b"GET / HTTP/1.1\r\n\r\n"]
)
def test_garbage_is_an_error(garbage: bytes) -> None:
    """A peer that does not speak the protocol is noticed."""
    reader: FrameDecoder[wire.ToGateway] = FrameDecoder(wire.ToGateway)
    with pytest.raises(FrameError):
        list(reader.feed(garbage))


def test_a_submit_crosses_unchanged() -> None:
    """The largest message, with every sampling parameter set."""
    sampling = to_engine.SamplingParams(0.5, 0.9, 40, 0.1, 1.0, -1.0, 1.1, ((5, -100.0),), 42, 3, True, 7)
    submit = to_engine.Submit(1, "tenant", "background", list(range(5000)), 64, sampling)
    reader: FrameDecoder[to_engine.ToEngine] = FrameDecoder(to_engine.ToEngine)
    assert list(reader.feed(encode_frame(submit))) == [submit]
