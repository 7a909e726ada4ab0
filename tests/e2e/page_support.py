"""What the page's tests stand on: a browser, a server that follows a script, and a watch over the browser's console.

The scripted server sends an answer piece by piece over a real connection and can hold it at any byte. Intercepting requests
inside the browser cannot: there an answer arrives whole.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import msgspec
import pytest
from playwright.sync_api import Browser, ConsoleMessage, Error, Locator, Page, Request, sync_playwright

from poise.gateway.http.pages import CHANGES_MODULE, CONTENT_SECURITY_POLICY, PAGE_DIR
from poise.gateway.text.segments import Segmenter

CHROMIUM_ARGS = [
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
HOLD_S_MAX = 200.0

JsonObject = dict[str, Any]


# The browser


def find_chromium() -> str:
    """Path of the browser. Its absence is an error, unless it has been declared with POISE_BROWSER=absent."""
    path = shutil.which("chromium")
    if path is None and os.environ.get("POISE_BROWSER") == "absent":
        pytest.skip("no browser: install the package chromium with `scripts/install-browser.sh`, run as root on Debian")
    assert path is not None, (
        "The page's tests drive the package chromium, which is missing: run `scripts/install-browser.sh` as root on Debian, "
        "or declare with POISE_BROWSER=absent that these tests are left out."
    )
    return path


@contextmanager
def chromium() -> Iterator[Browser]:
    # The system's own browser, not the one that Playwright would download. Its sandbox refuses to run as root.
    path = find_chromium()
    with sync_playwright() as playwright:
        sandbox = os.geteuid() != 0
        browser = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGS, chromium_sandbox=sandbox)
        try:
            yield browser
        finally:
            browser.close()


class PageWatch:
    """Collects what went wrong in a page: console errors (policy violations among them), exceptions, foreign requests."""

    def __init__(self, page: Page, origin: str) -> None:
        self._origin = origin
        self._allowed: list[str] = []
        self._problems: list[str] = []
        page.on("console", self._console)
        page.on("pageerror", self._exception)
        page.on("request", self._request)

    def allow(self, part: str) -> None:
        """Console errors with this text are part of the test: the browser reports failed requests there."""
        self._allowed.append(part)

    def check(self) -> None:
        problems = [text for text in self._problems if not any(part in text for part in self._allowed)]
        assert not problems, "the page reported:\n" + "\n".join(problems)

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self._problems.append(f"{message.text} ({message.location.get('url', '')})")

    def _exception(self, error: Error) -> None:
        self._problems.append(f"exception: {error}")

    def _request(self, request: Request) -> None:
        if not request.url.startswith(self._origin):
            self._problems.append(f"request to another origin: {request.url}")


class Visitor:
    """A person in front of the page."""

    def __init__(self, page: Page, watch: PageWatch) -> None:
        self.page = page
        self.watch = watch
        self.box = page.get_by_role("textbox", name="Message")
        self.send = page.get_by_role("button", name="Send", exact=True)
        self.stop = page.get_by_role("button", name="Stop", exact=True)
        self.retry = page.get_by_role("button", name="Retry", exact=True)
        self.answers = page.get_by_role("article", name="Answer")
        self.health = page.locator("#health-text")

    def say(self, text: str) -> Locator:
        """Send a message; returns the place of its answer."""
        n_before = self.answers.count()
        self.box.fill(text)
        self.send.click()
        return self.answers.nth(n_before)

    def set(self, label: str, value: str) -> None:
        """Fill in one of the settings."""
        self.page.get_by_role("button", name="Settings").click()
        self.page.get_by_label(label).fill(value)
        self.page.get_by_role("button", name="Close").click()

    def number(self, name: str) -> Locator:
        """A figure of the live panel."""
        return self.page.locator(f'[data-value="{name}"]')


def text_of(answer: Locator) -> Locator:
    return answer.locator(".body")


# The scripted server


@dataclass
class Hold:
    """A step that keeps an answer waiting until `release`."""

    _event: threading.Event = field(default_factory=threading.Event)

    def release(self) -> None:
        self._event.set()

    def wait(self, connection: socket.socket) -> bool:
        """False if the client left first."""
        for _ in range(int(HOLD_S_MAX / 0.02)):
            if self._event.wait(0.02):
                return True
            readable, _, _ = select.select([connection], [], [], 0)
            if readable and connection.recv(1, socket.MSG_PEEK) == b"":
                return False
        raise AssertionError("a test left its answer on hold")


class Break:
    """A step that cuts the connection in the middle of the answer."""


Step = bytes | Hold | Break


@dataclass
class Reply:
    """One answer to a chat request."""

    steps: list[Step]
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: {"Content-Type": "text/event-stream"})


def chunk(text: str) -> bytes:
    """A frame with a piece of the answer."""
    return _frame({"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": None}]})


def thought(text: str) -> bytes:
    """A frame with a piece of the reasoning before the answer."""
    return _frame({"choices": [{"index": 0, "delta": {"reasoning_content": text}, "finish_reason": None}]})


def segmented(text: str, n: int = 4) -> list[bytes]:
    """The text in frames of n characters, with the marks of its segments, as the server sends them on request."""
    segmenter = Segmenter()
    frames = []
    for start in range(0, len(text), n):
        piece = text[start : start + n]
        choice = {"index": 0, "delta": {"content": piece}, "finish_reason": None}
        marks = msgspec.to_builtins(segmenter.push(piece))
        frames.append(_frame({"choices": [choice | ({"segments": marks} if marks else {})]}))
    last = {"index": 0, "delta": {}, "finish_reason": None, "segments": msgspec.to_builtins(segmenter.flush())}
    return [*frames, _frame({"choices": [last]})]


def ending(reason: str = "stop", n_prompt: int = 12, n_output: int = 5) -> bytes:
    """The frames that end an answer."""
    finish = _frame({"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]})
    usage = {"prompt_tokens": n_prompt, "completion_tokens": n_output, "total_tokens": n_prompt + n_output}
    return finish + _frame({"choices": [], "usage": usage}) + b"data: [DONE]\n\n"


def error_frame(message: str) -> bytes:
    return _frame(_error(message, "server_error"))


def answer(*steps: Step | str) -> Reply:
    """A stream; strings are pieces of text."""
    return Reply([chunk(step) if isinstance(step, str) else step for step in steps])


def refusal(status: int, message: str, **headers: str) -> Reply:
    """An error in OpenAI's format; `Retry_After="2"` becomes the header of that name."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Reply([json.dumps(_error(message, "error")).encode()], status, {"Content-Type": "application/json"} | named)


