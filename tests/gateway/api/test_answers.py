"""Every operation answers with what the OpenAPI document says: each is asked for a result, and `described` looks at it."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest

from poise.gateway.supervision.blame import QuarantineReport
from poise.gateway.supervision.engine import EnginePhase
from tests.gateway import described
from tests.gateway.fakes import MODEL, OPERATOR, FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body

REPORT = QuarantineReport(
    request_id="req-1",
    request_class="interactive",
    engine_request=1,
    tenant="t",
    prompt_tokens=1,
    output_tokens=2,
    deaths=2,
    ended_by="SIGSEGV",
    accepted_at="1970-01-01T00:00:00.000Z",
    quarantined_at="1970-01-01T00:00:01.000Z",
)


def busy(submission: Submission) -> None:
    """All that may happen to a request on its way."""
    submission.accept(3, 5_000_000)
    submission.wait(2, 4_000_000)
    submission.start(n_cached=2)
    submission.prefill(7, 5000, 9)
    submission.say("Hello")
    for what, why in (("pause", "turn"), ("resume", ""), ("swap", "idle"), ("resume", ""), ("lost", ""), ("recover", "3")):
        submission.change(what, why)
    submission.say(" there")
    submission.finish()


async def test_every_endpoint_answers_as_described() -> None:
    """With a result: each status that is one, of each endpoint, is seen."""
    engine = FakeEngine(busy)
    engine.reports = [REPORT]
    app = make_app(engine)
    operations = app.operations
    seen: set[tuple[str, int]] = set()

    async def get(method: str, path: str, body: Any = None) -> Any:
        """As an operator, where that is needed."""
        headers = OPERATOR if path.startswith(("/admin/", "/status", "/metrics", "/health")) else {}
        reply = await ask(app, method, path, body, headers=headers)
        operation = described.operation_of(operations, method, path.partition("?")[0])
        assert operation is not None, path
        seen.add((operation.name, reply.status))
        return reply.json() if reply.headers["content-type"] == "application/json" else reply.body

    logprobs: dict[str, Any] = {"logprobs": True, "top_logprobs": 2, "n": 2}
    first = await get("POST", "/v1/chat/completions", chat_body(**logprobs))
    second = await get("POST", "/v1/completions", prompt_body(logprobs=2, n=2))
    await get("POST", "/v1/completions", prompt_body(stream=True))
    for _ in range(2):
        app.history.sample()
    engine.script = None
    stream = exchange(app, "POST", "/v1/chat/completions", chat_body(stream=True)).open()
    (await engine.submitted(len(engine.submissions) + 1)).accept()
    await stream.start()
    live = (await get("GET", "/admin/requests?ended=9"))["data"][0]["id"]
    for tail in ("", "/explanation", "/stream"):
        await get("GET", f"/v1/requests/{first['id']}{tail}")
    for tail in ("", "/explanation"):
        await get("GET", f"/admin/requests/{second['id']}{tail}")
        await get("GET", f"/admin/requests/{live}{tail}")
    for action in ("pause", "resume", "downgrade", "cancel"):
        await get("POST", f"/admin/requests/{live}/{action}")
    for base in ("", "/v1"):
        tokens = (await get("POST", f"{base}/tokenize", {"prompt": "Hi"}))["tokens"]
        await get("POST", f"{base}/detokenize", {"tokens": tokens})
        await get("POST", f"{base}/apply-template", {"messages": [{"role": "user", "content": "Hi"}]})
        await get("GET", f"{base}/tokenizer_info")
    for path in ("/v1/requests", "/v1/models", f"/v1/models/{MODEL}", "/v1/templates"):
        await get("GET", path)
    for path in ("/health", "/health/live", "/status", "/status/history", "/metrics", "/admin/quarantine", "/admin/journal"):
        await get("GET", path)
    await get("POST", f"/v1/requests/{first['id']}/cancel")
    await get("DELETE", f"/v1/requests/{first['id']}")
    code = (await get("POST", "/admin/login-codes"))["code"]
    await get("POST", "/admin/login", {"code": code})
    await get("DELETE", "/admin/tenants/local/cache")
    await get("DELETE", "/admin/tenants/local/data?live=1")
    engine.state.phase = EnginePhase.LOADING
    await get("GET", "/health")
    await stream.ended()
    assert seen == {(operation.name, status) for operation in operations for status in operation.described}


async def test_an_answer_of_another_form_is_found() -> None:
    """A field too many, one that is missing, a value that is none of those described, a status, a content type."""
    app = make_app(FakeEngine())
    reply = await ask(app, "GET", "/health")
    body = reply.json()

    def check(changed: dict[str, Any], status: int = 200, kind: str = "application/json") -> None:
        text = json.dumps(changed).encode()
        described.check(app.operations, "GET", "/health", status, kind, text)

    check(body)
    for wrong in (body | {"more": 1}, {"status": "ok"}, body | {"level": "calm"}, body | {"restarts": "2"}):
        with pytest.raises(jsonschema_rs.ValidationError):
            check(wrong)
    with pytest.raises(AssertionError):
        check(body, 201)
    with pytest.raises(AssertionError):
        check(body, kind="text/plain")
