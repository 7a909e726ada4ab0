"""The keys file: what is on disk, who may read it, and a running server that follows it."""

from __future__ import annotations

import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.tenancy.keys import CHECK_EVERY_S, PEPPER_NAME, KeyRing, KeysError, KeysFile
from tests.gateway.fakes import FakeEngine, Reply, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "poise" / "keys.jsonl"


def test_only_hashes_are_on_disk(path: Path) -> None:
    """In files of this user's only; the key itself is nowhere, and its pepper is in another file."""
    text, key = KeysFile(path).add("alice", comment="laptop")
    assert text.startswith("pk-")
    assert len(text) == 3 + 43, "256 bits"
    for file in path.parent.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert text not in file.read_text()
        assert text[3:] not in file.read_text()
    assert {file.name for file in path.parent.iterdir()} == {path.name, PEPPER_NAME}
    assert KeysFile(path).read() == [key]
    found = KeyRing(path).find(text)
    assert found == key
    assert KeyRing(path).find(text + "x") is None


def test_a_key_is_nothing_without_its_pepper(path: Path) -> None:
    """A server with another pepper does not know it; one without any does not start."""
    text, _ = KeysFile(path).add("alice")
    pepper = path.with_name(PEPPER_NAME)
    pepper.write_text("0" * 64)
    assert KeyRing(path).find(text) is None
    pepper.write_text("")
    with pytest.raises(KeysError, match="is not a pepper"):
        KeyRing(path)
    pepper.unlink()
    with pytest.raises(KeysError, match=f"{PEPPER_NAME}: cannot be read"):
        KeyRing(path)


def test_files_that_others_may_read_are_refused(path: Path) -> None:
    """With the command that mends it."""
    KeysFile(path).add("alice")
    for file in (path, path.with_name(PEPPER_NAME)):
        file.chmod(0o640)
        with pytest.raises(KeysError, match=f"run `chmod 600 {file}`"):
            KeyRing(path)
        file.chmod(0o600)


def test_a_damaged_line_is_named(path: Path) -> None:
    """A server must not start with some of its keys."""
    KeysFile(path).add("alice")
    path.write_bytes(path.read_bytes() + b'{"id": 3}\n')
    with pytest.raises(KeysError, match=r"keys\.jsonl: line 2 is not a key"):
        KeyRing(path)


def test_keys_end(path: Path) -> None:
    """By being revoked, or by their time."""
    file = KeysFile(path)
    revoked, key = file.add("alice")
    expired, _ = file.add("alice", expires=datetime.now(UTC) - timedelta(seconds=1))
    valid, _ = file.add("alice", expires=datetime.now(UTC) + timedelta(hours=1))
    assert file.revoke(key.id).revoked is not None
    assert file.revoke(key.id).revoked is not None, "twice is no harm"
    ring = KeyRing(path)
    assert [ring.find(text) is not None for text in (revoked, expired, valid)] == [False, False, True]
    with pytest.raises(KeysError, match="has no key 'k-none'"):
        file.revoke("k-none")


