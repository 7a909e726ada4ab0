"""What is put on record: one entry at the end of every request, whatever its end, and what operators do."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from poise.audit.chain import audit_key
from poise.audit.log import AuditError
from poise.audit.verify import last_entries, verify
from poise.config import Settings
from poise.gateway.app import Gateway
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import Bill, Heading
from poise.gateway.tenancy import auditing
from poise.gateway.tenancy.auditing import Audit, open_audit
from poise.gateway.tenancy.caller import Caller
from poise.gateway.tenancy.keys import KeyRing, KeysFile
from poise.scheduler.request import RequestClass
from tests.gateway.fakes import OPERATOR, FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, says

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


class Recorded:
    """An application with an audit log, and what is in it."""

    def __init__(self, folder: Path, engine: FakeEngine, **settings: Any) -> None:
        audit = {"enabled": True, "path": str(folder / "audit")}
        auth = {"keys_file": str(folder / "keys.jsonl")}
        self.folder = folder / "audit"
        self.settings = Settings.model_validate({"audit": audit, "auth": auth, **settings})
        self.file = KeysFile(folder / "keys.jsonl")
        self.audit: Audit = open_audit(self.settings)
        self.ring = KeyRing(folder / "keys.jsonl", lambda: 0.0)
        self.app: Gateway = make_app(engine, self.settings, keys=self.ring, audit=self.audit)

    def entries(self) -> list[dict[str, Any]]:
        """All of them; the log is closed and verifies."""
        self.audit.close()
        report = verify(self.folder, audit_key(self.file.read_pepper()))
        assert report.problem == ""
        return [json.loads(line) for line in last_entries(self.folder, 1000)]


def names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


@pytest.fixture
async def recorded(tmp_path: Path) -> AsyncIterator[Recorded]:
    recorded = Recorded(tmp_path, FakeEngine(says("hello")))
    yield recorded
    recorded.audit.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_is_on_record(recorded: Recorded, stream: bool) -> None:
    """Who, what, how much and what came of it; and no text."""
    headers = {"x-request-id": "mine"}
    await ask(recorded.app, "POST", CHAT, chat_body("prompt-text", stream=stream, n=2), headers=headers)
    (entry,) = recorded.entries()
    assert entry["response"].startswith("chatcmpl-")
    assert entry.pop("duration_ms") >= entry.pop("ttft_ms") >= 0
    assert {name: entry[name] for name in entry.keys() - {"seq", "time", "prev", "hash", "response"}} == {
        "event": "request",
        "request": "mine",
        "tenant": "local",
        "key": "",
        "endpoint": CHAT,
        "class": "interactive",
        "stream": stream,
        "status": 200,
        "error": None,
        "outcome": "stop",
        "prompt_tokens": 30,
        "output_tokens": 10,
        "cached_tokens": 0,
        "tool_calls": 0,
        "queue_ms": 1.0,
        "served_us": 2000,
        "preemptions": 0,
    }


def breaks(submission: Submission) -> None:
    submission.accept()
    submission.start()
    submission.change("swap")
    submission.change("resume")
    submission.say("Hel")
    submission.finish("failed", "at /secret/path")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_failure_is_on_record(tmp_path: Path, stream: bool) -> None:
    """With the code that the client was told; the engine's own words are not in it."""
    recorded = Recorded(tmp_path, FakeEngine(breaks))
    await ask(recorded.app, "POST", COMPLETIONS, prompt_body(stream=stream))
    (entry,) = recorded.entries()
    assert (entry["status"], entry["error"], entry["outcome"]) == (500, "internal_error", "failed")
    assert (entry["output_tokens"], entry["preemptions"]) == (3, 1)
    assert "secret" not in json.dumps(entry)


