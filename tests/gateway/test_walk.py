"""One streamed chat, followed at run time: the rooms of the gateway that it enters, and every call that goes back up.

The stations are those of the drawing in docs/architecture.md. Calls go down, from a room into one below it; what is called from
below is called through a port, and is listed here with its name.
"""

from __future__ import annotations

import ast
import asyncio
import io
import re
import sys
import tokenize
from pathlib import Path
from types import FrameType
from typing import Any

from tests.gateway.fakes import ToyVocab, make_app, text_here, unpaced
from tests.gateway.http.serving import served
from tests.gateway.supervision.test_supervisor import supervisor

SRC = Path(__file__).parents[2] / "src" / "poise"
DOCUMENT = Path(__file__).parents[2] / "docs" / "architecture.md"
STATIONS_MAX = 12
READING_LINES_MAX = 1600
_NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
RETURNS = {
    ("api", "http"): "what a request says of itself is read where it came from: head, key and body",
    ("intake", "api"): "Sender: whoever waits for the answer, who may be no HTTP client",
    ("records", "api"): "Writer: how the dialect says what a record has",
    ("api", "records"): "Writer: its base, for what all dialects write alike",
    ("intake", "records"): "Record.on_end: the books of a request, which keep its record",
    ("tenancy", "records"): "RequestEntry.ended: what the audit log has of a record",
}
"""Calls into a room that the same stack has been in before, from which room to which: by which port."""
BESIDE = {"tenancy", "condition", "request", "tasks"}
"""Rooms that are asked on the way and hand nothing on."""
ANY_TOKEN = b"x"


class WideVocab(ToyVocab):
    """Has a text for whatever token the simulated model draws."""

    n_tokens = 40_000

    def piece(self, token: int, *, special: bool) -> bytes:
        return super().piece(token, special=special) if token < super().n_tokens else ANY_TOKEN


class Walk:
    """A profiler that sees every call of a function of the gateway, with the rooms that are on the stack."""

    def __init__(self) -> None:
        self.stacks: dict[tuple[str, ...], None] = {}
        """Every way through the rooms, the outermost first."""
        self.returns: dict[tuple[str, str], str] = {}
        """From which room to which, with the first function that was called so."""

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        if event != "call" or (room := _room_of(frame)) is None:
            return
        stack = [room]
        at = frame.f_back
        while at is not None:
            other = _room_of(at)
            if other is not None and other != stack[-1]:
                stack.append(other)
            at = at.f_back
        self.stacks[tuple(reversed(stack))] = None
        if room in stack[1:]:
            self.returns.setdefault((stack[1], room), frame.f_code.co_qualname)


async def test_a_streamed_chat_enters_each_room_once_in_each_direction() -> None:
    """No call goes back up but through a port; the ways through the rooms are those of the drawing."""
    walk = await _walk_of_a_chat()
    unknown = {way: name for way, name in walk.returns.items() if way not in RETURNS}
    assert not unknown, f"calls that go back up without a port: {unknown}"
    assert set(RETURNS) == set(walk.returns), "a port that nobody comes through"
    ways = list(walk.stacks)
    for way in (
        ["http", "api", "intake"],
        ["models", "text"],
        ["models", "supervision"],
        ["supervision", "models", "records"],
        ["http", "records", "api"],
    ):
        assert any(_is_on(way, stack) for stack in ways), way
    entered = {room for stack in ways for room in stack}
    assert entered - BESIDE == _stations()


def test_the_drawing_has_few_stations_and_each_is_there() -> None:
    found = _drawn()
    assert 0 < len(found) <= STATIONS_MAX
    assert [number for number, _ in found] == list(range(1, len(found) + 1))
    for _, place in found:
        assert (SRC / place).exists(), place


def test_the_way_can_be_read() -> None:
    """The modules that architecture.md names for it are there, and short enough together."""
    named = _block("reading").split()
    assert sum(_code_lines((SRC / name).read_text(encoding="utf-8")) for name in named) <= READING_LINES_MAX


def _block(name: str) -> str:
    return DOCUMENT.read_text(encoding="utf-8").split(f"```{name}\n", 1)[1].split("```", 1)[0]


def _drawn() -> list[tuple[int, str]]:
    """Number and folder of each station of the drawing, in the order of their numbers."""
    return sorted((int(number), place) for number, place in re.findall(r"(\d+) ((?:gateway|engine)[\w/.]*)", _block("stations")))


def _code_lines(source: str) -> int:
    """Lines with code: no blank ones, comments or docstrings."""
    texts: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            texts |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return len(lines - texts)


def _stations() -> set[str]:
    return {place.split("/")[1].removesuffix(".py") for _, place in _drawn() if place.startswith("gateway/")}


def _is_on(way: list[str], stack: tuple[str, ...]) -> bool:
    """Whether the rooms of a way follow each other in a stack, with nothing but those beside it in between."""
    rooms = [room for room in stack if room not in BESIDE]
    return any(rooms[i : i + len(way)] == way for i in range(len(rooms)))


def _room_of(frame: FrameType) -> str | None:
    """None for what is no room: other packages, and `app`, which only puts the rooms together."""
    name = frame.f_globals.get("__name__", "")
    return name.split(".")[2] if name.startswith("poise.gateway.") and name != "poise.gateway.app" else None


async def _walk_of_a_chat() -> Walk:
    """Over a real connection, to a real engine process with a simulated model."""
    settings, walk = unpaced(), Walk()
    body = b'{"model": "default", "stream": true, "max_tokens": 5, "messages": [{"role": "user", "content": "hello"}]}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {len(body)}\r\n\r\n"
    async with supervisor() as engine:
        await engine.until(lambda state: state.is_settled)
        app = make_app(engine, settings, jobs=text_here(WideVocab()))
        async with served(app, settings) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            sys.setprofile(walk)
            try:
                writer.write(head.encode() + body)
                answer = await reader.read(-1)
            finally:
                sys.setprofile(None)
            writer.close()
    assert b"data: [DONE]" in answer, answer
    return walk
