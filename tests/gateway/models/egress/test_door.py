"""The door: what has to be true before a byte leaves, and how each thing that a server can do wrong ends."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from prometheus_client import CollectorRegistry

from poise.audit.log import AuditError
from poise.config import Settings
from poise.gateway.models.egress import reply as replies
from poise.gateway.models.egress.door import Call, Egress, EgressError, Reply
from poise.gateway.models.egress.hosts import EgressSetupError, read_secret
from poise.gateway.models.egress.permit import SEAL, Permit, Purpose
from poise.gateway.models.egress.reply import ERROR_BYTES_MAX, retry_after_s
from poise.gateway.models.remote.events import Used
from poise.gateway.request.labels import Label
from poise.metrics.egress import EgressMetrics
from tests.egress import cloud as c
from tests.egress.cloud import Cloud, Exchange, Script

SECRET = "sk-canary-of-a-key"
TEXT = b'{"messages": "canary of a prompt"}'
CALL = Call("/chat/completions", TEXT, model="big")
QUICK = {"connect_s": 1.0, "first_s": 0.15, "gap_s": 0.1}
DRIPPING = {"drips a line that never ends": {"first_s": 600.0}, "drips comments": {"gap_s": 0.5}, "drips pings": {"gap_s": 0.5}}
"""Which of the two bounds on silence it is that ends it."""


class Book:
    """An audit log: its entries, and how many connections there were when each was written."""

    def __init__(self, count: Callable[[], int], *, enabled: bool = True, error: Exception | None = None) -> None:
        self.enabled, self.error, self._count = enabled, error, count
        self.entries: list[tuple[str, dict[str, Any], int]] = []
        self.release = asyncio.Event()
        self.release.set()

    async def written(self, event: str, **fields: Any) -> None:
        await self.release.wait()
        if self.error is not None:
            raise self.error
        self.put(event, **fields)

    def put(self, event: str, **fields: Any) -> None:
        json.dumps(fields)
        self.entries.append((event, fields, self._count()))

    @property
    def names(self) -> list[str]:
        return [name for name, _, _ in self.entries]


class Door:
    """An egress with one backend, and what it tells."""

    def __init__(self, backend: dict[str, Any], count: Callable[[], int] = lambda: 0, **options: Any) -> None:
        environ, resolver = options.pop("environ", {}), options.pop("resolver", None)
        egress = {"enabled": options.pop("open", True)}
        self.book = Book(count, **options)
        self.registry = CollectorRegistry()
        settings = Settings.model_validate({"egress": egress, "backends": {"cloud": backend}})
        metrics = EgressMetrics(self.registry, CollectorRegistry())
        self.egress = Egress(settings, self.book, metrics, environ=environ, resolver=resolver)

    async def ask(self, call: Call = CALL, permit: Permit | None = None) -> bytes:
        async with self.egress.send(permit or permitted(), call) as reply:
            return await reply.body(1 << 26)

    async def fails(self, call: Call = CALL, permit: Permit | None = None) -> EgressError:
        with pytest.raises(EgressError) as caught:
            await self.ask(call, permit)
        assert SECRET not in repr(caught.value)
        assert "canary" not in str(caught.value)
        return caught.value

    def counted(self, outcome: str, label: str = "public") -> float | None:
        labels = {"backend": "cloud", "label": label, "outcome": outcome}
        return self.registry.get_sample_value("poise_egress_requests_total", labels)


def permitted(label: Label = Label.PUBLIC, purpose: Purpose = Purpose.ANSWER) -> Permit:
    return Permit("cloud", purpose, label, ("tenant",), "wait", "alice", "req-1", SEAL)


async def test_an_exchange_is_on_record_before_it_begins() -> None:
    """Who, what for, how much; never what was said. At its end what came of it."""
    async with Cloud() as cloud:
        door = Door(cloud.backend(), lambda: cloud.n_connections)
        async with door.egress.send(permitted(), CALL) as reply:
            body = await reply.body(1 << 20)
            reply.settle(Used(10, 4, 3), 1234)
        await door.egress.close()
    assert b"hello" in body
    assert (cloud.last.path, cloud.last.method, cloud.last.body) == ("/v1/chat/completions", "POST", TEXT)
    (first, told, n_connections), (last, ended, _) = door.book.entries
    assert (first, n_connections, last) == ("egress", 0, "egress_end")
    assert told == {
        "request": "req-1", "tenant": "alice", "backend": "cloud", "host": cloud.url.removesuffix("/v1"), "model": "big",
        "purpose": "answer", "label": "public", "sources": ["tenant"], "reason": "wait", "bytes": len(TEXT),
    }  # fmt: skip
    assert ended["outcome"] == "done"
    assert (ended["status"], ended["sent"], ended["received"]) == (200, len(TEXT), len(body))
    assert (ended["prompt_tokens"], ended["cached_tokens"], ended["output_tokens"], ended["cost_nano"]) == (10, 4, 3, 1234)
    assert "canary" not in str(door.book.entries)
    assert door.counted("done") == 1


async def test_what_a_server_is_told_of_who_asks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its key, and nothing of ours: no cookie that it has set, no proxy and no password file of the environment."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret-of-netrc")
    netrc.chmod(0o600)
    for name, value in {"NETRC": str(netrc), "HTTP_PROXY": "http://127.0.0.1:9", "ALL_PROXY": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    key = secret_file(tmp_path)
    async with Cloud() as cloud:
        cloud.answers(c.is_json(b"{}", Set_Cookie="id=cookie-of-theirs"))
        for style in ("openai", "anthropic"):
            door = Door(cloud.backend(key_file=key, format=style))
            await door.ask()
            await door.ask()
            await door.egress.close()
    (_, first, _, second) = [exchange.headers for exchange in cloud.exchanges]
    assert first["authorization"] == f"Bearer {SECRET}"
    assert (second["x-api-key"], second["anthropic-version"]) == (SECRET, "2023-06-01")
    assert "authorization" not in second
    assert {**first, **second}["accept-encoding"] == "identity"
    assert set(first) | set(second) == {
        "host", "user-agent", "accept", "accept-encoding", "content-type", "content-length", "authorization", "x-api-key",
        "anthropic-version", "connection",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"open": False}, "egress.enabled is false"),
        ({"environ": {"POISE_NO_CLOUD": "1"}}, "POISE_NO_CLOUD"),
        ({"environ": {"POISE_NO_CLOUD": "yes"}}, "POISE_NO_CLOUD"),
    ],
)
async def test_nothing_passes_a_closed_door(options: dict[str, Any], why: str) -> None:
    """Neither an answer's request nor the question how the server is, whatever an operator does while it runs."""
    async with Cloud() as cloud:
        door = Door(cloud.backend(), **options)
        door.egress.open()
        assert why in door.egress.why_closed
        for permit, call in ((permitted(), CALL), (permitted(purpose=Purpose.HEALTH), Call("/models"))):
            error = await door.fails(call, permit)
            assert (error.kind, error.is_sent, error.is_retryable) == ("closed", False, False)
            assert why in str(error)
    assert (cloud.n_connections, door.book.names, door.counted("closed")) == (0, [], 2)


