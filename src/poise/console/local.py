"""`poise token` and `poise dashboard`, for who runs a server on this machine: its token for scripts that ask as an operator,
and an address that opens its dashboard in a browser.

Exit codes: 0; 1 when no such server runs there, or it does not take this user for an operator; 2 for a bad argument, or a server
that is not there."""

import asyncio
from typing import Annotated

import typer

from poise.console.client import DEFAULT_URL, Client, ending, failure

NO_SERVER = 1


def token(url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL) -> None:
    """Print the server's token, which opens /admin on this machine until the server ends.

    As in: curl -H "Authorization: Bearer $(poise token)" http://127.0.0.1:8000/admin/requests"""
    with ending(NO_SERVER):
        client = Client(url)
    if not (found := client.token()):
        raise failure(f"no server of this user at {client.url} on this machine", NO_SERVER)
    typer.echo(found)


def dashboard(url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL) -> None:
    """Print an address that opens the dashboard as an operator.

    It holds a code that works once, for a minute. The server must run on this machine as this user; for one elsewhere, open
    its /dashboard and enter an admin key."""
    with ending(NO_SERVER):
        typer.echo(asyncio.run(_address(url)))


async def _address(url: str) -> str:
    async with Client(url) as client:
        return f"{client.url}/dashboard#code={(await client.post('/admin/login-codes'))['code']}"
