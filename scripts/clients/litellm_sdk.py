"""LiteLLM: its provider for servers that speak OpenAI's API."""

from __future__ import annotations

import json

import litellm
from checks import API, KEY, LONG, MODEL, SAY_HI, check, run, tool

AT = {"model": f"openai/{MODEL}", "api_base": API, "api_key": KEY, "num_retries": 0}
HI = [{"role": "user", "content": SAY_HI}]
SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"], "additionalProperties": False}


@check("completion")
def completion() -> None:
    assert litellm.completion(**AT, messages=HI, max_tokens=8, metadata={"a": "b"}).choices[0].message.content


@check("stream")
def stream() -> None:
    assert "".join(c.choices[0].delta.content or "" for c in litellm.completion(**AT, messages=HI, max_tokens=8, stream=True))


@check("hosted_vllm and text-completion-openai")
def providers() -> None:
    assert litellm.completion(model=f"hosted_vllm/{MODEL}", api_base=API, api_key=KEY, messages=HI, max_tokens=4).choices
    text = f"text-completion-openai/{MODEL}"
    assert litellm.text_completion(model=text, api_base=API, api_key=KEY, prompt="Oslo is", max_tokens=4).choices


@check("tools: required")
def tools() -> None:
    answer = litellm.completion(**AT, messages=HI, tools=[tool()], tool_choice="required")
    assert json.loads(answer.choices[0].message.tool_calls[0].function.arguments)["city"] in {"Oslo", "Rome"}


@check("response_format: json_schema")
def structured() -> None:
    form = {"type": "json_schema", "json_schema": {"name": "place", "schema": SCHEMA, "strict": True}}
    answer = litellm.completion(**AT, messages=HI, response_format=form, temperature=0)
    assert "city" in json.loads(answer.choices[0].message.content)


@check("cache_control in a part")
def cache_control() -> None:
    part = {"type": "text", "text": SAY_HI, "cache_control": {"type": "ephemeral"}}
    assert litellm.completion(**AT, messages=[{"role": "user", "content": [part]}], max_tokens=4).choices


@check("an overflow is ContextWindowExceededError")
def overflow() -> None:
    try:
        litellm.completion(**AT, messages=[{"role": "user", "content": LONG}])
    except litellm.ContextWindowExceededError:
        return
    raise AssertionError("it was answered")


run()
