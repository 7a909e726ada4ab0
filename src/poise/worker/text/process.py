"""The text worker's process: strangers' texts through a stranger's template and a tokeniser in C++, where that can be ended.

Started by the gateway as `python -m poise.worker.text FD`, FD being its end of a socket pair. The first message is Open, which is
answered with the vocabulary; after that each job is answered before the next one is read. It ends when the gateway does.

Bounds: memory by RLIMIT_DATA, counted from what the vocabulary takes; time by the gateway, which kills it. What needs a deep
stack gets one: for many models llama.cpp splits text by `std::regex`, which recurses once for each character, some 330 bytes at
a time (ggml-org/llama.cpp#27783), and an ordinary stack of 8 MiB ends the process at 25,000 letters without a space.

Large texts are worked on at low priority: the engine's threads wait for each other many times in each pass, so whoever takes half
a core from one of them doubles the time of all streams."""

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psutil

from poise.engine.leash import tie_to_parent
from poise.llama.binding.library import EngineLibraryError
from poise.llama.binding.model import Model, ModelError
from poise.wire import text as wire
from poise.wire.fingerprint import MODEL_CHANGED, is_other
from poise.wire.framing import FrameDecoder, encode_frame
from poise.worker.text.chat_template import ChatTemplate
from poise.worker.text.desk import Desk, vocabulary
from poise.worker.text.tokeniser import Tokeniser

READ_BYTES = 1 << 20
LOAD_BYTES = 4 << 30
"""For reading a vocabulary; what the largest ones take is a tenth of it."""
DEEP_BYTES = 4096
"""A larger job is worked on with a deep stack, and gives it back afterwards."""
LARGE_NICE = 10
"""Priority of large texts: about a tenth of a core while the engine wants all of them, and all that is left otherwise."""
STACK_PART = 4
"""The deep stack is this part of the memory that a worker may use."""


def serve(connection: socket.socket) -> int:
    """Answer what comes, until the other side is gone. Returns the exit code."""
    reader: FrameDecoder[wire.ToWorker] = FrameDecoder(wire.ToWorker)
    desk: Desk | None = None
    stack_bytes = n_bytes = 0

    def send(message: wire.FromWorker) -> None:
        connection.sendall(encode_frame(message))

    with contextlib.ExitStack() as stack:
        while data := connection.recv(READ_BYTES):
            n_bytes += len(data)
            for message in reader.feed(data):
                if isinstance(message, wire.Open):
                    try:
                        tokeniser = _open(message, stack)
                    except (ModelError, EngineLibraryError, MemoryError, OSError) as error:
                        send(wire.Unusable(str(error) or "reading the model file takes more memory than there is"))
                        return 1
                    send(wire.Opened() if message.known or tokeniser is None else vocabulary(tokeniser))
                    desk = Desk(tokeniser, lambda: send(wire.Rendered()))
                    stack_bytes = (message.memory_mb << 20) // STACK_PART
                else:
                    assert desk is not None, "the first message is Open"
                    work = partial(desk.answer, message)
                    nice = LARGE_NICE if n_bytes > wire.LARGE_BYTES else 0
                    send(in_deep_stack(work, stack_bytes, nice) if n_bytes > DEEP_BYTES else work())
                n_bytes = 0
    return 0


def _open(message: wire.Open, stack: contextlib.ExitStack) -> Tokeniser | None:
    if not message.model_path:
        _limit(int(psutil.Process().memory_info().data) + (message.memory_mb << 20))
        return None
    path = Path(message.model_path)
    if is_other(path, message.fingerprint):
        raise ModelError(path, MODEL_CHANGED)
    _limit(LOAD_BYTES)
    model = stack.enter_context(Model.load(path, vocab_only=True))
    vocab = model.vocab
    try:
        own = Path(message.chat_template).read_text("utf-8") if message.chat_template else model.chat_template
    except (OSError, UnicodeDecodeError) as error:
        raise ModelError(Path(message.chat_template), f"model.chat_template cannot be read: {error}") from error
    try:
        template = ChatTemplate(own, bos_text=vocab.special_text("bos"), eos_text=vocab.special_text("eos"))
    except ValueError as error:
        raise ModelError(path, f"{error}; use another file of this model") from error
    tokeniser = Tokeniser(vocab, template)
    _limit(int(psutil.Process().memory_info().data) + (message.memory_mb << 20))
    return tokeniser


def _limit(n_bytes: int) -> None:
    """Of the heap and of stacks; a file that is mapped to be read does not count. The hard limit stays."""
    resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, resource.getrlimit(resource.RLIMIT_DATA)[1]))


def in_deep_stack(work: Callable[[], wire.Answer], stack_bytes: int, nice: int = 0) -> wire.Answer:
    """What `work` returns, from a thread with a stack of this size, which is gone afterwards, and its priority with it."""
    answers: list[wire.Answer] = []

    def run() -> None:
        if nice:
            with contextlib.suppress(OSError):  # the others are slower then, and nothing else is lost
                os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), nice)
        answers.append(work())

    before = threading.stack_size(stack_bytes)
    thread = threading.Thread(target=run, name="deep")
    try:
        thread.start()
    except RuntimeError:
        return work()  # there is no memory for such a stack now
    finally:
        threading.stack_size(before)
    thread.join()
    return answers[0]


def main() -> int:
    """Work for the socket whose number is the argument."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the gateway's to handle
    tie_to_parent()
    logging.basicConfig(
        level=os.environ.get("POISE_LOG", "warning").upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    try:
        return serve(socket.socket(fileno=int(sys.argv[-1])))
    except (ConnectionError, KeyboardInterrupt):
        return 0
