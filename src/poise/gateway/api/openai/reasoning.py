"""How much a model is to reason, in the words of several servers: for its chat template, and as a budget of tokens."""

from collections.abc import Mapping
from typing import Any

from poise.gateway.api.fields import Custom, Field, Flag, Integer, Text
from poise.gateway.request.generate import ThinkingWish
from poise.gateway.request.refusals import invalid_type, invalid_value

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
FIELDS: tuple[Field[Any], ...] = (ENABLE_THINKING, EFFORT, BUDGET, THINKING)


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
