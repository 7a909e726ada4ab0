"""One text worker's process, from its start to its end, and the gateway's end of the socket to it."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence

import psutil

from poise.engine.leash import child_environment
from poise.gateway.supervision.launch import FrameConnection, ended
from poise.wire import text as wire
from poise.wire.framing import encode_frame

WORKER_COMMAND = (sys.executable, "-m", "poise.worker.text")
_WITHOUT_GPU = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), "")
"""A vocabulary needs none, and a GPU's library would take memory of it."""


class WorkerProcess(FrameConnection[wire.FromWorker]):
    """Made by `start`. `lost` is done when the worker is gone, or says what is no message."""

    def __init__(self, receive: Callable[[wire.FromWorker], None]) -> None:
        super().__init__(wire.FromWorker, receive, asyncio.get_running_loop().create_future())
        self._process: subprocess.Popen[bytes] | None = None

    @classmethod
    async def start(cls, receive: Callable[[wire.FromWorker], None], command: Sequence[str] = WORKER_COMMAND) -> "WorkerProcess":
        """Raises OSError when there is no memory, file or process to be had; then nothing is left of it."""
        worker = cls(receive)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                worker._process = subprocess.Popen(  # noqa: ASYNC220, S603 - our own program, and it is only started
                    [*command, str(theirs.fileno())], pass_fds=[theirs.fileno()], env=child_environment() | _WITHOUT_GPU
                )
            await asyncio.get_running_loop().create_unix_connection(lambda: worker, sock=ours)
        except BaseException as error:
            ours.close()
            await worker.end()
            if isinstance(error, MemoryError | RuntimeError):  # RuntimeError: no child can be made
                raise OSError(f"{type(error).__name__}: {error}") from error
            raise
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def cpu_s(self) -> float:
        """CPU time that it has used so far, in seconds, in steps of about 10 ms; 0 when it is gone."""
        try:
            times = psutil.Process(self.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def send(self, message: wire.ToWorker) -> None:
        self.write(encode_frame(message))

    def kill(self) -> None:
        """Kill the process at once; `lost` follows."""
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def end(self) -> int:
        """Make sure that the process is gone. Returns its exit code; of a signal its negative number."""
        if self._transport is not None:
            self._transport.abort()
        if self._process is None:
            return 0
        self.kill()
        return await ended(self._process)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(None if isinstance(exc, ConnectionError) else exc)
