"""How a chat's prompt is to be written: what a caller may say to the model's chat template, how much the model is to reason, and
where the answer begins."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from poise.gateway.api.fields import Custom, Field, Flag, Integer, Text, read_object
from poise.gateway.request.generate import ThinkingWish
from poise.gateway.request.refusals import invalid_type, invalid_value, shown
from poise.wire.text import Message, Rendering

VARIABLES_MAX, VARIABLES_CHARS_MAX, DEPTH_MAX = 32, 16_384, 8
_TAKEN = {
    "messages": "they are the request's",
    "tools": "they are the request's",
    "documents": "put them into the messages",
    "bos_token": "it is the model's",
    "eos_token": "it is the model's",
    "add_generation_prompt": "it is a parameter of its own",
    "continue_final_message": "it is a parameter of its own",
}


def _read_variables(value: object, param: str) -> dict[str, Any]:
    variables = read_object(value, param)
    for name in variables:
        if name in _TAKEN or not name.isidentifier():
            hint = _TAKEN.get(name, "it is no name that a template could use")
            raise invalid_value(param, "have names that are free", name, f"has {shown(name)}: {hint}")
    if len(variables) > VARIABLES_MAX:
        raise invalid_value(param, f"have at most {VARIABLES_MAX} entries", None, f"has {len(variables)}")
    if not is_flat(variables, DEPTH_MAX) or len(json.dumps(variables)) > VARIABLES_CHARS_MAX:
        rule = f"be at most {VARIABLES_CHARS_MAX} characters of JSON, nested {DEPTH_MAX} times at most"
        raise invalid_value(param, rule, None, "is larger")
    return variables


def is_flat(value: Any, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(is_flat(one, levels - 1) for one in inner)


ADD_GENERATION_PROMPT = Flag(
    "add_generation_prompt", "The prompt ends where the assistant is to speak; true, unless the last message is continued."
)
CONTINUE_FINAL_MESSAGE = Flag(
    "continue_final_message", "The answer goes on with the text of the last message, which is the assistant's."
)
VARIABLES: Field[dict[str, Any]] = Custom(
    "chat_template_kwargs",
    "Values for the model's chat template, such as `enable_thinking`. One that the template does not know has no effect.",
    _read_variables,
    {"type": "object", "maxProperties": VARIABLES_MAX},
)
PREFIX = Flag("prefix", "On the last message, an assistant's: the same as `continue_final_message`.")
FIELDS: tuple[Field[Any], ...] = (ADD_GENERATION_PROMPT, CONTINUE_FINAL_MESSAGE, VARIABLES)


def read_rendering(values: Mapping[str, Any], messages: Sequence[Message]) -> Rendering:
    """`messages`: those of the request, read."""
    opens_answer = ADD_GENERATION_PROMPT.get(values, None)
    is_named = CONTINUE_FINAL_MESSAGE.get(values, False)
    continues = is_named or PREFIX.get(values["messages"][-1], False)
    if continues and messages[-1].role != "assistant":
        rule = "come with a last message of the assistant"
        param = CONTINUE_FINAL_MESSAGE.name if is_named else f"messages[{len(messages) - 1}].{PREFIX.name}"
        raise invalid_value(param, rule, None, f"continues one of '{messages[-1].role}'")
    if continues and opens_answer:
        raise invalid_value(ADD_GENERATION_PROMPT.name, "be false where the last message is continued", opens_answer)
    return Rendering(opens_answer is not False, continues, VARIABLES.get(values, {}))


_SWITCHES = ("enable_thinking", "thinking")
"""What templates call it."""
_TOKENS_MAX = 1 << 20


def _read_thinking(value: object, param: str) -> dict[str, Any]:
    if type(value) is bool:
        return {"is_on": value}
    if type(value) is not dict or not isinstance(value.get("type", ""), str):
        raise invalid_type(param, "true, false or an object with a 'type'", value)
    wanted = {"is_on": value["type"] != "disabled"} if value.get("type") else {}
    if value.get("budget_tokens") is not None:
        wanted["budget"] = BUDGET.read(value["budget_tokens"], f"{param}.budget_tokens")
    return wanted


ENABLE_THINKING = Flag("enable_thinking", "Whether the model reasons first, where its chat template lets it be told.")
EFFORT = Text("reasoning_effort", "How much it reasons, in words that its chat template knows; `none`: not at all.", max_chars=32)
BUDGET = Integer(
    "thinking_token_budget",
    "Tokens of reasoning after which its end is forced; -1: no limit.",
    -1,
    _TOKENS_MAX,
    aliases=("reasoning_budget_tokens", "reasoning_budget"),
)
THINKING: Field[dict[str, Any]] = Custom(
    "thinking",
    'The same in one: true, false, or {"type": "enabled" or "disabled", "budget_tokens": N}.',
    _read_thinking,
    {"anyOf": [{"type": "boolean"}, {"type": "object"}]},
)
THINKING_FIELDS: tuple[Field[Any], ...] = (ENABLE_THINKING, EFFORT, BUDGET, THINKING)


def read_thinking(values: Mapping[str, Any]) -> ThinkingWish:
    """What a request says of it, the plainest word first."""
    variables: dict[str, dict[str, Any]] = {}
    effort, is_on, both = EFFORT.get(values, None), ENABLE_THINKING.get(values, None), THINKING.get(values, {})
    if is_on is not None:
        variables[ENABLE_THINKING.name] = dict.fromkeys(_SWITCHES, is_on)
    if "is_on" in both:
        variables[THINKING.name] = dict.fromkeys(_SWITCHES, both["is_on"])
    if effort is not None:
        variables[EFFORT.name] = {EFFORT.name: effort} | dict.fromkeys(_SWITCHES, effort != "none")
    budget, named = BUDGET.get(values, None), BUDGET.written(values)
    if budget is not None and both.get("budget", budget) != budget:
        raise invalid_value(named, f"be 'thinking.budget_tokens' ({both['budget']}) where both are given", budget)
    if budget is None and "budget" in both:
        budget, named = both["budget"], "thinking.budget_tokens"
    return ThinkingWish(variables, budget, named)
