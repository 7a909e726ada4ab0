"""The official OpenAI client against the real server and the real default model."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionChunk, ChatCompletionMessageParam

from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

QUESTION: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Name three colours of the rainbow."}]


@pytest.fixture
def client(poise_server: PoiseServer) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{poise_server.url}/v1", api_key="alice", max_retries=0, timeout=120) as made:
        yield made


@pytest.fixture
def model(client: OpenAI) -> str:
    return client.models.list().data[0].id


def test_chat(client: OpenAI, model: str) -> None:
    """One answer, with a reason for its end and exact usage."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=12, temperature=0)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason == "length"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 12
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 12
    assert answer.service_tier == "default"


def test_streaming_gives_the_same_text_as_a_whole_answer(client: OpenAI, model: str) -> None:
    """Chunks add up; the role comes first, the finish reason and the usage last."""
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=40, temperature=0)
    with client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=40, temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks: list[ChatCompletionChunk] = list(stream)
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == []
    used, used_before = chunks[-1].usage, whole.usage
    assert used is not None
    assert used_before is not None
    # Not all of it is the same: the second request finds the first one's prompt in the cache.
    assert (used.prompt_tokens, used.completion_tokens) == (used_before.prompt_tokens, used_before.completion_tokens)
    assert len([c for c in chunks if c.choices and c.choices[0].delta.content]) > 5


def test_n_gives_that_many_answers(client: OpenAI, model: str) -> None:
    """Two choices with indices, different by their seeds, repeatable by the request's seed."""

    def ask() -> list[str | None]:
        answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=24, n=2, seed=7, temperature=1.0)
        assert [c.index for c in answer.choices] == [0, 1]
        assert answer.usage is not None
        assert answer.usage.completion_tokens <= 48
        return [c.message.content for c in answer.choices]

    first = ask()
    assert first[0] != first[1]


def test_logprobs(client: OpenAI, model: str) -> None:
    """Each token has its log probability; under greedy decoding it is the most likely one."""
    answer = client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 6
    for entry in logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].token == entry.token
        assert entry.logprob == pytest.approx(entry.top_logprobs[0].logprob)
        assert entry.logprob <= 0
    assert "".join(bytes(e.bytes or []).decode() for e in logprobs.content) == answer.choices[0].message.content


def test_stop_strings_never_show(client: OpenAI, model: str) -> None:
    """A stop string that spans tokens ends the answer, and neither it nor a prefix of it is sent."""
    whole = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=40, temperature=0)
    text = whole.choices[0].message.content or ""
    stop = text[9:16]
    with client.chat.completions.create(
        model=model, messages=QUESTION, max_tokens=40, temperature=0, stop=[stop, "never"], stream=True
    ) as stream:
        chunks = [c.choices[0] for c in stream]
    assert "".join(c.delta.content or "" for c in chunks) == text[: text.index(stop)]
    assert chunks[-1].finish_reason == "stop"


def test_completions(client: OpenAI, model: str) -> None:
    """The older endpoint, with two prompts and logprobs."""
    answer = client.completions.create(
        model=model, prompt=["Once upon a time", "The capital of France is"], max_tokens=8, temperature=0, logprobs=2
    )
    assert [c.index for c in answer.choices] == [0, 1]
    assert all(c.text for c in answer.choices)
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 8


def test_background_class_is_echoed(client: OpenAI, model: str) -> None:
    """service_tier flex is the background class."""
    answer = client.chat.completions.create(model=model, messages=QUESTION, max_tokens=4, service_tier="flex")
    assert answer.service_tier == "flex"


def test_error_classes(client: OpenAI, model: str) -> None:
    """Mistakes arrive as the client's own exception types, with the value and what to do in the message."""
    with pytest.raises(openai.NotFoundError, match="no-such-model"):
        client.chat.completions.create(model="no-such-model", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.chat.completions.create(model=model, messages=QUESTION, temperature=9)
    with pytest.raises(openai.BadRequestError, match="tools"):
        client.chat.completions.create(model=model, messages=QUESTION, tools=[{"type": "function", "function": {"name": "f g"}}])
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 9000}])
    assert caught.value.code == "context_length_exceeded"


def test_greedy_first_tokens_agree_alone_and_among_seven_others(client: OpenAI, model: str) -> None:
    """Neighbours in a batch change rounding at most: the first tokens of a greedy answer are the same."""

    def ask(number: int) -> str:
        content = "Tell me a short story about the sea." if number == 0 else f"Count from {number} to {number + 40}."
        answer = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": content}], max_tokens=24, temperature=0
        )
        return answer.choices[0].message.content or ""

    alone = ask(0)
    with ThreadPoolExecutor(8) as pool:
        crowd = list(pool.map(ask, range(8)))
    assert crowd[0][:20] == alone[:20]
    assert all(crowd)
