"""`poise explain ID`: asks a running server why a request took as long as it did, and prints its answer.

Exit codes: 0; 1 when there is no such request, or the key is wrong; 2 for a bad argument or a server that is not there."""

import asyncio
import os
from typing import Annotated, Any

import msgspec
import typer
from rich.console import Console
from rich.text import Text

from poise.console.client import DEFAULT_URL, USAGE_ERROR, Client, ConsoleError, Refused, Unreachable, failure

NO_SUCH_REQUEST = 1
WIDTH_MAX = 100
Key = Annotated[str | None, typer.Option(help="API key, or admin key. Else POISE_API_KEY.", show_default=False)]


def explain(
    wanted: Annotated[
        str, typer.Argument(metavar="ID", help="Id of the response, its X-Request-Id, or `last`: your newest one.")
    ],
    url: Annotated[str, typer.Option(help="The server.")] = DEFAULT_URL,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="The server's answer as JSON: sentences and figures.")] = False,
) -> None:
    """Tell why a request took as long as it did.

    Where it waited and for what, who ran instead, how its prompt and its tokens came, what stopped it, how it ended.
    The server knows its live requests, and those that ended within results.retention_s. Nothing of a text is told."""
    try:
        explanation = asyncio.run(_fetch(url, key if key is not None else os.environ.get("POISE_API_KEY", ""), wanted))
    except Refused as error:
        raise failure(_refusal(error, wanted), NO_SUCH_REQUEST) from error
    except ConsoleError as error:
        code = USAGE_ERROR if isinstance(error, Unreachable) or "--url" in str(error) else NO_SUCH_REQUEST
        raise failure(str(error), code) from error
    if as_json:
        typer.echo(msgspec.json.format(msgspec.json.encode(explanation)).decode())
        return
    console = Console(highlight=False, soft_wrap=False)
    console.width = min(console.width, WIDTH_MAX)
    console.print(as_text(explanation))


def as_text(explanation: dict[str, Any]) -> Text:
    """The verdict, a blank line, and a sentence a line, indented where it wraps."""
    text = Text()
    text.append(f"{explanation['id']}\n", style="dim")
    verdict = explanation["verdict"] or "Nothing about it stands out."
    text.append(f"{verdict}\n\n", style="bold" if explanation["verdict"] else "")
    text.append("\n".join(explanation["sentences"]))
    return text


async def _fetch(url: str, key: str, wanted: str) -> dict[str, Any]:
    async with Client(url, key) as client:
        return await client.explanation(wanted)


def _refusal(error: Refused, wanted: str) -> str:
    if error.status == 404:
        return (
            f"no request {wanted!r} of yours is known: it never was, or it ended longer ago than results.retention_s, "
            "or its place was needed"
        )
    hint = " Give it with --key or POISE_API_KEY." if error.status == 401 else ""
    return f"{error}{hint}"
