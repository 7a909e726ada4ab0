"""LlamaIndex: its OpenAI-like model."""

from __future__ import annotations

from checks import API, KEY, MODEL, SAY_HI, check, run
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel

llm = OpenAILike(
    model=MODEL, api_base=API, api_key=KEY, is_chat_model=True, is_function_calling_model=True,
    should_use_structured_outputs=True, context_window=8192, max_tokens=60, max_retries=0, temperature=0,
)  # fmt: skip


class Place(BaseModel):
    """A place."""

    city: str


def get_weather(city: str) -> str:
    """The weather in a city."""
    return "rain in " + city


@check("chat, complete and their streams")
def plain() -> None:
    assert llm.chat([ChatMessage(role="user", content=SAY_HI)]).message.content
    assert list(llm.stream_chat([ChatMessage(role="user", content=SAY_HI)]))
    assert llm.complete(SAY_HI).text
    assert list(llm.stream_complete(SAY_HI))


@check("structured_predict")
def structured() -> None:
    assert isinstance(llm.structured_predict(Place, PromptTemplate("Name a city.")), Place)


@check("chat_with_tools, required")
def tools() -> None:
    answer = llm.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg="Oslo?", tool_required=True)
    (call, *_) = llm.get_tool_calls_from_response(answer)
    assert call.tool_name == "get_weather"


run()
