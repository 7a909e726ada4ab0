"""What the client commands ask a server for, and what they say when it does not answer."""

from __future__ import annotations

import asyncio
import socket

import pytest
from aiohttp import web

from poise.config import Settings
from poise.console.client import Client, ConsoleError, Refused, Unreachable, base_url
from tests.console.app_client import AppClient
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"
KEYS = Settings.model_validate(
    {"auth": {"admin_key": "key-of-the-root", "required": True, "keys": {"a": "key-of-alice", "b": "key-of-bobby"}}}
)


@pytest.mark.parametrize("url", ["http://host:8000", "http://host:8000/", "http://host:8000/v1", "http://host:8000/v1/"])
def test_an_address_may_be_given_as_clients_know_it(url: str) -> None:
    """With or without the API's /v1."""
    assert base_url(url) == "http://host:8000"


@pytest.mark.parametrize("url", ["host:8000", "ftp://host", "http://", "http://host:0", "http://host:x", "http://host/?a=1"])
def test_what_is_no_address_is_refused(url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(ConsoleError, match="is not a server address"):
        base_url(url)


def test_a_key_that_no_header_can_hold_is_refused() -> None:
    """In words, not by the HTTP library."""
    with pytest.raises(ConsoleError, match="printable"):
        Client("http://host", "a\nb")


async def test_nobody_there() -> None:
    """The reason is the system's."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    async with Client(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(Unreachable, match="Connection refused"):
            await client.get("/status")


async def test_another_server_is_told_from_poise() -> None:
    """It answers in its own ways; the key goes where it belongs."""
    seen: list[str | None] = []

    async def answer(request: web.Request) -> web.Response:
        seen.append(request.headers.get("Authorization"))
        if request.path == "/status":
            return web.Response(text="<html>")
        return web.json_response({"detail": "no"}, status=404)

    app = web.Application()
    app.router.add_route("GET", "/{any:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    async with Client(url, "k") as client:
        with pytest.raises(Unreachable, match="something else than JSON"):
            await client.get("/status")
        with pytest.raises(Unreachable, match="is this a poise server"):
            await client.get("/v1/requests")
    await runner.cleanup()
    assert seen == ["Bearer k", "Bearer k"]


async def test_whose_requests_are_explained() -> None:
    """One's own by any of its names, an operator's by its key; `last` is the newest."""
    app = make_app(FakeEngine(says("x")), KEYS)
    ids = []
    for name in ("one", "two"):
        headers = {"x-api-key": "key-of-alice", "x-request-id": name}
        ids.append((await ask(app, "POST", CHAT, chat_body(), headers=headers)).json()["id"])
    own = AppClient(app, "key-of-alice")
    assert [(await own.explanation(name))["id"] for name in ("last", "one", ids[0])] == [ids[1], ids[0], ids[0]]
    assert (await AppClient(app, "key-of-the-root").explanation(ids[0]))["id"] == ids[0]
    for wanted, key, status in (
        (ids[0], "key-of-bobby", 404),
        (ids[0], "wrong", 401),
        ("a/b?c", "key-of-alice", 404),
        ("last", "wrong", 401),
    ):
        with pytest.raises(Refused) as refused:
            await AppClient(app, key).explanation(wanted)
        assert refused.value.status == status
    with pytest.raises(ConsoleError, match="keeps no request of yours"):
        await AppClient(app, "key-of-bobby").explanation("last")
    assert (await AppClient(app, "key-of-the-root").explanation("last"))["id"] == ids[1], "an operator's last one is anybody's"


async def test_the_servers_user_is_its_operator_without_a_key() -> None:
    """By the token that only this user can read; another user of the machine, or one elsewhere, is none."""
    app = make_app(FakeEngine(says("x")))
    ids = [(await ask(app, "POST", CHAT, chat_body(), headers=headers)).json()["id"] for headers in ({}, {"x-api-key": "else"})]
    local = AppClient(app)
    assert (await local.explanation(ids[1]))["id"] == ids[1]
    assert local.sent == [f"GET /{root}/requests/{ids[1]}/explanation" for root in ("v1", "admin")]
    assert (await local.explanation("last"))["id"] == ids[1]
    for stranger in (AppClient(app, token=""), AppClient(app, address="10.0.0.9"), AppClient(app, token="po-old")):
        with pytest.raises(Refused) as refused:
            await stranger.explanation(ids[1])
        assert refused.value.status == 404
        assert (await stranger.explanation("last"))["id"] == ids[0], "its own"
        assert (await stranger.requests())[1] is False


async def test_the_token_goes_where_operators_ask_and_nowhere_else() -> None:
    """A request for work must not become an operator's, and a given key is the only one."""
    client = AppClient(make_app(FakeEngine()))
    opened = [path for path in ("/v1/requests", "/status", "/admin/requests", "/health") if client.credentials(path)]
    assert opened == ["/status", "/admin/requests"]
    keyed = AppClient(make_app(FakeEngine()), "key-of-alice")
    assert {keyed.credentials(path)["Authorization"] for path in ("/v1/requests", "/status")} == {"Bearer key-of-alice"}


async def test_live_requests_are_everybodys_for_an_operator_only() -> None:
    """Others see their own, in the same form."""
    engine = FakeEngine(lambda submission: submission.accept())
    app = make_app(engine, KEYS)
    waiting = [
        asyncio.create_task(ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": key}))
        for key in ("key-of-alice", "key-of-bobby")
    ]
    await engine.submitted(2)
    for key, tenants, is_operator in (("key-of-the-root", ["a", "b"], True), ("key-of-alice", [None], False)):
        rows, told = await AppClient(app, key).requests()
        assert ([row["tenant"] for row in rows], told) == (tenants, is_operator)
        assert {(row["state"], row["prompt_tokens"]) for row in rows} == {("queued", 21)}
    for submission in engine.submissions:
        submission.finish()
    await asyncio.gather(*waiting)
