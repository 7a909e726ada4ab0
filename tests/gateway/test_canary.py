"""Nothing of a request shows anywhere but in its own answer: canaries through every endpoint and every kind of failure."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.supervision.engine import ENGINE_LOST
from poise.gateway.tenancy.auditing import Audit, open_audit
from poise.gateway.tenancy.keys import KeyRing, KeysFile
from tests.canaries import Canaries
from tests.gateway.fakes import OPERATOR, FakeEngine, Submission, ask, chat_body, exchange, make_app, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LOOKED_AT = (
    "/health",
    "/health/live",
    "/status",
    "/metrics",
    "/admin/journal",
    "/admin/requests",
    "/openapi.json",
    "/v1/models",
    "/",
)


class Birds:
    """A server whose log, answers to others and files are looked through at the end."""

    def __init__(self, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self._folder = folder
        self.canaries = Canaries("prompt", "system", "answer", "template", "unknown", "field")
        self.audits: list[Audit] = []
        self.file = KeysFile(folder / "config" / "keys.jsonl")
        self.keys = {name: self.file.add(name)[0] for name in ("alice", "bob")}
        self.settings = Settings.model_validate(
            {
                "auth": {"keys_file": str(folder / "config" / "keys.jsonl"), "keys": {"carol": "sk-declared-carol"}},
                "audit": {"enabled": True, "path": str(folder / "state" / "audit")},
                "templates": {"faq": {"text": self.canaries["template"], "tenants": ["alice"]}},
            }
        )

    def app(self, engine: FakeEngine) -> Gateway:
        while self.audits:
            self.audits.pop().close()
        self.audits.append(open_audit(self.settings))
        ring = KeyRing(self._folder / "config" / "keys.jsonl")
        return make_app(engine, self.settings, keys=ring, audit=self.audits[0])

    @property
    def log(self) -> str:
        return self._caplog.text

    def body(self, **parameters: Any) -> dict[str, Any]:
        messages = [{"role": "system", "content": self.canaries["system"]}, {"role": "user", "content": self.canaries["prompt"]}]
        return {"model": "toy", "messages": messages, **parameters}

    def headers(self, name: str = "alice") -> dict[str, str]:
        return {"authorization": f"Bearer {self.keys[name]}"}

    async def nothing_shows(self, app: Gateway) -> None:
        """Neither what others can ask for, nor the log at its finest with its tracebacks, nor any file has a canary or a key."""
        seen = [(await ask(app, "GET", path)).body for path in LOOKED_AT]
        seen.append((await ask(app, "GET", "/v1/templates", headers=self.headers("bob"))).body)
        seen.append((await ask(app, "POST", CHAT, chat_body("hello"), headers=self.headers("bob"))).body)
        hers = (await ask(app, "GET", "/v1/requests", headers=self.headers())).json()["data"]
        for wanted in [request["id"] for request in hers] + [request["request_id"] for request in hers]:
            for method, tail in (("GET", ""), ("GET", "/stream"), ("POST", "/cancel"), ("DELETE", "")):
                reply = await ask(app, method, f"/v1/requests/{wanted}{tail}", headers=self.headers("bob"))
                assert reply.status == 404
                seen.append(reply.body)
        for audit in self.audits:
            audit.close()
        self.audits.clear()
        formatter = logging.Formatter("%(message)s %(name)s %(args)s")
        seen += [formatter.format(record).encode() for record in self._caplog.records]
        secrets = [key.encode() for key in self.keys.values()] + [b"sk-declared-carol"]
        for data in seen + [path.read_bytes() for path in self._folder.rglob("*") if path.is_file()]:
            assert self.canaries.found_in(data) == []
            assert not any(secret in data for secret in secrets)


@pytest.fixture
async def birds(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> AsyncIterator[Birds]:
    birds = Birds(tmp_path, caplog)
    yield birds
    for audit in birds.audits:
        audit.close()


def one(submission: Submission, answer: str, reason: str, detail: str = "") -> None:
    submission.accept()
    submission.start()
    if submission.tenant == "alice":
        submission.say(answer)
        submission.finish(reason, detail)
    else:
        submission.say("to you, too")
        submission.finish()


def buggy(submission: Submission, answer: str) -> None:
    submission.accept()
    submission.say(answer)
    submission.say([12345])  # no such token


ENDINGS: dict[str, Callable[[str], Callable[[Submission], None]]] = {
    "stop": lambda answer: lambda s: one(s, answer, "stop"),
    "length": lambda answer: lambda s: one(s, answer, "length"),
    "engine death": lambda answer: lambda s: one(s, answer, ENGINE_LOST, "the engine stopped"),
    "failure in the engine": lambda answer: lambda s: one(s, answer, "failed", "llama_decode: -3"),
    "timeout": lambda answer: lambda s: one(s, "", "expired"),
    "aborted": lambda answer: lambda s: one(s, answer, "aborted"),
    "refused": lambda answer: lambda s: s.refuse("queue_full", 1, 1) if s.tenant == "alice" else one(s, "", "stop"),
    "too long": lambda answer: lambda s: s.refuse("too_long", 9, 1) if s.tenant == "alice" else one(s, "", "stop"),
    "a bug in the gateway": lambda answer: lambda s: buggy(s, answer) if s.tenant == "alice" else one(s, "", "stop"),
}


@pytest.mark.parametrize("ending", ENDINGS)
async def test_every_way_to_end(birds: Birds, ending: str) -> None:
    """Streaming or not, as a chat and as a text: whole answers, half ones and none."""
    engine = FakeEngine(ENDINGS[ending](birds.canaries["answer"]))
    app = birds.app(engine)
    for stream in (False, True):
        await ask(app, "POST", CHAT, birds.body(stream=stream, stop=birds.canaries["field"]), headers=birds.headers())
        prompt = {"model": "toy", "prompt": birds.canaries["prompt"], "stream": stream, "logprobs": 2}
        await ask(app, "POST", COMPLETIONS, prompt, headers=birds.headers())
    body = {"model": "toy", "messages": [{"role": "user", "content": birds.canaries["prompt"]}], "template": "faq"}
    await ask(app, "POST", CHAT, body, headers=birds.headers())
    assert len(engine.submissions) == 5
    await birds.nothing_shows(app)


async def test_a_bug_that_quotes_a_request(birds: Birds) -> None:
    """Its kind and its place are in the log, its message is not; neither is that of what caused it."""

    def quoting(submission: Submission) -> None:
        try:
            int(birds.canaries["prompt"])
        except ValueError as error:
            raise RuntimeError(birds.canaries["answer"]) from error

    app = birds.app(FakeEngine(quoting))
    for stream in (False, True):
        reply = await ask(app, "POST", CHAT, birds.body(stream=stream), headers=birds.headers())
        assert reply.error["code"] == "internal_error"
    logged = birds.log
    assert "RuntimeError" in logged
    assert "ValueError" in logged
    assert "test_canary.py" in logged
    await birds.nothing_shows(birds.app(FakeEngine(says("x"))))


async def test_bad_input(birds: Birds) -> None:
    """Errors quote what was wrong to who sent it, and to nobody else."""
    app = birds.app(FakeEngine(says("x")))
    canary = birds.canaries
    bad: list[Any] = [
        f'{{"prompt": "{canary["prompt"]}"'.encode(),
        [canary["prompt"]],
        birds.body(temperature=canary["field"]),
        birds.body(template=canary["field"]),
        birds.body(template="faq"),
        birds.body(model=canary["field"]),
        birds.body(max_tokens=canary["field"]),
        birds.body(context_policy=canary["field"]),
        {"model": "toy", "messages": [{"role": canary["field"], "content": canary["prompt"]}]},
        {"model": "toy", "messages": [{"role": "user", "content": canary["prompt"] * 60}]},
    ]
    taken: list[Any] = [
        birds.body(**{canary["unknown"]: 1}),
        birds.body(tools=[{"type": "function", "function": {"name": canary["field"]}}]),
        birds.body(service_tier=canary["field"]),
        {"model": "toy", "messages": [{"role": "user", "content": canary["prompt"], canary["unknown"]: 1}]},
    ]
    for body in (*bad, *taken):
        for stream in (False, True):
            sent = (
                body | {"stream": stream}
                if isinstance(body, dict)
                else json.dumps(body).encode()
                if isinstance(body, list)
                else body
            )
            reply = await ask(app, "POST", CHAT, sent, headers=birds.headers())
            assert (reply.status >= 400) == (body not in taken)
    await birds.nothing_shows(app)


@pytest.mark.parametrize(
    "headers",
    [
        {"authorization": "Bearer {}"},
        {"x-api-key": "{}"},
        {"authorization": "Basic {}"},
        {"host": "{}"},
        {"origin": "https://{}"},
        {"content-type": "text/{}"},
        {"content-encoding": "{}"},
        {"x-poise-anything": "{}"},
        {"cookie": "{}"},
    ],
)
async def test_headers(birds: Birds, headers: dict[str, str]) -> None:
    """Keys that are wrong, and whatever else a client may put there."""
    app = birds.app(FakeEngine(says("x")))
    sent = {name: value.format(birds.canaries["field"]) for name, value in headers.items()}
    for method, path in (("POST", CHAT), ("POST", COMPLETIONS), ("GET", "/v1/models"), ("DELETE", "/admin/tenants/x/data")):
        await ask(app, method, path, birds.body() if method == "POST" else None, headers=sent)
    await birds.nothing_shows(app)


async def test_paths(birds: Birds) -> None:
    """What is asked for by name."""
    app = birds.app(FakeEngine())
    canary = birds.canaries["field"]
    paths = (
        f"/{canary}",
        f"/v1/models/{canary}",
        f"/page/{canary}",
        f"/v1/models?key={canary}",
        f"/admin/requests/{canary}/pause",
    )
    for path in paths:
        for method in ("GET", "POST", "DELETE"):
            await ask(app, method, path, headers=birds.headers())
    app = birds.app(FakeEngine(says("x")))
    await birds.nothing_shows(app)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves(birds: Birds, stream: bool) -> None:
    """In the middle of its answer."""
    engine = FakeEngine()
    app = birds.app(engine)
    asked = exchange(app, "POST", CHAT, birds.body(stream=stream), headers=birds.headers()).open()
    request = await engine.submitted()
    request.accept()
    request.say(birds.canaries["answer"])
    if stream:
        await asked.start()
        await asked.message()
    assert birds.canaries.found_in((await ask(app, "GET", "/admin/requests", headers=OPERATOR)).body) == []
    asked.disconnect()
    await asked.ended()
    engine.script = says("x")
    await birds.nothing_shows(app)


def test_canaries_are_found() -> None:
    """In every form that they are looked for in."""
    birds = Canaries("a")

    for data in (birds["a"].encode(), b"x" + birds["a"].encode()[:20], base64.b64encode(b"12" + birds["a"].encode() + b"34")):
        assert birds.found_in(data) == ["a"]
    assert birds.found_in(b"nothing") == []
