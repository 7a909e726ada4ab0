"""Starts an engine process with its socket and its black box: either all of it is there, or nothing is left of it.

Whatever can be lacking at a moment (files, memory, processes) is an OSError of `launch`, and not the end of anything. A black box
is made once and serves all engines, one after the other. Spare descriptors are kept for the next start: an engine is to be
started again also while clients hold every file that the process may have. Messages of the socket are handed on as they come,
with no stream or task between."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from poise.engine.blackbox import BlackBox
from poise.engine.leash import child_environment
from poise.wire import messages as wire
from poise.wire.framing import FrameDecoder

T = TypeVar("T")


class FrameConnection(asyncio.Protocol, Generic[T]):
    """Takes frames of `kind`, each of which `receive` is called with."""

    def __init__(self, kind: Any, receive: Callable[[T], None], lost: asyncio.Future[None]) -> None:
        self.lost = lost
        """Done at the end of the connection, with what broke it."""
        self._receive = receive
        self._frames: FrameDecoder[T] = FrameDecoder(kind)
        self._transport: asyncio.Transport | None = None

    def write(self, data: bytes) -> None:
        """Send a message. Does nothing once the connection is lost: the next engine is sent every live request anyway."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._receive(message)
        except Exception as error:
            self.connection_lost(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.lost.done():
            return
        if exc is None:
            self.lost.set_result(None)
        else:
            self.lost.set_exception(exc)


N_SPARE = 8
"""A start takes five: two ends of a socket, two of the pipe that tells whether the program was found, one to be safe."""
POLL_S = 0.01


class Launcher:
    """Starts one engine after the other."""

    def __init__(self, command: Sequence[str]) -> None:
        """`command` starts an engine; the numbers of its black box and of its end of the socket pair are added to it."""
        self._command = command
        self._box: BlackBox | None = None
        self._spare: list[int] = []

    async def launch(self, dispatch: Callable[[wire.ToGateway], None]) -> "LaunchedEngine":
        """A new engine, which calls `dispatch` with what it says. Raises OSError, with everything closed."""
        self._give_spare()
        try:
            with contextlib.ExitStack() as undo:
                process, box, ours = self._start(undo)
                loop = asyncio.get_running_loop()
                # Whether the loop can watch it is asked here: where it cannot, a transport would log that, and never read.
                loop.add_reader(ours.fileno(), lambda: None)
                loop.remove_reader(ours.fileno())
                connection = FrameConnection(wire.ToGateway, dispatch, loop.create_future())
                await loop.create_unix_connection(lambda: connection, sock=ours)
                undo.pop_all()
        except (MemoryError, RuntimeError) as error:  # RuntimeError: no thread, no child can be made
            raise OSError(f"{type(error).__name__}: {error}") from error
        finally:
            self._take_spare()
        return LaunchedEngine(process, box, connection)

    def close(self) -> None:
        """No engine is started any more."""
        self._give_spare()
        if self._box is not None:
            self._box.close()
            self._box = None

    def _start(self, undo: contextlib.ExitStack) -> tuple[subprocess.Popen[bytes], BlackBox, socket.socket]:
        """The process and our end of its socket, which `undo` ends and closes."""
        if self._box is None:
            self._box = BlackBox.create()
        self._box.clear()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(ours.close)
        with theirs:
            process = subprocess.Popen(  # noqa: S603 - our own program
                [*self._command, "--box", str(self._box.fd), str(theirs.fileno())],
                pass_fds=[self._box.fd, theirs.fileno()],
                env=child_environment(),
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        return process, self._box, ours

    def _give_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def _take_spare(self) -> None:
        if self._box is not None:
            with contextlib.suppress(OSError):
                while len(self._spare) < N_SPARE:
                    self._spare.append(os.dup(self._box.fd))


@dataclass(frozen=True, slots=True)
class LaunchedEngine:
    """One engine: its process, what it notes, and the way to it."""

    process: subprocess.Popen[bytes]
    box: BlackBox
    connection: FrameConnection[wire.ToGateway]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def end(self, grace_s: float) -> int:
        """Close the way to it and make sure that it has ended, by signal when it has not within the time. Returns its code."""
        self.connection.close()
        try:
            async with asyncio.timeout(grace_s):
                return await ended(self.process)
        except (TimeoutError, asyncio.CancelledError):
            self.kill()
            return await ended(self.process)


async def ended(process: subprocess.Popen[bytes]) -> int:
    """The exit code of a process, when it has ended; of a signal its negative number."""
    # Polled: a watcher would need a thread or a file for each process, which may be lacking.
    while (code := process.poll()) is None:  # noqa: ASYNC110
        await asyncio.sleep(POLL_S)
    return code
