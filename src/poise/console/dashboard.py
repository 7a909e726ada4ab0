"""`poise dashboard`: an address that opens the dashboard of a running server as its operator, in a browser on this machine.

Exit codes: 0; 1 when the server does not take this user for an operator; 2 for a bad argument or a server that is not there.
"""

from __future__ import annotations

import asyncio
from typing import Annotated

import typer

from poise.console.client import DEFAULT_URL, Client, ending

NO_OPERATOR = 1


def dashboard(url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL) -> None:
    """Print an address that opens the dashboard as an operator.

    It holds a code that works once, for a minute. The server must run on this machine as this user; for one elsewhere, open
    its /dashboard and enter an admin key.
    """
    with ending(NO_OPERATOR):
        typer.echo(asyncio.run(_address(url)))


async def _address(url: str) -> str:
    async with Client(url) as client:
        return f"{client.url}/dashboard#code={(await client.post('/admin/login-codes'))['code']}"