def test_writers_take_turns(path: Path) -> None:
    """No key is lost between two commands at once."""
    threads = [threading.Thread(target=KeysFile(path).add, args=(f"t{i}",)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({key.tenant for key in KeysFile(path).read()}) == 12


def test_a_running_server_follows_the_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Within a second; a file that is broken or gone leaves the keys as they were."""
    file, clock = KeysFile(path), Clock()
    first, key = file.add("alice")
    ring = KeyRing(path, clock)
    seen: list[tuple[int, int]] = []
    ring.on_change = lambda before, after: seen.append((len(before), len(after)))
    second, _ = file.add("bob")
    assert ring.find(second) is None, "it has looked just now"
    clock.now_s += CHECK_EVERY_S
    assert ring.find(second) is not None
    file.revoke(key.id)
    clock.now_s += CHECK_EVERY_S
    assert ring.find(first) is None
    whole = path.read_bytes()
    for broken in (b"{}\n", None):
        if broken is None:
            path.unlink()
        else:
            path.write_bytes(broken)
        for _ in range(2):
            clock.now_s += CHECK_EVERY_S
            assert ring.find(second) is not None
    assert (caplog.text.count("the keys stay as they were"), caplog.text.count("is gone")) == (1, 1)
    path.touch(0o600)
    path.write_bytes(whole)
    clock.now_s += CHECK_EVERY_S
    assert ring.find(second) is not None
    assert seen == [(1, 2), (2, 2), (2, 2)]


async def asked(path: Path, key: str | None, settings: dict[str, Any] | None = None, **body: Any) -> Reply:
    app = make_app(FakeEngine(says("x")), Settings.model_validate(settings or {}), keys=KeyRing(path))
    headers = {"authorization": f"Bearer {key}"} if key else {}
    return await ask(app, "POST", CHAT, chat_body(**body), headers=headers)


async def test_who_has_a_key_of_the_file(path: Path) -> None:
    """Beside those of the configuration; where there are keys, others are unknown, also when all of them are revoked."""
    file = KeysFile(path)
    text, key = file.add("alice")
    assert (await asked(path, text)).status == 200
    declared = {"auth": {"keys": {"bob": "sk-bob-of-config"}}}
    for known in (text, "sk-bob-of-config"):
        assert (await asked(path, known, declared)).status == 200
    assert (await asked(path, "other")).error["code"] == "invalid_api_key"
    file.revoke(key.id)
    for unknown in (text, "other"):
        assert (await asked(path, unknown)).error["code"] == "invalid_api_key"
    assert (await asked(path, None)).error["code"] == "missing_api_key", "keys that were there are needed"
    assert (await asked(path, None, {"auth": {"required": False}})).status == 200, "unless told otherwise"


async def test_the_first_key_closes_a_running_server(path: Path) -> None:
    """Within the second in which the file is looked at; a key for /admin is nobody's door."""
    now_s, file = 0.0, KeysFile(path)
    file.add("boss", admin=True)
    app = make_app(FakeEngine(says("x")), keys=KeyRing(path, lambda: now_s))

    async def status(key: str = "") -> int:
        headers = {"authorization": f"Bearer {key}"} if key else {}
        return (await ask(app, "POST", CHAT, chat_body(), headers=headers)).status

    assert await status() == 200
    text, _ = file.add("alice")
    now_s = 1.0
    assert (await status(), await status(text)) == (401, 200)


@pytest.mark.parametrize(
    ("of_key", "of_tenant", "allowed"),
    [
        ([], [], ["interactive", "background"]),
        (["background"], [], ["background"]),
        ([], ["interactive"], ["interactive"]),
        (["interactive"], ["background"], []),
    ],
)
async def test_classes_that_a_key_may_use(path: Path, of_key: list[str], of_tenant: list[str], allowed: list[str]) -> None:
    """What its tenant may, and no more than it says itself; the refusal names what is left."""
    text, _ = KeysFile(path).add("alice", classes=of_key)
    settings = {"tenants": {"alice": {"classes": of_tenant}}}
    for name, tier in (("interactive", "auto"), ("background", "flex")):
        reply = await asked(path, text, settings, service_tier=tier)
        if name in allowed:
            assert reply.status == 200
        else:
            assert (reply.status, reply.error["code"], reply.error["param"]) == (403, "class_not_allowed", "service_tier")
            assert f"may not use class '{name}'" in reply.error["message"]
            assert all(f"'{left}'" in reply.error["message"] for left in allowed)


async def test_an_admin_key_of_the_file_opens_admin_and_nothing_else(path: Path) -> None:
    """And once there is one, being on this machine is not enough, even after it was revoked."""
    file = KeysFile(path)
    tenants, _ = file.add("alice")
    admin, key = file.add("boss", admin=True)
    app = make_app(FakeEngine(), keys=KeyRing(path))

    async def status(key: str, client: str = "127.0.0.1") -> int:
        headers = {"authorization": f"Bearer {key}"}
        return (await ask(app, "GET", "/admin/requests", headers=headers, client=client)).status

    assert await status(admin, "10.0.0.1") == 200
    assert await status(tenants) == 401
    assert (await ask(app, "GET", "/admin/requests")).status == 401
    assert (await asked(path, admin)).error["code"] == "invalid_api_key"
    file.revoke(key.id)
    app = make_app(FakeEngine(), keys=KeyRing(path))
    assert await status(admin) == 401
    assert (await ask(app, "GET", "/admin/requests")).status == 401
