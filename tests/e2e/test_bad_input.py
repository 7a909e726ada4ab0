"""Wrong requests against the real server, with a real stream beside them that must not notice."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.server import PoiseServer
from tests.e2e.test_server_life import open_stream, read_until
from tests.gateway.api.test_malformed import BAD_JSON, WRONG

pytestmark = pytest.mark.slow

STREAM_TOKENS = 400
TOY_VOCABULARY = (b'"259"', b"[259]", b"[[1, 259]", b"[1, 259]")
"""Marks of cases whose token id is unknown only to the vocabulary of the gateway's own tests."""


def for_the_real_model(value: Any) -> bytes:
    """A body of the gateway's own table, whose model is called toy there."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return data.replace(b'"toy"', b'"default"')


def post(server: PoiseServer, path: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, Any]:
    request = urllib.request.Request(server.url + path, body, {"Content-Type": "application/json"} | (headers or {}))
    try:
        with urllib.request.urlopen(request, timeout=200) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_every_wrong_request_is_answered_while_a_stream_goes_on(poise_server: PoiseServer) -> None:
    """More than a hundred malformed requests, each with its error; the stream on the side gives all its tokens."""
    payload = {
        "model": "default",
        "messages": [{"role": "user", "content": "Tell me a long story."}],
        "max_tokens": STREAM_TOKENS,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stream = open_stream(poise_server, json.dumps(payload).encode())
    read_until(stream, b'"content"')
    cases = [("/v1/chat/completions", body, "invalid_json", None) for body in BAD_JSON.values()] + WRONG
    assert len(cases) >= 40
    for path, body, code, param in cases:
        data = for_the_real_model(body)
        if any(mark in data for mark in TOY_VOCABULARY):
            continue
        status, answer = post(poise_server, path, data)
        assert 400 <= status < 500, (body, answer)
        error = answer["error"]
        assert len(error["message"]) > 10
        if code != "context_length_exceeded":
            assert (error["code"], error["param"]) == (code, param), (body, answer)
    seen = read_until(stream, b"[DONE]")
    stream.close()
    assert f'"completion_tokens":{STREAM_TOKENS}'.encode() in seen
    assert b'"error"' not in seen


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("GET", "/v1/models/other", 404, "model_not_found"),
        ("GET", "/page/../../serve.py", 404, "not_found"),
    ],
)
def test_wrong_places(poise_server: PoiseServer, method: str, path: str, status: int, code: str) -> None:
    """Unknown paths and wrong methods are told in the API's own format."""
    request = urllib.request.Request(poise_server.url + path, method=method)
    with pytest.raises(urllib.error.HTTPError) as caught:
        urllib.request.urlopen(request, timeout=120)
    with caught.value as error:
        assert error.code == status
        assert json.load(error)["error"]["code"] == code


def test_a_body_of_ten_megabytes_is_refused_unread(poise_server: PoiseServer) -> None:
    """413 with the limit, at the sight of its length."""
    host, port = poise_server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=120) as connection:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {10 << 20}\r\n\r\n"
        connection.sendall(head.encode())
        answer = read_until(connection, b'"error"')
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.fixture(scope="module")
def small_answers() -> Iterator[PoiseServer]:
    """A server whose answers are short, so that hundreds of valid requests are quick too."""
    limits = [f"classes.{c}.{k}" for c in ("interactive", "background") for k in ("max", "default")]
    options = [x for name in limits for x in ("--set", f"{name}_output_tokens=4")]
    server = PoiseServer.start(*options)
    yield server
    assert server.stop() == 0


def test_schemathesis_finds_no_server_error(small_answers: PoiseServer, tmp_path: Path) -> None:
    """Requests generated from the published OpenAPI document, right and wrong: no 500, and answers as documented."""
    tool = Path(sys.executable).with_name("schemathesis")
    done = subprocess.run(
        [
            tool, "run", f"{small_answers.url}/openapi.json", "--max-examples", "25", "--seed", "1",
            "--phases", "examples,fuzzing", "--exclude-checks", "positive_data_acceptance", "--no-color",
            "--request-timeout", "120",
        ],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    status, health = small_answers.get("/health")
    assert (status, health["restarts"]) == (200, 0)
