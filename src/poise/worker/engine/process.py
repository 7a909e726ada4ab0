"""The engine process: binds the loop to llama.cpp, a socket and the real clock. Nothing else in the project does.

Started by the gateway as `python -m poise.worker.engine.process [--box N] [--store M] FD`, FD being its end of a socket
pair, N the memory of its black box (`engine/blackbox.py`) and M that of its host store (`engine/arena.py`), if there is one. The
first message is Configure. It ends on Shutdown, or when the gateway's end closes: an engine never outlives its gateway."""

import contextlib
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path

import msgspec
import psutil

from poise.config import Settings, to_policy
from poise.config.paths import state_dir
from poise.engine.arena import FINGERPRINT_BYTES, Arena
from poise.engine.blackbox import BoxWriter
from poise.engine.core import Engine
from poise.engine.dumps import keep_journal
from poise.engine.journal import Journal
from poise.engine.leash import tie_to_parent
from poise.llama.binding.library import EngineLibraryError
from poise.llama.binding.model import ModelError
from poise.llama.fitting.fit import DoesNotFit
from poise.llama.running.load import LoadedRunner, Progress, load_runner
from poise.scheduler.scheduler import Scheduler
from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.fingerprint import MODEL_CHANGED, is_other
from poise.wire.framing import FrameDecoder, encode_frame

READ_BYTES = 1 << 18
UNSENT_BYTES_MAX = 256 << 20
UNSENT_PAUSE_S = 0.005
EXIT_PERMANENT = 3
"""Exit code when a restart would end the same way."""


class MonotonicClock:
    now_ns = staticmethod(time.monotonic_ns)


