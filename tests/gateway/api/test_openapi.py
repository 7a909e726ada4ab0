"""The OpenAPI document, and the pages that the gateway serves."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.http import pages
from tests.gateway.fakes import FakeEngine, ask, make_app

TOKENIZER = {"200", "400", "401", "404", "408", "413", "429", "500", "503"}
ENDPOINTS = {
    "/v1/chat/completions": {"200", "400", "401", "403", "404", "408", "413", "429", "500", "502", "503"},
    "/v1/completions": {"200", "400", "401", "403", "404", "408", "413", "429", "500", "502", "503"},
    "/v1/requests": {"200", "401"},
    "/v1/requests/{request_id}": {"200", "401", "404", "409"},
    "/v1/requests/{request_id}/cancel": {"200", "401", "404"},
    "/v1/requests/{request_id}/explanation": {"200", "401", "404"},
    "/v1/requests/{request_id}/stream": {"200", "400", "401", "403", "404"},
    "/v1/models": {"200", "401", "503"},
    "/v1/models/{model_id}": {"200", "401", "404", "503"},
    "/v1/templates": {"200", "401", "503"},
    **{base + path: TOKENIZER for base in ("", "/v1") for path in ("/tokenize", "/detokenize", "/apply-template")},
    **{base + "/tokenizer_info": {"200", "401", "503"} for base in ("", "/v1")},
    "/health": {"200", "503"},
    "/health/live": {"200"},
    "/status": {"200", "401"},
    "/status/history": {"200", "400", "401"},
    "/metrics": {"200", "401"},
    "/admin/journal": {"200", "401", "403", "429", "503"},
    "/admin/login": {"200", "400", "401", "408", "413"},
    "/admin/login-codes": {"200", "401", "403"},
    "/admin/requests": {"200", "400", "401", "403"},
    "/admin/requests/{request_id}": {"200", "401", "403", "404"},
    "/admin/requests/{request_id}/cancel": {"200", "401", "403", "404"},
    "/admin/requests/{request_id}/explanation": {"200", "401", "403", "404"},
    "/admin/quarantine": {"200", "401", "403"},
    "/admin/requests/{request_id}/pause": {"200", "401", "403", "404", "409", "503"},
    "/admin/requests/{request_id}/resume": {"200", "401", "403", "404", "409", "503"},
    "/admin/requests/{request_id}/downgrade": {"200", "401", "403", "404", "409", "503"},
    "/admin/tenants/{tenant}/data": {"200", "400", "401", "403", "503"},
    "/admin/tenants/{tenant}/cache": {"200", "401", "403", "503"},
}


async def document() -> dict[str, Any]:
    reply = await ask(make_app(FakeEngine()), "GET", "/openapi.json")
    assert reply.status == 200
    return dict(reply.json())


async def test_every_endpoint_and_status_is_described() -> None:
    """No more and no less than what is served."""
    paths = (await document())["paths"]
    described = {path: set().union(*(m["responses"] for m in methods.values())) for path, methods in paths.items()}
    implied = {"401": "429", "413": "415"}
    expected = {path: told | {implied[one] for one in told & implied.keys()} for path, told in ENDPOINTS.items()}
    assert described == expected


async def test_request_schemas_are_closed_and_bounded() -> None:
    """A generated client cannot send what would be refused as unknown."""
    paths = (await document())["paths"]
    for path in ("/v1/chat/completions", "/v1/completions"):
        schema = paths[path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert schema["additionalProperties"] is False
        assert schema["required"] == ["messages" if "chat" in path else "prompt"]
        assert schema["properties"]["n"]["anyOf"][0] == {"type": "integer", "minimum": 1, "maximum": 8}
        assert all(field["description"] for field in schema["properties"].values())


async def test_the_page_is_guarded(tmp_path: Path) -> None:
    """It may load its own files and nothing else."""
    (tmp_path / "index.html").write_text("<p>hello")
    (tmp_path / "app.js").write_text("1")
    app = make_app(FakeEngine(), page_dir=tmp_path)
    for path, text in (("/", b"<p>hello"), ("/page/app.js", b"1")):
        reply = await ask(app, "GET", path)
        assert (reply.status, reply.body) == (200, text)
        assert "default-src 'none'" in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    for path in ("/page/../pyproject.toml", "/page/%2e%2e/app.py", "/page/"):
        assert (await ask(app, "GET", path)).error["code"] == "not_found"


def test_pages_name_what_they_load_beside_themselves() -> None:
    """So that they work wherever a proxy shows them."""
    for file in pages.PAGE_DIR.iterdir():
        text = file.read_text()
        assert not re.findall(r"""(?:href|src|SCRIPT) ?= ?["']/|from "/|fetch\((?!\)|`\.\$)|\burl\(["']?/""", text), file.name


@pytest.mark.parametrize(
    ("path", "location"),
    [("/", None), ("/poise", "./poise/"), ("/poise/", None), ("/poise/dashboard", None), ("/dashboard/", "../dashboard")],
)
async def test_a_page_is_seen_from_its_folder(path: str, location: str | None) -> None:
    """What lies beside it is found under its address, also behind a proxy that passes its own path on."""
    app = make_app(FakeEngine(), Settings.model_validate({"server": {"root_path": "/poise"}}))
    reply = await ask(app, "GET", path)
    assert (reply.status, reply.headers.get("location")) == ((200, None) if location is None else (307, location))
    assert (await ask(app, "GET", "/openapi.json")).json()["servers"] == [{"url": "/poise"}]


async def test_the_dashboard_is_guarded_as_well() -> None:
    """Under the same policy: plotly.js draws without a style of its own. Its file comes from the installed package."""
    app = make_app(FakeEngine())
    made = ("/page/changes.js", b'"stall": "stalled"')
    for path, text in (("/dashboard", b"poise dashboard"), ("/page/plotly.min.js", b"plotly.js"), made):
        reply = await ask(app, "GET", path)
        assert (reply.status, text in reply.body) == (200, True)
        policy = reply.headers["content-security-policy"]
        assert "script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy


async def test_without_plotly_there_is_no_such_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dashboard itself is there, and says what to install."""
    monkeypatch.setattr(pages, "find_plotly", lambda: None)
    app = make_app(FakeEngine())
    assert (await ask(app, "GET", "/page/plotly.min.js")).error["code"] == "not_found"
    assert (await ask(app, "GET", "/dashboard")).status == 200


async def test_without_a_page_the_rest_works(tmp_path: Path) -> None:
    """The page is not a condition of the API."""
    app = make_app(FakeEngine(), page_dir=tmp_path / "none")
    assert (await ask(app, "GET", "/")).status == 404
    assert (await ask(app, "GET", "/dashboard")).status == 404
    assert (await ask(app, "GET", "/page/app.js")).status == 404
