"""Requests as intake has them, from the bodies that callers send."""

from __future__ import annotations

from typing import Any

from poise.config import Settings
from poise.gateway.api.openai.parser import RequestParser
from poise.gateway.request.generate import Generate

ALL = frozenset({"tools", "structured", "reasoning", "logprobs", "choices", "completions", "sampling"})
PARSER = RequestParser(Settings())
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "How it is.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock", "strict": True}}
CALLED: list[dict[str, Any] | str] = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "weather?", "name": "ann"},
    {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}},
            {"id": "call 2!", "type": "function", "function": {"name": "clock", "arguments": "now"}},
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    {"role": "tool", "tool_call_id": "call 2!", "content": "noon"},
    {"role": "user", "content": "thanks"},
]


def chat(*messages: dict[str, Any] | str, **fields: Any) -> Generate:
    """Texts are what a user says."""
    said = [{"role": "user", "content": m} if isinstance(m, str) else m for m in messages or ("hello",)]
    return PARSER.chat({"messages": said, **fields})


def completion(prompt: Any, **fields: Any) -> Generate:
    return PARSER.completion({"prompt": prompt, **fields})
