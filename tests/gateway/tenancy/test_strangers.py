"""Callers that nobody knows: one line a minute, whatever they send, and 429 when they go on; a known key is never refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from poise.audit.files import log_files
from poise.audit.log import AuditLog
from poise.config import Settings
from poise.gateway.request.refusals import ApiError
from poise.gateway.tenancy.auditing import Audit
from poise.gateway.tenancy.strangers import ADDRESSES_MAX, BURST, PER_S, TELL_EVERY_S, Strangers
from tests.gateway.fakes import OPERATOR, FakeEngine, ask, chat_body, make_app, says

CHAT = "/v1/chat/completions"
KEYS = Settings.model_validate({"auth": {"keys": {"alice": "key-of-alice"}}})
ERROR = ApiError(401, "invalid_api_key", "no")


class Desk:
    """Strangers with a clock of the test's own, and what they put on record."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.lines: list[dict[str, Any]] = []
        self.strangers = Strangers(lambda event, **fields: self.lines.append(fields), lambda: self.now_s)

    def refused(self, address: str = "192.0.2.1") -> int:
        return self.strangers.refused(address, ERROR).status


def test_a_minute_is_one_line_with_the_numbers() -> None:
    """And a quiet one is none."""
    desk = Desk()
    for i in range(1000):
        desk.refused(f"192.0.2.{i % 4}")
        desk.strangers.look()
    assert desk.lines == []
    desk.now_s = TELL_EVERY_S
    for _ in range(3):
        desk.strangers.look()
    (line,) = desk.lines
    throttled = 1000 - 4 * int(BURST)
    assert line == {
        "refused": 1000, "throttled": throttled, "addresses": 4, "errors": {"invalid_api_key": 1000}, "seconds": 60.0,
    }  # fmt: skip


def test_an_address_that_goes_on_is_slowed_down() -> None:
    """After a burst, and by itself; others are not. With time it is told again what is wrong."""
    desk = Desk()
    told = [desk.refused() for _ in range(int(BURST) + 5)]
    assert told == [401] * int(BURST) + [429] * 5
    assert desk.refused("192.0.2.2") == 401
    desk.now_s = 1 / PER_S
    assert [desk.refused(), desk.refused()] == [401, 429]


@pytest.mark.parametrize(
    ("addresses", "are_one"),
    [(("2001:db8::1", "2001:db8::2"), True), (("2001:db8::1", "2001:db8:0:1::1"), False), (("127.0.0.1", "127.0.0.2"), False)],
)
def test_who_has_a_network_has_one_allowance(addresses: tuple[str, str], are_one: bool) -> None:
    """Of IPv6 everybody has one."""
    desk = Desk()
    for _ in range(int(BURST)):
        desk.refused(addresses[0])
    assert desk.refused(addresses[1]) == (429 if are_one else 401)


def test_addresses_do_not_pile_up() -> None:
    """Who was refused longest ago gives way."""
    desk = Desk()
    for i in range(2 * ADDRESSES_MAX):
        desk.refused(f"10.{i >> 16}.{i >> 8 & 255}.{i & 255}")
    assert len(desk.strangers._allowances) == ADDRESSES_MAX
    assert len(desk.strangers._addresses) == ADDRESSES_MAX


async def test_a_known_key_is_never_refused_for_strangers_beside_it() -> None:
    """From the same address; nor is the operator. Strangers are told when to come back, at every endpoint."""
    app = make_app(FakeEngine(says("x")), KEYS)
    for i in range(int(BURST) + 3):
        reply = await ask(app, "POST", CHAT, chat_body(), headers={"authorization": f"Bearer guess-{i}"})
    assert (reply.status, reply.error["code"], reply.headers["retry-after"]) == (429, "too_many_unknown_keys", "1")
    assert (await ask(app, "GET", "/admin/requests", headers={"x-api-key": "key-of-alice"})).status == 429
    assert (await ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": "key-of-alice"})).status == 200
    assert (await ask(app, "GET", "/admin/requests", headers=OPERATOR)).status == 200
    told = (await ask(app, "GET", "/metrics")).body.decode()
    assert f"poise_unknown_callers_total {BURST + 4}" in told


async def test_strangers_do_not_write_to_the_disk(tmp_path: Path) -> None:
    """However many they are: a line, with none of their words."""
    audit = Audit(KEYS, AuditLog(tmp_path, b"k" * 32, rotate_bytes=1 << 20, keep_days=9))
    app = make_app(FakeEngine(says("x")), KEYS, audit=audit)
    for i in range(50):
        headers = {"x-request-id": "stranger-" + "x" * 50, "authorization": f"Bearer guess-{i}"}
        await ask(app, "POST", CHAT, b"{}", headers=headers)
        await ask(app, "GET", "/admin/journal", headers=headers)
    await ask(app, "POST", CHAT, chat_body(), headers={"x-api-key": "key-of-alice"})
    audit.close()
    lines = [line for file in log_files(tmp_path) for line in file.path.read_bytes().splitlines()]
    events = [json.loads(line) for line in lines]
    assert [event["event"] for event in events] == ["request", "unknown_callers"]
    assert events[1]["refused"] == 100
    assert b"stranger" not in b"".join(lines)
