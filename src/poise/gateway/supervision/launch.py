"""Starts a process with its socket, and an engine with its black box too: either all of it is there, or nothing is left of it.

Whatever can be lacking at a moment (files, memory, processes) is an OSError, and not the end of anything. A black box
is made once and serves all engines, one after the other. Spare descriptors are kept for the next start: an engine is to be
started again also while clients hold every file that the process may have. Messages of the socket are handed on as they come,
with no stream or task between."""

import asyncio
import contextlib
import os
import socket
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from poise.engine.blackbox import BlackBox
from poise.engine.leash import child_environment
from poise.gateway.supervision.store import StoreKeeper
from poise.wire import messages as wire
from poise.wire.framing import FrameDecoder

T = TypeVar("T")

N_SPARE = 8
"""A start takes five: two ends of a socket, two of the pipe that tells whether the program was found, one to be safe."""
POLL_S = 0.01


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


@contextlib.contextmanager
def _or_os_error() -> Iterator[None]:
    """Raises OSError where a thread, a child or memory cannot be had."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        raise OSError(f"{type(error).__name__}: {error}") from error


async def spawn(
    command: Sequence[str], connection: FrameConnection[T], environment: Mapping[str, str], fds: Sequence[int] = ()
) -> subprocess.Popen[bytes]:
    """Start a program that is given the number of its end of a socket last, and `fds` to use. Raises OSError."""
    with _or_os_error(), contextlib.ExitStack() as undo:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        undo.callback(ours.close)
        with theirs:
            process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program, and it is only started
                [*command, str(theirs.fileno())], pass_fds=[*fds, theirs.fileno()], env=environment
            )
        undo.callback(process.wait)
        undo.callback(process.kill)
        loop = asyncio.get_running_loop()
        # Whether the loop can watch it is asked here: where it cannot, a transport would log that, and never read.
        loop.add_reader(ours.fileno(), lambda: None)
        loop.remove_reader(ours.fileno())
        await loop.create_unix_connection(lambda: connection, sock=ours)
        undo.pop_all()
    return process


@dataclass(frozen=True)
class Child(Generic[T]):
    """A process, and the way to it."""

    process: subprocess.Popen[bytes]
    connection: FrameConnection[T]

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()

    async def end(self, grace_s: float = 0.0) -> int:
        """Close the way to it and make sure that it has ended, by signal when it has not within the time. Returns its exit code;
        of a signal its negative number."""
        self.connection.close()
        try:
            async with asyncio.timeout(grace_s):
                return await self._ended()
        except (TimeoutError, asyncio.CancelledError):
            self.kill()
            return await self._ended()

    async def _ended(self) -> int:
        # Polled: a watcher would need a thread or a file for each process, which may be lacking.
        while (code := self.process.poll()) is None:  # noqa: ASYNC110
            await asyncio.sleep(POLL_S)
        return code


@dataclass(frozen=True)
class LaunchedEngine(Child[wire.ToGateway]):
    """One engine, and what it notes."""

    box: BlackBox


class Launcher:
    """Starts one engine after the other."""

    def __init__(self, command: Sequence[str], store: StoreKeeper | None = None) -> None:
        """`command` starts an engine; the numbers of its black box, of the `store`'s memory and of its end of the socket pair are
        added to it."""
        self._command = command
        self._store = store or StoreKeeper(0)
        self._box: BlackBox | None = None
        self._spare: list[int] = []

    async def launch(self, dispatch: Callable[[wire.ToGateway], None]) -> LaunchedEngine:
        """A new engine, which calls `dispatch` with what it says. Raises OSError, with everything closed."""
        self._give_spare()
        try:
            with _or_os_error():
                box = self._box = self._box or BlackBox.create()
            box.clear()
            lost = asyncio.get_running_loop().create_future()
            connection: FrameConnection[wire.ToGateway] = FrameConnection(wire.ToGateway, dispatch, lost)
            command, fds, store = [*self._command, "--box", str(box.fd)], [box.fd], self._store.descriptor()
            if store is not None:
                command, fds = [*command, "--store", str(store)], [*fds, store]
            process = await spawn(command, connection, child_environment(), fds)
        finally:
            self._take_spare()
        return LaunchedEngine(process, connection, box)

    def close(self) -> None:
        """No engine is started any more."""
        self._give_spare()
        self._store.close()
        if self._box is not None:
            self._box.close()
            self._box = None

    def _give_spare(self) -> None:
        while self._spare:
            os.close(self._spare.pop())

    def _take_spare(self) -> None:
        if self._box is not None:
            with contextlib.suppress(OSError):
                while len(self._spare) < N_SPARE:
                    self._spare.append(os.dup(self._box.fd))
