"""One text worker's process, from its start to its end."""

import asyncio
import sys
from collections.abc import Callable, Sequence

import psutil

from poise.engine.leash import child_environment
from poise.gateway.supervision.launch import Child, FrameConnection, spawn
from poise.wire import text as wire
from poise.wire.framing import encode_frame

WORKER_COMMAND = (sys.executable, "-m", "poise.worker.text")
_WITHOUT_GPU = dict.fromkeys(("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "GGML_VK_VISIBLE_DEVICES"), "")
"""A vocabulary needs none, and a GPU's library would take memory of it."""


class WorkerProcess(Child[wire.FromWorker]):
    """Made by `start`."""

    @classmethod
    async def start(cls, receive: Callable[[wire.FromWorker], None], command: Sequence[str] = WORKER_COMMAND) -> "WorkerProcess":
        """Raises OSError when there is no memory, file or process to be had; then nothing is left of it."""
        lost = asyncio.get_running_loop().create_future()
        connection: FrameConnection[wire.FromWorker] = FrameConnection(wire.FromWorker, receive, lost)
        return cls(await spawn(command, connection, child_environment() | _WITHOUT_GPU), connection)

    def cpu_s(self) -> float:
        """CPU time that it has used so far, in seconds, in steps of about 10 ms; 0 when it is gone."""
        try:
            times = psutil.Process(self.process.pid).cpu_times()
        except psutil.Error:
            return 0.0
        return float(times.user + times.system)

    def send(self, message: wire.ToWorker) -> None:
        self.connection.write(encode_frame(message))
