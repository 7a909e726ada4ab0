"""Keys to tenants, and who may see the inside."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest

from poise.config import Settings
from poise.config.serving import TenantSettings
from poise.gateway.supervision.engine import EnginePhase
from poise.gateway.tenancy.caller import Caller, Credentials
from poise.gateway.tenancy.tenants import CODES_MAX, LocalOperators, Tenants
from tests.gateway.fakes import OPERATOR, TOKEN, FakeEngine, ask, chat_body, make_app, says

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
KEYS = {"team": "secret-of-team", "other": "secret-of-others"}
DECLARED = settings(keys=KEYS)
OPEN = settings(keys=KEYS, required=False)
REQUIRED = settings(keys=KEYS, required=True)


@pytest.mark.parametrize(
    ("headers", "configured", "expected"),
    [
        ({}, None, "local"),
        (bearer("secret"), None, DERIVED),
        ({"x-api-key": "secret"}, None, DERIVED),
        ({"authorization": "bearer  secret "}, None, DERIVED),
        ({"authorization": "Bearer"}, None, "local"),
        (bearer("local"), None, "key-" + sha256(b"local").hexdigest()[:12]),
        ({"authorization": "Digest secret"}, None, "invalid_authorization"),
        ({"authorization": "Basic c2VjcmV0"}, None, "local"),
        ({"authorization": "Basic c2VjcmV0"}, OPEN, "local"),
        ({"authorization": "basic c2VjcmV0", "x-api-key": "secret"}, None, DERIVED),
        ({"authorization": "Basic c2VjcmV0"}, DECLARED, "invalid_authorization"),
        ({"authorization": "Basic c2VjcmV0"}, REQUIRED, "invalid_authorization"),
        ({"authorization": "Basic c2VjcmV0", "x-api-key": "secret-of-team"}, DECLARED, "team"),
        ({}, DECLARED, "missing_api_key"),
        ({}, OPEN, "local"),
        (bearer("secret-of-team"), DECLARED, "team"),
        (bearer("secret-of-team"), OPEN, "team"),
        ({"x-api-key": "secret-of-others"}, DECLARED, "other"),
        (bearer("secret-of-tea"), DECLARED, "invalid_api_key"),
        (bearer("secret-of-tea"), OPEN, "invalid_api_key"),
        (bearer("sécret"), DECLARED, "invalid_api_key"),
        (bearer("local"), DECLARED, "invalid_api_key"),
        (bearer("team"), DECLARED, "invalid_api_key"),
        ({}, REQUIRED, "missing_api_key"),
        (bearer("secret-of-team"), REQUIRED, "team"),
        (bearer("x"), settings(required=True), "invalid_api_key"),
        ({}, settings(admin_key="key-of-the-boss"), "local"),
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
    ("client", "host", "extra", "expected"),
    [
        ("127.0.0.1", "localhost:8000", {}, 200),
        ("127.8.8.8", "127.0.0.1", {}, 200),
        ("::1", "[::1]:8000", {}, 200),
        ("::ffff:127.0.0.1", "localhost", {}, 200),
        ("192.168.1.5", "localhost", {}, "admin_is_local"),
        ("testclient", "localhost", {}, "admin_is_local"),
        ("127.0.0.1", "evil.example", {}, "host_not_served"),
        ("127.0.0.1", "[broken", {}, "host_not_served"),
        ("127.0.0.1", "localhost", {"x-forwarded-for": "127.0.0.1"}, "admin_is_local"),
        ("127.0.0.1", "localhost", {"forwarded": "for=127.0.0.1"}, "admin_is_local"),
        ("127.0.0.1", "localhost", {"via": "1.1 proxy"}, "admin_is_local"),
        ("127.0.0.1", "localhost", {"x-real-ip": "127.0.0.1"}, "admin_is_local"),
        ("127.0.0.1", "localhost", {"cf-connecting-ip": "203.0.113.7"}, "admin_is_local"),
    ],
)
async def test_the_token_works_on_its_machine_only(client: str, host: str, extra: dict[str, str], expected: int | str) -> None:
    """For who comes straight from there. A proxy there brings everybody's requests."""
    headers = OPERATOR | {"host": host} | extra
    reply = await ask(make_app(FakeEngine()), "GET", "/admin/requests", client=client, headers=headers)
    assert (reply.status if reply.status == 200 else reply.error["code"]) == expected


