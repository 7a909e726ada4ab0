"""scripts/siege.py: what it holds a server to."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.besiege import Order, Siege
from tests.attacks.kinds import KINDS
from tests.attacks.polite import OK, Asked

ROOT = Path(__file__).parents[2]
MIB = 2**20


def loaded(name: str) -> Any:
    """A script as a module, which finds those beside it."""
    sys.path.insert(0, str(ROOT / "scripts"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "scripts"))


checks = loaded("siege_checks")


def asked(status: str = OK, began_s: float = 0.0, ttft_s: float = 0.1, n: int = 3) -> Asked:
    token_s = [began_s + ttft_s + 0.05 * i for i in range(n)] if status == OK else []
    return Asked(began_s, status, began_s + 1.0, token_s)


def sample(at_s: float, process: str = "gateway", pid: int = 1, mib: float = 100.0, files: int = 20) -> Any:
    return checks.Sample(at_s, process, pid, round(mib * MIB), files)


def test_windows_are_told_apart() -> None:
    """A request that lived at any moment of a kill's window is inside of it."""
    window = checks.Window("engine", 10.0, 14.0)
    outside, inside = checks.apart([asked(began_s=s) for s in (8.5, 9.5, 12.0, 13.9, 14.5)], [window])
    assert [a.began_s for a in outside] == [8.5, 14.5]
    assert [a.began_s for a in inside] == [9.5, 12.0, 13.9]


def test_polite() -> None:
    """Lost is lost, also at a kill; only there may a new request be told to come later."""
    assert checks.check_polite([asked()], []).ok
    assert checks.check_polite([asked()], [asked("503 engine_unavailable")]).ok
    assert not checks.check_polite([asked(), asked("503 engine_unavailable")], []).ok
    assert not checks.check_polite([asked(), asked("429 queue_full")], []).ok
    assert not checks.check_polite([asked()], [asked("lost: engine_lost")]).ok
    assert not checks.check_polite([], []).ok


def test_ttft() -> None:
    """The quotient of the two 95th percentiles, over whole answers only."""
    calm = checks.figures([asked(ttft_s=0.1)] * 99 + [asked("lost")])
    siege = checks.figures([asked(ttft_s=0.29)] * 90 + [asked(ttft_s=0.35)] * 10)
    assert calm.n == 99
    assert calm.ttft_p95 == pytest.approx(100.0)
    assert calm.gap_p95 == pytest.approx(50.0)
    assert checks.check_ttft(calm, siege, 4.0).ok
    assert not checks.check_ttft(calm, siege, 3.0).ok
    assert not checks.check_ttft(checks.figures([]), siege, 3.0).ok
    assert not checks.check_ttft(calm, checks.figures([]), 3.0).ok


def test_attacks() -> None:
    """A kind that struck nobody proves nothing, and a request that was hidden in another must not be answered."""
    assert checks.check_attacks({"silence": {"held": 3}, "smuggled": {"400": 2}}).ok
    assert not checks.check_attacks({"silence": {}, "smuggled": {"400": 2}}).ok
    assert not checks.check_attacks({"silence": {"held": 3}, "smuggled": {"400": 2, "smuggled": 1}}).ok
    assert not checks.check_attacks({}).ok


@pytest.mark.parametrize(
    ("state", "age_s", "level", "health", "ok"),
    [
        ("running", 1.0, "normal", "ok", True),
        ("ended", 1.0, "normal", "ok", True),
        ("given_up", 1.0, "normal", "ok", False),
        ("failing", 1.0, "normal", "ok", False),
        ("running", 9.0, "normal", "ok", False),
        ("running", 1.0, "constrained", "ok", False),
        ("running", 1.0, "normal", "restarting", False),
    ],
)
def test_tasks(state: str, age_s: float, level: str, health: str, ok: bool) -> None:
    """A dead task, a history without samples, a level that stays, a server that is not well: each fails."""
    status = {"level": level, "tasks": [{"name": "lookout", "state": state}]}
    assert checks.check_tasks(status, age_s, 3, health, 0).ok is ok


@pytest.mark.parametrize(("kills", "ok"), [(2, False), (3, True)])
def test_a_server_whose_engines_were_killed_may_be_degraded(kills: int, ok: bool) -> None:
    """From as many crashes on as its settings say; it would have no reason for it otherwise."""
    assert checks.check_tasks({"level": "degraded", "tasks": []}, 1.0, 3, "ok", kills).ok is ok


def test_processes() -> None:
    """As many lives as were taken, and the gateway's one."""
    life = [sample(0), sample(0, "engine", 2), sample(0, "text", 3), sample(5, "engine", 4), sample(5, "text", 5)]
    killed = {"engine": 1, "text": 1}
    assert checks.check_processes(life, 1, killed, None, {}).ok
    assert not checks.check_processes([*life, sample(9, "engine", 6)], 1, killed, None, {}).ok
    assert not checks.check_processes([*life, sample(9, "text", 6)], 1, killed, None, {"crash": 2}).ok
    assert checks.check_processes([*life, sample(9, "text", 6)], 1, killed, None, {"crash": 1, "gone": 1}).ok
    assert not checks.check_processes(life, 2, killed, None, {}).ok
    assert not checks.check_processes(life, 1, {"engine": 1}, None, {}).ok
    assert not checks.check_processes(life, 1, killed, -11, {}).ok
    assert not checks.check_processes([*life, sample(9, "gateway", 7)], 1, killed, None, {}).ok


def test_descriptors() -> None:
    """At the end as at the beginning, for each process; in between there may be many."""
    assert checks.check_files([sample(0), sample(5, files=900), sample(9, files=23)], 4).ok
    assert not checks.check_files([sample(0), sample(9, files=25)], 4).ok
    assert not checks.check_files([], 4).ok


def test_memory() -> None:
    """From the end of the warm-up to the end of the siege; what came before and after is not looked at."""
    steady = [sample(s, mib=50 if s < 60 else 100 + s % 3) for s in range(0, 240, 2)]
    grown = [sample(s, mib=100 + s / 10) for s in range(0, 240, 2)]
    assert checks.check_memory(steady, 60, 240, 8).ok
    assert not checks.check_memory(grown, 60, 240, 8).ok
    assert checks.check_memory([*steady, sample(300, mib=500)], 60, 240, 8).ok
    assert not checks.check_memory([], 60, 240, 8).ok
    reborn = [sample(s, "engine", pid=2 + s // 100, mib=100 + s) for s in range(240)]
    assert checks.growth_mib(reborn, "engine", 60, 240) == pytest.approx(30, abs=6)


async def test_a_siege_ends_by_itself_and_counts_every_strike() -> None:
    """Where nobody listens each strike is told as not connected, and the time is kept."""
    siege = Siege(Order(port=1, seconds=0.3, kinds=["malformed", "lookers"], hold_s=0.1))
    await siege.run()
    assert set(siege.outcomes) == {"malformed", "lookers"}
    assert siege.outcomes["lookers"]["not connected"] >= 1


def test_every_kind_is_bounded_and_says_what_it_is() -> None:
    """A rate, a number at a time, a promise it is after, and a sentence."""
    for kind in KINDS.values():
        assert kind.promises, kind.name
        assert 1 <= kind.crew <= 200, kind.name
        assert kind.every_s >= 0.02, kind.name
        assert kind.strike.__doc__, kind.name
