"""OpenAI's Agents SDK, over chat completions."""

from __future__ import annotations

import asyncio

import openai
from agents import Agent, ModelSettings, OpenAIChatCompletionsModel, Runner, function_tool, set_tracing_disabled
from checks import API, KEY, MODEL, SAY_HI, check, run
from pydantic import BaseModel

set_tracing_disabled(True)
SHORT = ModelSettings(max_tokens=24, temperature=0)


def model() -> OpenAIChatCompletionsModel:
    """A new one for each check: its connections belong to an event loop, and checks have their own."""
    return OpenAIChatCompletionsModel(MODEL, openai.AsyncOpenAI(base_url=API, api_key=KEY, max_retries=0))


class Place(BaseModel):
    city: str


@function_tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return "rain in " + city


@check("a run and a second turn")
def plain() -> None:
    agent = Agent(name="a", instructions="Be brief.", model=model(), model_settings=SHORT)
    first = Runner.run_sync(agent, SAY_HI)
    assert Runner.run_sync(agent, [*first.to_input_list(), {"role": "user", "content": "Again."}]).final_output


@check("a streamed run")
def streamed() -> None:
    async def stream() -> int:
        agent = Agent(name="a", model=model(), model_settings=SHORT)
        return len([event async for event in Runner.run_streamed(agent, SAY_HI).stream_events()])

    assert asyncio.run(stream())


@check("a function that must be called is called, and its result is sent back")
def tools() -> None:
    settings = ModelSettings(tool_choice="get_weather", temperature=0, max_tokens=64)
    stop = "stop_on_first_tool"  # what a small model makes of the result is another matter
    agent = Agent(name="a", model=model(), tools=[get_weather], model_settings=settings, tool_use_behavior=stop)
    assert any(item.type == "tool_call_output_item" for item in Runner.run_sync(agent, "Weather in Oslo?").new_items)


@check("a handoff")
def handoff() -> None:
    other = Agent(name="other", handoff_description="Knows.", model=model(), model_settings=SHORT)
    settings = ModelSettings(tool_choice="required", temperature=0, max_tokens=64)
    agent = Agent(name="a", model=model(), handoffs=[other], model_settings=settings)
    assert Runner.run_sync(agent, SAY_HI).last_agent.name == "other"


@check("output_type")
def output_type() -> None:
    agent = Agent(name="a", model=model(), output_type=Place, model_settings=ModelSettings(temperature=0))
    assert isinstance(Runner.run_sync(agent, "Name a city.").final_output, Place)


run()
