"""At which path a request is answered, however its client has put the address together."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from poise.config import Settings
from poise.gateway.http.addresses import normal
from poise.gateway.http.connections.exchange import EXCHANGE
from poise.gateway.http.connections.places import STRANGERS
from poise.gateway.http.middleware import RequestMiddleware
from poise.metrics.engine import EngineReading
from poise.metrics.gateway import GatewayMetrics
from tests.gateway.fakes import OPERATOR, WAIT_S, FakeEngine, ask, chat_body, make_app, says
from tests.gateway.http.serving import served
from tests.gateway.http.test_over_http import connect, post, read


@given(st.lists(st.sampled_from(["/", "/v1", "/models", "a b", "%2F", "%25", "%41", "é"])), st.sampled_from(["", "/poise"]))
def test_what_is_normal_stays_so(parts: list[str], root: str) -> None:
    """One slash between two parts, none at the end, one /v1."""
    path = normal(root + "/" + "".join(parts), root)
    assert path.startswith("/")
    assert "//" not in path
    assert path == "/" or not path.endswith("/")
    assert not path.startswith("/v1/v1/")
    assert normal(path.replace("%", "%25"), "") == path.replace("%", "%25")


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions", "/chat/completions", "/v1/v1/chat/completions", "/v1/v1/v1/chat/completions",
        "//v1/chat/completions", "/v1//chat///completions/", "/chat/completions//",
    ],
)  # fmt: skip
async def test_forms_of_a_base_url(path: str) -> None:
    """All of them are served, and counted as the same."""
    app = make_app(FakeEngine(says("x")))
    reply = await ask(app, "POST", path, chat_body())
    assert reply.status == 200, reply.body
    assert reply.json()["object"] == "chat.completion"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1", 200), ("/v1/", 200), ("/models", 200), ("/v1/models/", 200), ("/v1//models", 200), ("/models/toy/", 200),
        ("/v1/health", 200), ("/v1/metrics/", 200), ("/v2/models", 404), ("/v1%2Fmodels", 404), ("/v1/models%2F", 404),
        ("/v1/models/a%2F%2Fb", 404), ("/v1/models/t%6Fy", 200), ("/v1/nothing", 404), ("/v1/v1", 200),
    ],
)  # fmt: skip
async def test_what_is_read(path: str, status: int) -> None:
    assert (await ask(make_app(FakeEngine()), "GET", path)).status == status


async def test_a_slash_that_was_sent_encoded_separates_nothing() -> None:
    """It belongs to the parameter that it is in, which is decoded once."""
    app = make_app(FakeEngine())
    for sent, name in (("a%2F%2Fb", "a//b"), ("a%252Fb", "a%2Fb"), ("a/b", "a/b"), ("a%2fb%20c", "a/b c")):
        reply = await ask(app, "GET", f"/v1/models/{sent}")
        assert (reply.status, reply.error["code"]) == (404, "model_not_found")
        assert f'"{name}"' in reply.error["message"]
    assert (await ask(app, "POST", "/v1/requests/x%2Fcancel", {})).status == 405


@pytest.mark.parametrize("path", ["/admin/requests", "//admin/requests", "/v1/admin/requests/", "/poise//admin//requests"])
async def test_no_form_gets_around_a_guard(path: str) -> None:
    """Pages of other origins may not even read /admin, by whatever name."""
    app = make_app(FakeEngine(), Settings.model_validate({"server": {"root_path": "/poise"}}))
    assert (await ask(app, "GET", path, headers=OPERATOR)).status == 200
    reply = await ask(app, "GET", path, headers=OPERATOR | {"origin": "http://localhost:3000"})
    assert (reply.status, reply.error["code"]) == (403, "origin_not_allowed")


@pytest.mark.parametrize(("path", "status"), [("/poise/v1/models", 200), ("/v1/models", 200), ("/poised/models", 404)])
async def test_under_the_path_of_a_proxy(path: str, status: int) -> None:
    """Which may pass its own path on or cut it off."""
    app = make_app(FakeEngine(), Settings.model_validate({"server": {"root_path": "/poise"}}))
    assert (await ask(app, "GET", path)).status == status


async def test_head_is_get_without_a_body() -> None:
    """Everywhere, with the same headers."""
    async with served(make_app(FakeEngine())) as port:
        for path in ("/v1/models", "/health", "/metrics", "/openapi.json", "/", "/page/style.css", "/v1/models/none"):
            (got, body), (head, nothing) = await sent(port, "GET", path), await sent(port, "HEAD", path)
            assert (names(head), nothing) == (names(got), b""), path
            assert body
        assert (await sent(port, "HEAD", "/v1/chat/completions"))[0].startswith(b"HTTP/1.1 405")


async def test_head_of_an_answer_without_an_end() -> None:
    """It is the beginning, and whoever reads the request otherwise goes on."""
    engine = FakeEngine()
    async with served(make_app(engine)) as port:
        reader, writer = await post(port, chat_body(stream=True))
        request = await engine.submitted()
        request.accept()
        begin = await read(reader, b"\r\n\r\n")
        name = begin.lower().partition(b"x-poise-response-id: ")[2].split()[0].decode()
        head, nothing = await sent(port, "HEAD", f"/v1/requests/{name}/stream")
        assert (head.split(b"\r\n")[0], nothing) == (b"HTTP/1.1 200 OK", b"")
        assert b"text/event-stream" in head
        request.say("x")
        request.finish()
        assert b"[DONE]" in await read(reader, b"0\r\n\r\n")
        writer.close()


async def sent(port: int, method: str, path: str) -> tuple[bytes, bytes]:
    """Head and body of the answer."""
    reader, writer = await connect(port, f"{method} {path} HTTP/1.1\nHost: localhost\nConnection: close")
    head, _, body = (await asyncio.wait_for(reader.read(), WAIT_S)).partition(b"\r\n\r\n")
    writer.close()
    return head, body


def names(head: bytes) -> list[bytes]:
    return [line.partition(b":")[0] for line in head.split(b"\r\n") if b"chunked" not in line]


@pytest.mark.parametrize(
    ("path", "account"),
    [
        ("/v1/chat/completions", "team"), ("/tokenize", "team"), ("/api/chat", "team"), ("/", STRANGERS),
        ("/page/app.js", STRANGERS), ("/openapi.json", STRANGERS), ("/health", STRANGERS), ("/admin/requests", STRANGERS),
    ],
)  # fmt: skip
async def test_on_whose_account_a_request_is(path: str, account: str) -> None:
    """All of the API, wherever it has its paths; pages and what is always answered are nobody's."""
    claimed: list[str] = []

    class Claims:
        def claim(self, account: str) -> None:
            claimed.append(account)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        """Answers nobody."""

    async def nothing(*_: Any) -> Any:
        """Neither is anything sent."""

    metrics = GatewayMetrics(lambda: EngineReading(True, 0, None))
    middleware = RequestMiddleware(app, server=Settings().server, account_of=lambda _: "team", metrics=metrics)
    await middleware({"type": "http", "path": path, "headers": [], EXCHANGE: Claims()}, nothing, nothing)
    assert claimed == [account]
