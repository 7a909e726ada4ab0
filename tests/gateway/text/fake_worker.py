"""A text worker that does what its texts say, for tests of who looks after workers: `python -m tests.gateway.text.fake_worker`.

    a prompt's length           its number of characters
    "die", "die unless FILE"    ends by SIGSEGV; the second one only while there is no FILE, which it makes
    "hang"                      computes for ever
    "stuck"                     waits for ever
    "wait FILE"                 answers when there is a FILE
    "say FILE"                  makes FILE and answers

A chat whose first message is "loop" hangs before its template is done, one that is "hang" after it.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from array import array
from pathlib import Path

from poise.wire import text as wire
from poise.wire.framing import FrameDecoder, encode_frame


def main() -> None:
    connection = socket.socket(fileno=int(sys.argv[-1]))
    frames: FrameDecoder[wire.ToWorker] = FrameDecoder(wire.ToWorker)
    while data := connection.recv(1 << 20):
        for message in frames.feed(data):
            if isinstance(message, wire.Open):
                answer = opened(message)
                if answer is None:
                    continue
            elif isinstance(message, wire.Chat):
                if message.messages[0].content == "loop":
                    hang()
                connection.sendall(encode_frame(wire.Rendered()))
                do(message.messages[0].content)
                answer = wire.Ids(1, [1])
            else:
                assert isinstance(message, wire.Prompt)
                do(message.text)
                answer = wire.Ids(len(message.text), [])
            connection.sendall(encode_frame(answer))


def opened(message: wire.Open) -> wire.FromWorker | None:
    """The model's path says how it goes: a file with the number of tokens, "unusable", "die" or "silent". What the server knows
    already is not said again."""
    if message.model_path == "unusable":
        return wire.Unusable("model.gguf: is not a model")
    if message.model_path == "silent":
        return None
    if message.model_path == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if message.known:
        return wire.Opened()
    n = int(Path(message.model_path).read_text())
    return wire.Vocabulary(n, b"x" * n, array("I", range(1, n + 1)).tobytes(), bytes(n))


def do(text: str) -> None:
    verb, _, file = text.partition(" ")
    path = Path(file.removeprefix("unless "))
    if verb == "die" and not (file and path.exists()):
        if file:
            path.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    elif verb == "hang":
        hang()
    elif verb == "stuck":
        signal.pause()
    elif verb == "wait":
        until_s = time.monotonic() + 30.0
        while not path.exists() and time.monotonic() < until_s:
            time.sleep(0.005)
    elif verb == "say":
        path.touch()


def hang() -> None:
    while True:
        pass


if __name__ == "__main__":
    main()
