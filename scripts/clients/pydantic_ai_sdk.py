"""Pydantic AI."""

from __future__ import annotations

import asyncio

from checks import API, KEY, MODEL, SAY_HI, check, run
from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

model = OpenAIChatModel(MODEL, provider=OpenAIProvider(base_url=API, api_key=KEY))


class Place(BaseModel):
    city: str


@check("run and history")
def plain() -> None:
    agent = Agent(model, model_settings={"max_tokens": 16})
    first = agent.run_sync(SAY_HI)
    assert agent.run_sync("And again.", message_history=first.all_messages()).output


@check("run_stream")
def streamed() -> None:
    async def stream() -> str:
        async with Agent(model, model_settings={"max_tokens": 16}).run_stream(SAY_HI) as answer:
            return await answer.get_output()

    assert asyncio.run(stream())


@check("output as a tool")
def tool_output() -> None:
    assert isinstance(Agent(model, output_type=ToolOutput(Place)).run_sync("Name a city.").output, Place)


@check("output by a schema")
def native_output() -> None:
    assert isinstance(Agent(model, output_type=NativeOutput(Place)).run_sync("Name a city.").output, Place)


@check("a tool beside an output tool")
def tools() -> None:
    agent = Agent(model, output_type=ToolOutput(Place), retries=3)

    @agent.tool_plain
    def get_weather(city: str) -> str:
        """The weather in a city."""
        return "rain in " + city

    try:
        agent.run_sync("The weather in Oslo?", usage_limits=None)
    except Exception as error:  # a small model may ask for the same again and again: that is no fault of the server
        assert type(error).__name__ in {"UsageLimitExceeded", "UnexpectedModelBehavior"}, error


run()