async def test_refusals_are_on_record(tmp_path: Path) -> None:
    """From the first check to the engine's own."""
    recorded = Recorded(tmp_path, FakeEngine(lambda s: s.refuse("queue_full", 1, 1)))
    text, key = recorded.file.add("alice", classes=["background"])
    recorded.ring = KeyRing(tmp_path / "keys.jsonl")
    app = make_app(
        FakeEngine(lambda s: s.refuse("queue_full", 1, 1)), recorded.settings, keys=recorded.ring, audit=recorded.audit
    )
    known = {"authorization": f"Bearer {text}"}
    await ask(app, "POST", CHAT, chat_body(), headers={"authorization": "Bearer other"})
    await ask(app, "POST", CHAT, b"{", headers=known)
    await ask(app, "POST", CHAT, chat_body(), headers=known)
    await ask(app, "POST", CHAT, chat_body(service_tier="flex", stream=True), headers=known)
    entries = recorded.entries()
    assert (entries.pop()["event"], len(entries)) == ("unknown_callers", 3)
    assert [(e["tenant"], e["key"], e["class"], e["status"], e["error"], e["outcome"]) for e in entries] == [
        ("alice", key.id, None, 400, "invalid_json", "refused"),
        ("alice", key.id, "interactive", 403, "class_not_allowed", "refused"),
        ("alice", key.id, "background", 429, "queue_full", "refused"),
    ]
    assert text not in json.dumps(entries)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_is_on_record(tmp_path: Path, stream: bool) -> None:
    """In its answer, or while it waits for one."""
    engine = FakeEngine()
    recorded = Recorded(tmp_path, engine)
    asked = exchange(recorded.app, "POST", CHAT, chat_body(stream=stream)).open()
    request = await engine.submitted()
    request.accept()
    if stream:
        await asked.start()
        request.say("x")
        await asked.event()
    asked.disconnect()
    await asked.ended()
    (entry,) = recorded.entries()
    assert (entry["status"], entry["error"], entry["outcome"]) == (200 if stream else None, None, "cancelled")


