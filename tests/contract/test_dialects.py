"""Every dialect keeps one contract: what it reads of requests, and writes of records and errors, is recorded word for word.

A change of what it says is a change of `recorded/dialects.txt`, to be read in its difference. To write it anew:

    .venv/bin/python -m tests.contract.test_dialects > tests/contract/recorded/dialects.txt
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import msgspec
import pytest
from prometheus_client import CollectorRegistry

from poise.config import Settings
from poise.gateway.dialect import Dialect
from poise.gateway.records.reader import Reader, read_place
from poise.gateway.records.record import Record
from poise.gateway.request.refusals import ApiError
from poise.metrics.clients import StreamMetrics
from tests.contract.dialect_rows import BESIDE_THE_SCHEMA, REFUSALS, REQUESTS, SCRIPTS, Script
from tests.gateway.fakes import FakeEngine, ask, make_app

GOLDEN = Path(__file__).with_name("recorded") / "dialects.txt"
STREAMS = StreamMetrics(CollectorRegistry())
DIALECTS: dict[str, tuple[str, Dialect]] = {
    operation.dialect.name: (operation.path, operation.dialect)
    for operation in make_app(FakeEngine(), Settings()).operations
    if operation.dialect is not None
}
"""All that the application speaks, with their paths."""
EVERY = pytest.mark.parametrize("name", DIALECTS)


def read(dialect: Dialect, body: dict[str, Any]) -> str:
    """What a body comes to, a line for each field."""
    try:
        request = dialect.read(body)
    except ApiError as error:
        return f"refused: {error.status} {error.code} {error.param}: {error.message}"
    fields = msgspec.to_builtins(request)
    fields = fields | fields.pop("answer") | {"sampling": msgspec.structs.asdict(request.sampling)}
    return "\n".join(f"{field}: {json.dumps(value)}" for field, value in fields.items())


def scripted(dialect: Dialect, script: str) -> Record:
    n, options, play = SCRIPTS[script]
    return play(Script(dialect.writer, n, options))


def stream(record: Record, place: str = "") -> str:
    """`place`: of a client that comes back, and whose events have ids."""
    at = read_place(place, "from", record) if place else None
    reader = Reader(record, STREAMS, place=at, has_ids=bool(place))
    return "".join(data.decode() for data in iter(reader.take, b""))


def body(record: Record) -> str:
    return b"".join(record.body(record.answers())).decode()


def said(name: str) -> Iterator[tuple[str, str]]:
    """All that is recorded of a dialect, under headings."""
    _, dialect = DIALECTS[name]
    for row, asked in REQUESTS[name].items():
        yield f"{name} reads: {row}", read(dialect, asked)
    for script in SCRIPTS:
        record = scripted(dialect, script)
        yield f"{name} streams: {script}", stream(record)
        yield f"{name} goes on behind the first entry: {script}", stream(record, "1" if record.n_entries else "0")
        if record.failure is None:
            yield f"{name} writes: {script}", body(record)
    for row, error in REFUSALS.items():
        yield f"{name} refuses: {row}", dialect.refusal(error).decode()


def recorded() -> dict[str, str]:
    parts = GOLDEN.read_text(encoding="utf-8").removeprefix("### ").split("\n### ")
    return {heading: text.rstrip() for heading, _, text in (part.partition("\n") for part in parts)}


def test_every_dialect_is_recorded() -> None:
    """Whoever adds one adds its requests; nothing is recorded of one that is not spoken."""
    assert set(DIALECTS) == set(REQUESTS)
    assert list(recorded()) == [heading for name in DIALECTS for heading, _ in said(name)]


@EVERY
def test_it_says_what_is_recorded(name: str) -> None:
    """Word for word."""
    was = recorded()
    for heading, text in said(name):
        assert text.rstrip() == was[heading], heading


@EVERY
def test_its_schema_describes_what_it_reads(name: str) -> None:
    """Whatever is read is valid; the prompt is a field that must be there. Reading changes nothing."""
    _, dialect = DIALECTS[name]
    schema = dialect.schema()
    assert dialect.prompt_param in schema["required"]
    for row, asked in REQUESTS[name].items():
        before = copy.deepcopy(asked)
        if not read(dialect, asked).startswith("refused") and row not in BESIDE_THE_SCHEMA:
            jsonschema_rs.validate(schema, asked)
        assert asked == before, row


@EVERY
async def test_errors_at_its_path_are_in_its_words(name: str) -> None:
    """Of what it cannot read, and of a method that is not for it."""
    path, dialect = DIALECTS[name]
    app = make_app(FakeEngine())
    reply = await ask(app, "POST", path, {})
    with pytest.raises(ApiError) as caught:
        dialect.read({})
    assert (reply.status, reply.body) == (caught.value.status, dialect.refusal(caught.value))
    reply = await ask(app, "GET", path)
    assert reply.status == 405
    assert set(json.loads(reply.body)) == set(json.loads(dialect.refusal(caught.value)))


if __name__ == "__main__":
    print("\n".join(f"### {heading}\n{text.rstrip()}" for name in DIALECTS for heading, text in said(name)))
