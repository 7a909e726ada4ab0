"""Who may not use a local server: names that lead to it by trickery, and other people's web pages."""

from __future__ import annotations

import socket
from typing import Any

import pytest

from poise.config import Settings
from tests.gateway.fakes import OPERATOR, FakeEngine, Reply, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"
SETTINGS = {"server": {"host": "Poise.lan", "hosts": ["chat.example", "fd00::1"], "origins": ["https://app.example"]}}


async def asked(
    headers: dict[str, str], method: str = "POST", path: str = CHAT, settings: dict[str, Any] | None = None
) -> tuple[Reply, FakeEngine]:
    engine = FakeEngine(says("x"))
    app = make_app(engine, Settings.model_validate(SETTINGS if settings is None else settings))
    body = chat_body() if method == "POST" else None
    return await ask(app, method, path, body, headers=headers), engine


@pytest.mark.parametrize(
    "host",
    [
        "localhost", "localhost:8000", "LOCALHOST", "127.0.0.1:9", "127.9.9.9", "[::1]:8000", "poise.lan", "POISE.LAN.:8000",
        "chat.example", "[fd00::1]:1", "[fd00:0::1]", "[::ffff:127.0.0.1]", "", "host.docker.internal:8000",
        "host.containers.internal", "poise.localhost", socket.gethostname(), f"{socket.gethostname()}.local:8000",
    ],
)  # fmt: skip
async def test_served_names(host: str) -> None:
    """Local ones, the address to listen on, and those that are set; a client of HTTP/1.0 has none."""
    assert (await asked({"host": host}))[0].status == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "localhost.evil.example", "127.0.0.1.nip.io", "10.0.0.1", "[broken", ":80", "evil.internal",
        "host.docker.internal.evil.example", "evillocalhost", "printer.local",
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/metrics", "/", "/admin/requests"])
async def test_other_names_are_refused(host: str, path: str) -> None:
    """A page whose own name was made to lead here reaches nothing, whatever it asks for."""
    reply, engine = await asked({"host": host}, "POST" if path == CHAT else "GET", path)
    assert (reply.status, reply.error["code"]) == (421, "host_not_served")
    assert "server.hosts" in reply.error["message"]
    assert "x-request-id" in reply.headers
    assert not engine.submissions


@pytest.mark.parametrize(
    ("host", "origin", "allowed"),
    [
        ("localhost:8000", "http://localhost:8000", True),
        ("localhost:8000", "https://localhost:8000", True),
        ("chat.example", "https://chat.example", True),
        ("localhost:8000", "https://app.example", True),
        ("localhost:8000", "http://localhost:3000", True),
        ("localhost:8000", "http://127.0.0.1:8000", True),
        ("chat.example", "http://[::1]:3000", True),
        ("localhost:8000", "https://tauri.localhost", True),
        ("localhost:8000", "http://host.docker.internal:3000", True),
        ("localhost:8000", "chrome-extension://abcdefgh", True),
        ("localhost:8000", "moz-extension://1b2c-3d", True),
        ("localhost:8000", "safari-web-extension://1b2c", True),
        ("localhost:8000", "app://obsidian.md", True),
        ("localhost:8000", "tauri://localhost", True),
        ("localhost:8000", "capacitor://localhost", True),
        ("localhost:8000", "vscode-webview://1a2b3c", True),
        ("localhost:8000", "http://localhost.evil.example", False),
        ("localhost:8000", "https://chrome-extension.example", False),
        ("localhost:8000", "ipfs://bafy", False),
        ("localhost:8000", "http://10.0.0.1:3000", False),
        ("localhost:8000", "https://app.example.evil", False),
        ("localhost:8000", "https://evil.example", False),
        ("localhost:8000", "null", False),
        ("localhost:8000", "http://[", False),
        ("localhost:8000", "file://localhost:8000", False),
    ],
)
async def test_origins(host: str, origin: str, allowed: bool) -> None:
    """The own page, pages that are listed, and nobody else's. What is refused is not begun."""
    reply, engine = await asked({"host": host, "origin": origin})
    if allowed:
        assert reply.status == 200
    else:
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")
        assert not engine.submissions
    is_own = origin.partition("://")[2] == host and host != "localhost:8000"
    assert reply.headers.get("access-control-allow-origin") == (origin if allowed and not is_own else None)


