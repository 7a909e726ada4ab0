"""The default model's file with another pre-tokeniser or another chat template in its header, and a worker that reads it."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
from pathlib import Path

from poise.engine.leash import child_environment
from poise.llama.files.default_model import default_model
from poise.llama.files.gguf import read_header
from poise.wire import text as wire
from poise.wire.framing import FrameDecoder, encode_frame


def altered(path: Path, *, pre: str = "smollm", template: str = "") -> Path:
    """A copy of the file. `pre` is as long as "smollm"; `template` may be shorter than the one that is there."""
    data = default_model().read_bytes()
    key = b"tokenizer.ggml.pre" + struct.pack("<IQ", 8, 6)
    assert data.count(key + b"smollm") == 1
    data = data.replace(key + b"smollm", key + pre.encode())
    if template:
        written = str(read_header(default_model()).keys["tokenizer.chat_template"]).encode()
        assert data.count(written) == 1
        assert len(template) <= len(written) - 4
        data = data.replace(written, template.encode() + b"{#" + b" " * (len(written) - len(template) - 4) + b"#}")
    path.write_bytes(data)
    return path


class Worker:
    """A real text worker's process, asked one thing after the other."""

    def __init__(self, model: Path, memory_mb: int = 1024, *, known: bool = False) -> None:
        self.connection, theirs = socket.socketpair()
        self._frames: FrameDecoder[wire.FromWorker] = FrameDecoder(wire.FromWorker)
        command = [sys.executable, "-m", "poise.worker.text", str(theirs.fileno())]
        with theirs:
            self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], env=child_environment())
        self.connection.settimeout(200)
        self.opened = self.ask(wire.Open(str(model), memory_mb, known=known))

    def ask(self, message: wire.ToWorker) -> wire.FromWorker | None:
        """What it answers, apart from Rendered; None when it has ended."""
        self.connection.sendall(encode_frame(message))
        while True:
            try:
                data = self.connection.recv(1 << 20)
            except ConnectionError:
                return None
            if not data:
                return None
            for answer in self._frames.feed(data):
                if not isinstance(answer, wire.Rendered):
                    return answer

    def end(self) -> int:
        """Close its socket; its exit code."""
        self.connection.close()
        return self.process.wait(200)
