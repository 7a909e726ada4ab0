"""HTTP to other servers by aiohttp, with all switched off that it does by itself: what it is given is sent once, to one host.

It is large, so it is imported only where there are backends."""

import errno
import socket
import ssl
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from poise.config.kinds import is_loopback
from poise.gateway.models.egress.hosts import Host
from poise.gateway.models.egress.reply import Failure, Kind

KEEP_S = 3.0
"""For so long a connection waits for the next request. Servers in front of clouds wait for a minute."""
HEADERS_MAX, HEADER_BYTES_MAX = 64, 4096
"""Of an answer: how many, and of each."""


class HttpAnswer:
    """The head of an answer, and its body as it comes."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status, self.headers = response.status, response.headers

    async def read(self) -> bytes:
        """What has come, at least a byte; empty: it is over. Raises Failure."""
        try:
            return await self._response.content.readany()
        except (aiohttp.ClientError, OSError) as error:
            raise Failure("broken", type(error).__name__) from None

    def close(self) -> None:
        """A connection with more to come is closed, another one is kept."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Connections:
    """Those to all backends: at most as many to each as it has slots, and one."""

    def __init__(self, resolver: AbstractResolver | None) -> None:
        self._resolver = resolver
        self._sessions: dict[str, aiohttp.ClientSession] = {}

    async def ask(self, host: Host, path: str, body: bytes, accept: str) -> HttpAnswer:
        """Raises Failure, or TimeoutError where its caller has set one."""
        request = self._session(host).request(
            "POST" if body else "GET",
            host.url + path,
            data=body or None,
            headers={**host.headers, "Accept": accept},
            ssl=host.tls or True,
            allow_redirects=False,
        )
        try:
            return HttpAnswer(await request)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, ssl.SSLError) as error:
            is_tls = isinstance(error, aiohttp.ClientConnectorSSLError | aiohttp.ClientConnectorCertificateError | ssl.SSLError)
            kind: Kind = "tls" if is_tls else "connect"
            raise Failure(kind, _reason(error)) from None
        except TimeoutError:
            raise
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise Failure("broken", type(error).__name__) from None

    async def close(self) -> None:
        sessions, self._sessions = self._sessions, {}
        for session in sessions.values():
            await session.close()

    def _session(self, host: Host) -> aiohttp.ClientSession:
        session = self._sessions.get(host.backend)
        if session is None:
            resolver = _Resolver(self._resolver, host.only_loopback)
            # A connection that its server closes just then loses the request, and nothing is sent twice. llama-server's live for
            # 5 s, or a hundred requests. So only what TLS makes dear is used again, and soon.
            keep: dict[str, Any] = {"force_close": True} if host.tls is None else {"keepalive_timeout": KEEP_S}
            session = self._sessions[host.backend] = aiohttp.ClientSession(
                # One more than there are places: to see how a server is must not wait for its answers.
                connector=aiohttp.TCPConnector(limit=host.slots + 1, resolver=resolver, ssl=host.tls or True, **keep),
                trust_env=False,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=host.connect_s),
                max_line_size=HEADER_BYTES_MAX,
                max_field_size=HEADER_BYTES_MAX,
                max_headers=HEADERS_MAX,
            )
            # It would send a GET again by itself, without a permit and an entry in the log.
            session._retry_connection = False
        return session


class _Resolver(AbstractResolver):
    """Names to addresses. Where all has to stay on this host, other addresses than its own are none."""

    def __init__(self, resolver: AbstractResolver | None, only_loopback: bool) -> None:
        self._resolver = resolver or aiohttp.ThreadedResolver()
        self._only_loopback = only_loopback

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        if self._only_loopback:
            found = [result for result in found if is_loopback(result["host"])]
        if not found:
            raise OSError(errno.EADDRNOTAVAIL, "it has no address on this host")
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _reason(error: Exception) -> str:
    """Why, in the words of the system: those of a library might quote an address with more in it."""
    inner = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    certificate = getattr(error, "certificate_error", inner)
    told = getattr(certificate, "verify_message", "") or getattr(certificate, "reason", "") or getattr(inner, "strerror", "")
    return str(told) or type(error).__name__
