"""Segments in streams: on request only, where they became certain, for each choice, and measured."""

from __future__ import annotations

from typing import Any

import pytest

from poise.gateway.text.segments import Segmenter
from tests.gateway.fakes import FakeEngine, Reply, Submission, ask, chat_body, exchange, make_app, prompt_body, says
from tests.gateway.text.test_segments import marks_of

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
ASKED: dict[str, Any] = {"stream": True, "stream_options": {"segments": True}}
TEXT = "# Café ☕\n\n- one. Two\n- three\n\n```py\nx\n```\nEnd."


def marks_in(reply: Reply, index: int = 0) -> list[dict[str, Any]]:
    choices = [choice for chunk in reply.chunks for choice in chunk["choices"] if choice["index"] == index]
    return [mark for choice in choices for mark in choice.get("segments", [])]


def as_json(text: str) -> list[dict[str, Any]]:
    """What the segmenter itself finds, as it is sent."""
    names = ("kind", "event", "offset", "level", "ordered", "language")
    return [{name: getattr(mark, name) for name in names if getattr(mark, name) is not None} for mark in marks_of(text)]


@pytest.mark.parametrize(("path", "body"), [(CHAT, chat_body(**ASKED)), (COMPLETIONS, prompt_body(**ASKED))])
async def test_chunks_carry_the_marks(path: str, body: dict[str, Any]) -> None:
    """All of them, in order, with offsets into the text that was sent; chunks without any have no such field."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", path, body).open()
    submission = await engine.submitted()
    submission.accept()
    submission.start()
    data = TEXT.encode()
    for start in range(0, len(data), 3):
        submission.say(data[start : start + 3])
    submission.finish()
    reply = await asked.reply()
    assert marks_in(reply) == as_json(TEXT)
    assert all(choice.get("segments") != [] for chunk in reply.chunks for choice in chunk["choices"])


async def test_a_mark_comes_with_the_text_that_makes_it_certain() -> None:
    """Not before, not after; what is open at the end is ended beside the finish reason."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(**ASKED)).open()
    submission = await engine.submitted()
    submission.accept()
    submission.start()
    assert await asked.start() == 200
    kinds = []
    for text in ("One", ". ", "Two", "\n\n", "```py\n", "x"):
        submission.say(text)
        choice = (await asked.event())["choices"][0]
        assert choice["delta"]["content"] == text
        kinds.append([(mark["kind"], mark["event"]) for mark in choice.get("segments", [])])
    submission.finish()
    choice = (await asked.event())["choices"][0]
    assert choice["finish_reason"] == "stop"
    assert kinds == [
        [("paragraph", "begin"), ("sentence", "begin")],
        [],
        [("sentence", "end"), ("sentence", "begin")],
        [("sentence", "end"), ("paragraph", "end")],
        [("code", "begin")],
        [],
    ]
    assert choice["segments"] == [{"kind": "code", "event": "end", "offset": 17}]


async def test_each_choice_has_marks_of_its_own() -> None:
    """Choices come mixed up in one stream."""
    texts = ["# a\nb", "- c\n- d"]

    def script(submission: Submission) -> None:
        says(texts.pop(0))(submission)

    reply = await ask(make_app(FakeEngine(script)), "POST", CHAT, chat_body(n=2, **ASKED))
    assert marks_in(reply, 0) == as_json("# a\nb")
    assert marks_in(reply, 1) == as_json("- c\n- d")


async def test_marks_are_of_the_text_that_is_shown() -> None:
    """A stop string and what follows it have none."""
    reply = await ask(make_app(FakeEngine(says("One. Two\n# END"))), "POST", CHAT, chat_body(stop="\n# ", **ASKED))
    assert marks_in(reply) == as_json("One. Two")


async def test_a_stream_that_is_taken_up_again_goes_on_with_its_marks() -> None:
    """From every place come exactly the marks that were not certain before it, with offsets into the whole text."""
    app = make_app(FakeEngine(says(TEXT)))
    whole = await ask(app, "POST", CHAT, chat_body(**ASKED))
    response_id = whole.chunks[0]["id"]
    data, known = TEXT.encode(), Segmenter()
    n_known, n_chars = 0, 0
    for place in range(len(data) + 1):
        text = data[:place].decode(errors="ignore")
        n_known, n_chars = n_known + len(known.push(text[n_chars:])), len(text)
        reply = await ask(app, "GET", f"/v1/requests/{response_id}/stream?from={place}")
        assert reply.status == 200
        assert marks_in(reply) == as_json(TEXT)[n_known:]


@pytest.mark.parametrize("options", [None, {}, {"segments": False}, {"segments": None, "include_usage": True}])
async def test_nobody_else_sees_any(options: dict[str, Any] | None) -> None:
    """Without the request the bytes are those of a server that knows no segments."""
    app = make_app(FakeEngine(says(TEXT)))
    for path, body in ((CHAT, chat_body(stream=True)), (COMPLETIONS, prompt_body(stream=True))):
        reply = await ask(app, "POST", path, body | {"stream_options": options})
        assert reply.status == 200
        assert b"segments" not in reply.body


async def test_the_field_is_described() -> None:
    """In the OpenAPI document, with every kind."""
    document = (await ask(make_app(FakeEngine()), "GET", "/openapi.json")).json()
    for path in (CHAT, COMPLETIONS):
        content = document["paths"][path]["post"]["responses"]["200"]["content"]["text/event-stream"]
        chunk = content["schema"]["properties"]["data"]["anyOf"][1]["contentSchema"]
        mark = chunk["properties"]["choices"]["items"]["properties"]["segments"]["items"]
        assert set(mark["properties"]) == {"kind", "event", "offset", "level", "ordered", "language"}
