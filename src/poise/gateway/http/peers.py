"""Who is at the other end of a connection, and whether something in between passed its request on.

Any client can send the headers of a proxy. That a request has one says that it may come from anywhere: who only pretends to be
forwarded gains nothing by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from starlette.types import Scope

from poise.gateway.exposure import is_loopback

PEER = "poise.peer"
"""Where the Peer of a request is in its scope."""

_FORWARDING = frozenset(
    {
        b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip",
        b"fastly-client-ip",
    }
)  # fmt: skip
_FORWARDING_PREFIX = b"x-forwarded-"


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request."""

    address: str
    """The IP address of the connection; empty where there is none (a Unix socket)."""
    is_forwarded: bool
    """Something in between passed it on, or a header says so. Such a request is never taken for one of this machine's own."""


def is_forwarded(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a header says that something passed the request on. Names in small letters, as ASGI has them."""
    return any(name in _FORWARDING or name.startswith(_FORWARDING_PREFIX) for name, _ in headers)


def peer_of(scope: Scope) -> Peer:
    """Who sent the request of a scope."""
    peer = scope.get(PEER)
    if isinstance(peer, Peer):
        return peer
    client = scope.get("client")
    return Peer(str(client[0]) if client else "", is_forwarded(scope["headers"]))


def is_direct(scope: Scope) -> bool:
    """The request comes straight from a program on this machine, as far as anybody says.

    A proxy need not say so: this is no reason to trust anybody, only one not to.
    """
    peer, server = peer_of(scope), scope.get("server")
    is_here = is_loopback(peer.address) or (server is not None and peer.address == server[0])
    return is_here and not peer.is_forwarded
