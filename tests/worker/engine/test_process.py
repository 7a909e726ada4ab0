"""The engine's command line, with a process of its own: what its black box says when it is gone."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from poise.config import Settings
from poise.engine.blackbox import BlackBox, Phase, read_words
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.framing import FrameDecoder, encode_frame
from poise.worker.engine.process import SocketPort
from tests.engine.harness import Bench
from tests.gateway.simulated_engine import KILL_TOKEN

GREEDY = to_engine.SamplingParams(temperature=0.0, ignore_eos=True)


def test_an_engine_that_is_killed_in_a_pass_has_said_for_whom_it_was() -> None:
    """The box is given beside the socket, which stays the last argument."""
    box = BlackBox.create()
    fd = box.fd
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    command = [sys.executable, "-m", "tests.gateway.simulated_engine", "works", "--box", str(fd), str(theirs.fileno())]
    with ours, subprocess.Popen(command, pass_fds=[fd, theirs.fileno()]) as engine:
        theirs.close()
        ours.sendall(encode_frame(to_engine.Configure(Settings().model_dump_json(), "model.gguf")))
        frames = FrameDecoder[wire.ToGateway](wire.ToGateway)
        while not any(isinstance(message, wire.Ready) for message in frames.feed(ours.recv(1 << 16))):
            pass
        sent_ns = time.monotonic_ns()
        for request_id, prompt in ((7, [5, 6, 7]), (8, [KILL_TOKEN, 6, 7])):
            ours.sendall(encode_frame(to_engine.Submit(request_id, "t", "interactive", prompt, 50, GREEDY, suspect=True)))
        while ours.recv(1 << 16):
            pass
        assert engine.wait() == -signal.SIGKILL
    reading = box.read()
    assert (reading.phase, reading.request_ids) == (Phase.COMPUTING, (8,))
    assert sent_ns < reading.drained_ns <= reading.at_ns < time.monotonic_ns()
    box.close()


def test_a_port_that_waits_is_woken_by_another_thread() -> None:
    """With nothing that came; and what comes afterwards is there as before."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        port = SocketPort(theirs)
        for _ in range(2):
            waker = threading.Thread(target=port.wake)
            waker.start()
            assert port.drain(None, block=True) == []
            waker.join()
        ours.sendall(encode_frame(to_engine.Abort(7)))
        assert port.drain(None, block=True) == [to_engine.Abort(7)]


STARTER = """
import os, subprocess, sys
from poise.engine.leash import child_environment
socket = int(sys.argv[-1])
subprocess.Popen(sys.argv[1:], env=child_environment(), pass_fds=[socket])
os.close(socket)
sys.stdin.read()
"""


def test_an_engine_ends_with_who_started_it() -> None:
    """By the kernel, also when nothing else tells it: here its socket stays open, as if it were busy and did not look."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    engine = [sys.executable, "-m", "tests.gateway.simulated_engine", "works", str(theirs.fileno())]
    command = [sys.executable, "-c", STARTER, *engine]
    with ours, subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[theirs.fileno()]) as starter:
        theirs.close()
        ours.settimeout(60)
        ours.sendall(encode_frame(to_engine.Configure(Settings().model_dump_json(), "model.gguf")))
        frames = FrameDecoder[wire.ToGateway](wire.ToGateway)
        while not any(isinstance(message, wire.Ready) for message in frames.feed(ours.recv(1 << 16))):
            pass
        starter.kill()
        while ours.recv(1 << 16):
            pass


@pytest.mark.parametrize("broken", ["add", "abort", "control", "hold"])
def test_an_engine_has_said_whose_message_it_dealt_with(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever fails there: the box names the request, and no other one once the message is done with."""
    bench = Bench()
    bench.submit(7, [1, 2, 3])
    bench.step()
    assert read_words(bench.engine.box.words).phase is not Phase.TAKING

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(bench.scheduler, broken, fail)
    messages: dict[str, to_engine.ToEngine] = {
        "add": to_engine.Submit(8, "t", "interactive", [1], 5, GREEDY),
        "abort": to_engine.Abort(8),
        "control": to_engine.Control(8, "pause"),
        "hold": to_engine.Hold(8, "pause"),
    }
    bench.send(messages[broken])
    with pytest.raises(ZeroDivisionError):
        bench.step()
    reading = read_words(bench.engine.box.words)
    assert (reading.phase, reading.request_ids) == (Phase.TAKING, (8,))
