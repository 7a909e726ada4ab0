"""A running server, as `poise explain` and `poise top` ask it: where it is, with which key, and what to say without an answer.

It knows the HTTP API only, as any other client does. Without a key, what is for operators is asked with the token of the server,
where that runs on this machine as this user."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
import typer

from poise.operator_token import find_token

DEFAULT_URL = "http://127.0.0.1:8000"
LAST = "last"
OPERATORS_PATHS = ("/admin/", "/status", "/metrics")
LISTED_ENDED = 50
"""Ended requests that an operator's newest one is looked for among."""
TIMEOUT_S = 10.0
USAGE_ERROR = 2
"""The exit code of every command here for a bad argument, or a server that is not there."""


class ConsoleError(Exception):
    """What a command cannot go on with; the message is one line for the user."""


class Unreachable(ConsoleError):
    """Nobody answers, or not in the way of a poise server."""


class Refused(ConsoleError):
    """The server answered with an error, or (with status 0) has nothing of what was asked for."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One server. An async context manager."""

    def __init__(self, url: str, key: str = "") -> None:
        """Raises ConsoleError for what is no address, or no key."""
        self.url = base_url(url)
        if not all(" " < letter <= "~" for letter in key):
            raise ConsoleError("the key must be of printable ASCII characters, without spaces")
        self._key = key
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S))
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, method: str = "GET", asked: object = None) -> Any:
        """The answer's JSON. Raises Unreachable and Refused."""
        status, body = await self.send(method, path, asked)
        try:
            answer = msgspec.json.decode(body)
        except msgspec.DecodeError as error:
            raise Unreachable(f"{self.url}{path} answered {status} with something else than JSON") from error
        if status < 400:
            return answer
        refusal = answer.get("error") if isinstance(answer, dict) else None
        if not isinstance(refusal, dict):
            raise Unreachable(f"{self.url}{path} answered {status}; is this a poise server?")
        raise Refused(status, str(refusal.get("message")))

    async def post(self, path: str) -> Any:
        return await self.get(path, "POST")

    async def explanation(self, wanted: str) -> dict[str, Any]:
        """Of a request of the caller, or of any for an operator. Raises Unreachable and Refused."""
        name = await self._last() if wanted == LAST else wanted
        path = f"requests/{quote(name, safe='')}/explanation"
        try:
            return dict(await self.get(f"/v1/{path}"))
        except Refused as error:
            if error.status not in (401, 404):
                raise
            first = error
        try:
            return dict(await self.get(f"/admin/{path}"))
        except Refused as error:
            raise (first if error.status in (401, 403) else error) from error

    async def requests(self) -> tuple[list[dict[str, Any]], bool]:
        """What is live: everybody's for an operator (then True), else the caller's own."""
        try:
            return list((await self.get("/admin/requests"))["data"]), True
        except Refused as error:
            if error.status not in (401, 403):
                raise
        rows = (await self.get("/v1/requests"))["data"]
        return [_as_live(row) for row in rows if row["state"] != "ended"], False

    async def _last(self) -> str:
        """The newest request of the caller; for an operator, the newest of all."""
        first, second = (self._all, self._own) if self.token() else (self._own, self._all)
        try:
            rows = await first()
        except Refused as error:
            if error.status not in (401, 403):
                raise
            try:
                rows = await second()
            except Refused:
                raise error from None
        if not rows:
            raise Refused(0, f"{self.url} keeps no request of yours: send one first, or give an id")
        return str(min(rows, key=lambda row: row["age_ms"])["id"])

    async def _own(self) -> list[dict[str, Any]]:
        return list((await self.get("/v1/requests"))["data"])

    async def _all(self) -> list[dict[str, Any]]:
        listed = await self.get(f"/admin/requests?ended={LISTED_ENDED}")
        return [*listed["data"], *listed["ended"]]

    def token(self) -> str:
        """The server's, where it is to be used. It is read each time: a server that was started again has another one."""
        return "" if self._key else find_token(self.url)

    def credentials(self, path: str) -> dict[str, str]:
        """The header that opens `path`."""
        key = self._key or (self.token() if path.startswith(OPERATORS_PATHS) else "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    async def send(self, method: str, path: str, asked: object = None) -> tuple[int, bytes]:
        """Status and body of the answer. Raises Unreachable."""
        assert self._session is not None, "use it as an async context manager"
        try:
            headers = self.credentials(path)
            async with self._session.request(method, self.url + path, headers=headers, json=asked) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise Unreachable(f"{self.url} cannot be reached: {_reason(error)}") from error


def failure(message: str, exit_code: int) -> typer.Exit:
    """Says `message` on stderr and returns what a command raises."""
    typer.echo(f"poise: {message}", err=True)
    return typer.Exit(exit_code)


@contextmanager
def ending(refused: int, words: Callable[["Refused"], str] = str) -> Iterator[None]:
    """A command that cannot go on ends with one line; when the server refuses it, with these words and this exit code."""
    try:
        yield
    except Refused as error:
        raise failure(words(error), refused) from error
    except ConsoleError as error:
        raise failure(str(error), USAGE_ERROR) from error


def base_url(text: str) -> str:
    """`text` without a trailing slash or /v1. Raises ConsoleError for what is no http address."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid or parts.query or parts.fragment:
        raise ConsoleError(f"--url {text!r} is not a server address like {DEFAULT_URL}")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def _as_live(row: dict[str, Any]) -> dict[str, Any]:
    """A row of /v1/requests as /admin/requests would have it."""
    usage = row["usage"]
    return row | {
        "tenant": None,
        "prompt_tokens": usage["prompt_tokens"],
        "output_tokens": usage["completion_tokens"],
        "cached_tokens": usage["prompt_tokens_details"]["cached_tokens"],
    }


def _reason(error: BaseException) -> str:
    if isinstance(error, aiohttp.ClientConnectorError):
        error = error.os_error
    if isinstance(error, TimeoutError):
        return f"no answer within {TIMEOUT_S:.0f} s"
    text = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
    return (text or type(error).__name__).splitlines()[0]
