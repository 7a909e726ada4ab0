"""The server under measurement: where it is, what it serves, whether it is ready; and how its engine is killed, and nothing else.

Only with the user's leave (`--allow-kill`), only on this host, and only the process that `--engine-pid` or the server's own
`/status` (`engine_pid`) names. After a kill its successor counts: the process with the same command line under the same parent.
"""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import msgspec
import psutil

_PROBE_TIMEOUT = aiohttp.ClientTimeout(total=10.0)
_PROBE_PAUSE_S = 0.2
TELLING_PATHS = ("/status", "/props")
TOLD_BYTES_MAX = 1 << 18


class TargetError(Exception):
    """A server that cannot be measured; the message is one line for the user."""


@dataclass(frozen=True, slots=True)
class Target:
    """A server. `extensions` says whether `service_tier` is sent; `software` is its Server header, if it sends one; `told` is
    what else it says of itself, by the path at which it says it."""

    url: str
    model: str
    extensions: bool
    software: str = ""
    told: dict[str, Any] = field(default_factory=dict)


def base_url(text: str) -> str:
    """`text` without a trailing slash or /v1. Raises TargetError for what is no http address."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise TargetError(f"{text!r} is not a server address like http://127.0.0.1:8000")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def new_session(key: str = "") -> aiohttp.ClientSession:
    """One session for a whole run, with the API key of requests that bring none. Each request gets a connection of its own, as
    from a client of its own; a kept one could be closed by the server in the moment of its reuse, and that would look like a
    failure."""
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=None), headers=headers)


async def probe(session: aiohttp.ClientSession, url: str) -> None:
    """Asks once whether anybody answers at `url`, whatever the answer. Raises TargetError if not."""
    await _get(session, url, "/health")


async def discover(session: aiohttp.ClientSession, url: str, extensions: bool) -> Target:
    """The server at `url` with the first model it lists. Raises TargetError."""
    response, body = await _get(session, url, "/v1/models")
    if response.status != 200:
        raise TargetError(f"{url}/v1/models answers {response.status}")
    try:
        models = msgspec.json.decode(body, type=_Models).data
    except msgspec.MsgspecError as error:
        raise TargetError(f"{url}/v1/models is not a list of models: {error}") from error
    if not models:
        raise TargetError(f"{url}/v1/models lists no model")
    told = {path: found for path in TELLING_PATHS if (found := await told_at(session, url, path))}
    return Target(url, models[0].id, extensions, response.headers.get("Server", ""), told)


async def told_at(session: aiohttp.ClientSession, url: str, path: str) -> dict[str, Any]:
    """What a server says of its settings and state: poise at /status, llama-server at /props. Nothing is no error."""
    try:
        response, body = await _get(session, url, path)
        value = msgspec.json.decode(body)
    except (TargetError, msgspec.MsgspecError):
        return {}
    return value if response.status == 200 and isinstance(value, dict) and len(body) <= TOLD_BYTES_MAX else {}


async def _get(session: aiohttp.ClientSession, url: str, path: str) -> tuple[aiohttp.ClientResponse, bytes]:
    try:
        async with session.get(url + path, timeout=_PROBE_TIMEOUT) as response:
            return response, await response.read()
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        raise TargetError(f"{url} cannot be reached: {_reason(error)}") from error


async def wait_ready(session: aiohttp.ClientSession, url: str, timeout_s: float) -> None:
    """Returns when /health answers 200, or /v1/models where there is no /health. Raises TargetError after `timeout_s`."""
    until = time.monotonic() + timeout_s
    path = "/health"
    while True:
        try:
            response, _ = await _get(session, url, path)
            if response.status == 200:
                return
            if path == "/health" and response.status in (404, 405, 501):
                path = "/v1/models"
                continue
            problem = f"{path} answers {response.status}"
        except TargetError as error:
            problem = str(error)
        if time.monotonic() >= until:
            raise TargetError(f"{url} was not ready within {timeout_s:g} s: {problem}")
        await asyncio.sleep(_PROBE_PAUSE_S)


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        return error.strerror or "no connection"
    if isinstance(error, TimeoutError):
        return "no answer"
    return str(error) or type(error).__name__


class _Model(msgspec.Struct):
    id: str


class _Models(msgspec.Struct):
    data: list[_Model]


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
