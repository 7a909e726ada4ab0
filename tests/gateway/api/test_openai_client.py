"""The official client understands every answer: it parses them into its own types, and errors into its own exceptions."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable

import httpx2
import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from poise.config import Settings
from poise.gateway.app import Gateway
from tests.gateway.fakes import MODEL, FakeEngine, Submission, make_app, says

Connect = Callable[[Gateway], openai.AsyncOpenAI]
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes clients that call an application without a network."""
    clients: list[openai.AsyncOpenAI] = []

    def make(app: Gateway) -> openai.AsyncOpenAI:
        http = httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app))
        clients.append(openai.AsyncOpenAI(base_url="http://x/v1", api_key="k", http_client=http, max_retries=0))
        return clients[-1]

    yield make
    for client in clients:
        await client.close()


async def test_chat(connect: Connect) -> None:
    """Two choices with log probabilities."""
    client = connect(make_app(FakeEngine(says("Hello"))))
    answer = await client.chat.completions.create(
        model=MODEL, messages=HI, n=2, logprobs=True, top_logprobs=2, max_tokens=20, extra_body={"top_k": 5}
    )
    assert [choice.message.content for choice in answer.choices] == ["Hello", "Hello"]
    assert answer.choices[0].finish_reason == "stop"
    logprobs = answer.choices[1].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [len(entry.top_logprobs) for entry in logprobs.content] == [2] * 5
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 10


async def test_streamed_chat(connect: Connect) -> None:
    """Deltas add up, usage comes last; a comment about the queue is no event."""

    def waits(submission: Submission) -> None:
        submission.accept(2, 3_000_000)
        submission.say("Grüße")
        submission.finish("length")

    client = connect(make_app(FakeEngine(waits)))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True, stream_options={"include_usage": True})
    chunks = [chunk async for chunk in stream]
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == "Grüße"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == len("Grüße".encode())


async def test_completions(connect: Connect) -> None:
    """Both ways."""
    client = connect(make_app(FakeEngine(says("more"))))
    answer = await client.completions.create(model=MODEL, prompt=["a", "b"], logprobs=0)
    assert [choice.text for choice in answer.choices] == ["more", "more"]
    stream = await client.completions.create(model=MODEL, prompt="a", stream=True)
    assert "".join([chunk.choices[0].text async for chunk in stream]) == "more"


async def test_models(connect: Connect) -> None:
    """The list and its one entry."""
    client = connect(make_app(FakeEngine()))
    assert [model.id async for model in client.models.list()] == [MODEL]
    assert (await client.models.retrieve("default")).root == MODEL  # type: ignore[attr-defined]


async def test_errors_become_the_clients_exceptions(connect: Connect) -> None:
    """With code and parameter."""
    engine = FakeEngine(lambda submission: submission.refuse("queue_full", 1, 1, 9_000_000))
    client = connect(make_app(engine))
    with pytest.raises(openai.RateLimitError) as limited:
        await client.chat.completions.create(model=MODEL, messages=HI)
    assert (limited.value.code, limited.value.response.headers["retry-after"]) == ("queue_full", "9")
    with pytest.raises(openai.BadRequestError) as bad:
        await client.chat.completions.create(model=MODEL, messages=HI, temperature=9)
    assert (bad.value.code, bad.value.param) == ("invalid_value", "temperature")
    with pytest.raises(openai.NotFoundError):
        await client.chat.completions.create(model="gpt", messages=HI)
    client = connect(make_app(engine, Settings.model_validate({"auth": {"keys": {"a": "another-key-1"}}})))
    with pytest.raises(openai.AuthenticationError):
        await client.models.list()


async def test_comments_between_events_are_skipped(connect: Connect) -> None:
    """Whatever is told beside the answer, the official client sees the answer only."""

    def script(submission: Submission) -> None:
        submission.accept(3, 900_000)
        submission.start()
        for piece, what in (("Hel", "pause"), ("lo", "lost"), (" you", "recover")):
            submission.say(piece)
            submission.change(what)
        submission.say("!")
        submission.finish()

    client = connect(make_app(FakeEngine(script)))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello you!"


async def test_a_stream_that_breaks_raises(connect: Connect) -> None:
    """The error event is not taken for the end."""

    def breaks(submission: Submission) -> None:
        submission.accept()
        submission.say("Hel")
        submission.finish("engine_lost")

    client = connect(make_app(FakeEngine(breaks)))
    stream = await client.chat.completions.create(model=MODEL, messages=HI, stream=True)
    with pytest.raises(openai.APIError) as error:
        _ = [chunk async for chunk in stream]
    assert error.value.code == "engine_lost"
