"""The commands that ask a running server: `poise top`, `explain`, `token` and `dashboard`.

Exit codes: 0; 1 when the server has not what was asked for, or the key is wrong; 2 for a bad argument, a server that is not there
(but the live screen waits for it), or a missing extra."""

import asyncio
import os
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console

from poise.console.client import DEFAULT_URL, Client, ConsoleError, Refused, ending, failure
from poise.console.frame import as_text, frame_of
from poise.console.picture import Picture, Watch

NOT_THERE = 1
INSTALL = "poise top needs the package textual: pip install textual; `poise top --once` works without it"
PLAIN_WIDTH = 100  # Of a frame that goes to a file or a pipe, which has no width of its own; and the most of an explanation.
Url = Annotated[str, typer.Option(help="The server.")]
Key = Annotated[str | None, typer.Option(help="API key, or admin key. Else POISE_API_KEY.", show_default=False)]


def client_of(url: str, key: str | None) -> Client:
    """With the key that was given, or that of the environment. Raises ConsoleError."""
    return Client(url, key if key is not None else os.environ.get("POISE_API_KEY", ""))


def top(
    url: Url = DEFAULT_URL,
    key: Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text and end.")] = False,
) -> None:
    """Show a running server in the terminal, live.

    Classes, queues, pools, memory and requests; keys pause, resume, downgrade and cancel, and tell why a request is slow.
    Press ? for help. Whose requests are shown depends on the key: an operator's shows all, another one its tenant's."""
    with ending(NOT_THERE):
        client = client_of(url, key)
        if once:
            console = Console(highlight=False)
            console.width = console.width if console.is_terminal else PLAIN_WIDTH
            console.print(frame_of(asyncio.run(_frame(client))))
            return
        asyncio.run(_live(client))


async def _frame(client: Client) -> Picture:
    async with client:
        return await Watch(client).look()


async def _live(client: Client) -> None:
    try:
        from poise.console.screen import TopApp
    except ImportError as error:
        if error.name is None or not error.name.startswith("textual"):
            raise
        raise ConsoleError(INSTALL) from error
    async with client:
        await TopApp(Watch(client)).run_async()


def explain(
    wanted: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the response, its X-Request-Id, or `last`: your newest one.")
    ],
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="The server's answer as JSON: sentences and figures.")] = False,
) -> None:
    """Tell why a request took as long as it did.

    Where it waited and for what, who ran instead, how its prompt and its tokens came, what stopped it, how it ended.
    The server knows its live requests, and those that ended within results.retention_s. Nothing of a text is told."""
    with ending(NOT_THERE, lambda error: _refusal(error, wanted)):
        explanation = asyncio.run(_explanation(client_of(url, key), wanted))
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(explanation)).decode())
        return
    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, PLAIN_WIDTH)
    console.print(as_text(explanation))


async def _explanation(client: Client, wanted: str) -> dict[str, Any]:
    async with client:
        return await client.explanation(wanted)


def _refusal(error: Refused, wanted: str) -> str:
    if error.status == 404:
        return (
            f"no request {wanted!r} of yours is known: it never was, or it ended longer ago than results.retention_s, "
            "or its place was needed"
        )
    hint = " Give it with --key or POISE_API_KEY." if error.status == 401 else ""
    return f"{error}{hint}"


def token(url: Url = DEFAULT_URL) -> None:
    """Print the server's token, which opens /admin on this machine until the server ends.

    As in: curl -H "Authorization: Bearer $(poise token)" http://127.0.0.1:8000/admin/requests"""
    with ending(NOT_THERE):
        client = Client(url)
    if not (found := client.token()):
        raise failure(f"no server of this user at {client.url} on this machine", NOT_THERE)
    typer.echo(found)


def dashboard(url: Url = DEFAULT_URL) -> None:
    """Print an address that opens the dashboard as an operator.

    It holds a code that works once, for a minute. The server must run on this machine as this user; for one elsewhere, open
    its /dashboard and enter an admin key."""
    with ending(NOT_THERE):
        typer.echo(asyncio.run(_address(url)))


async def _address(url: str) -> str:
    async with Client(url) as client:
        return f"{client.url}/dashboard#code={(await client.post('/admin/login-codes'))['code']}"
