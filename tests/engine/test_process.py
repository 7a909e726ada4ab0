"""The engine's command line, with a process of its own: what its black box says when it is gone."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

from poise.config import Settings
from poise.engine.blackbox import BlackBox, Phase
from poise.wire import messages as wire
from poise.wire.framing import FrameReader, encode_frame
from tests.gateway.simulated_engine import KILL_TOKEN

GREEDY = wire.SamplingParams(temperature=0.0, ignore_eos=True)


def test_an_engine_that_is_killed_in_a_pass_has_said_for_whom_it_was() -> None:
    """The box is given beside the socket, which stays the last argument."""
    fd = BlackBox.create()
    box = BlackBox(fd)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [sys.executable, "-m", "tests.gateway.simulated_engine", "works", "--box", str(fd), str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[fd, theirs.fileno()]) as engine:
        theirs.close()
        os.close(fd)
        ours.sendall(encode_frame(wire.Configure(Settings().model_dump_json(), "model.gguf")))
        frames = FrameReader[wire.ToGateway](wire.ToGateway)
        while not any(isinstance(message, wire.Ready) for message in frames.feed(ours.recv(1 << 16))):
            pass
        sent_ns = time.monotonic_ns()
        for request_id, prompt in ((7, [5, 6, 7]), (8, [KILL_TOKEN, 6, 7])):
            ours.sendall(encode_frame(wire.Submit(request_id, "t", "interactive", prompt, 50, GREEDY, suspect=True)))
        while ours.recv(1 << 16):
            pass
        assert engine.wait() == -signal.SIGKILL
    reading = box.read()
    assert (reading.phase, reading.request_ids) == (Phase.COMPUTING, (8,))
    assert sent_ns < reading.drained_ns <= reading.at_ns < time.monotonic_ns()
    box.close()
