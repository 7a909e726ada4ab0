"""scripts/soak.py: what it holds a server to, and a short soak of a real one."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from poise_lab.bench.load import RoundResult
from poise_lab.scenarios.parser import load_scenario
from tests.bench.test_stats import record
from tests.e2e.server import QUICK, assignments

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "soak.py"


def loaded() -> ModuleType:
    """The script as a module."""
    spec = importlib.util.spec_from_file_location("soak", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["soak"] = module
    spec.loader.exec_module(module)
    return module


soak: Any = loaded()
MIB = 2**20


def result(*statuses: str, warmup: tuple[str, ...] = ()) -> RoundResult:
    return RoundResult("http://h", 1, [record(status, [1.0]) for status in statuses], list(warmup), 1, 1, 0.0)


@pytest.mark.parametrize(
    ("statuses", "counted", "ok"),
    [
        (("ok", "ok", "cancelled"), 3, True),
        (("ok", "ok", "cancelled"), 2, True),
        (("ok", "ok", "refused"), 2, True),
        (("ok", "ok"), 3, False),
        (("ok", "ok"), 1, False),
        (("ok", "unfinished"), 2, False),
        (("ok", "pending"), 1, False),
    ],
)
def test_ends(statuses: tuple[str, ...], counted: int, ok: bool) -> None:
    """Open requests fail it, and so does a server that counted more than was sent, or fewer than were answered."""
    assert soak.check_ends(result(*statuses), {"a": 5.0}, {"a": 5.0, "b": float(counted)}).ok is ok
    assert soak.check_ends(result("ok", warmup=("ok",)), {}, {"a": 2.0}).ok


def test_errors() -> None:
    """Only what is allowed may be seen by a client."""
    seen = result("ok", "refused", "cancelled", "error:429/queue_full")
    assert soak.check_errors(seen, soak.ALLOWED).ok
    lost = soak.check_errors(result("ok", "error:503/engine_unavailable", "disconnected"), soak.ALLOWED)
    assert not lost.ok
    assert "'error:503/engine_unavailable': 1, 'disconnected': 1" in lost.detail
    allowed = [*soak.ALLOWED, *soak.ALLOWED_WITH_KILLS]
    assert soak.check_errors(result("error:503/engine_unavailable"), allowed).ok


def samples(name: str, pid: int, first_s: float, mib: list[float]) -> list[Any]:
    return [soak.Sample(first_s + 10 * n, name, pid, 0, round(value * MIB)) for n, value in enumerate(mib)]


def test_memory() -> None:
    """A start that grows and then stays passes; a steady leak does not; an engine's life is looked at alone."""
    steady = [50.0, 80.0, 95.0, 99.0, *[100.0 + n % 2 for n in range(36)]]
    leak = [100.0 + 0.5 * n for n in range(40)]
    gateway = samples("gateway", 1, 0, steady)
    assert [c.ok for c in soak.check_memory(gateway + samples("engine", 2, 0, steady), 0.25, 8, 0.25)] == [True, True]
    leaking = soak.check_memory(gateway + samples("engine", 2, 0, leak), 0.25, 8, 0.25)
    assert [c.ok for c in leaking] == [True, False]
    assert "slope +3.000 MiB/min" in leaking[1].detail
    assert soak.check_memory(gateway + samples("engine", 2, 0, leak), 0.25, 8, 4.0)[1].ok
    reborn = samples("engine", 2, 0, leak) + samples("engine", 3, 400, steady)
    assert soak.check_memory(gateway + reborn, 0.25, 8, 0.25)[1].ok
    assert not soak.check_memory(gateway + samples("engine", 4, 0, [1.0] * 5), 0.25, 8, 0.25)[1].ok
    stored = [replace(s, own_bytes=s.own_bytes + 9 * n * MIB, store_bytes=9 * n * MIB) for n, s in enumerate(gateway)]
    assert soak.check_memory(stored, 0.25, 8, 0.25)[0].ok  # What the store may keep is no leak.
    assert not soak.check_memory([], 0.25, 8, 0.25)[0].ok


def test_books() -> None:
    """Everything that /status may still hold is looked at, and named."""
    nothing = dict.fromkeys(("queued", "running", "paused", "swapped"), 0)
    clean = {"open_requests": 0, "classes": {"interactive": nothing}, "pools": [{"name": "short", "slots_held": 0}]}
    assert soak.check_books(clean).ok
    for change in (
        {"open_requests": 1},
        {"classes": {"interactive": nothing | {"swapped": 1}}},
        {"pools": [{"name": "short", "slots_held": 2}]},
    ):
        assert not soak.check_books(clean | change).ok


def test_the_plan() -> None:
    """Kills are within the first half of the load, as many as asked for, and the same for the same seed."""
    base = load_scenario(ROOT / "scenarios" / "soak.toml")
    plan = soak.planned(base, 2.0, 5, seed=3, drain_s=base.drain_s)
    assert replace(plan, events=(), duration_s=base.duration_s) == base
    assert len(plan.events) == 5
    assert all(12 <= event.at_s <= 60 for event in plan.events)
    assert (
        plan
        == soak.planned(base, 2.0, 5, seed=3, drain_s=base.drain_s)
        != soak.planned(base, 2.0, 5, seed=4, drain_s=base.drain_s)
    )


def test_the_audit_log_is_checked_where_it_is_named(tmp_path: Path) -> None:
    """By the command itself, which knows of no log in an empty folder."""
    assert soak.check_audit(None) is None
    check = soak.check_audit(tmp_path)
    assert check is not None
    assert not check.ok


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_short_soak_of_a_real_server(tmp_path: Path) -> None:
    """Fifteen seconds of everything at once, on a server that is then clean."""
    command = [sys.executable, str(SCRIPT), "--minutes", "0.25", "--sample-s", "0.5", "--growth-mib", "1000"]
    command += ["--json", str(tmp_path / "soak.json"), "--", *assignments(*QUICK)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=850, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    summary = json.loads((tmp_path / "soak.json").read_bytes())
    assert summary["passed"]
    assert [check["name"] for check in summary["checks"]] == [
        "ends", "errors", "memory gateway", "memory engine", "books", "exit",
    ]  # fmt: skip
    assert {"ok", "refused", "cancelled"} <= set(summary["statuses"])
