"""Where a server listens."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from poise.config import Settings
from poise.gateway.serve import _CannotListen, _listen
from poise.gateway.tenancy.keys import KeyRing


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.create_server(("::1", 0), family=socket.AF_INET6):
        return True
    return False


IPV6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")


@contextlib.contextmanager
def listening(keys: KeyRing, host: str, port: int = 0) -> Iterator[Sequence[socket.socket]]:
    listeners = _listen(Settings.model_validate({"server": {"host": host, "port": port}}), keys)
    try:
        yield listeners
    finally:
        for listener in listeners:
            listener.close()


@pytest.fixture
def keys(tmp_path: Path) -> KeyRing:
    return KeyRing(tmp_path / "keys.jsonl")


@IPV6
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_localhost_is_both_loopback_addresses(keys: KeyRing, host: str) -> None:
    """On one port: some clients take the one for it, some the other."""
    with listening(keys, host) as listeners:
        ports = {listener.getsockname()[1] for listener in listeners}
        assert len(ports) == 1
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, *ports), timeout=10).close()


@IPV6
def test_another_address_is_the_only_one(keys: KeyRing) -> None:
    for host in ("::1", "127.0.0.2"):
        with listening(keys, host) as (listener,):
            assert listener.getsockname()[0] == host


@IPV6
def test_what_somebody_else_has_of_localhost(keys: KeyRing, caplog: pytest.LogCaptureFixture) -> None:
    """The first address is needed; of the second one it is said that it is not this server's."""
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as other:
        port = other.getsockname()[1]
        with listening(keys, "127.0.0.1", port) as (listener,):
            assert listener.getsockname() == ("127.0.0.1", port)
            assert "::1" in caplog.text
            with pytest.raises(_CannotListen, match="is in use"), listening(keys, "127.0.0.1", port):
                pass


def test_without_a_second_address(keys: KeyRing, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without IPv6 serves as before, and says nothing."""
    make = socket.socket

    def without(family: int, *arguments: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return make(family, *arguments)

    monkeypatch.setattr("poise.gateway.serve.socket.socket", without)
    with listening(keys, "127.0.0.1") as listeners:
        assert len(listeners) == 1
