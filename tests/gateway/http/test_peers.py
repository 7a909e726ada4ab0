"""Whether something passed a request on: any header of a proxy says so, whatever it holds."""

from __future__ import annotations

import pytest

from poise.gateway.http.connections.peers import Peer, is_direct, is_forwarded, peer_of


@pytest.mark.parametrize(
    "name",
    [
        b"forwarded",
        b"via",
        b"x-real-ip",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-prefix",
        b"cf-connecting-ip",
        b"true-client-ip",
    ],
)
def test_a_header_of_a_proxy(name: bytes) -> None:
    """Also an empty one."""
    assert is_forwarded([(b"host", b"localhost"), (name, b"")])


def test_a_request_without_one() -> None:
    """Neither the name nor the order of other headers matters."""
    assert not is_forwarded([(b"host", b"localhost"), (b"x-request-id", b"via"), (b"user-agent", b"forwarded")])


def test_a_scope_without_a_peer() -> None:
    """The client that the server names; none for a Unix socket."""
    headers = [(b"via", b"1.1 proxy")]
    assert peer_of({"client": ("10.0.0.1", 4711), "headers": headers}) == Peer("10.0.0.1", True)
    assert peer_of({"client": None, "headers": []}) == Peer("", False)


@pytest.mark.parametrize(
    ("client", "header", "direct"),
    [
        ("127.0.0.1", b"accept", True),
        ("::1", b"accept", True),
        ("192.168.1.5", b"accept", True),  # the address that the server listens on
        ("192.168.1.6", b"accept", False),
        ("127.0.0.1", b"via", False),
        ("192.168.1.5", b"x-forwarded-for", False),
        ("", b"accept", False),
    ],
)
def test_who_comes_straight_from_this_machine(client: str, header: bytes, direct: bool) -> None:
    """By the address of the peer, unless a header says that it asks for another."""
    scope = {"client": (client, 4711), "server": ("192.168.1.5", 8000), "headers": [(header, b"x")]}
    assert is_direct(scope) is direct
