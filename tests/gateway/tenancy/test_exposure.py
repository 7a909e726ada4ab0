"""Listening beyond this machine, and TLS that is really spoken."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from pathlib import Path
from typing import Any

import pytest
import trustme

from poise.config import ConfigError, Settings, load
from poise.gateway.tenancy.exposure import Exposed, check, tls_context
from tests.gateway.fakes import WAIT_S, FakeEngine, chat_body, make_app, says
from tests.gateway.http.serving import served


@pytest.mark.parametrize(
    ("address", "settings", "n_keys", "problem"),
    [
        ("127.0.0.1", {}, 0, ""),
        ("::1", {}, 0, ""),
        ("0.0.0.0", {}, 0, "poise keys add NAME"),
        ("0.0.0.0", {}, 1, "server.tls_cert and server.tls_key"),
        ("0.0.0.0", {"auth": {"required": False}}, 1, "auth.required = true"),
        ("::", {"server": {"allow_plain": True}}, 1, ""),
        ("192.168.1.5", {}, 0, "server.allow_open = true"),
        ("0.0.0.0", {"auth": {"required": True}}, 0, "poise keys add NAME"),
        ("127.0.0.1", {"auth": {"required": True}}, 0, "poise keys add NAME"),
        ("0.0.0.0", {"auth": {"required": True}}, 1, "server.tls_cert and server.tls_key"),
        ("0.0.0.0", {"auth": {"required": True}, "server": {"allow_plain": True}}, 1, ""),
        ("0.0.0.0", {"auth": {"required": True}, "server": {"tls_cert": "c", "tls_key": "k"}}, 1, ""),
        ("0.0.0.0", {"server": {"allow_open": True}}, 0, "server.allow_plain = true"),
        ("0.0.0.0", {"server": {"allow_open": True, "allow_plain": True}}, 0, ""),
    ],
)
def test_what_may_listen_where(address: str, settings: dict[str, Any], n_keys: int, problem: str) -> None:
    """Beyond this machine only with required keys and TLS, unless told so; one line says what to set."""
    if not problem:
        check(Settings.model_validate(settings), address, n_keys=n_keys)
        return
    with pytest.raises(Exposed) as caught:
        check(Settings.model_validate(settings), address, n_keys=n_keys)
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def certificate(folder: Path) -> tuple[trustme.CA, Settings]:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    paths = {"tls_cert": str(folder / "cert.pem"), "tls_key": str(folder / "key.pem")}
    return authority, Settings.model_validate({"server": paths})


async def test_tls_is_spoken(tmp_path: Path) -> None:
    """With the certificate that is set, over the same protocol; without TLS nothing is answered."""
    authority, settings = certificate(tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    context = tls_context(settings.server)
    assert context is not None
    app = make_app(FakeEngine(says("hello")), settings)
    async with served(app, settings, tls=context) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=trusting, server_hostname="localhost")
        body = str(chat_body()).replace("'", '"').encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n" % len(body)
        writer.write(head + b"Connection: close\r\n\r\n" + body)
        answer = await asyncio.wait_for(reader.read(), WAIT_S)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b'"content":"hello"' in answer
        writer.close()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head + b"\r\n" + body)
        assert not (await asyncio.wait_for(reader.read(), WAIT_S)).startswith(b"HTTP")
        writer.close()


async def test_a_handshake_that_does_not_come(tmp_path: Path) -> None:
    """A connection that says nothing is not waited for any longer than a head is."""
    _, settings = certificate(tmp_path)
    short = settings.model_copy(update={"server": settings.server.model_copy(update={"body_timeout_s": 0.1})})
    async with served(make_app(FakeEngine()), short, tls=tls_context(settings.server)) as port:
        for sent in (b"", b"\x16\x03\x01\x02"):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(reader.read(), WAIT_S)
            writer.close()


def test_files_that_do_not_serve_are_told(tmp_path: Path) -> None:
    """At the start, and without asking for a passphrase at the terminal."""
    _, settings = certificate(tmp_path)
    assert tls_context(Settings().server) is None
    (tmp_path / "key.pem").unlink()
    with pytest.raises(Exposed, match="no such file"):
        tls_context(settings.server)
    (tmp_path / "key.pem").write_text("no key")
    with pytest.raises(Exposed, match="must be a PEM certificate chain and its key"):
        tls_context(settings.server)


def test_certificate_and_key_belong_together() -> None:
    """One alone is a slip."""
    for given, missing in (("tls_cert", "tls_key"), ("tls_key", "tls_cert")):
        with pytest.raises(ConfigError, match=f"needs server.{missing} as well"):
            load(None, {}, {f"server.{given}": "file.pem"})