async def test_an_operator_shuts_and_opens_it() -> None:
    """What waits for its entry in the log then does not leave; an answer that has begun goes on."""
    async with Cloud() as cloud:
        cloud.answers(c.says("a"), c.stops_talking)
        door = Door(cloud.backend())
        door.book.release.clear()
        waiting = asyncio.ensure_future(door.fails())
        await asyncio.sleep(0)
        door.egress.shut("for the night")
        door.book.release.set()
        error = await waiting
        assert error.kind == "closed"
        assert "for the night" in str(error)
        assert cloud.n_connections == 0
        assert door.book.names == ["egress", "egress_end"]
        door.egress.open()
        assert await door.ask()
        async with door.egress.send(permitted(), CALL) as reply:
            async for _ in reply.chunks():
                door.egress.shut("again")
                break
        assert reply.outcome == "done"
        await door.egress.close()


async def test_shutting_it_breaks_off_what_has_no_answer_yet() -> None:
    async with Cloud() as cloud:
        cloud.answers(c.never)
        door = Door(cloud.backend())
        waiting = asyncio.ensure_future(door.fails())
        await cloud.asked.wait()
        door.egress.shut("at once")
        error = await waiting
        assert (error.kind, door.counted("closed")) == ("closed", 1)
        await door.egress.close()


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("error", [AuditError("the disk is full"), OSError(28, "No space left on device")])
async def test_nothing_leaves_without_an_entry(error: Exception, enabled: bool) -> None:
    """No audit, no send; also where there is no log at all."""
    async with Cloud() as cloud:
        door = Door(cloud.backend(), error=error, enabled=enabled)
        failed = await door.fails()
        assert (failed.kind, failed.is_sent) == ("no_audit", False)
    assert (cloud.n_connections, door.book.names, door.counted("no_audit")) == (0, [], 1)