async def test_no_address_and_no_header_makes_an_operator() -> None:
    """What a stranger can choose, in every combination that used to open the door."""
    app = make_app(FakeEngine())
    tries: list[dict[str, str]] = [{}, bearer(""), bearer("po-"), {"x-api-key": "local"}, {"x-poise-token": TOKEN}]
    tries += [{"x-forwarded-for": "127.0.0.1", "host": "127.0.0.1:8000"}, {"forwarded": "for=127.0.0.1"}]
    for headers in tries:
        assert (await ask(app, "GET", "/admin/requests", headers=headers)).error["code"] == "invalid_admin_key"
    unwritten = make_app(FakeEngine(), operators=LocalOperators(""))
    assert (await ask(unwritten, "GET", "/admin/requests", headers=bearer(""))).status == 401


async def test_with_an_admin_key() -> None:
    """From anywhere, also through a proxy, with that key only."""
    app = make_app(FakeEngine(), settings(admin_key="key-of-the-boss", keys=KEYS))
    assert (await ask(app, "GET", "/admin/journal")).error["code"] == "invalid_admin_key"
    assert (await ask(app, "GET", "/admin/journal", headers=bearer("secret-of-team"))).status == 401
    reply = await ask(app, "GET", "/admin/journal", headers=bearer("key-of-the-boss") | {"via": "1.1 x"}, client="10.0.0.1")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/x-ndjson")
    assert reply.body == b'{"step":1}\n{"step":2}\n'


@pytest.mark.parametrize("configured", [None, settings(admin_key="key-of-the-boss"), REQUIRED])
async def test_an_operator_is_no_tenant(configured: Settings | None) -> None:
    """Neither the token nor an admin key pays for work, not even where any key is a tenant."""
    assert await tenant_of(OPERATOR, configured) == "invalid_api_key"
    assert await tenant_of(bearer("key-of-the-boss"), settings(admin_key="key-of-the-boss")) == "invalid_api_key"


async def test_a_browser_gets_the_token_for_a_code_once() -> None:
    """A code is for who has the token, works once, for a minute, and on this machine."""
    now_s = 0.0
    app = make_app(FakeEngine(), operators=LocalOperators(TOKEN, lambda: now_s))

    async def code() -> str:
        return str((await ask(app, "POST", "/admin/login-codes", headers=OPERATOR)).json()["code"])

    async def login(code: object, **arguments: Any) -> int | str:
        reply = await ask(app, "POST", "/admin/login", {"code": code}, **arguments)
        return str(reply.json()["key"]) if reply.status == 200 else reply.status

    assert (await ask(app, "POST", "/admin/login-codes")).status == 401
    first = await code()
    assert await login(first) == TOKEN
    assert [await login(wrong) for wrong in (first, "", None, 5, TOKEN)] == [401] * 5
    assert await login(await code(), client="192.0.2.1") == 401
    assert await login(await code(), headers={"x-forwarded-for": "127.0.0.1"}) == 401
    assert await login(await code(), headers={"origin": "https://evil.example"}) == 403
    late = await code()
    now_s = 60.0
    assert await login(late) == 401
    codes = [await code() for _ in range(CODES_MAX + 1)]
    assert [await login(one) == TOKEN for one in codes] == [False] + [True] * CODES_MAX


async def test_codes_are_not_for_admin_keys() -> None:
    """Who has one enters it; a code would hand out more than the key can do."""
    app = make_app(FakeEngine(), settings(admin_key="key-of-the-boss"))
    reply = await ask(app, "POST", "/admin/login-codes", headers=bearer("key-of-the-boss"))
    assert (reply.status, reply.error["code"]) == (403, "admin_is_local")


