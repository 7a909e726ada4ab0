"""`poise tune` and `poise capacity` with real servers, a tiny load and a budget of seconds; no process is left."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from poise.config import load
from poise_lab.tune.capacity import KINDS
from tests.e2e.server import QUICK, assignments, run_poise

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

SCENARIO = """
name = "tiny"
description = "A chat and a job, for seconds."
duration_s = 2.0
drain_s = 2.0
warmup_requests = 1

[[clients]]
name = "chat"
tenant = "chat"
class = "interactive"
arrival = { kind = "closed" }
prompt_tokens = 30
output_tokens = 8

[[clients]]
name = "job"
tenant = "job"
class = "background"
arrival = { kind = "closed" }
prompt_tokens = 30
output_tokens = 30
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "tiny.toml").write_text(SCENARIO)
    return tmp_path


def tune(*arguments: str) -> list[str]:
    return [
        "tune",
        "--scenario",
        "tiny.toml",
        "--minutes",
        "3",
        "--round-s",
        "1",
        "--guard",
        "all.output_tokens_per_s>=0.1",
        *assignments(*QUICK),
        *arguments,
    ]


def test_the_whole_path(folder: Path) -> None:
    """Passes, calibration, simulator, perhaps live servers; a file that loads; then the live judge on a value of that file."""
    knobs = ("--knob", "pools.short.flash_attention", "--knob", "scheduler.turn_ms")
    done = run_poise(*tune(*knobs), cwd=folder, timeout_s=700)
    assert done.returncode == 0, done.stdout + done.stderr
    evidence = json.loads((folder / "poise.tuned.json").read_text())
    methods = [(trial["method"], trial["result"]) for trial in evidence["trials"]]
    assert any(method == "passes" and result in ("kept", "refused") for method, result in methods)
    assert [method for method, _ in methods].count("simulator") >= 2
    assert "simulator calibrated from one live round" in done.stdout
    load(folder / "poise.tuned.toml", {}, {})

    (folder / "poise.tuned.toml").write_text("[scheduler]\nturn_ms = 1000\n")
    checked = run_poise(*tune("--check"), cwd=folder, timeout_s=700)
    assert checked.returncode in (0, 1), checked.stdout + checked.stderr
    assert "scheduler.turn_ms = 1000: " in checked.stdout
    assert "interactive.ttft_ms_p95 x" in checked.stdout


def test_interrupted_and_killed(folder: Path) -> None:
    """After Ctrl-C the files are written and every process has ended; after `kill -9` every process ends as well."""
    for number, code in ((signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)):
        command = [sys.executable, "-m", "poise", *tune("--knob", "scheduler.turn_ms")]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            children = _server_of(process.pid)
            process.send_signal(number)
            assert process.wait(60) == code
        finally:
            process.kill()
            assert process.stdout is not None
            process.stdout.close()
        gone, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
        assert len(gone) == len(children)
        if number == signal.SIGINT:
            assert json.loads((folder / "poise.tuned.json").read_text())["ended"] == "interrupted"


def test_capacity_within_seconds(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It measures what the time allows and at least the first load, records it, and shows it beside the limits."""
    monkeypatch.setenv("XDG_STATE_HOME", str(folder / "state"))
    settings = assignments(*QUICK, "pools.short.slots=4", "classes.interactive.slots_max=4")
    done = run_poise("capacity", "--minutes", "0.1", "--round-s", "1", *settings, cwd=folder, timeout_s=700)
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = json.loads((folder / "state" / "poise" / "capacity.json").read_text()).values()
    first = record["interactive"]
    assert first["slots"] == 4
    assert first["at_once"] or first["broken"], "either the targets were kept by some load, or they were missed"
    tried = re.findall(r"^  (\w+), .* (?:keeps every target|misses .*)", done.stdout, re.MULTILINE)
    assert tried[0] == "interactive"
    n_missing = sum(record[kind] is None for kind in KINDS) + (record["context_tokens"] is None)
    shown = run_poise("capacity", "show", *settings, cwd=folder)
    at_once, _, limits = shown.stdout.partition("limits in force")
    assert at_once.count("not measured") == n_missing, "what was not measured is said to be so"
    assert "classes.interactive.slots_max" in limits
    above = assignments("server.require_measured=true", "pools.long.slots=3")
    refused = run_poise("serve", "--port", "0", *settings, *above, cwd=folder)
    assert refused.returncode == 2
    assert "pools.long.slots = 3 (command line --set pools.long.slots) is above" in refused.stderr


def _server_of(pid: int) -> list[psutil.Process]:
    """The processes below a tuning run, once it has a server with its engine."""
    until = time.monotonic() + 240
    while time.monotonic() < until:
        children = psutil.Process(pid).children(recursive=True)
        if len(children) >= 2:
            return children
        time.sleep(0.05)
    raise AssertionError("no server was started")
