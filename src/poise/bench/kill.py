"""Kills the engine of the server under measurement, and nothing else.

Only with the user's leave (`--allow-kill`), only on this host, and only the process that `--engine-pid` or the server's own
`/status` (`engine_pid`) names. After a kill its successor counts: the process with the same command line under the same parent.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

import aiohttp
import psutil

from poise.bench.target import told_at

LOCAL_HOSTS = ("127.0.0.1", "localhost", "::1")


class EngineKiller:
    """Finds the engine anew for each kill. `kill` returns what came of it, in words, and never raises for what it finds."""

    def __init__(self, url: str, engine_pid: int | None) -> None:
        self._url = url
        self._pid = engine_pid
        self._parent: int | None = None
        self._command: list[str] = []

    async def kill(self, session: aiohttp.ClientSession) -> tuple[bool, str]:
        """Whether a process was killed, and which or why not."""
        if urlsplit(self._url).hostname not in LOCAL_HOSTS:
            return False, f"{self._url} is not on this host"
        try:
            engine = self._successor() or await self._named(session)
            if engine is None:
                return False, "nobody says which process the engine is: give --engine-pid"
            if engine.pid in (1, os.getpid(), os.getppid()) or engine.uids().real != os.getuid():
                return False, f"process {engine.pid} is not an engine of this user"
            self._pid, self._parent, self._command = engine.pid, engine.ppid(), engine.cmdline()
            engine.kill()
        except psutil.Error as error:
            return False, str(error)
        return True, f"killed process {self._pid} at {time.strftime('%H:%M:%S')}"

    async def _named(self, session: aiohttp.ClientSession) -> psutil.Process | None:
        """The process that the server names, or else the user, who may name one that is gone by now."""
        pid = (await told_at(session, self._url, "/status")).get("engine_pid") or self._pid
        return psutil.Process(pid) if isinstance(pid, int) else None

    def _successor(self) -> psutil.Process | None:
        """The process that has taken the place of the last one killed."""
        if self._parent is None or not psutil.pid_exists(self._parent):
            return None
        children = psutil.Process(self._parent).children()
        return next((c for c in children if c.pid != self._pid and same_command(c.cmdline(), self._command)), None)


def same_command(one: Sequence[str], other: Sequence[str]) -> bool:
    """Numbers aside: an engine is passed its file descriptors, and the next one has others."""
    return [part for part in one if not part.isdigit()] == [part for part in other if not part.isdigit()]
