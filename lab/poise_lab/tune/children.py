"""The processes of tuning: servers that are judged, and the child that times passes. None of them outlives it.

A server gets a settings file of its own that says everything: what is in force, with the candidate's changes. What has nothing
to do with speed and would keep a measurement out is left at its default: keys, tenants of their own, TLS, the audit log,
telemetry."""

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO

from poise.config import LoadedSettings, ServerSettings
from poise.config.document import to_toml
from poise.config.serving import AuditSettings, AuthSettings, TelemetrySettings
from poise.engine.leash import child_environment
from poise_lab.tune.knobs import Changes

READY_S = 300.0
"""The first start with a model chooses its weights."""
END_S = 10.0
POLL_S = 0.1
JOURNAL_ENTRIES = 100_000
_SERVING = re.compile(r"^serving .* on (http://\S+)$", re.MULTILINE)


class CannotMeasure(Exception):
    """A candidate that cannot be measured; the message is one line."""


class Server:
    """A `poise serve` process on a free loopback port, ready when this returns. Raises CannotMeasure."""

    def __init__(self, loaded: LoadedSettings, changes: Changes, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(dir=folder, suffix=".log")
        os.close(descriptor)
        self._log = Path(name)
        settings = self._log.with_suffix(".toml")
        settings.write_text(server_toml(loaded, changes, folder), encoding="utf-8")
        with self._log.open("wb") as log:
            command = ("poise", "serve", "--config", str(settings))
            self._process = _start(*command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        try:
            self.url = self._wait()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        end_process(self._process)

    def _wait(self) -> str:
        until = time.monotonic() + READY_S
        while time.monotonic() < until:
            text = self._log.read_text(encoding="utf-8", errors="replace")
            if found := _SERVING.search(text):
                return found[1]
            if self._process.poll() is not None:
                lines = [line for line in text.splitlines() if line.strip()] or ["it says nothing"]
                raise CannotMeasure(f"the server does not start: {lines[-1]}")
            time.sleep(POLL_S)
        raise CannotMeasure(f"the server was not ready within {READY_S:g} s")


def server_toml(loaded: LoadedSettings, changes: Changes, folder: Path) -> str:
    """The settings file of a server that is judged."""
    varied = loaded.varied(changes)
    settings = varied.settings
    server = ServerSettings(port=0, drain_s=0.0, max_connections=settings.server.max_connections)
    settings = settings.model_copy(
        update={
            "server": server,
            "auth": AuthSettings(keys_file=str(folder / "no-keys.jsonl")),
            "audit": AuditSettings(),
            "telemetry": TelemetrySettings(),
            "tenants": {},
            "templates": {},
            "tenant_defaults": settings.tenant_defaults.model_copy(update={"content_log": False}),
            "engine": settings.engine.model_copy(update={"journal_entries": JOURNAL_ENTRIES}),
        }
    )
    origins = dict.fromkeys(("server.port", "server.drain_s"), "poise tune")
    return to_toml(replace(varied, settings=settings, origins=varied.origins | origins))


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as Ctrl-C does, so that children are ended and what was found is written."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def start_passes() -> subprocess.Popen[bytes]:
    """The child that times passes, with pipes for its order and its answer."""
    return _start("poise_lab.tune.passes", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)


def end_process(process: subprocess.Popen[bytes]) -> None:
    """The process and its children, first with a request and then without one."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(END_S)
            if number == signal.SIGTERM:
                continue  # a child may be left: the group is ended for certain
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _start(*module: str, stdin: int, stdout: int | IO[bytes], stderr: int) -> subprocess.Popen[bytes]:
    """In a group of its own, so that Ctrl-C reaches the parent alone, which ends its children in order."""
    command, environment = [sys.executable, "-m", "poise.engine.leash", *module], child_environment()
    return subprocess.Popen(  # noqa: S603 - our own program
        command, stdin=stdin, stdout=stdout, stderr=stderr, env=environment, start_new_session=True
    )
