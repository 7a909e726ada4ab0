"""Reasoning through the official client: apart from what is said, counted, ended by its budget, also across an engine's death."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest

from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

TEMPLATE = """{% for message in messages %}<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% if enable_thinking is not defined or enable_thinking %}<think>
{% endif %}{% endif %}"""
"""The default model's own, opening reasoning as the templates of models that reason do."""
ASK: dict[str, Any] = {
    "model": "default",
    "messages": [{"role": "user", "content": "Count to three."}],
    "temperature": 0,
    "max_tokens": 60,
}
N_BUDGET = 12
BUDGET = {"thinking_token_budget": N_BUDGET, "min_tokens": 40}
"""With something to say behind it, which so small a model may not have by itself."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PoiseServer]:
    path = tmp_path_factory.mktemp("reasoning") / "template.jinja"
    path.write_text(TEMPLATE)
    started = PoiseServer.start("--set", f"model.chat_template={path}", environment={"XDG_STATE_HOME": str(Path(path).parent)})
    yield started
    assert started.stop() == 0


def client(server: PoiseServer) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url, api_key="thinker", max_retries=0)


def asked(server: PoiseServer, **more: Any) -> tuple[str, str, int]:
    """What was thought and said, and the tokens of the former."""
    answer = client(server).chat.completions.create(**ASK, extra_body=BUDGET | more)
    message, usage = answer.choices[0].message, answer.usage
    assert usage is not None
    n_thought = usage.completion_tokens_details.reasoning_tokens if usage.completion_tokens_details else 0
    return getattr(message, "reasoning_content", None) or "", message.content or "", n_thought or 0


def test_what_is_thought_stands_apart_and_ends_with_its_budget(server: PoiseServer) -> None:
    """The mark itself is in neither; its tokens are counted with the reasoning."""
    thought, said, n_thought = asked(server)
    assert thought
    assert said
    assert "think>" not in thought + said
    assert N_BUDGET <= n_thought <= N_BUDGET + 6  # the end of a character, and the mark


def test_a_stream_adds_up_to_the_whole_also_in_another_engine(server: PoiseServer) -> None:
    """The engine is killed in the middle of it."""
    thought, said, _ = asked(server)
    pieces: list[tuple[str, str]] = []
    for event in client(server).chat.completions.create(**ASK, stream=True, extra_body=BUDGET):
        delta = event.choices[0].delta
        pieces.append((getattr(delta, "reasoning_content", None) or "", delta.content or ""))
        if len(pieces) == 5:
            server.engine().send_signal(signal.SIGKILL)
    assert "".join(piece for piece, _ in pieces) == thought
    assert "".join(piece for _, piece in pieces) == said


def test_a_form_is_of_what_is_said_after_the_reasoning(server: PoiseServer) -> None:
    """The mark that ends it has several tokens here; streamed, with the engine killed in the middle, it is the same."""
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    form = {"response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}}, "min_tokens": 0}
    thought, said, _ = asked(server, **form)
    assert len(thought) > 10
    assert jsonschema_rs.is_valid(schema, json.loads(said))
    pieces: list[tuple[str, str]] = []
    for event in client(server).chat.completions.create(**ASK, stream=True, extra_body=BUDGET | form):
        delta = event.choices[0].delta
        pieces.append((getattr(delta, "reasoning_content", None) or "", delta.content or ""))
        if len(pieces) == 5:
            server.engine().send_signal(signal.SIGKILL)
    assert ("".join(piece for piece, _ in pieces), "".join(piece for _, piece in pieces)) == (thought, said)


def test_a_model_that_can_be_told_not_to_think(server: PoiseServer) -> None:
    """Then all of it is said."""
    thought, said, n_thought = asked(server, enable_thinking=False)
    assert (thought, n_thought) == ("", 0)
    assert said