async def test_a_bug_is_on_record(tmp_path: Path) -> None:
    """As an internal error."""
    recorded = Recorded(tmp_path, FakeEngine(lambda s: s.say([1 // 0])))
    await ask(recorded.app, "POST", CHAT, chat_body())
    (entry,) = recorded.entries()
    assert (entry["outcome"], entry["error"], entry["status"]) == ("internal_error", "internal_error", 500)


async def test_content_only_where_the_policy_says_so(tmp_path: Path) -> None:
    """Of that tenant, in a field of its own; and it can be erased."""
    tenants = {"alice": {"content_log": True}}
    engine = FakeEngine(says("answer-text"))
    recorded = Recorded(tmp_path, engine, tenants=tenants)
    texts = {name: recorded.file.add(name)[0] for name in ("alice", "bob")}
    app = make_app(engine, recorded.settings, keys=KeyRing(tmp_path / "keys.jsonl"), audit=recorded.audit)
    for name, key in texts.items():
        for stream in (False, True):
            body = chat_body(f"prompt of {name}", stream=stream)
            await ask(app, "POST", CHAT, body, headers={"authorization": f"Bearer {key}"})
    reply = await ask(app, "DELETE", "/admin/tenants/bob/data", headers=OPERATOR)
    assert reply.json()["erased"]["audit_contents"] == 0
    before = [json.loads(line) for line in last_entries(recorded.folder, 100)]
    assert [entry.get("content") for entry in before if entry["event"] == "request"] == [
        *[{"prompt": [{"role": "user", "content": "prompt of alice"}], "output": ["answer-text"]}] * 2,
        None,
        None,
    ]
    reply = await ask(app, "DELETE", "/admin/tenants/alice/data", headers=OPERATOR)
    assert reply.json()["erased"]["audit_contents"] == 2
    entries = recorded.entries()
    assert "answer-text" not in json.dumps(entries)
    assert [entry["action"] for entry in entries if entry["event"] == "admin"] == ["erase", "erase"]
    assert entries[-1]["tenant"] == "alice"


async def test_operators_are_on_record(recorded: Recorded) -> None:
    """By name and by the id of their key."""
    text, key = recorded.file.add("boss", admin=True)
    ring = KeyRing(recorded.folder.parent / "keys.jsonl")
    app = make_app(FakeEngine(), recorded.settings, keys=ring, audit=recorded.audit)
    headers = {"authorization": f"Bearer {text}"}
    await ask(app, "GET", "/admin/journal", headers=headers)
    await ask(app, "DELETE", "/admin/tenants/x/cache", headers=headers)
    assert [(e["event"], e["action"], e["by"], e["key"]) for e in recorded.entries()] == [
        ("admin", "journal", "boss", key.id),
        ("admin", "forget", "boss", key.id),
    ]


async def test_changes_of_keys_and_of_the_server_are_on_record(tmp_path: Path) -> None:
    """As the running server sees them."""
    recorded = Recorded(tmp_path, FakeEngine())
    clock = iter(range(0, 1000, 10))
    _, first = recorded.file.add("alice")
    ring = KeyRing(tmp_path / "keys.jsonl", lambda: float(next(clock)))
    make_app(FakeEngine(), recorded.settings, keys=ring, audit=recorded.audit)
    _, second = recorded.file.add("bob", admin=True)
    recorded.file.revoke(first.id)
    assert len(ring.keys) == 2
    recorded.audit.put("level", level="busy", why="queue")
    assert [(e["event"], e.get("key"), e.get("tenant"), e.get("level")) for e in recorded.entries()] == [
        ("key_revoked", first.id, "alice", None),
        ("key_added", second.id, "bob", None),
        ("level", None, None, "busy"),
    ]


async def test_without_a_log_nothing_is_written(tmp_path: Path) -> None:
    """It is off by default."""
    settings = Settings.model_validate({"auth": {"keys_file": str(tmp_path / "keys.jsonl")}})
    audit = open_audit(settings)
    assert not audit.enabled
    await ask(make_app(FakeEngine(says("x")), settings, audit=audit), "POST", CHAT, chat_body())
    audit.close()
    assert not names(tmp_path)


async def test_what_must_not_happen_without_its_entry(recorded: Recorded) -> None:
    """It goes on when the entry is there; without a log, or with one that is closed, not at all."""
    await recorded.audit.written("egress", request="r", label="public")
    with pytest.raises(AuditError, match=r"audit\.enabled"):
        await Audit(Settings()).written("egress")
    assert [(entry["event"], entry["label"]) for entry in recorded.entries()] == [("egress", "public")]
    with pytest.raises(AuditError):
        await recorded.audit.written("egress")


async def test_a_disk_that_hangs_is_not_waited_for(recorded: Recorded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auditing, "WRITTEN_S", 0.01)
    hanging, write = threading.Event(), os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: write(descriptor, data) if hanging.wait(10) else 0)
    with pytest.raises(AuditError, match="within"):
        await recorded.audit.written("egress", request="r")
    hanging.set()
    assert [entry["event"] for entry in recorded.entries()] == ["egress"]


async def test_an_answer_of_another_server_is_on_record_with_its_cost(recorded: Recorded) -> None:
    """Others have no such fields."""
    bill = Bill(backend="cloud", label="public", reason="wait", prompt_tokens=1, cached_tokens=0, output_tokens=1, cost_nano=7)
    for had in (bill, None):
        record = Record(Origin("req", "local", RequestClass.INTERACTIVE, "messages", 0.0), Heading("r", 0, "toy", "fp"), 1)
        record.bill = had
        with recorded.audit.begin("req", CHAT) as entry:
            entry.caller = Caller("local")
            entry.ended(record)
    billed, plain = recorded.entries()
    told = {
        "backend": "cloud",
        "label": "public",
        "route_reason": "wait",
        "cost_nano": 7,
        "cost_known": True,
        "price_version": "",
    }
    assert billed.items() >= told.items()
    assert not plain.keys() & {*told, "price_version"}
