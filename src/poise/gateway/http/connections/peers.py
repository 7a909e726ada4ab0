"""Who is at the other end: the address of a connection, or the one that a trusted proxy tells; what a request shows of who
sends it, and under which id it is known.

Any client can send `X-Forwarded-For`. It is believed from the proxies in `server.trusted_proxies` alone, and read from its right
end, where those proxies write: the first address that is not one of theirs is the client's. That a request was forwarded at all
is another question, and any such header answers it: who only pretends to be forwarded gains nothing by it."""

import ipaddress
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from starlette.requests import HTTPConnection
from starlette.types import Scope

from poise.config.kinds import address_of, is_loopback
from poise.gateway.tenancy.caller import Credentials

PEER = "poise.peer"
"""Where the Peer of a request is in its scope."""

_FORWARDING = {
    b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip", b"cf-connecting-ip",
    b"fastly-client-ip",
}  # fmt: skip
_FORWARDING_PREFIX = b"x-forwarded-"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Peer:
    """Who sent a request."""

    address: str
    """The client's IP address: the connection's, or what a trusted proxy tells; empty where there is none (a Unix socket)."""
    is_forwarded: bool
    """Something in between passed it on, or a header says so. Such a request is never taken for one of this machine's own."""


class TrustedProxies:
    """The proxies whose word about their clients counts."""

    def __init__(self, networks: Iterable[str]) -> None:
        """`networks`: addresses or networks, as in 10.0.0.2 or 10.0.0.0/8."""
        self._networks: list[Network] = [ipaddress.ip_network(network, strict=False) for network in networks]

    def __contains__(self, address: str) -> bool:
        if not self._networks:
            return False
        parsed = address_of(address)
        return parsed is not None and any(parsed in network for network in self._networks)

    def peer(self, connected: str, headers: Sequence[tuple[bytes, bytes]]) -> Peer:
        """`connected` is the address at the other end of the connection."""
        forwarded = is_forwarded(headers)
        if not forwarded or connected not in self:
            return Peer(connected, forwarded)
        addresses = b",".join(value for name, value in headers if name == b"x-forwarded-for").decode("latin-1")
        for entry in reversed(addresses.split(",")):
            parsed = address_of(_without_port(entry.strip()))
            if parsed is None:
                break  # what is left of it was not written by a proxy that can be relied on
            if str(parsed) not in self:
                return Peer(str(parsed), forwarded)
        return Peer(connected, forwarded)


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

    A proxy need not say so: this is no reason to trust anybody, only one not to."""
    peer, server = peer_of(scope), scope.get("server")
    is_here = is_loopback(peer.address) or (server is not None and peer.address == server[0])
    return is_here and not peer.is_forwarded


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


REQUEST_ID = b"x-request-id"
"""The header that a request has when it comes to the application: RequestMiddleware sees to that."""


def credentials_of(connection: HTTPConnection) -> Credentials:
    """What a request shows of who sends it."""
    return Credentials(
        connection.headers.get("authorization", "").strip(),
        connection.headers.get("x-api-key", "").strip(),
        is_direct(connection.scope),
        request_id_of(connection.scope),
    )


def request_id_of(scope: Scope) -> str:
    """The id of the request that a scope belongs to."""
    return next((value.decode("latin-1") for name, value in scope["headers"] if name == REQUEST_ID), "-")