@pytest.mark.parametrize(
    ("auth", "headers", "client", "status"),
    [
        ({}, {}, "192.0.2.1", 200),
        ({"keys": KEYS}, {}, "192.0.2.1", 401),
        ({"keys": KEYS}, {}, "127.0.0.1", 200),
        ({"keys": KEYS}, {"x-forwarded-for": "127.0.0.1"}, "127.0.0.1", 401),
        ({"keys": KEYS}, bearer("secret-of-team"), "192.0.2.1", 200),
        ({"keys": KEYS}, bearer("another-secret"), "192.0.2.1", 401),
        ({"keys": KEYS, "status": "open"}, {}, "192.0.2.1", 200),
        ({"status": "key"}, {}, "192.0.2.1", 401),
        ({"keys": KEYS, "status": "admin", "admin_key": "key-of-the-boss"}, bearer("secret-of-team"), "192.0.2.1", 401),
        ({"keys": KEYS, "status": "admin", "admin_key": "key-of-the-boss"}, bearer("key-of-the-boss"), "192.0.2.1", 200),
        ({"status": "admin"}, {}, "127.0.0.1", 200),
    ],
)
async def test_who_may_see_how_the_server_stands(auth: dict[str, Any], headers: dict[str, str], client: str, status: int) -> None:
    """Figures and metrics alike; whether it is up is everybody's to know."""
    app = make_app(FakeEngine(), settings(**auth))
    for path in ("/status", "/status/history", "/metrics"):
        assert (await ask(app, "GET", path, headers=headers, client=client)).status == status
    for path in ("/health", "/health/live"):
        assert (await ask(app, "GET", path, headers=headers, client=client)).status == 200


async def test_strangers_are_not_told_the_engines_last_words() -> None:
    """They name files and errors; on this machine, and to operators, they are shown."""
    engine = FakeEngine()
    engine.state.phase, engine.state.detail = EnginePhase.FAILED, "OSError: /home/ann/models/secret.gguf: cut short"
    app = make_app(engine, settings(admin_key="key-of-the-boss"))
    shown = {
        who: (await ask(app, "GET", path, headers=headers, client=client)).json()["detail"]
        for path in ("/health", "/status")
        for who, headers, client in (
            (f"{path} stranger", {}, "192.0.2.1"),
            (f"{path} forwarded", {"via": "1.1 x"}, "127.0.0.1"),
            (f"{path} here", {}, "127.0.0.1"),
            (f"{path} boss", bearer("key-of-the-boss"), "192.0.2.1"),
        )
    }
    assert {who for who, detail in shown.items() if "ann" in detail} == {
        f"{path} {who}" for path in ("/health", "/status") for who in ("here", "boss")
    }
    assert all(shown.values())
    refused = await ask(app, "POST", CHAT, chat_body(), client="192.0.2.1")
    assert refused.error["code"] == "engine_failed"
    assert "secret.gguf: cut short" in refused.error["message"]
    assert "/home" not in refused.error["message"]


def test_undeclared_keys_beyond_eight_share_an_account_and_nothing_else() -> None:
    """Their caches, records and erasure stay apart. Who has a section, and who has no key, has an account of their own in any
    case."""
    named = caller_with("known-to-the-operator", Settings()).tenant
    tenants = Tenants(Settings(tenants={named: TenantSettings(weight=2.0)}))
    callers = [identified(tenants, f"fresh-{i}") for i in range(40)]
    assert len({caller.tenant for caller in callers}) == 40
    assert [caller.account for caller in callers[:8]] == [caller.tenant for caller in callers[:8]]
    assert {caller.account for caller in callers[8:]} == {"key-shared"}
    assert not any(caller.is_declared for caller in callers)
    own = identified(tenants, "known-to-the-operator")
    assert (own.account, own.is_declared) == (named, True)
    local = identified(tenants, None)
    assert (local.account, local.is_declared) == ("local", True)


def identified(tenants: Tenants, key: str | None) -> Caller:
    return tenants.identify(Credentials(f"Bearer {key}" if key else ""))


def caller_with(key: str, settings: Settings) -> Caller:
    return identified(Tenants(settings), key)
