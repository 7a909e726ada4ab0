"""lm-evaluation-harness: multiple choice by log probabilities and free answers, with a task and data written here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from checks import API, KEY, MODEL, URL, check, run

folder = tempfile.TemporaryDirectory()
HERE = Path(folder.name)
ROWS = [
    {"question": "The capital of Norway is", "choices": [" Oslo", " Rome"], "answer": 0, "free": "Oslo"},
    {"question": "The capital of Italy is", "choices": [" Oslo", " Rome"], "answer": 1, "free": "Rome"},
    {"question": "Two and two is", "choices": [" four", " nine"], "answer": 0, "free": "four"},
    {"question": "Ice is", "choices": [" hot", " cold"], "answer": 1, "free": "cold"},
]
DATA = f"dataset_path: json\ndataset_kwargs:\n  data_files:\n    test: {HERE / 'rows.jsonl'}\ntest_split: test\n"
CHOICE = 'doc_to_text: "{{question}}"\ndoc_to_choice: "{{choices}}"\ndoc_to_target: answer\noutput_type: multiple_choice\n'
FREE = 'doc_to_text: "{{question}}"\ndoc_to_target: free\noutput_type: generate_until\n'
FREE += 'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 8\nmetric_list:\n  - metric: exact_match\n'
(HERE / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
(HERE / "choice.yaml").write_text("task: choice_here\n" + DATA + CHOICE + "metric_list:\n  - metric: acc\n")
(HERE / "free.yaml").write_text("task: free_here\n" + DATA + FREE)


def evaluate(model: str, task: str, path: str, *words: str, tokenizer: str = "remote") -> dict[str, object]:
    values = f"model={MODEL},base_url={path},num_concurrent=2,max_retries=1,tokenizer_backend={tokenizer},max_length=2048"
    command = [sys.executable, "-m", "lm_eval", "run", "--model", model, "--model_args", values, "--tasks", task]
    command += ["--include_path", str(HERE), "--output_path", str(HERE / "out"), *words]
    environment = {**os.environ, "OPENAI_API_KEY": KEY, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(HERE / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-300:]
    found = max(HERE.glob("out/**/results*.json"), key=lambda path: path.stat().st_mtime)
    results: dict[str, dict[str, object]] = json.loads(found.read_text())["results"]
    return results[task]


@check("local-completions: multiple choice, with the server's tokenizer")
def multiple_choice() -> None:
    assert 0 <= evaluate("local-completions", "choice_here", API + "/completions")["acc,none"] <= 1


@check("local-completions: generate_until")
def generate() -> None:
    assert evaluate("local-completions", "free_here", API + "/completions")


@check("local-chat-completions: generate_until")
def chat() -> None:
    path = URL + "/v1/chat/completions"
    assert evaluate("local-chat-completions", "free_here", path, "--apply_chat_template", tokenizer="None")


run()
