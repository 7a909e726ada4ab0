"""Guesses of an answer's tokens, from a client's prediction to the engine and back into the usage and the explanation."""

from __future__ import annotations

import json
from typing import Any

import pytest

from poise.config import Settings
from poise.gateway.explain.words import sentences_of
from tests.gateway.fakes import FakeEngine, Submission, ask, chat_body, frames, make_app, says
from tests.gateway.lives import Life, facts

CHAT = "/v1/chat/completions"
PREDICTION = {"type": "content", "content": "The answer."}
PARTS = {"content": [{"type": "text", "text": "The"}, {"type": "text", "text": "answer."}]}


def drafting(submission: Submission) -> None:
    """Two drafts, most of which came true."""
    submission.accept()
    submission.start()
    submission.say("T")
    submission.draft(4, 4)
    submission.say("he an")
    submission.draft(3, 1)
    submission.say("sw")
    submission.finish("stop")


@pytest.mark.parametrize(("sent", "text"), [(PREDICTION, "The answer."), (PARTS, "The\nanswer.")], ids=["text", "parts"])
async def test_a_prediction_reaches_the_engine_as_tokens(sent: dict[str, Any], text: str) -> None:
    """Those of the text itself, with nothing around them; nobody is told that it had no effect."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine), "POST", CHAT, chat_body(prediction=sent))
    assert reply.status == 200, reply.body
    assert "x-poise-ignored" not in reply.headers
    assert bytes(engine.submissions[0].prediction).decode() == text
    assert bytes(engine.submissions[0].prediction) not in bytes(t % 256 for t in engine.submissions[0].prompt)


@pytest.mark.parametrize(
    ("sent", "param"),
    [
        ("text", "prediction"),
        ({"type": "content"}, "prediction.content"),
        ({"type": "diff", "content": "x"}, "prediction.type"),
        ({"content": 5}, "prediction.content"),
        ({"content": [{"type": "image_url", "image_url": {"url": "x"}}]}, "prediction.content[0]"),
    ],
)
async def test_what_is_no_prediction_is_refused_by_name(sent: object, param: str) -> None:
    reply = await ask(make_app(FakeEngine(says("x"))), "POST", CHAT, chat_body(prediction=sent))
    assert (reply.status, reply.error["param"]) == (400, param)


@pytest.mark.parametrize("strict", [False, True])
async def test_where_nobody_drafts_a_prediction_has_no_effect(strict: bool) -> None:
    """And is named, or refused where that is asked for."""
    engine = FakeEngine(says("x"))
    settings = Settings.model_validate({"speculation": {"max_streams": 0}, "server": {"strict": strict}})
    reply = await ask(make_app(engine, settings), "POST", CHAT, chat_body(prediction=PREDICTION))
    if strict:
        assert (reply.status, reply.error["param"]) == (400, "prediction")
    else:
        assert (reply.status, reply.headers["x-poise-ignored"]) == (200, "prediction")
        assert not engine.submissions[0].prediction


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_tells_what_became_of_guesses(stream: bool) -> None:
    """All that were computed, whole or streamed; without any there is nothing to tell."""
    options: dict[str, Any] = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    reply = await ask(make_app(FakeEngine(drafting)), "POST", CHAT, chat_body(**options))
    body = json.loads(frames(reply.body)[-2][1]) if stream else reply.json()
    details = {"reasoning_tokens": 0, "accepted_prediction_tokens": 5, "rejected_prediction_tokens": 2}
    assert body["usage"]["completion_tokens_details"] == details
    assert body["usage"]["completion_tokens"] == 8
    plain = await ask(make_app(FakeEngine(says("x"))), "POST", CHAT, chat_body())
    assert "completion_tokens_details" not in plain.json()["usage"]


def test_the_explanation_says_what_guesses_brought() -> None:
    life = Life().queued(0).started(0.02).prefill(0.02, 1, 0.02).tokens(0.02, 0.0204, 0.1)
    life.record.choices[0].n_drafted, life.record.choices[0].n_accepted = 7, 5
    known = facts(life.ended(0.11))
    said = "7 guesses of its next tokens were computed along; 5 came true, and needed no pass of their own."
    assert said in sentences_of(known)
    assert (known.figures.drafted_tokens, known.figures.accepted_tokens) == (7, 5)