async def test_no_origin_but_another_site() -> None:
    """Browsers say so even where they name no origin."""
    assert (await asked({"sec-fetch-site": "cross-site"}))[0].status == 403
    assert (await asked({"sec-fetch-site": "same-origin"}))[0].status == 200


@pytest.mark.parametrize(
    ("method", "path"),
    [("DELETE", "/admin/tenants/x/data"), ("DELETE", "/admin/tenants/x/cache"), ("POST", "/admin/requests/x/pause")],
)
async def test_pages_cannot_operate_the_server(method: str, path: str) -> None:
    """A browser on this machine calls from this machine."""
    reply, engine = await asked({"origin": "https://evil.example"}, method, path)
    assert reply.status == 403
    assert not engine.erased
    assert not engine.forgotten


@pytest.mark.parametrize(
    ("headers", "allowed"),
    [
        ({}, True),
        ({"sec-fetch-site": "none"}, True),
        ({"sec-fetch-site": "same-origin"}, True),
        ({"sec-fetch-site": "same-site"}, False),
        ({"sec-fetch-site": "cross-site"}, False),
        ({"origin": "http://localhost:3000", "sec-fetch-site": "same-site"}, False),
        ({"origin": "https://evil.example", "sec-fetch-site": "cross-site"}, False),
        ({"origin": "https://app.example", "sec-fetch-site": "cross-site"}, True),
    ],
)
async def test_pages_cannot_read_the_inside(headers: dict[str, str], allowed: bool) -> None:
    """Not even blindly, from an image or a script element: a journal costs the server something."""
    reply, _ = await asked({"host": "localhost:8000"} | OPERATOR | headers, "GET", "/admin/journal")
    assert (reply.status == 200) is allowed
    if not allowed:
        assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")


async def test_cors_is_off_by_default() -> None:
    """Plain reads are answered, and the browser keeps the answer from the page; a preflight is refused."""
    reply, _ = await asked({"origin": "https://evil.example"}, "GET", "/v1/models", settings={})
    assert reply.status == 200
    assert not any(name.startswith("access-control") for name in reply.headers)
    asking = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply, _ = await asked(asking, "OPTIONS", settings={})
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")


async def test_cors_for_a_listed_origin() -> None:
    """Exactly that one, never a star; also on errors, so that the page can tell what is wrong. It may send what it wants to."""
    wanted = "authorization, content-type, x-stainless-retry-count, x-anything"
    asking = {
        "origin": "https://app.example", "access-control-request-method": "POST", "access-control-request-headers": wanted,
    }  # fmt: skip
    reply, _ = await asked(asking, "OPTIONS")
    assert (reply.status, reply.body) == (204, b"")
    assert reply.headers["access-control-allow-origin"] == "https://app.example"
    assert reply.headers["vary"] == "Origin"
    assert reply.headers["access-control-allow-headers"] == wanted
    assert not {"access-control-allow-credentials", "access-control-allow-private-network"} & reply.headers.keys()
    reply, _ = await asked(asking | {"access-control-request-private-network": "true"}, "OPTIONS")
    assert reply.headers["access-control-allow-private-network"] == "true"
    reply, _ = await asked({"origin": "https://app.example"}, "GET", "/v1/models/none")
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (404, "https://app.example")
    assert {"x-request-id", "x-should-retry"} <= set(reply.headers["access-control-expose-headers"].split(", "))
    reply, _ = await asked({"origin": "tauri://localhost"})
    assert "x-poise-response-id" in reply.headers["access-control-expose-headers"]