async def test_what_stays_on_this_host_needs_neither() -> None:
    """A server beside this one is asked also behind a closed door, without an audit log; with one, it has the entry."""
    async with Cloud() as cloud:
        backend = cloud.backend(leaves_host="auto")
        quiet = Door(backend, open=False, enabled=False, error=AuditError("there is none"))
        assert not quiet.egress.leaves_host("cloud")
        assert await quiet.ask()
        assert quiet.book.names == []
        told = Door(backend, open=False)
        assert await told.ask()
        assert told.book.names == ["egress", "egress_end"]
        unwritten = Door(backend, open=False, error=AuditError("full"))
        assert (await unwritten.fails()).kind == "no_audit"
        for door in (quiet, told):
            await door.egress.close()


async def test_a_permit_is_for_one_exchange_of_its_kind() -> None:
    """Not twice; no body to see how a server is; and no label above what may go there, whoever made the permit."""
    async with Cloud() as cloud:
        door = Door(cloud.backend(ceiling="internal"))
        permit = permitted(Label.INTERNAL)
        assert await door.ask(permit=permit)
        with pytest.raises(AssertionError, match="one exchange"):
            await door.ask(permit=permit)
        with pytest.raises(AssertionError, match="nothing of a request"):
            await door.ask(CALL, permitted(purpose=Purpose.HEALTH))
        error = await door.fails(permit=permitted(Label.CONFIDENTIAL))
        assert (error.kind, cloud.n_requests) == ("closed", 1)
        with pytest.raises(AssertionError, match="only the policy"):
            Permit("cloud", Purpose.ANSWER, Label.PUBLIC, (), "", "", "", object())
        await door.egress.close()


