"""A real server makes faster weights at its first start, and finds them again; with a cache folder of its own."""

from __future__ import annotations

import json
import os
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.server import PoiseServer, assignments

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = assignments(
    "pools.short.slots=2", "pools.short.slot_tokens=512", "pools.short.flash_attention=on", "pools.long.slots=1",
    "pools.long.slot_tokens=2048", "store.budget_mb=16", "engine.threads=1", "engine.memory_reserve_mb=0",
    "model.weights_check_s=3600",
)  # fmt: skip
"""Little memory, and as much time for the choice as it takes; else as a user's server starts."""
CHOOSING = "choosing weights (first start with this model)"


@contextmanager
def server(cache: Path, *options: str) -> Iterator[PoiseServer]:
    running = PoiseServer.start(*SMALL, *options, environment={"XDG_CACHE_HOME": str(cache)}, quick=False)
    try:
        yield running
        assert running.stop() == 0
    finally:
        running.stop()


def fingerprint(running: PoiseServer) -> str:
    """Of a real answer."""
    body = json.dumps({"model": "default", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0})
    request = urllib.request.Request(f"{running.url}/v1/completions", body.encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=120) as response:
        answer = json.load(response)
    assert answer["choices"][0]["text"]
    return str(answer["system_fingerprint"])


def served(running: PoiseServer) -> str:
    """What the terminal says of the weights, behind the line with the address."""
    assert running.process.stdout is not None
    line = next(line for line in running.process.stdout if line.startswith("  weights "))
    return line.split()[1].rstrip(":")


def files(cache: Path) -> list[Path]:
    return sorted((cache / "poise" / "weights").glob("*.gguf"))


def test_the_life_of_weights(tmp_path: Path) -> None:
    """Made once, used again, made again when damaged, and left alone when that is wanted.

    Whether they are faster depends on the host, and a busy one may find that they are not: then the file is served and says so.
    """
    with server(tmp_path) as first:
        assert any(CHOOSING in line for line in first.output)
        print_of_first, chosen, model = fingerprint(first), served(first), first.get("/v1/models")[1]["data"][0]["id"]
    assert chosen in ("bf16", "q8_0", "as-is"), "the other formats of this model do not pass"
    made = files(tmp_path)
    assert len(made) == (chosen != "as-is")
    decision = json.loads((tmp_path / "poise" / "weights.json").read_text())
    (trials,) = (entry["trials"] for entry in decision.values())
    names = [trial["name"] for trial in trials]
    assert names[-3:] == ["q8_0", "q4_0 with q8_0 head", "q4_0"], "before them, bf16 where the CPU computes it"
    assert all(trial["pace"] for trial in trials), "all of them are timed"
    quality = {trial["name"]: trial["quality"]["kl"] for trial in trials if trial["quality"]}
    assert chosen == "as-is" or quality[chosen] < 0.02
    for name in ("q4_0 with q8_0 head", "q4_0"):
        assert quality.get(name, 1.0) > 0.1, "4 bits a second time are another model"

    for path in made:  # nothing was made, and nothing can be damaged, where the file is served
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 0xFF
        path.write_bytes(data)
        os.utime(path, ns=(1, 1))
    with server(tmp_path) as second:
        assert served(second) == chosen
        assert fingerprint(second) == print_of_first
    assert files(tmp_path) == made
    assert all(path.stat().st_mtime_ns != 1 for path in made), "a damaged file is made again"

    times = [path.stat().st_mtime_ns for path in made]
    with server(tmp_path) as third:
        assert not any(CHOOSING in line for line in third.output), "the third start finds everything"
        assert served(third) == chosen
    assert [path.stat().st_mtime_ns for path in made] == times
    assert json.loads((tmp_path / "poise" / "weights.json").read_text()) == decision, "nothing was measured again"

    with server(tmp_path, "--set", "model.weights=as-is") as plain:
        assert served(plain) == "as-is"
        assert not any(CHOOSING in line for line in plain.output)
        assert plain.get("/v1/models")[1]["data"][0]["id"] == model
        assert (fingerprint(plain) == print_of_first) == (chosen == "as-is")
