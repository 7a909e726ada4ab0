"""A server while it is attacked: somebody polite is answered beside it all, and afterwards nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.attacks import polite
from tests.attacks.kinds import KINDS, Kind
from tests.attacks.peer import Site
from tests.e2e.server import PoiseServer

HOSTILE = ("127.0.0.2", "127.0.0.3", "127.0.0.4")
HOLD_S = 4.0
"""Four times what the servers here allow a client to be silent, slow or stuck."""
CREW = 8
FILES_MORE = 3
"""The log of a library, a socket that is being closed: descriptors that come and go by themselves."""
ROOT = Path(__file__).parents[2]
_numbers = itertools.count()


def start(*settings: str, folder: Path) -> PoiseServer:
    """A server with state of its own, which gives nobody more than a second."""
    sets = [part for setting in (*PATIENCE, *settings) for part in ("--set", setting)]
    environment = {"XDG_STATE_HOME": str(folder), "XDG_CONFIG_HOME": str(folder), "PYTHONPATH": str(ROOT)}
    server = PoiseServer.start(*sets, environment=environment, cwd=folder, module="tests.attacks.simulated")
    threading.Thread(target=_drain, args=(server,), daemon=True).start()
    return server


def _drain(server: PoiseServer) -> None:
    """Reads what the server logs, of which there is a lot here: a full pipe would stop it."""
    assert server.process.stdout is not None
    with contextlib.suppress(ValueError):  # closed
        for line in server.process.stdout:
            server.output.append(line)


PATIENCE = (
    "server.body_timeout_s=1",
    "server.idle_timeout_s=1",
    "server.send_timeout_s=1",
    "streams.interactive.stall_swap_s=0.3",
    "streams.interactive.stall_end_s=1",
    "streams.background.stall_end_s=1",
    "results.retention_s=1",
)


class Besieged:
    """One server and its state before anything was done to it."""

    def __init__(
        self, server: PoiseServer, *, key: str = "", hostile_key: str = "", admin_key: str = "", audit: Path = Path()
    ) -> None:
        self.server = server
        self.audit = audit
        """The folder of its audit log, where it has one."""
        self._key, self._hostile_key, self._admin_key = key, hostile_key, admin_key
        self._port = int(server.url.rpartition(":")[2])
        self._gateway = psutil.Process(server.process.pid)
        self._files = self._gateway.num_fds()
        self._engine = self._engine_pid()

    def site(self, sources: Sequence[str] = HOSTILE, **changes: Any) -> Site:
        """For one attacker: no two have the same random numbers, and each run has the same ones."""
        number = next(_numbers)
        return Site(
            self._port, sources, keys=(self._hostile_key,), admin_key=self._admin_key, hold_s=HOLD_S,
            rng=random.Random(number), **changes,
        )  # fmt: skip

    async def strikes(self, kind: Kind, n: int) -> Counter[str]:
        """What came of so many strikes at a time."""
        return Counter(await asyncio.gather(*(kind.strike(self.site()) for _ in range(n))))

    @contextlib.asynccontextmanager
    async def undisturbed(self) -> AsyncIterator[None]:
        """Around an attack: somebody polite asks all the time, at least twice, and every answer comes whole."""
        over = asyncio.Event()

        async def ask() -> list[str]:
            found: list[str] = []
            site = self.site(sources=("127.0.0.1",))
            while not over.is_set() or len(found) < 2:
                found.append((await polite.ask(site, self._key)).status)
            return found

        asking = asyncio.create_task(ask())
        try:
            yield
        finally:
            over.set()
            statuses = Counter(await asking)
        assert set(statuses) == {polite.OK}, statuses

    def _engine_pid(self) -> int:
        return self.server.child("tests.gateway.simulated_engine").pid

    async def settle(self) -> None:
        """Nothing is left of what was done: no open request, no work, no descriptor, and the engine is the one it was.

        A text worker may be another: one that works for a client that has left is killed when others wait.
        """
        await asyncio.to_thread(self.server.eventually, self._is_settled, "everything given back", 120.0)
        assert self._engine_pid() == self._engine
        status = self.server.get("/status")[1]
        assert [task for task in status.get("tasks", ()) if task["state"] in ("failing", "given_up")] == []
        assert self.server.get("/health")[1]["status"] == "ok"

    def _is_settled(self) -> bool:
        status = self.server.get("/status")[1]
        held = [status["open_requests"], status["live_choices"], max(0, self._gateway.num_fds() - self._files - FILES_MORE)]
        held += [figures[what] for figures in status["classes"].values() for what in ("queued", "running", "swapped")]
        return not any(held)


async def attack(besieged: Besieged, name: str, *, n: int | None = None) -> Counter[str]:
    """A crew of one kind beside a polite client; afterwards the server is as before. Returns what came of the strikes."""
    kind = KINDS[name]
    async with besieged.undisturbed():
        outcomes = await besieged.strikes(kind, n or min(kind.crew, CREW))
    await besieged.settle()
    return outcomes
