"""Simon Willison's `llm`: a model in its file of further OpenAI models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import API, KEY, MODEL, SAY_HI, check, run

folder = tempfile.TemporaryDirectory()
ENTRY = f"- model_id: here\n  model_name: {MODEL}\n  api_base: {API}\n  supports_tools: true\n  supports_schema: true\n"
Path(folder.name, "extra-openai-models.yaml").write_text(ENTRY)
COMMAND = [str(Path(sys.executable).with_name("llm")), "-m", "here", "--key", KEY]


def ask(*words: str) -> str:
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=120, check=False,
        env={**os.environ, "LLM_USER_PATH": folder.name}, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-300:]
    return done.stdout


@check("a prompt, and -c")
def prompt() -> None:
    assert ask(SAY_HI, "-o", "max_tokens", "8")
    assert ask("-c", "And again.", "-o", "max_tokens", "8")


@check("--no-stream")
def whole() -> None:
    assert ask(SAY_HI, "--no-stream", "-o", "max_tokens", "8")


@check("--schema")
def schema() -> None:
    # Without a bound a small model may write one text until its slot is full, and the test would wait for it.
    city = {"type": "string", "maxLength": 20}
    wanted = {"type": "object", "properties": {"city": city, "people": {"type": "integer"}}, "required": ["city", "people"]}
    answer = ask("Name a city.", "--schema", json.dumps(wanted))
    assert set(json.loads(answer)) >= {"city", "people"}, answer  # the schema allows more


@check("-o json_object")
def json_object() -> None:
    ask("Name a city as JSON.", "-o", "json_object", "1", "-o", "max_tokens", "50")


@check("--functions")
def functions() -> None:
    ask("Add 1 and 2.", "--functions", "def add(a: int, b: int) -> int:\n    return a + b", "-o", "max_tokens", "50")


run()
