"""`poise token`: the token of a server that runs on this machine as this user, for scripts that ask what is for operators.

Exit codes: 0; 1 when no such server runs there; 2 for a bad argument.
"""

from __future__ import annotations

from typing import Annotated

import typer

from poise.console.client import DEFAULT_URL, Client, ending, failure

NO_SERVER = 1


def token(url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL) -> None:
    """Print the server's token, which opens /admin on this machine until the server ends.

    As in: curl -H "Authorization: Bearer $(poise token)" http://127.0.0.1:8000/admin/requests
    """
    with ending(NO_SERVER):
        client = Client(url)
    if not (found := client.token()):
        raise failure(f"no server of this user at {client.url} on this machine", NO_SERVER)
    typer.echo(found)
