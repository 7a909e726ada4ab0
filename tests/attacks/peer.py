"""HTTP by hand, for clients ruder than any library allows. Everything is bounded in time; a lost connection is an answer."""

from __future__ import annotations

import asyncio
import json
import random
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

READ_BYTES = 1 << 16
ANSWERED_S = 120.0
"""A large text has a tenth of a processor while others want all of them."""
WITHIN_S = 30.0
"""Longest wait for an answer: an attack that gets none in that time has got none."""


@dataclass
class Site:
    """The server under attack, and how its attackers look.

    sources    local addresses that connections come from
    forwarded  addresses that a request claims to be forwarded for, as by a proxy that the server trusts; empty: it claims none
    keys       keys of declared tenants that misbehave
    admin_key  the operator's key, for those attacks that an operator's own programs make
    hold_s     longest that one attack holds what it has got
    """

    port: int
    sources: Sequence[str] = ("127.0.0.1",)
    forwarded: Sequence[str] = ()
    keys: Sequence[str] = ("",)
    admin_key: str = ""
    hold_s: float = 20.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))

    def key(self) -> str:
        return self.rng.choice(self.keys)

    def words(self, n: int) -> str:
        """Text of about so many tokens that no prefix cache knows."""
        return " ".join(self.rng.choice(WORDS) for _ in range(n))

    def head(self, method: str, path: str, *, key: str = "", length: int | None = None, **more: str) -> bytes:
        """Request line and headers. Names in `more` have `_` for `-`."""
        fields = {"Host": f"127.0.0.1:{self.port}"}
        if self.forwarded:
            fields["X-Forwarded-For"] = self.rng.choice(self.forwarded)
        if key:
            fields["Authorization"] = f"Bearer {key}"
        if length is not None:
            fields |= {"Content-Type": "application/json", "Content-Length": str(length)}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode()

    def get(self, path: str, *, key: str = "", **more: str) -> bytes:
        return self.head("GET", path, key=key, length=None, **more)

    def post(self, path: str, body: Any, *, key: str = "", **more: str) -> bytes:
        """`body`: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.head("POST", path, key=key, length=len(data), **more) + data

    def chat(self, content: Any, *, key: str = "", **parameters: Any) -> bytes:
        body = {"model": "default", "messages": [{"role": "user", "content": content}], **parameters}
        return self.post("/v1/chat/completions", body, key=key)

    def completion(self, prompt: Any, *, key: str = "", **parameters: Any) -> bytes:
        return self.post("/v1/completions", {"model": "default", "prompt": prompt, **parameters}, key=key)


TEXT = """
time year people way day man thing woman life child world school state family student group country problem hand part place
case week company system program question work government number night point home water room mother area money story fact
month lot right study book eye job word business issue side kind head house service friend father power hour
"""
WORDS = TEXT.split()


@dataclass(frozen=True)
class Answer:
    """A complete HTTP response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def code(self) -> str:
        """The error's code, empty where there is none."""
        try:
            return str(json.loads(self.body)["error"]["code"])
        except (ValueError, KeyError, TypeError):
            return ""


class Peer:
    """One connection, without a transport: nothing is read unless it is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._unread = b""

    @classmethod
    async def connect(cls, site: Site, *, rcvbuf: int = 0) -> Peer:
        """Raises OSError where the server takes no more connections."""
        connection = socket.socket()
        connection.setblocking(False)
        try:
            if rcvbuf:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
            connection.bind((site.rng.choice(site.sources), 0))
            loop = asyncio.get_running_loop()
            await asyncio.wait_for(loop.sock_connect(connection, ("127.0.0.1", site.port)), WITHIN_S)
        except BaseException:
            connection.close()
            raise
        return cls(connection)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Leaves without a goodbye: the server gets a reset."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self._socket.close()

    async def send(self, data: bytes, within_s: float = WITHIN_S) -> bool:
        """Whether the server took it all."""
        try:
            await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self._socket, data), within_s)
        except (OSError, TimeoutError):
            return False
        return True

    async def receive(self, within_s: float = WITHIN_S, n: int = READ_BYTES) -> bytes | None:
        """What has come, `b""` when the connection is closed, None if nothing came in time."""
        if self._unread:
            data, self._unread = self._unread, b""
            return data
        try:
            return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self._socket, n), within_s)
        except TimeoutError:
            return None
        except OSError:
            return b""

    async def answer(self, within_s: float = WITHIN_S) -> Answer | None:
        """The next response; None if it does not come, or not to its end."""
        try:
            async with asyncio.timeout(within_s):
                return await self._answer()
        except (EOFError, TimeoutError, ValueError):
            return None

    async def ask(self, request: bytes, within_s: float = ANSWERED_S) -> str:
        """Sends it and reads the answer: its status and error code, or what came instead."""
        await self.send(request, within_s)
        answer = await self.answer(within_s)
        return f"{answer.status} {answer.code}".strip() if answer is not None else "no answer"

    async def closed(self, within_s: float) -> bool:
        """Whether the server closes the connection in that time. What it says until then is read and thrown away."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + within_s
        while (left_s := until_s - loop.time()) > 0:
            data = await self.receive(left_s)
            if not data:
                return data is not None
        return False

    async def _answer(self) -> Answer:
        head = await self._until(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split()[1])
        if status < 200:
            return await self._answer()
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        return Answer(status, headers, await self._body(status, headers))

    async def _body(self, status: int, headers: dict[str, str]) -> bytes:
        if status in (204, 304):
            return b""
        if "content-length" in headers:
            return await self._exactly(int(headers["content-length"]))
        body = b""
        if headers.get("transfer-encoding") == "chunked":
            while size := int(await self._until(b"\r\n"), 16):
                body += await self._exactly(size)
                await self._exactly(2)
            await self._until(b"\r\n")
            return body
        while data := await self.receive():
            body += data
        return body

    async def _until(self, end: bytes) -> bytes:
        data = b""
        while end not in data:
            data += await self._more()
        found, _, self._unread = data.partition(end)
        return found

    async def _exactly(self, n: int) -> bytes:
        parts, size = [], 0
        while size < n:
            parts.append(await self._more())
            size += len(parts[-1])
        data = b"".join(parts)
        self._unread = data[n:]
        return data[:n]

    async def _more(self) -> bytes:
        data = await self.receive()
        if not data:
            raise EOFError("the connection was closed within an answer")
        return data


async def ask(site: Site, request: bytes, within_s: float = ANSWERED_S) -> str:
    """One request on a connection of its own: status and error code, or what came instead."""
    try:
        with await Peer.connect(site) as peer:
            return await peer.ask(request, within_s)
    except (OSError, TimeoutError):
        return "not connected"


async def fetched(site: Site, request: bytes) -> str:
    """The body of the answer to one request; empty where there is none."""
    try:
        with await Peer.connect(site) as peer:
            await peer.send(request)
            answer = await peer.answer()
    except (OSError, TimeoutError):
        return ""
    return answer.body.decode() if answer is not None else ""
