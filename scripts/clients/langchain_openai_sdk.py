"""LangChain's package for OpenAI's API."""

from __future__ import annotations

from checks import API, KEY, LONG, MODEL, SAY_HI, check, run
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

chat = ChatOpenAI(base_url=API, api_key=KEY, model=MODEL, max_tokens=60, max_retries=0, temperature=0)


class Place(BaseModel):
    """A place."""

    city: str


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return "rain in " + city


@check("invoke, stream, batch")
def plain() -> None:
    assert chat.invoke(SAY_HI).content
    assert "".join(str(c.content) for c in chat.stream(SAY_HI))
    assert len(chat.batch([SAY_HI, SAY_HI])) == 2


@check("bind_tools with tool_choice any, and the result sent back")
def tools() -> None:
    bound = chat.bind_tools([get_weather], tool_choice="any")
    answer = bound.invoke("The weather in Oslo?")
    assert isinstance(answer, AIMessage)
    assert answer.tool_calls[0]["name"] == "get_weather"
    result = ToolMessage("rain", tool_call_id=answer.tool_calls[0]["id"])
    assert chat.bind_tools([get_weather]).invoke([HumanMessage("The weather in Oslo?"), answer, result])


@check("a streamed call adds up")
def streamed_call() -> None:
    whole = None
    for chunk in chat.bind_tools([get_weather], tool_choice="get_weather").stream("The weather in Oslo?"):
        whole = chunk if whole is None else whole + chunk
    assert whole is not None
    assert whole.tool_calls[0]["name"] == "get_weather"


for method in ("json_schema", "function_calling", "json_mode"):

    @check(f"with_structured_output: {method}")
    def structured(method: str = method) -> None:
        # In json_mode it is up to the model which fields there are, and whether it comes to an end: with this question it does.
        ask = "Extract name and age as JSON: Anna is 31." if method == "json_mode" else "Name a city as JSON."
        found = chat.with_structured_output(Place, method=method, include_raw=True).invoke(ask)
        assert method == "json_mode" or isinstance(found["parsed"], Place), found["raw"]


@check("completions model")
def completions() -> None:
    assert OpenAI(base_url=API, api_key=KEY, model=MODEL, max_tokens=4, max_retries=0).invoke("Oslo is") is not None


@check("an overflow is a context overflow error")
def overflow() -> None:
    try:
        chat.invoke(LONG)
    except Exception as error:
        assert "ContextOverflow" in type(error).__name__, type(error).__name__
        return
    raise AssertionError("it was answered")


run()
