"""The official Python SDK."""

from __future__ import annotations

import json

import openai
from checks import API, KEY, LONG, MODEL, SAY_HI, check, run, tool
from openai.types.chat import ChatCompletionMessageParam
from pydantic import BaseModel

client = openai.OpenAI(base_url=API, api_key=KEY, max_retries=0)
HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": SAY_HI}]


class Place(BaseModel):
    city: str
    country: str


@check("chat, with every field that agents send along")
def chat() -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=HI, max_completion_tokens=8, store=False, metadata={"a": "b"}, user="u",
        prompt_cache_key="k", safety_identifier="s", service_tier="auto", parallel_tool_calls=True,
    )  # fmt: skip
    assert answer.choices[0].finish_reason in {"stop", "length"}
    assert answer.usage and answer.usage.completion_tokens


@check("stream with usage")
def stream() -> None:
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model=MODEL, messages=HI, max_tokens=8, stream=True, stream_options=options))
    assert chunks[-1].usage
    assert chunks[0].choices[0].delta.role == "assistant"


@check("structured output by parse()")
def parse() -> None:
    answer = client.chat.completions.parse(model=MODEL, messages=HI, response_format=Place, temperature=0)
    assert isinstance(answer.choices[0].message.parsed, Place)


@check("tools: required, streamed through the SDK's helper")
def tools() -> None:
    with client.chat.completions.stream(
        model=MODEL, messages=HI, tools=[tool()], tool_choice="required", parallel_tool_calls=False
    ) as events:
        kinds = {event.type for event in events}
        (call,) = events.get_final_completion().choices[0].message.tool_calls or []
    assert "tool_calls.function.arguments.delta" in kinds
    assert json.loads(call.function.arguments)["city"] in {"Oslo", "Rome"}


@check("tools: a turn with a call and its result in the history")
def history() -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'}}
    messages = [*HI, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages.append({"role": "tool", "tool_call_id": "call_1", "content": "rain"})
    assert client.chat.completions.create(model=MODEL, messages=messages, tools=[tool()], max_tokens=8).choices


@check("completions with echo and log probabilities")
def completions() -> None:
    answer = client.completions.create(model=MODEL, prompt="Oslo is", max_tokens=1, echo=True, logprobs=1)
    found = answer.choices[0].logprobs
    assert found and found.token_logprobs and found.token_logprobs[0] is None


@check("models, with and without a name")
def models() -> None:
    assert client.models.retrieve(client.models.list().data[0].id).id


@check("an overflow is BadRequestError with its code")
def overflow() -> None:
    try:
        client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": LONG}])
    except openai.BadRequestError as error:
        assert error.code == "context_length_exceeded"
        return
    raise AssertionError("it was answered")


run()
