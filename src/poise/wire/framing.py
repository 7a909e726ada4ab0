"""Frames on the socket: a four-byte little-endian length, then one msgpack message.

`FrameDecoder` is pure (bytes in, messages out), so both sides and the tests use it alike."""

from collections.abc import Iterator
from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")

LENGTH_BYTES = 4
FRAME_BYTES_MAX = 256 << 20
"""No message is near this; a larger length means that the stream is garbage."""

_encoder = msgspec.msgpack.Encoder()


class FrameError(Exception):
    """The peer sent something that is not a frame."""


def encode_frame(message: msgspec.Struct) -> bytes:
    """The message's bytes on the wire."""
    payload = _encoder.encode(message)
    return len(payload).to_bytes(LENGTH_BYTES, "little") + payload


class FrameDecoder(Generic[T]):
    """Cuts a byte stream into messages of one union type."""

    def __init__(self, union: object) -> None:
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(union)
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[T]:
        """Take bytes and yield the messages they complete. Raises FrameError; the stream is then unusable."""
        buffer = self._buffer
        if not buffer and len(data) >= LENGTH_BYTES:
            length = int.from_bytes(data[:LENGTH_BYTES], "little")
            if len(data) == LENGTH_BYTES + length:
                # One whole frame, as nearly always: no copies.
                yield self._decode(memoryview(data)[LENGTH_BYTES:])
                return
        buffer += data
        offset = 0
        try:
            while len(buffer) - offset >= LENGTH_BYTES:
                length = int.from_bytes(buffer[offset : offset + LENGTH_BYTES], "little")
                if length > FRAME_BYTES_MAX:
                    raise FrameError(f"frame of {length} bytes; the limit is {FRAME_BYTES_MAX}")
                end = offset + LENGTH_BYTES + length
                if len(buffer) < end:
                    break
                message = self._decode(memoryview(bytes(buffer[offset + LENGTH_BYTES : end])))
                offset = end
                yield message
        finally:
            del buffer[:offset]

    def _decode(self, payload: memoryview) -> T:
        try:
            return self._decoder.decode(payload)
        except msgspec.MsgspecError as error:
            raise FrameError(f"not a message: {error}") from error
