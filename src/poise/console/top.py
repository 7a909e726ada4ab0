"""`poise top`: a running server in a terminal, live, or one frame of it as text.

Exit codes: 0; 1 when the key is wrong; 2 for a bad argument, a server that is not there (with --once), or a missing extra."""

import asyncio
import os
from typing import Annotated

import typer
from rich.console import Console

from poise.console.client import DEFAULT_URL, Client, ConsoleError, ending
from poise.console.explain import Key
from poise.console.frame import frame_of
from poise.console.picture import Picture, Watch

WRONG_KEY = 1
INSTALL = "poise top needs the package textual: pip install textual; `poise top --once` works without it"
PLAIN_WIDTH = 100  # Of a frame that goes to a file or a pipe, which has no width of its own.


def top(
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    key: Key = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame as text and end.")] = False,
) -> None:
    """Show a running server in the terminal, live.

    Classes, queues, pools, memory and requests; keys pause, resume, downgrade and cancel, and tell why a request is slow.
    Press ? for help. Whose requests are shown depends on the key: an operator's shows all, another one its tenant's."""
    with ending(WRONG_KEY):
        client = Client(url, key if key is not None else os.environ.get("POISE_API_KEY", ""))
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