def _frame(value: JsonObject) -> bytes:
    return b"data: " + json.dumps(value, ensure_ascii=False).encode() + b"\n\n"


def _error(message: str, kind: str) -> JsonObject:
    return {"error": {"message": message, "type": kind, "param": None, "code": kind}}


READY = {"status": "ready", "ready": True, "progress": 1.0, "stage": "ready", "detail": "", "restarts": 0}
IDLE_CLASS = {"queued": 0, "running": 0, "wait_estimate_ms": 0, "ttft_ms": {"p50": 0, "p95": 0, "count": 0}}
TEMPLATES = {"object": "list", "data": [{"name": "outline-first", "object": "template", "tokens": 90, "kept": False}]}
IDLE = {
    "phase": "ready",
    "model": "tiny-model",
    "uptime_s": 75.2,
    "classes": {"interactive": IDLE_CLASS, "background": IDLE_CLASS},
    "pools": [{"name": "short", "slots_held": 0, "slots": 10, "cells_used": 0, "cells": 40960}],
    "tokens_per_s": {"output": 0, "prompt": 0},
}


class ScriptedServer:
    """Serves the real page, and answers chats with the replies a test has put into `replies`, in order."""

    def __init__(self) -> None:
        self.documents: dict[str, JsonObject] = {
            "/health": READY,
            "/status": IDLE,
            "/v1/templates": TEMPLATES,
            "/v1/models": {"object": "list", "data": [{"id": "tiny-model", "object": "model"}]},
        }
        self.key: str | None = None
        """When set, all but the page and /health want it."""
        self.replies: list[Reply] = []
        self.chats: list[JsonObject] = []
        """Bodies of the chat requests so far."""
        self.reads: dict[str, int] = {}
        """How often each document has been read."""
        self.client_left = threading.Event()
        """A client closed its connection while its answer was on hold."""
        server = self

        class Handler(_Handler):
            script = server

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,))

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


class _Handler(BaseHTTPRequestHandler):
    script: ScriptedServer
    protocol_version = "HTTP/1.1"
    timeout = 5

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        script = self.script
        if path in script.documents:
            script.reads[path] = script.reads.get(path, 0) + 1
            if path == "/health" or self._has_key():
                document = script.documents[path]
                self._send(200 if document.get("ready", True) else 503, json.dumps(document).encode(), "application/json")
            return
        if path == "/page/changes.js":
            self._send(200, CHANGES_MODULE, MEDIA_TYPES[".js"])
            return
        file = PAGE_DIR / ("index.html" if path == "/" else path.removeprefix("/page/"))
        self._send(200, file.read_bytes(), MEDIA_TYPES[file.suffix])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self._has_key():
            self.script.chats.append(json.loads(body))
            self._play(self.script.replies.pop(0))

    def log_message(self, format: str, *args: object) -> None:
        pass

    def _has_key(self) -> bool:
        if self.script.key is None or self.headers.get("Authorization") == f"Bearer {self.script.key}":
            return True
        self._send(401, json.dumps(_error("An API key is needed.", "authentication_error")).encode(), "application/json")
        return False

    def _send(self, status: int, body: bytes, media_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", media_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Security-Policy", CONTENT_SECURITY_POLICY)
        self.end_headers()
        self.wfile.write(body)

    def _play(self, reply: Reply) -> None:
        """Each step in a chunk of its own, so that a cut connection is seen as one."""
        self.send_response(reply.status)
        for name, value in ({"Transfer-Encoding": "chunked"} | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        for step in reply.steps:
            if isinstance(step, Break) or (isinstance(step, Hold) and not self._hold(step)):
                self.close_connection = True
                return
            if isinstance(step, bytes):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(step), step))
        self.wfile.write(b"0\r\n\r\n")

    def _hold(self, step: Hold) -> bool:
        stayed = step.wait(self.connection)
        if not stayed:
            self.script.client_left.set()
        return stayed


def wait_until(condition: Callable[[], bool], page: Page, what: str, timeout_s: float = 120.0) -> None:
    """Wait for something outside the browser, while the browser's own events go on."""
    for _ in range(int(timeout_s / 0.05)):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError(f"it did not happen: {what}")
