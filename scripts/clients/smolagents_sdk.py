"""smolagents."""

from __future__ import annotations

from checks import API, KEY, MODEL, SAY_HI, check, run
from smolagents import CodeAgent, OpenAIModel, ToolCallingAgent, tool

model = OpenAIModel(model_id=MODEL, api_base=API, api_key=KEY, max_tokens=96, temperature=0)


@tool
def get_weather(city: str) -> str:
    """The weather in a city.

    Args:
        city: Its name.
    """
    return "rain in " + city


def refusals(agent: CodeAgent | ToolCallingAgent) -> list[str]:
    """What the server did not take. What a small model makes of its task is another matter."""
    errors = [getattr(step, "error", None) for step in agent.memory.steps]
    return [str(error) for error in errors if error and ("Error code" in str(error) or "generation error" in str(error))]


@check("the model, whole and streamed")
def plain() -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": SAY_HI}]}]
    assert model.generate(messages).content
    assert "".join(delta.content or "" for delta in model.generate_stream(messages))


@check("ToolCallingAgent")
def tool_calling() -> None:
    agent = ToolCallingAgent(tools=[get_weather], model=model, max_steps=2, verbosity_level=0)
    agent.run("The weather in Oslo?")
    assert not refusals(agent), refusals(agent)
    assert any(getattr(step, "tool_calls", None) for step in agent.memory.steps)


for structured in (False, True):

    @check("CodeAgent" + (", structured" if structured else ""))
    def code(structured: bool = structured) -> None:
        agent = CodeAgent(
            tools=[get_weather], model=model, max_steps=2, verbosity_level=0, use_structured_outputs_internally=structured
        )
        agent.run("The weather in Oslo?")
        assert not refusals(agent), refusals(agent)


run()