class SocketPort:
    """Inbox and Outbox over one stream socket. Sending never waits: what the socket does not take is kept and sent later."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self._socket = connection
        self._reader: FrameDecoder[to_engine.ToEngine] = FrameDecoder(to_engine.ToEngine)
        self._unsent = bytearray()
        self._sending = threading.RLock()
        self._owner = threading.get_ident()
        self._poll = select.poll()
        self._woken = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll.register(self._woken, select.POLLIN)

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        timed_out = False
        while True:
            self._pump()
            messages = self._receive()
            if messages or not block or timed_out:
                return messages
            timeout_ms = None if wait_until_ns is None else max(0, wait_until_ns - time.monotonic_ns()) / 1e6
            self._poll.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            ready = self._poll.poll(timeout_ms)
            timed_out = not ready
            if any(fd == self._woken for fd, _ in ready):
                os.eventfd_read(self._woken)
                timed_out = True

    def wake(self) -> None:
        os.eventfd_write(self._woken, 1)

    def send(self, message: wire.ToGateway) -> None:
        frame = encode_frame(message)
        with self._sending:
            self._unsent += frame
            if len(self._unsent) > UNSENT_BYTES_MAX:
                raise EOFError("the gateway has stopped reading")
            self._pump()
        while self._unsent and threading.get_ident() != self._owner:
            time.sleep(UNSENT_PAUSE_S)  # the owner may wait for a message, and not for room
            self._pump()

    def flush(self) -> None:
        """Send everything, waiting as long as it takes; for the last words of a dying engine."""
        self._socket.setblocking(True)
        self._socket.sendall(self._unsent)
        self._unsent.clear()

    def _pump(self) -> None:
        """Under the lock: frames of two threads must not mix."""
        with self._sending:
            while self._unsent:
                try:
                    sent = self._socket.send(self._unsent)
                except (BlockingIOError, InterruptedError):
                    return
                except OSError as error:
                    raise EOFError("the gateway is gone") from error
                del self._unsent[:sent]

    def _receive(self) -> list[to_engine.ToEngine]:
        messages: list[to_engine.ToEngine] = []
        while True:
            try:
                data = self._socket.recv(READ_BYTES)
            except (BlockingIOError, InterruptedError):
                return messages
            except OSError as error:
                raise EOFError("the gateway is gone") from error
            if not data:
                raise EOFError("the gateway is gone")
            messages += self._reader.feed(data)
            if len(data) < READ_BYTES:
                return messages


Load = Callable[[Path, Settings, Progress, str, Arena | None], LoadedRunner]
"""A model's path, the settings, what is called with how far it is, the weights to load again, if any, and where the host store
lies: to a runner."""


def serve(port: SocketPort, load: Load, box: BoxWriter, arena: Arena | None) -> int:
    """Load what Configure names and run the loop until the gateway wants no more. Returns the exit code."""
    configure = port.drain(None, block=True)[0]
    assert isinstance(configure, to_engine.Configure), f"expected Configure, got {type(configure).__name__}"
    settings = Settings.model_validate_json(configure.settings)
    journal = Journal(settings.engine.journal_entries)
    path = Path(configure.model_path)
    try:
        check_same(path, configure.fingerprint)
        loaded = load(path, settings, lambda done, stage: port.send(wire.Loading(done, stage)), configure.weights, arena)
        check_same(path, configure.fingerprint)  # it may have changed while it was read
    except (ModelError, EngineLibraryError) as error:
        port.send(wire.Fatal(str(error), permanent=True, short_of_memory=isinstance(error, DoesNotFit)))
        port.flush()
        return EXIT_PERMANENT
    with loaded.runner as runner:
        policy = to_policy(
            settings,
            slot_cells={pool.name: pool.slot_cells for pool in runner.pools},
            cell_bytes={pool.name: pool.cell_bytes for pool in runner.pools},
            chunk_tokens=loaded.chunk_tokens,
            priors=loaded.priors,
            n_drawn=loaded.n_drawn,
            lasts=arena is not None,
        )
        journal.record_policy(policy)
        process = psutil.Process()
        engine = Engine(
            scheduler=Scheduler(policy),
            runner=runner,
            clock=MonotonicClock(),
            inbox=port,
            outbox=port,
            journal=journal,
            box=box,
            rss_bytes=lambda: int(process.memory_info().rss),
            cpu_ns=time.process_time_ns if settings.engine.gpu_layers == 0 else lambda: 0,
            weights_bytes=loaded.ready.model_bytes,
            secret=configure.secret or os.urandom(32),
            arena=arena,
            fingerprint=fingerprint_of(configure, settings, loaded),
        )
        port.send(loaded.ready)
        try:
            engine.run()
        except EOFError:
            return 0
        except Exception as error:
            # Whatever fails from here on, a full disk above all: the gateway is to hear what it was.
            left = keep_journal(state_dir(), journal.lines())
            port.send(wire.Fatal(f"{type(error).__name__}: {error}; {left}", permanent=False))
            port.flush()
            with contextlib.suppress(OSError):
                traceback.print_exc()
            return 1
    return 0


def fingerprint_of(configure: to_engine.Configure, settings: Settings, loaded: LoadedRunner) -> bytes:
    """Of all that a stored state depends on: the model file, the format of its weights, llama.cpp, and how pools are built."""
    ready, engine = loaded.ready, settings.engine
    model = (configure.model_path, configure.fingerprint, ready.weights, loaded.build)
    what = (*model, ready.pools, engine.kv_type, engine.gpu_layers)
    return blake2b(msgspec.msgpack.encode(what), digest_size=FINGERPRINT_BYTES).digest()


def check_same(path: Path, expected: str) -> None:
    """Raises ModelError when the file is not the one with this fingerprint."""
    try:
        other = is_other(path, expected)
    except OSError as error:
        raise ModelError(path, f"cannot be read ({type(error).__name__})") from error
    if other:
        raise ModelError(path, MODEL_CHANGED)


def main(load: Load = load_runner) -> int:
    """Run an engine over the socket whose number is the last argument, with the black box and the host store whose numbers
    `--box` and `--store` say."""
    tie_to_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is the gateway's to handle
    arguments = sys.argv[1:]
    connection = socket.socket(fileno=int(arguments[-1]))
    files = {option: int(arguments[arguments.index(option) + 1]) for option in ("--box", "--store") if option in arguments}
    arena = Arena(files["--store"]) if "--store" in files else None
    try:
        return serve(SocketPort(connection), load, BoxWriter(files.get("--box")), arena)
    except EOFError:
        return 0


if __name__ == "__main__":
    sys.exit(main())
