"""`poise route --explain FILE`: asks a running server what would happen to a request, and why. The request is not sent anywhere.

Exit codes: 0; 1 when the request would be refused, or the key is wrong; 2 for a bad argument or a server that is not there."""

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from poise.console.client import DEFAULT_URL, USAGE_ERROR, Client, ending, failure
from poise.console.commands import Key, Url, client_of

REFUSED = 1
CHAT = "/v1/chat/completions"


def route(
    explain: Annotated[Path, typer.Option(metavar="FILE", help="The request's body as JSON; - for the standard input.")],
    tenant: Annotated[str, typer.Option(help="Whose request it would be.")] = "local",
    data_class: Annotated[str | None, typer.Option(help="As X-Poise-Data-Class would say.", show_default=False)] = None,
    path: Annotated[str, typer.Option(help="Where it would be sent.")] = CHAT,
    url: Url = DEFAULT_URL,
    key: Key = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Tell where a request would be answered, and why, without sending it.

    Its label and what gave it, who would be asked in which order, and why the others would not. For operators."""
    asked: dict[str, Any] = {"tenant": tenant, "path": path, "body": _read(explain)}
    if data_class is not None:
        asked["data_class"] = data_class
    with ending(REFUSED):
        answer = asyncio.run(_fetch(client_of(url, key), asked))
    typer.echo(msgspec.json.format(msgspec.json.encode(answer)).decode() if as_json else as_text(answer))
    raise typer.Exit(0 if answer["order"] else REFUSED)


def as_text(answer: dict[str, Any]) -> str:
    """The verdict first, then what it comes from, a line each."""
    order, rejected = answer["order"], answer["rejected"]
    lines = [
        f"would be answered by {order[0]['backend']} ({order[0]['why']})" if order else f"would be refused: {answer['message']}"
    ]
    lines += [f"  if that fails, by {step['backend']} ({step['why']})" for step in order[1:]]
    lines.append(f"label     {answer['label']}, by {', '.join(answer['sources']) or 'nothing that raises it'}")
    heavy, needs = " (heavy)" if answer["is_heavy"] else "", ", ".join(answer["needs"]) or "nothing beyond chat"
    lines.append(f"request   for the model {answer['model']}, about {answer['tokens']} tokens{heavy}; needs {needs}")
    wait_ms, prompt_ms = answer["wait_ms"], answer["prompt_ms"]
    here = "no engine" if wait_ms is None else f"a wait of {wait_ms / 1000:.1f} s, then {prompt_ms / 1000:.1f} s for its prompt"
    lines.append(f"here      {here}")
    return "\n".join([*lines, *(f"not by    {step['backend']}: it {step['why']}" for step in rejected)])


async def _fetch(client: Client, asked: dict[str, Any]) -> dict[str, Any]:
    async with client:
        return dict(await client.get("/admin/route", "POST", asked))


def _read(file: Path) -> Any:
    try:
        return msgspec.json.decode(sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes())
    except OSError as error:
        raise failure(f"{file}: {error.strerror}", USAGE_ERROR) from error
    except msgspec.DecodeError as error:
        raise failure(f"{file} is not JSON: {error}", USAGE_ERROR) from error
