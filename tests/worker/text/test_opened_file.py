"""The process around a tokeniser: what it refuses to read."""

from __future__ import annotations

import socket
from pathlib import Path

from poise.wire import text as wire
from poise.wire.fingerprint import MODEL_CHANGED, fingerprint
from poise.wire.framing import FrameDecoder, encode_frame
from poise.worker.text.process import serve


def test_another_file_than_the_servers_is_not_read(tmp_path: Path) -> None:
    """Its vocabulary would make other ids of the same text."""
    path = tmp_path / "model.gguf"
    path.write_bytes(b"the former one")
    former = fingerprint(path)
    path.write_bytes(b"another one")
    ours, theirs = socket.socketpair()
    with ours:
        ours.sendall(encode_frame(wire.Open(str(path), 64, former)))
        assert serve(theirs) == 1
        reader: FrameDecoder[wire.FromWorker] = FrameDecoder(wire.FromWorker)
        (said,) = reader.feed(ours.recv(1 << 16))
    theirs.close()
    assert isinstance(said, wire.Unusable)
    assert MODEL_CHANGED in said.problem
