"""Trouble of each kind, brought to a real server, is on the dashboard as it happens, and the runbook says what to do."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.page_support import chromium
from tests.e2e.server import PoiseServer, run_poise
from tests.e2e.test_server_life import body

pytestmark = pytest.mark.slow

CHAT = "/v1/chat/completions"
RUNBOOK = (Path(__file__).parents[2] / "docs" / "runbook.md").read_text()
FAULTS = Path(__file__).parent / "faults"
PATIENCE_MS = 120_000
"""Only ends a test that hangs."""


@dataclass
class Scene:
    """A server with an open dashboard, and where to bring trouble from."""

    server: PoiseServer
    page: Page
    folder: Path

    @contextmanager
    def trouble(self, kind: str) -> Iterator[None]:
        path = self.folder / kind
        path.touch()
        try:
            yield
        finally:
            path.unlink()

    def told(self, name: str) -> str:
        """The finding's words, once the page has them; the runbook has an entry of that name."""
        began_s = time.monotonic()
        row = self.page.locator(f'[data-finding="{name}"]')
        expect(row).to_be_visible(timeout=PATIENCE_MS)
        print(f"{name}: on the page after {time.monotonic() - began_s:.1f} s")
        assert f"### {name}\n" in RUNBOOK
        return row.inner_text()

    def gone(self, name: str) -> None:
        expect(self.page.locator(f'[data-finding="{name}"]')).to_have_count(0, timeout=PATIENCE_MS)

    def submit(self, key: str, **changes: Any) -> str:
        """A request that goes on when its reader has left, which is at once; returns its id."""
        payload = body(background=True, **changes)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
        request = urllib.request.Request(self.server.url + CHAT, payload, headers, method="POST")
        with urllib.request.urlopen(request, timeout=120) as response:
            return str(response.headers["X-Poise-Response-Id"])

    def cancel(self, key: str, *ids: str) -> None:
        for name in ids:
            headers = {"Authorization": f"Bearer {key}"}
            url = f"{self.server.url}/v1/requests/{name}/cancel"
            urllib.request.urlopen(urllib.request.Request(url, b"", headers, method="POST"), timeout=120).close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def scene(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("faults")
    settings = {
        "pools.short.slots": 4,
        "classes.interactive.slots_max": 4,
        "streams.send_buffer_bytes": 4096,
        "streams.interactive.unsent_bytes_max": 4096,
        "levels.crashes_max": 10,
        "audit.enabled": "true",
        "audit.path": str(folder / "audit"),
        "auth.keys_file": str(folder / "keys.jsonl"),
    }
    path = os.pathsep.join(filter(None, [str(FAULTS), os.environ.get("PYTHONPATH", "")]))
    environment = {"PYTHONPATH": path, "FAULTS_FOLDER": str(folder)}
    options = [x for key, value in settings.items() for x in ("--set", f"{key}={value}")]
    server = PoiseServer.start(*options, environment=environment)
    page = browser.new_page()
    page.goto(f"{server.url}/dashboard")
    yield Scene(server, page, folder)
    page.close()
    assert server.stop() == 0


def test_a_hog(scene: Scene) -> None:
    """One tenant sends ten long requests; another one's is served beside them, and what happened to it is explained."""
    greedy = [scene.submit("greedy", max_tokens=1500) for _ in range(10)]
    other = scene.submit("polite", max_tokens=1500)
    polite = scene.submit("polite", max_tokens=20)
    try:
        text = scene.told("hog")
        assert re.search(r"One tenant has \d+ of \d+ live requests", text)
        waiting = greedy[-1]
        explained = run_poise("explain", waiting, "--url", scene.server.url, "--key", "greedy")
        assert explained.returncode == 0
        assert "slot" in explained.stdout
        mine = scene.server.url + f"/v1/requests/{polite}"
        scene.server.eventually(lambda: ended(mine, "polite"), "the other tenant's request ends beside the hog")
    finally:
        scene.cancel("greedy", *greedy)
        scene.cancel("polite", other)
    scene.server.eventually(scene.server.nothing_runs, "everything is cancelled")
    scene.gone("hog")


def test_a_stuck_reader(scene: Scene) -> None:
    host, port = scene.server.url.removeprefix("http://").split(":")
    payload = body(max_tokens=400, logprobs=True, top_logprobs=20)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        stuck.connect((host, int(port)))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(payload)}\r\n\r\n"
        stuck.sendall(head.encode() + payload)
        assert "nobody reads their answers: 1" in scene.told("reader_stuck")
        explained = run_poise("explain", "last", "--url", scene.server.url)
        assert explained.returncode == 0
        assert "reader" in explained.stdout
    scene.server.eventually(scene.server.nothing_runs, "the reader has left")
    scene.gone("reader_stuck")


def test_a_leak(scene: Scene) -> None:
    """The engine's books are told while it computes, so something is computed meanwhile."""
    running = scene.submit("leak", max_tokens=3500)
    with scene.trouble("leak"):
        assert "The engine's memory beyond what its books hold grew by" in scene.told("memory_growing")
    scene.cancel("leak", running)
    scene.gone("memory_growing")


def test_a_slow_disk(scene: Scene) -> None:
    with scene.trouble("disk"):
        done = scene.submit("disk", max_tokens=2)
        scene.server.eventually(lambda: ended(f"{scene.server.url}/v1/requests/{done}", "disk"), "an entry to write")
        assert "The disk took" in scene.told("disk_slow")


def test_a_crash_loop(scene: Scene) -> None:
    for _ in range(2):
        restarts = scene.server.get("/health")[1]["restarts"]
        os.kill(scene.server.engine().pid, signal.SIGSEGV)
        scene.server.eventually(lambda n=restarts: again(scene.server, n), "another engine")  # type: ignore[misc]
    assert "The engine ended 2 times" in scene.told("crash_loop")


def again(server: PoiseServer, n_before: int) -> bool:
    status, health = server.get("/health")
    return status == 200 and health["restarts"] > n_before


def ended(url: str, key: str) -> bool:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request, timeout=30) as response:
        return bool(json.load(response)["state"] == "ended")
