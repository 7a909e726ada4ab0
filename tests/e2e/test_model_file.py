"""A real model file that becomes another one under a real server: nothing of the other one is ever sent."""

from __future__ import annotations

import json
import os
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from poise.llama.files.default_model import default_model
from tests.e2e.server import PoiseServer

pytestmark = pytest.mark.slow

CHANGED = "the model file changed"


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "model.gguf"
    shutil.copyfile(default_model(), path)
    yield path
    for each in tmp_path.iterdir():
        each.unlink()


def ask(server: PoiseServer) -> tuple[int, str]:
    """Status, and the greedy answer or the error."""
    messages = [{"role": "user", "content": "Hi"}]
    body = {"model": "default", "messages": messages, "max_tokens": 4, "temperature": 0}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=200) as response:
            return response.status, json.load(response)["choices"][0]["message"]["content"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_another_vocabulary_is_refused_until_the_former_file_is_back(model: Path) -> None:
    """Same size, one word of the vocabulary another: the engine that is started with it never answers."""
    settings = ("--set", f"model.path={model}", "--set", "model.weights=as-is", "--set", "engine.restart_delay_max_s=1")
    server = PoiseServer.start(*settings)
    try:
        status, before = ask(server)
        assert status == 200
        kept = model.with_suffix(".former")
        os.rename(model, kept)
        other = bytearray(kept.read_bytes())
        at = other.find(b"hello")
        other[at : at + 5] = b"olleh"
        model.write_bytes(other)
        server.engine().kill()
        answers: list[tuple[int, str]] = []

        def refused() -> bool:
            answers.append(ask(server))
            return CHANGED in answers[-1][1]

        server.eventually(refused, "the other file is refused")
        assert {answer for status, answer in answers if status == 200} <= {before}
        assert answers[-1][0] == 503
        health = server.get("/health")
        assert (health[0], health[1]["status"], CHANGED in health[1]["detail"]) == (503, "restarting", True)
        server.eventually(
            lambda: "model_changed" in [found["finding"] for found in server.get("/status")[1]["findings"]], "found"
        )
        os.replace(kept, model)
        server.eventually(lambda: ask(server)[0] == 200, "the former file is served again")
        assert ask(server) == (200, before)
    finally:
        assert server.stop() == 0
