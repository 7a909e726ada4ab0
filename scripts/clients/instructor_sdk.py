"""Instructor: answers as pydantic models, by each of its modes."""

from __future__ import annotations

import instructor
import openai
from checks import API, KEY, MODEL, check, run
from pydantic import BaseModel

client = openai.OpenAI(base_url=API, api_key=KEY, max_retries=0)


class Place(BaseModel):
    city: str


for mode in (instructor.Mode.TOOLS, instructor.Mode.TOOLS_STRICT, instructor.Mode.JSON_SCHEMA):

    @check(f"mode {mode.name}")
    def create(mode: instructor.Mode = mode) -> None:
        asked = instructor.from_openai(client, mode=mode).chat.completions
        messages = [{"role": "user", "content": "Name a city."}]
        assert isinstance(asked.create(model=MODEL, messages=messages, response_model=Place, max_retries=0), Place)


@check("mode JSON: the answer is JSON (which fields it has is up to the model)")
def json_mode() -> None:
    asked = instructor.from_openai(client, mode=instructor.Mode.JSON).chat.completions
    try:
        asked.create(
            model=MODEL, messages=[{"role": "user", "content": "Name a city."}], response_model=Place, max_retries=0,
            max_tokens=100,
        )  # fmt: skip
    except Exception as error:
        assert "400" not in str(error), error


@check("a partial answer, streamed")
def partial() -> None:
    asked = instructor.from_openai(client, mode=instructor.Mode.TOOLS).chat.completions
    messages = [{"role": "user", "content": "Name a city."}]
    parts = list(asked.create_partial(model=MODEL, messages=messages, response_model=Place, max_retries=0))
    assert parts[-1].city is not None


run()
