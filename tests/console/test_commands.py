"""`poise explain` and `poise top --once` as a user meets them: text, JSON, errors in a line, exit codes."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable

import pytest
from typer.testing import CliRunner, Result

from poise.cli import app as cli
from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.tenancy.tenants import LocalOperators
from tests.console.app_client import AppClient
from tests.gateway.fakes import TOKEN, FakeEngine, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"
Serve = Callable[..., None]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Let the commands find this application, whatever the address."""
    monkeypatch.delenv("POISE_API_KEY", raising=False)

    def serve(app: Gateway, token: str = TOKEN) -> None:
        monkeypatch.setattr("poise.console.commands.Client", lambda url, key="": AppClient(app, key, token=token))

    return serve


def run(*arguments: str, exit_code: int = 0, key: str = "") -> Result:
    result = CliRunner().invoke(cli, list(arguments), env={"POISE_API_KEY": key} if key else {}, prog_name="poise")
    assert result.exit_code == exit_code, result.output
    return result


def answered(app: Gateway, key: str = "") -> str:
    """The id of a request that has been answered."""
    return str(asyncio.run(ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": key})).json()["id"])


def test_explain_as_text_and_as_json(serve: Serve) -> None:
    """The verdict first, a sentence a line, in lines of a terminal's width; or all that the server said."""
    app = make_app(FakeEngine(says("x")))
    response_id = answered(app)
    serve(app)
    lines = run("explain", "last").stdout.splitlines()
    assert lines[:3] == [response_id, "Nothing about it stands out.", ""]
    assert lines[3].startswith("It is a request of class interactive")
    assert max(map(len, lines)) <= 100
    assert json.loads(run("explain", response_id, "--json").stdout)["figures"]["outcome"] == "stop"


def test_explain_says_what_is_wrong(serve: Serve) -> None:
    """No such request, no key, the wrong one, no address: one line each, and a status that a script can tell apart."""
    app = make_app(
        FakeEngine(says("x")),
        Settings.model_validate({"auth": {"required": True, "admin_key": "key-of-the-root", "keys": {"a": "key-of-alice"}}}),
    )
    response_id = answered(app, "key-of-alice")
    serve(app, token="")
    assert run("explain", response_id, key="key-of-alice").stdout.startswith(response_id)
    assert run("explain", response_id, "--key", "key-of-alice", key="wrong").stdout.startswith(response_id)
    unknown = run("explain", "nobody", key="key-of-alice", exit_code=1).stderr
    assert "results.retention_s" in unknown
    assert "'nobody'" in unknown
    missing = run("explain", response_id, exit_code=1).stderr
    assert missing.count("\n") == 1
    assert "POISE_API_KEY" in missing
    assert "not known here" in run("explain", response_id, "--key", "wrong", exit_code=1).stderr


def test_an_unreachable_server_and_a_bad_address_are_usage_errors() -> None:
    """All commands, with nobody there."""
    for command in (["explain", "x"], ["top", "--once"], ["dashboard"]):
        assert "cannot be reached" in run(*command, "--url", "http://127.0.0.1:9", exit_code=2).stderr
        assert "is not a server address" in run(*command, "--url", "nonsense", exit_code=2).stderr


def test_one_frame_of_top_as_text(serve: Serve) -> None:
    """Everything that the live screen shows, without its library and without colours."""
    app = make_app(FakeEngine())
    app.history.sample()
    serve(app)
    text = run("top", "--once").stdout
    for told in (
        "poise toy, ready",
        "level normal",
        "limit compute",
        "interactive",
        "short slots",
        "3 of 4, 1 warm",
        "host store",
    ):
        assert told in text
    assert "no live requests" in text
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) <= 100


def test_without_the_extra_top_says_how_to_get_it(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line, and nothing is asked of the server."""
    serve(make_app(FakeEngine()))
    for name in [name for name in sys.modules if name == "poise.console.screen" or name.split(".")[0] == "textual"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "textual", None)
    monkeypatch.setitem(sys.modules, "textual.app", None)
    told = run("top", exit_code=2).stderr
    assert "pip install textual" in told
    assert told.count("\n") == 1


def test_the_dashboards_address_opens_it_once(serve: Serve) -> None:
    """For the user of the server; the code is where no server, proxy or log ever sees it."""
    app = make_app(FakeEngine())
    serve(app)
    url, _, code = run("dashboard").stdout.strip().partition("#code=")
    assert url == "http://poise.test/dashboard"
    login = [asyncio.run(ask(app, "POST", "/admin/login", {"code": code})).status for _ in range(2)]
    assert login == [200, 401]
    serve(make_app(FakeEngine(), operators=LocalOperators("po-another")))
    refused = run("dashboard", exit_code=1).stderr
    assert "poise keys add NAME --admin" in refused


def test_the_token_for_scripts(serve: Serve) -> None:
    """On a line of its own, or an error that no script takes for one."""
    serve(make_app(FakeEngine()))
    assert run("token").stdout == f"{TOKEN}\n"
    serve(make_app(FakeEngine()), token="")
    assert "no server of this user" in run("token", exit_code=1).stderr
