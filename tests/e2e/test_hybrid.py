"""Other servers for real: poise in front of another poise, and beside its own engine with another one as its cloud."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI, PermissionDeniedError
from openai.types.chat import ChatCompletionMessageParam

from tests.e2e.server import PoiseServer, assignments

pytestmark = pytest.mark.slow

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours of the rainbow."}]
CARD: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Is 4111 1111 1111 1111 a card?"}]
SCHEMA = {"type": "object", "properties": {"a": {"const": 7}}, "required": ["a"], "additionalProperties": False}
FORM: Any = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}


@pytest.fixture(scope="module")
def front(poise_server: PoiseServer) -> Iterator[PoiseServer]:
    server = PoiseServer.start("--upstream", f"{poise_server.url}/v1")
    yield server
    assert server.stop() == 0


@pytest.fixture(scope="module")
def hybrid(poise_server: PoiseServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoiseServer]:
    folder = tmp_path_factory.mktemp("hybrid")
    settings = (
        f"backends.cloud.url={poise_server.url}/v1", "backends.cloud.leaves_host=true", "backends.cloud.price_output=2.00",
        "backends.cloud.price_input=1.00", f"audit.path={folder / 'audit'}", f"egress.ledger={folder / 'spend.sqlite'}",
        "pools.short.slots=2", "pools.long.slots=1",
    )  # fmt: skip
    server = PoiseServer.start("--profile", "hybrid", *assignments(*settings))
    yield server
    assert server.stop() == 0


def client_of(server: PoiseServer, **headers: str) -> OpenAI:
    return OpenAI(base_url=f"{server.url}/v1", api_key="alice", max_retries=0, timeout=120, default_headers=headers)


def test_a_front_answers_as_the_server_behind_it(front: PoiseServer, poise_server: PoiseServer) -> None:
    """The same text, whole and streamed, under the name of the model there; and the same form."""
    asked: dict[str, Any] = {"model": "default", "messages": QUESTION, "max_tokens": 24, "temperature": 0}
    with client_of(poise_server) as there, client_of(front) as here:
        direct, whole = there.chat.completions.create(**asked), here.chat.completions.with_raw_response.create(**asked)
        answer = whole.parse()
        with here.chat.completions.create(**asked, stream=True) as stream:
            text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
        formed = here.chat.completions.create(**asked | {"response_format": FORM})
        names = [model.id for model in here.models.list()]
    assert answer.choices[0].message.content == direct.choices[0].message.content == text
    assert (answer.model, answer.usage and answer.usage.completion_tokens) == (direct.model, 24)
    assert whole.headers["x-poise-backend"] == "upstream"
    assert direct.model in names
    assert json.loads(formed.choices[0].message.content or "") == {"a": 7}


def test_who_leaves_a_front_ends_the_work_behind_it(front: PoiseServer, poise_server: PoiseServer) -> None:
    """The server behind computes nothing for nobody."""
    with client_of(front) as here:
        stream = here.chat.completions.create(model="default", messages=QUESTION, max_tokens=2000, temperature=0, stream=True)
        next(iter(stream))
        stream.close()
    front.eventually(poise_server.nothing_runs, "nothing runs behind the front")


def test_what_is_labelled_leaves_and_what_is_sensitive_stays(hybrid: PoiseServer, tmp_path: Path) -> None:
    """By name of the backend; each exchange is in the audit log before it is begun, and in the ledger when it has ended."""
    with client_of(hybrid) as unlabelled, client_of(hybrid, **{"X-Poise-Data-Class": "public"}) as public:
        answer = public.chat.completions.with_raw_response.create(model="cloud", messages=QUESTION, max_tokens=5)
        assert answer.headers["x-poise-backend"] == "cloud:cloud"
        for client, messages in ((unlabelled, QUESTION), (public, CARD)):
            with pytest.raises(PermissionDeniedError, match="The backend 'cloud' was asked for"):
                client.chat.completions.create(model="cloud", messages=messages, max_tokens=5)
        stays = public.chat.completions.with_raw_response.create(model="default", messages=CARD, max_tokens=5)
        assert stays.headers["x-poise-backend"] == "local"
    explained = hybrid.get(f"/admin/requests/{answer.parse().id}/explanation")[1]
    assert any("answered by the backend cloud, because it asked for that one" in line for line in explained["sentences"])
    file = tmp_path / "request.json"
    file.write_text(json.dumps({"model": "cloud", "messages": CARD}))
    command = [sys.executable, "-m", "poise", "route", "--explain", str(file), "--data-class", "public", "--url", hybrid.url]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, "would be refused" in said.stdout, "rule:card" in said.stdout) == (1, True, True), said


def test_an_operator_closes_the_way_out(hybrid: PoiseServer) -> None:
    """At once, for everybody, and until it is opened again."""
    with client_of(hybrid, **{"X-Poise-Data-Class": "public"}) as public:
        assert post(hybrid, "/admin/egress/close")["is_open"] is False
        with pytest.raises(PermissionDeniedError, match="nothing may leave now"):
            public.chat.completions.create(model="cloud", messages=QUESTION, max_tokens=5)
        assert post(hybrid, "/admin/egress/open")["is_open"] is True
        assert public.chat.completions.create(model="cloud", messages=QUESTION, max_tokens=5).usage is not None


def post(server: PoiseServer, path: str) -> Any:
    request = server.request(path)
    request.method = "POST"
    with urllib.request.urlopen(request, timeout=120) as response:
        return json.loads(response.read())
