"""A real `poise serve` process for tests."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil

from poise.gateway.supervision.supervisor import ENGINE_COMMAND
from poise.operator_token import find_token

START_S_MAX = 600.0
"""Only ends a test that hangs. The first start on a host measures, and chooses weights where that is asked for."""
QUICK = (
    "engine.threads=1", "model.weights=as-is", "pools.short.flash_attention=on", "pools.long.flash_attention=off",
)  # fmt: skip
"""What has servers start at once, and answer beside other work: nothing is chosen or measured for speed, and no two threads wait
for each other, which on a busy host makes an answer ten times as slow. `tests/e2e/test_weights.py` is about what is left out.
"""
END_S_MAX = 120.0
"""Only ends a test that hangs: an idle server ends within a second."""
POLL_S = 0.02


@dataclass
class PoiseServer:
    """A running server on a free loopback port."""

    process: subprocess.Popen[str]
    url: str
    output: list[str]

    @classmethod
    def start(
        cls,
        *options: str,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        module: str = "poise",
        quick: bool = True,
    ) -> PoiseServer:
        """Start and wait until it says that it serves. `module` stands in for `poise`; `options` go before those of QUICK."""
        settings = assignments(*QUICK) if quick else []
        command = [sys.executable, "-m", module, "serve", "--port", "0", *settings, *options]
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=cwd,
            env={**os.environ, **(environment or {})},
        )
        assert process.stdout is not None
        url, output = _wait_for_url(process.stdout)
        if not url:
            process.kill()
            raise AssertionError("the server did not start:\n" + "".join(output))
        server = cls(process, url, output)
        server.eventually(lambda: server.get("/health")[0] == 200, "ready")
        return server

    def stop(self) -> int:
        """Interrupt it as Ctrl-C does; returns its exit code."""
        if self.process.poll() is None:
            self.process.terminate()
        try:
            return self.process.wait(END_S_MAX)
        finally:
            if self.process.poll() is None:
                self.process.kill()
            if self.process.stdout is not None:
                self.process.stdout.close()

    def engine(self) -> psutil.Process:
        """The engine process."""
        return self.child(ENGINE_COMMAND[-1])

    def child(self, module: str) -> psutil.Process:
        """The one process of the server that runs this module."""
        (child,) = [child for child in psutil.Process(self.process.pid).children() if module in child.cmdline()]
        return child

    def get(self, path: str) -> tuple[int, Any]:
        """Status and body (JSON where it is)."""
        try:
            with urllib.request.urlopen(self.request(path), timeout=120) as response:
                status, body = response.status, response.read()
        except urllib.error.HTTPError as error:
            with error:
                status, body = error.code, error.read()
        try:
            return status, json.loads(body)
        except ValueError:
            return status, body.decode()

    def request(self, path: str) -> urllib.request.Request:
        """With the server's token where operators ask, as `poise top` sends it."""
        token = find_token(self.url) if path.startswith(("/admin/", "/status", "/metrics")) else ""
        return urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {token}"} if token else {})

    def eventually(self, condition: Callable[[], bool], what: str, within_s: float = 300.0) -> None:
        """Ask until it holds. `within_s` only ends a test that hangs; a slow host is no failure.

        There is a pause between two questions: asking without one keeps a core busy, and the engine needs them all.
        """
        until = time.monotonic() + within_s
        while not condition():
            time.sleep(POLL_S)
            assert time.monotonic() < until, f"never came: {what}"
            assert self.process.poll() is None, f"the server ended while waiting for: {what}"

    def nothing_runs(self) -> bool:
        classes = self.get("/status")[1]["classes"]
        return all(c["running"] == c["queued"] == 0 for c in classes.values())


def assignments(*settings: str) -> list[str]:
    """Settings as options of a command."""
    return [part for setting in settings for part in ("--set", setting)]


def _wait_for_url(stream: IO[str]) -> tuple[str, list[str]]:
    output: list[str] = []
    until = time.monotonic() + START_S_MAX
    for line in stream:
        output.append(line)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found[0], output
        if time.monotonic() > until:
            break
    return "", output


def run_poise(*arguments: str, cwd: Path | None = None, timeout_s: float = 250) -> subprocess.CompletedProcess[str]:
    """A `poise` command that is expected to end by itself."""
    return subprocess.run(
        [sys.executable, "-m", "poise", *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout_s,
        check=False,
        env=dict(os.environ),
    )