FAULTS: dict[str, tuple[Script, str, bool]] = {
    "nothing": (c.never, "timeout", True),
    "dies at once": (c.dies_after(), "broken", True),
    "dies after the role": (c.dies_after(c.ROLE), "broken", False),
    "dies after a token": (c.dies_after(c.ROLE, c.delta("one")), "broken", False),
    "stops talking": (c.stops_talking, "timeout", False),
    "drips a line that never ends": (c.drips(b"x"), "timeout", False),
    "drips comments": (c.drips(b":\n"), "timeout", False),
    "drips pings": (c.drips(b'event: ping\ndata: {"type": "ping"}\n\n'), "timeout", False),
    "redirects": (c.redirects("https://elsewhere.example/v1?key=canary"), "redirect", False),
    "redirects to itself": (c.redirects("/v2"), "redirect", False),
    "redirects to nonsense": (c.redirects("http://[canary"), "redirect", False),
    "gzip": (c.is_json(b"\x1f\x8b\x08" + b"\0" * 1000, Content_Encoding="gzip"), "encoding", False),
    "no HTTP": (lambda exchange: exchange.send(b"SSH-2.0-OpenSSH\r\n\r\n"), "broken", True),
    "large headers": (c.is_json(b"{}", X_Large="x" * 9000), "broken", True),
    "many headers": (c.is_json(b"{}", **{f"X_{i}": "x" for i in range(100)}), "broken", True),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_what_a_server_does_wrong_ends_once(fault: str) -> None:
    """With what it was, whether another one may be asked, and an entry at the end. Nothing is sent twice."""
    script, kind, is_retryable = FAULTS[fault]
    async with Cloud() as cloud:
        cloud.answers(script)
        door = Door(cloud.backend(**(QUICK | DRIPPING.get(fault, {}))))
        error = await door.fails()
        assert (error.kind, error.is_retryable, error.is_sent) == (kind, is_retryable, True)
        assert (cloud.n_requests, door.counted(kind)) == (1, 1)
        assert door.book.entries[-1][1]["outcome"] == kind
        assert kind != "redirect" or ("elsewhere.example" in str(error)) == (fault == "redirects")
        await door.egress.close()


@pytest.mark.parametrize(
    ("status", "is_retryable"),
    [("429 Too Many Requests", True), ("503 Service Unavailable", True), ("529 Overloaded", True), ("500 Internal", True)]
    + [(f"{status} No", False) for status in (400, 401, 403, 404, 413, 422, 501)],
)
async def test_errors_have_what_the_server_said(status: str, is_retryable: bool) -> None:
    async with Cloud() as cloud:
        cloud.answers(c.refuses(status, b'{"error": {"message": "canary"}}', Retry_After="2"))
        door = Door(cloud.backend())
        error = await door.fails()
        assert (error.kind, error.status, error.is_retryable) == ("status", int(status.split()[0]), is_retryable)
        assert (error.body, error.retry_after_s) == (b'{"error": {"message": "canary"}}', 2.0)
        await door.egress.close()


async def test_the_body_of_an_error_is_bounded() -> None:
    """Also one that never ends, or is compressed."""

    async def endless(exchange: Exchange) -> None:
        await exchange.begin("500 Internal Server Error")
        while not exchange.gone.is_set():
            await exchange.chunk(b"x" * 5000)

    async with Cloud() as cloud:
        cloud.answers(endless, c.refuses("500 Internal", b"\x1f\x8b", Content_Encoding="gzip"), c.drips(b"x", b"begun"))
        door = Door(cloud.backend(**QUICK))
        assert len((await door.fails()).body) == ERROR_BYTES_MAX
        assert (await door.fails()).body == b""
        await door.egress.close()


async def test_an_answer_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many lines it has, and for who wants less."""
    monkeypatch.setattr(replies, "ANSWER_BYTES_MAX", 1 << 20)
    async with Cloud() as cloud:
        cloud.answers(c.drips(b"data: " + b"x" * 4000 + b"\n", step=4007))
        door = Door(cloud.backend())
        error = await door.fails()
        assert (error.kind, error.is_retryable) == ("too_large", False)
        with pytest.raises(EgressError, match="more than 1000 bytes"):
            async with door.egress.send(permitted(), CALL) as reply:
                await reply.body(1000)
        await door.egress.close()


async def test_a_question_is_not_repeated_by_itself() -> None:
    """Not even one that HTTP calls idempotent, on a connection that was kept: it would be without a permit and an entry."""
    async with Cloud() as cloud:
        cloud.answers(c.says("a"), c.dies_after())
        door = Door(cloud.backend())
        health = permitted(purpose=Purpose.HEALTH)
        assert await door.ask(Call("/models"), health)
        error = await door.fails(Call("/models"), permitted(purpose=Purpose.HEALTH))
        assert (error.kind, cloud.n_requests, door.book.names.count("egress")) == ("broken", 2, 2)
        await door.egress.close()


async def test_nobody_listens() -> None:
    async with Cloud() as cloud:
        backend = cloud.backend()
    door = Door(backend)
    error = await door.fails()
    assert (error.kind, error.is_retryable, error.is_sent) == ("connect", True, False)
    assert door.book.entries[-1][1]["sent"] == 0
    await door.egress.close()


async def test_certificates_are_verified(tmp_path: Path) -> None:
    """By whom they are, and for which name; what is wrong is said in words, and nothing is sent."""
    async with Cloud(tls=True, folder=tmp_path) as cloud:
        good = Door(cloud.backend())
        assert await good.ask()
        unknown = Door(cloud.backend(ca_file=""))
        error = await unknown.fails()
        assert (error.kind, error.is_sent, error.is_retryable, cloud.n_requests) == ("tls", False, False, 1)
        assert "certificate" in str(error)
        for door in (good, unknown):
            await door.egress.close()
    async with Cloud(tls=True, folder=tmp_path, names=("other.example",)) as other:
        door = Door(other.backend())
        error = await door.fails()
        assert (error.kind, other.received) == ("tls", b"")
        assert "not valid for" in str(error)
        await door.egress.close()


class Names(AbstractResolver):
    """Every name is at one address."""

    def __init__(self, address: str) -> None:
        self._address = address

    async def resolve(self, host: str, port: int = 0, family: int = 0) -> list[ResolveResult]:
        found = {"hostname": host, "host": self._address, "port": port, "proto": 0, "flags": socket.AI_NUMERICHOST}
        return [ResolveResult(family=socket.AF_INET, **found)]  # type: ignore[typeddict-item]

    async def close(self) -> None:
        pass


async def test_a_name_that_stands_for_this_host_means_it() -> None:
    """What does not leave it goes to its own addresses, whatever a resolver says."""
    async with Cloud() as cloud:
        backend = cloud.backend(leaves_host="auto", url=f"http://localhost:{cloud.port}/v1")
        door = Door(backend, open=False, resolver=Names("127.0.0.1"))
        assert await door.ask()
        await door.egress.close()
        astray = Door(backend, open=False, resolver=Names("192.0.2.1"))
        error = await astray.fails()
        assert (error.kind, "no address on this host" in str(error)) == ("connect", True)
        await astray.egress.close()


async def test_the_name_is_verified_where_it_resolves_to(tmp_path: Path) -> None:
    async with Cloud(tls=True, folder=tmp_path, names=("api.example",)) as cloud:
        door = Door(cloud.backend(url=f"https://api.example:{cloud.port}/v1"), resolver=Names("127.0.0.1"))
        assert await door.ask()
        assert cloud.last.headers["host"] == f"api.example:{cloud.port}"
        wrong = Door(cloud.backend(url=f"https://api2.example:{cloud.port}/v1"), resolver=Names("127.0.0.1"))
        assert (await wrong.fails()).kind == "tls"
        for one in (door, wrong):
            await one.egress.close()


async def test_progress_is_what_counts_as_life() -> None:
    """Pings keep an answer alive for a while; what its reader calls progress, for as long as it comes."""
    async with Cloud() as cloud:
        cloud.answers(c.drips(b"data: {}\n\n"))
        door = Door(cloud.backend(first_s=0.5, gap_s=0.5))
        n_chunks = 0
        async with door.egress.send(permitted(), CALL) as reply:
            loop = asyncio.get_running_loop()
            until_s = loop.time() + 1.5
            async for _ in reply.chunks():
                reply.progressed()
                n_chunks += 1
                if loop.time() > until_s:
                    break
        assert n_chunks > 10
        await door.egress.close()


async def test_a_reader_that_takes_its_time_is_not_the_servers_silence() -> None:
    async with Cloud() as cloud:
        go_on = asyncio.Event()

        async def answer(exchange: Exchange) -> None:
            await exchange.begin()
            await exchange.event(c.delta("one"))
            await go_on.wait()
            await exchange.event(c.delta("two"))
            await exchange.end()

        cloud.answers(answer)
        door = Door(cloud.backend(**QUICK))
        async with door.egress.send(permitted(), CALL) as reply:
            chunks = reply.chunks()
            await anext(chunks)
            await asyncio.sleep(2 * QUICK["first_s"])
            asyncio.get_running_loop().call_soon(go_on.set)
            assert b"two" in await anext(chunks)
        await door.egress.close()


async def test_who_leaves_early_closes_the_connection() -> None:
    """And it is counted as what it was: an answer that nobody wanted any more."""
    async with Cloud() as cloud:
        cloud.answers(c.stops_talking)
        door = Door(cloud.backend())

        async def read() -> Reply:
            async with door.egress.send(permitted(), CALL) as reply:
                async for _ in reply.chunks():
                    task.cancel()
            return reply

        task = asyncio.ensure_future(read())
        with pytest.raises(asyncio.CancelledError):
            await task
        await cloud.last.gone.wait()
        assert door.counted("cancelled") == 1
        assert door.book.entries[-1][1]["outcome"] == "cancelled"
        await door.egress.close()


def secret_file(folder: Path, text: str = SECRET + "\n", mode: int = 0o600) -> str:
    path = folder / "cloud.key"
    path.write_text(text)
    path.chmod(mode)
    return str(path)


def test_keys_come_from_private_files(tmp_path: Path) -> None:
    """Or from systemd; an error says what is wrong, never what is in the file."""
    assert read_secret(secret_file(tmp_path), "x", {}) == SECRET
    assert read_secret("credential:cloud.key", "x", {"CREDENTIALS_DIRECTORY": str(tmp_path)}) == SECRET
    (tmp_path / "folder").mkdir()
    bad = {
        secret_file(tmp_path, mode=0o640): "chmod 600",
        str(tmp_path / "none"): "No such file",
        str(tmp_path / "folder"): "is no file",
        "credential:../cloud.key": "names no credential",
        "credential:cloud.key": "CREDENTIALS_DIRECTORY",
    }
    for given, problem in bad.items():
        with pytest.raises(EgressSetupError, match=problem) as caught:
            read_secret(given, "backends.cloud.key_file", {})
        assert "backends.cloud.key_file" in str(caught.value)
    for text in ("", "two words", "ключ", f"{SECRET}\n{SECRET}", "x" * 10_000):
        with pytest.raises(EgressSetupError, match="has no key") as caught:
            read_secret(secret_file(tmp_path, text), "x", {})
        assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        ({"url": "http://api.example/v1"}, "in the clear"),
        ({"url": "https://api.example:x/v1"}, "is no URL"),
        ({"url": "https://api.example/v1", "ca_file": "/nowhere.pem"}, "No such file"),
        ({"url": "https://api.example/v1", "ca_file": __file__}, "no certificates"),
    ],
)
def test_backends_that_cannot_be_used_are_told_at_the_start(backend: dict[str, Any], problem: str) -> None:
    with pytest.raises(EgressSetupError, match=problem):
        Door(backend)


@pytest.mark.parametrize(
    ("backend", "leaves"),
    [
        ({"url": "http://127.0.0.1:1/v1"}, False),
        ({"url": "http://[::1]:1/v1"}, False),
        ({"url": "http://LOCALHOST:1/v1"}, False),
        ({"url": "http://127.0.0.1:1/v1", "leaves_host": True}, True),
        ({"url": "https://127.0.0.1.example/v1"}, True),
        ({"url": "https://localhost.example/v1"}, True),
        ({"url": "https://10.0.0.1/v1"}, True),
        ({"url": "http://10.0.0.1/v1", "leaves_host": False}, False),
    ],
)
async def test_what_leaves_this_host(backend: dict[str, Any], leaves: bool) -> None:
    assert Door(backend).egress.leaves_host("cloud") is leaves


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.5"}, 0.5),
        ({"retry-after-ms": "250", "Retry-After": "7"}, 0.25),
        ({"Retry-After": "Tue, 01 Dec 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Tue, 01 Dec 2026 12:00:30 GMT", "Date": "Tue, 01 Dec 2026 12:00:20 GMT"}, 10.0),
        ({"Retry-After": "Tue, 01 Dec 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "Fri, 31 Dec 9999 23:59:59 GMT"}, 86_400.0),
        ({"Retry-After": "-5"}, 0.0),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, 86_400.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Tue, 99 Dec 2026 12:00:30 GMT"}, None),
    ],
)
def test_when_to_come_again(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_s(headers, datetime(2026, 12, 1, 12, tzinfo=UTC)) == seconds


def test_who_has_no_backends_does_not_pay_for_them() -> None:
    """The HTTP client is large, and takes a while to be imported."""
    code = "import sys, poise.gateway.models.egress.door; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


async def test_a_connection_without_tls_has_one_exchange(tmp_path: Path) -> None:
    """One that its server closes just then would lose the next request; with TLS it is used again."""
    for tls, n in ((False, 2), (True, 1)):
        async with Cloud(tls=tls, folder=tmp_path) as cloud:
            door = Door(cloud.backend())
            await door.ask()
            await door.ask()
            await door.egress.close()
            assert cloud.n_connections == n
