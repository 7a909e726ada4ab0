"""Looks at a server again and again: everything that a picture of it needs, asked for in one go."""

from __future__ import annotations

from poise.console.client import Client
from poise.console.picture import Picture, Samples, picture_of


class Watch:
    """One server over time. It may go away and come back."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self._samples = Samples()

    async def look(self) -> Picture:
        """How it stands now. Raises ConsoleError."""
        status = await self.client.get("/status")
        self._samples.add(await self.client.get(f"/status/history?since={self._samples.since}"))
        rows, is_operator = await self.client.requests()
        return picture_of(status, self._samples, rows, is_operator=is_operator)
