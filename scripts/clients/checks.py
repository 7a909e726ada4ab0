"""What every client's script shares: a list of checks, run one after the other, each a line of JSON on standard output.

    python NAME.py BASE_URL MODEL

A script runs in an environment of its own, in which poise is not installed: it knows the server by its address alone.
"""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable

URL = sys.argv[1].rstrip("/") if len(sys.argv) > 1 else "http://127.0.0.1:8000"
API = URL + "/v1"
MODEL = sys.argv[2] if len(sys.argv) > 2 else "default"
KEY = "any"
SAY_HI = "Say hi."
_checks: list[tuple[str, Callable[[], object]]] = []


def check(what: str) -> Callable[[Callable[[], object]], Callable[[], object]]:
    """The function shows that `what` works, or raises. What it returns is not looked at."""

    def add(function: Callable[[], object]) -> Callable[[], object]:
        _checks.append((what, function))
        return function

    return add


def run() -> None:
    """All of them, also behind one that failed. Exit code 1 when any did."""
    n_failed = 0
    for what, function in _checks:
        try:
            function()
            why = ""
        except Exception as error:
            traceback.print_exc()
            why = f"{type(error).__name__}: {error}"[:300]
            n_failed += 1
        print(json.dumps({"check": what, "why": why}), flush=True)
    sys.exit(1 if n_failed else 0)


def tool(name: str = "get_weather") -> dict[str, object]:
    """A function as OpenAI's API declares one."""
    return {
        "type": "function",
        "function": {
            "name": name,
            "description": "The weather in a city.",
            "parameters": {
                "type": "object",
                "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
                "required": ["city"],
                "additionalProperties": False,
            },
        },
    }


LONG = "word " * 60_000
"""More tokens than the default model's context has."""
