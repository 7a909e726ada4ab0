"""Scanning: every text of a request, wherever it is, and a request that cannot be read counts as sensitive."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import pytest

from poise.config.hybrid import EgressSettings
from poise.config.serving import TextSettings
from poise.gateway.models.routing.scan import UNSCANNED, scan, texts_of
from poise.gateway.request.generate import Conversation, Generate, ThinkingWish
from poise.gateway.request.refusals import ApiError, server_stopping, text_queue_full, text_rejected, text_unavailable
from poise.gateway.request.structure import of_schema
from poise.gateway.request.tools import Tool, ToolUse
from poise.gateway.text.tokens import TextFigures
from poise.gateway.text.workers import TextUnusable, TextWorkers
from poise.metrics.early import TextMetrics
from poise.wire import text as wire
from tests.gateway.models.routing.requests import generate

SETTINGS = EgressSettings(words=["falcon"])
CANARY = "falcon"


class Jobs:
    """Answers every job alike, or fails at it."""

    metrics = TextMetrics()
    deaths = ()

    def __init__(self, answer: wire.Answer | ApiError = wire.Scanned([])) -> None:  # noqa: B008
        self._answer = answer
        self.jobs: list[wire.Job] = []
        self.n_bytes = 0

    async def run(self, job: wire.Job, account: str, n_bytes: int) -> wire.Answer:
        self.jobs.append(job)
        self.n_bytes = n_bytes
        if isinstance(self._answer, ApiError):
            raise self._answer
        return self._answer

    def status(self) -> TextFigures:
        return TextFigures([], 0, 0)


def chat(message: wire.Message | None = None, **conversation: Any) -> Conversation:
    return Conversation(
        [wire.Message("system", "s"), message or wire.Message("user", "u"), wire.Message("user", "v")], **conversation
    )


PLACES: Mapping[str, Generate] = {
    "system": generate(prompt=Conversation([wire.Message("system", CANARY)])),
    "turn": generate(prompt=chat(wire.Message("user", CANARY))),
    "name": generate(prompt=chat(wire.Message("user", "", name=CANARY))),
    "reasoning": generate(prompt=chat(wire.Message("assistant", "", reasoning=CANARY))),
    "call name": generate(prompt=chat(wire.Message("assistant", "", calls=(wire.Call("i", CANARY, "{}"),)))),
    "call arguments": generate(prompt=chat(wire.Message("assistant", "", calls=(wire.Call("i", "f", CANARY),)))),
    "tool result": generate(prompt=chat(wire.Message("tool", CANARY, tool_call_id="i"))),
    "call id": generate(prompt=chat(wire.Message("tool", "", tool_call_id=CANARY))),
    "tool name": generate(tools=ToolUse((Tool(CANARY),))),
    "tool description": generate(tools=ToolUse((Tool("f", CANARY),))),
    "tool schema": generate(tools=ToolUse((Tool("f", "", {"properties": {"x": {"enum": [["a", CANARY]]}}}),))),
    "tool schema name": generate(tools=ToolUse((Tool("f", "", {"properties": {CANARY: {}}}),))),
    "variable": generate(prompt=chat(rendering=wire.Rendering(variables={"x": {"y": [CANARY]}}))),
    "rendered tools": generate(prompt=chat(rendering=wire.Rendering(tools=[{"function": {"name": CANARY}}]))),
    "thinking": generate(prompt=chat(thinking=ThinkingWish({"x": {"y": CANARY}}))),
    "prompt": generate(prompt=["a", CANARY]),
    "suffix": generate(suffix=CANARY),
    "stop": generate(stop=("x", CANARY)),
    "structure": generate(structure=of_schema({"properties": {CANARY: {"type": "string"}}}, "response_format")),
    "model": generate(model=CANARY),
}


@pytest.mark.parametrize("place", PLACES)
async def test_every_place_is_read(place: str) -> None:
    """By what a worker is sent."""
    jobs = Jobs()
    await scan(jobs, "a", PLACES[place], SETTINGS)
    (job,) = jobs.jobs
    assert isinstance(job, wire.Scan)
    assert any(CANARY in text for text in job.texts)
    assert jobs.n_bytes >= len(CANARY)
    assert (job.rules, job.words) == (SETTINGS.rules, SETTINGS.words)


def test_every_kind_of_field_is_looked_into() -> None:
    """Whatever is added to a request is of these kinds, or the first request with it fails."""
    for request in PLACES.values():
        list(texts_of(request))
    with pytest.raises(AssertionError, match="object in a request is not looked into"):
        list(texts_of(generate(model=object())))
    assert {field.name for field in fields(Generate)} >= {"prompt", "tools", "structure", "suffix", "stop"}


def test_names_stand_beside_what_they_name() -> None:
    """As in a text; a long number is one, too, and nothing is deeper than it can be looked into."""
    assert {"password: x", "n: 4111111111111111", "4111111111111111"} <= set(texts_of({"password": "x", "n": 4111111111111111}))
    assert list(texts_of([1, 2.5, None, True])) == []
    deep: Any = CANARY
    for _ in range(5000):
        deep = {"a": [deep]}
    assert f"{CANARY}" in set(texts_of(deep))


@pytest.mark.parametrize(
    ("answer", "hits"),
    [
        (wire.Scanned(["card", "word"]), ("card", "word")),
        (wire.Scanned([]), ()),
        (wire.Refused(400, "text_rejected", "memory"), (UNSCANNED,)),
        (wire.Broken("bug"), (UNSCANNED,)),
        (text_rejected("2 text workers ended over it"), (UNSCANNED,)),
        (text_rejected("it was not done after 10 s"), (UNSCANNED,)),
    ],
)
async def test_what_cannot_be_read_is_sensitive(answer: wire.Answer | ApiError, hits: tuple[str, ...]) -> None:
    assert await scan(Jobs(answer), "a", generate(), SETTINGS) == hits


@pytest.mark.parametrize("error", [text_queue_full(1.0), text_unavailable("busy", 1.0), server_stopping()])
async def test_who_has_no_worker_is_told_so(error: ApiError) -> None:
    """Nothing is known of the request then, and nothing is done with it."""
    with pytest.raises(ApiError) as raised:
        await scan(Jobs(error), "a", generate(), SETTINGS)
    assert raised.value is error


async def test_tokens_cannot_be_read() -> None:
    """They are some model's. Without rules there is nothing to look for."""
    jobs = Jobs()
    assert await scan(jobs, "a", generate(prompt=[[1, 2]]), SETTINGS) == (UNSCANNED,)
    assert await scan(jobs, "a", generate(prompt=[[1, 2]]), EgressSettings(rules=[])) == ()
    assert jobs.jobs == []


@pytest.mark.slow
async def test_workers_without_a_model() -> None:
    """A front for other servers has none: real workers scan and read grammars, and say that they have no vocabulary."""
    workers = TextWorkers(TextSettings(workers=1), "")
    workers.start()
    try:
        hits = await scan(workers, "a", generate(prompt=["The Falcon pays with 4111 1111 1111 1111."]), SETTINGS)
        assert hits == ("card", "word")
        with pytest.raises(TextUnusable, match="no model on this host"):
            await workers.vocabulary()
        grammar = '{"grammars": [{"lark_grammar": "start: /a+/"}]}'
        assert await workers.run(wire.CheckGrammar("lark", grammar), "a", 1) == wire.Checked()
        for _ in range(3):  # one after the other, without a vocabulary that it could be told by
            (row,) = workers.status().workers
            assert row.pid is not None
            workers._places[0].kill("exit")
            assert await scan(workers, "a", generate(), SETTINGS) == ()
    finally:
        await workers.stop()
