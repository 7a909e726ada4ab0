"""What a chat template adds to the prompts that a benchmark planned: tokens of a prompt, and of each turn before it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any

from poise.scenarios.model import Scenario


@dataclass(frozen=True, slots=True)
class TemplateTokens:
    """Tokens that a chat template adds to a prompt, and for each turn of the conversation that precedes it."""

    prompt: int = 0
    turn: int = 0


def template_tokens(scenario: Scenario, requests: Iterable[Mapping[str, Any]]) -> TemplateTokens:
    """From the requests that a benchmark sent, as its JSON file has them: medians of what was counted over what was planned."""
    turns = {client.name: client.turns for client in scenario.clients}
    extra: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for request in requests:
        if request["prompt_tokens"] is not None:
            turn = request["index"] % turns[request["client"]]
            extra[turn == 0].append((turn, request["prompt_tokens"] - request["prompt_tokens_planned"]))
    if not extra[True]:
        return TemplateTokens()
    first = max(0, round(median(n for _, n in extra[True])))
    later = [(n - first) / turn for turn, n in extra[False]]
    return TemplateTokens(first, max(0, round(median(later))) if later else 0)
