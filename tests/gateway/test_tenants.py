"""Keys to tenants, and who may see the inside."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from poise.config import Settings
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"


def settings(**auth: Any) -> Settings:
    return Settings.model_validate({"auth": auth})


async def tenant_of(headers: dict[str, str], configured: Settings | None = None) -> str:
    """The tenant that the engine is told, or the error code."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine, configured), "POST", CHAT, chat_body(), headers=headers)
    if reply.status != 200:
        assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        return str(reply.error["code"])
    return engine.submissions[0].tenant


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


DERIVED = "key-" + sha256(b"secret").hexdigest()[:12]
DECLARED = settings(keys={"team": "secret", "other": "secret2"})
REQUIRED = settings(keys={"team": "secret"}, required=True)


@pytest.mark.parametrize(
    ("headers", "configured", "expected"),
    [
        ({}, None, "local"),
        (bearer("secret"), None, DERIVED),
        ({"x-api-key": "secret"}, None, DERIVED),
        ({"authorization": "bearer  secret "}, None, DERIVED),
        ({"authorization": "Bearer"}, None, "local"),
        (bearer("local"), None, "key-" + sha256(b"local").hexdigest()[:12]),
        ({"authorization": "Basic secret"}, None, "invalid_authorization"),
        ({}, DECLARED, "local"),
        (bearer("secret"), DECLARED, "team"),
        ({"x-api-key": "secret2"}, DECLARED, "other"),
        (bearer("secre"), DECLARED, "invalid_api_key"),
        (bearer("sécret"), DECLARED, "invalid_api_key"),
        (bearer("local"), DECLARED, "invalid_api_key"),
        (bearer("team"), DECLARED, "invalid_api_key"),
        ({}, REQUIRED, "missing_api_key"),
        (bearer("secret"), REQUIRED, "team"),
        (bearer("x"), settings(required=True), "invalid_api_key"),
    ],
)
async def test_tenants(headers: dict[str, str], configured: Settings | None, expected: str) -> None:
    """Declared keys, keys of their own, and callers without one; no key makes anybody local."""
    assert await tenant_of(headers, configured) == expected


async def test_the_key_is_asked_for_before_the_body_is_read() -> None:
    """Strangers cannot make the server parse."""
    reply = await ask(make_app(FakeEngine(), REQUIRED), "POST", CHAT, b"no json")
    assert reply.status == 401
    assert (await ask(make_app(FakeEngine(), REQUIRED), "GET", "/v1/models")).status == 401


@pytest.mark.parametrize(
    ("client", "host", "status"),
    [
        ("127.0.0.1", "localhost:8000", 200),
        ("127.8.8.8", "127.0.0.1", 200),
        ("::1", "[::1]:8000", 200),
        ("::ffff:127.0.0.1", "localhost", 200),
        ("192.168.1.5", "localhost", 403),
        ("testclient", "localhost", 403),
        ("127.0.0.1", "evil.example", 421),
        ("127.0.0.1", "[broken", 421),
    ],
)
async def test_the_journal_without_an_admin_key(client: str, host: str, status: int) -> None:
    """For callers on this machine, unless a web page sent them (their Host is then the page's)."""
    reply = await ask(make_app(FakeEngine()), "GET", "/admin/journal", client=client, headers={"host": host})
    assert reply.status == status
    if status != 200:
        assert reply.error["code"] == ("admin_is_local" if status == 403 else "host_not_served")


async def test_the_journal_with_an_admin_key() -> None:
    """From anywhere, with that key only."""
    app = make_app(FakeEngine(), settings(admin_key="boss", keys={"team": "secret"}))
    assert (await ask(app, "GET", "/admin/journal")).error["code"] == "invalid_admin_key"
    assert (await ask(app, "GET", "/admin/journal", headers=bearer("secret"))).status == 401
    reply = await ask(app, "GET", "/admin/journal", headers=bearer("boss"), client="10.0.0.1")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    assert reply.body == b'{"step":1}\n{"step":2}\n'
