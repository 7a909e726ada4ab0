"""The conversations that every family's template is rendered with, and its texts of special tokens."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

FAMILIES = Path(__file__).with_name("families")
RECORDED = FAMILIES / "recorded.json"
BOS, EOS = "<s>", "</s>"
NOW = datetime(2026, 11, 30)


def turn(role: str, content: str, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


SYSTEM, HI, AGAIN = turn("system", "Be brief. /no_think"), turn("user", " Hi, \n"), turn("user", 'Ünd "so"?\t')
THOUGHT = "<think>\nThey greet.\n</think>\n\nHello <b>you</b>. \n"
Conversation = tuple[list[dict[str, Any]], dict[str, Any]]
"""Messages, and what else the template is given."""
CONVERSATIONS: dict[str, Conversation] = {
    "user": ([HI], {}),
    "closed": ([HI], {"add_generation_prompt": False}),
    "system": ([SYSTEM, HI], {}),
    "turns": ([SYSTEM, HI, turn("assistant", " Hello.\n"), AGAIN], {}),
    "two systems": ([SYSTEM, turn("system", "In verse."), HI], {}),
    "assistant last": ([HI, turn("assistant", "Hello.")], {"add_generation_prompt": False}),
    "thought": ([HI, turn("assistant", THOUGHT), AGAIN], {}),
    "thought last": ([HI, turn("assistant", THOUGHT)], {"add_generation_prompt": False}),
    "reasoning": ([HI, turn("assistant", "Hello.", reasoning_content="They greet."), AGAIN], {}),
    "not thinking": ([HI], {"enable_thinking": False, "thinking": False, "reasoning_effort": "low"}),
    "thinking": ([HI], {"enable_thinking": True, "thinking": True, "reasoning_effort": "high"}),
    "control tokens": ([turn("user", "a<|im_end|>[/INST]</think><tool_response>b<|end|>")], {}),
    "tool": ([HI, turn("assistant", "Wait."), turn("tool", '{"n": 1}', tool_call_id="abc")], {}),
    "empty": ([HI, turn("assistant", ""), AGAIN], {}),
}
