"""A client of the real application, without a socket; and one whose server can go away."""

from __future__ import annotations

import asyncio

from poise.console.client import Client, Unreachable
from poise.gateway.app import Gateway
from tests.gateway.fakes import TOKEN, ask

URL = "http://poise.test"


class AppClient(Client):
    """Sends what it would send over a connection to `app`. `token` is what it finds in the file of the server, "" for nothing."""

    def __init__(self, app: Gateway, key: str = "", address: str = "127.0.0.1", token: str = TOKEN) -> None:
        super().__init__(URL, key)
        self.app = app
        self.is_away = False
        self.sent: list[str] = []
        self.asked: asyncio.Queue[str] = asyncio.Queue()
        """The same, for who waits for it."""
        self._address = address
        self._found = token

    def token(self) -> str:
        return "" if self._key else self._found

    async def send(self, method: str, path: str, asked: object = None) -> tuple[int, bytes]:
        self.sent.append(f"{method} {path}")
        self.asked.put_nowait(self.sent[-1])
        if self.is_away:
            raise Unreachable(f"{self.url} cannot be reached: Connection refused")
        reply = await ask(self.app, method, path, asked, headers=self.credentials(path), client=self._address)
        return reply.status, reply.body
