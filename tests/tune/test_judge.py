"""The live judge's order of rounds and servers, and the reading of the child that times passes; both without a model."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from poise.config import LoadedSettings, load
from poise_lab.bench.comparison import Estimate
from poise_lab.bench.rounds import OURS, THEIRS, ScenarioSource
from poise_lab.scenarios.parser import parse_scenario
from poise_lab.tune import children, judge, measures
from poise_lab.tune.children import CannotMeasure, server_toml
from poise_lab.tune.judge import LiveJudge
from poise_lab.tune.knobs import Changes
from poise_lab.tune.loop import judge_passes
from poise_lab.tune.measures import PassJudge
from poise_lab.tune.passes import Line
from tests.bench.test_command import TEXT

SOURCE = ScenarioSource(parse_scenario(TEXT, "mixed.toml"), "mixed.toml", TEXT)


@pytest.fixture(autouse=True)
def _nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "user"))


class World:
    """Servers that are only noted, and rounds whose TTFT depends on the server's settings."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ttft: Mapping[str, float]) -> None:
        self.alive: list[str] = []
        self.rounds: list[tuple[int, list[str]]] = []
        self.lost_at: int | None = None
        world = self

        class FakeServer:
            def __init__(self, loaded: LoadedSettings, changes: Changes, folder: Path) -> None:
                self.url = repr(changes)
                world.alive.append(self.url)

            def close(self) -> None:
                world.alive.remove(self.url)

        def live_round(source: object, urls: Mapping[str, str], seed: int, pause_s: float) -> dict[str, Any]:
            if world.lost_at == len(world.rounds):
                raise CannotMeasure("lost")
            world.rounds.append((seed, list(urls)))
            return {"seed": seed, "sides": {side: _side(ttft[url]) for side, url in urls.items()}}

        monkeypatch.setattr(judge, "Server", FakeServer)
        monkeypatch.setattr(judge, "live_round", live_round)


def _side(ttft: float) -> dict[str, Any]:
    figures = {"ttft_ms_p95": {"value": ttft, "bound": ""}}
    return {"groups": [{"kind": "all", "name": "", "statuses": {"ok": 3, "error:500/x": 1}, "figures": figures}]}


def never(_: list[Estimate]) -> bool:
    return False


def test_rounds_alternate_and_have_seeds_of_their_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each side goes first in turn; the ratio is candidate / before; failures are counted on both sides."""
    world = World(monkeypatch, {"{}": 100.0, "{'a': 1}": 80.0})
    measured = LiveJudge(load(None, {}, {}), SOURCE, tmp_path, 5).compare({}, {"a": 1}, 40, never)
    assert world.rounds == [(40 + n, [OURS, THEIRS] if n % 2 == 0 else [THEIRS, OURS]) for n in range(5)]
    assert measured.estimates[0].ratio == pytest.approx(0.8)
    assert (measured.seeds, measured.failed, measured.stopped) == ((40, 41, 42, 43, 44), (5, 5), "")


def test_servers_stay_while_they_are_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """At most two are alive; what is asked for again is not started again; a lost one takes all with it."""
    world = World(monkeypatch, {"{}": 100.0, "{'a': 1}": 80.0, "{'a': 2}": 90.0})
    live = LiveJudge(load(None, {}, {}), SOURCE, tmp_path, 5)
    live.compare({}, {"a": 1}, 1, never)
    assert sorted(world.alive) == ["{'a': 1}", "{}"]
    live.compare({}, {"a": 2}, 1, never)
    assert sorted(world.alive) == ["{'a': 2}", "{}"]
    world.lost_at = len(world.rounds) + 2
    with pytest.raises(CannotMeasure):
        live.compare({}, {"a": 1}, 1, never)
    world.lost_at = None
    assert world.alive == []
    live.compare({}, {"a": 1}, 1, never)
    live.close()
    assert world.alive == []


def test_giving_up(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Not before three rounds, and never in the last; and before a round for which there is no time."""
    world = World(monkeypatch, {"{}": 100.0, "{'a': 1}": 120.0})
    live = LiveJudge(load(None, {}, {}), SOURCE, tmp_path, 5)
    assert live.compare({}, {"a": 1}, 1, lambda _: True).stopped == "no better after 3 rounds"
    assert len(world.rounds) == 3
    assert live.compare({}, {"a": 1}, 1, never, until=time.monotonic()).stopped == "the time was over"
    assert len(world.rounds) == 3


def test_a_judged_server_has_the_settings_and_nothing_that_keeps_a_measurement_out(tmp_path: Path) -> None:
    """The changes with what gives way to them; no keys, no audit log, no telemetry; a file that loads as it is."""
    loaded = load(
        None,
        {},
        {
            "profile": "team", "auth.required": True, "auth.keys.alice": "sk-1-of-alice", "tenants.alice.weight": 2.0,
            "telemetry.otlp_endpoint": "http://127.0.0.1:4318", "server.host": "0.0.0.0",
        },
    )  # fmt: skip
    path = tmp_path / "server.toml"
    path.write_text(server_toml(loaded, {"pools.short.slots": 4}, tmp_path))
    settings = load(path, {}, {}).settings
    assert (settings.pools.short.slots, settings.classes.interactive.slots_max) == (4, 4)
    assert settings.store == loaded.settings.store
    assert (settings.auth.required, settings.auth.keys, settings.audit.enabled) == ("auto", {}, False)
    assert (settings.server.host, settings.server.port, settings.telemetry.otlp_endpoint) == ("127.0.0.1", 0, "")
    assert "sk-1" not in path.read_text()


def child_that_says(monkeypatch: pytest.MonkeyPatch, *lines: Line) -> list[subprocess.Popen[bytes]]:
    """In the place of the one that times passes: it reads its order and prints the lines."""
    text = b"\n".join(msgspec.json.encode(line) for line in lines)
    code = f"import sys; sys.stdin.read(); print({text.decode()!r})"
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", code]
        pipe = subprocess.PIPE
        started.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True))
        return started[-1]

    monkeypatch.setattr(measures, "start_passes", start)
    return started


def compare_passes(rounds: int = 5, until: float = float("inf")) -> Any:
    return PassJudge(load(None, {}, {}), rounds).compare({}, {"engine.threads": 1}, "engine.threads", ("short",), until)


def test_passes_become_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over the passes, and each pass, paired by round; the child has ended."""
    times = [Line(times={"prompt_64_us": (100.0 + n, 50.0 + n / 2), "decode_1_us": (10.0, 8.0)}) for n in range(5)]
    started = child_that_says(monkeypatch, *times)
    measured = compare_passes()
    by_name = {estimate.figure: estimate.ratio for estimate in measured.estimates}
    assert by_name == pytest.approx({"step_us": (0.5 * 0.8) ** 0.5, "prompt_64_us": 0.5, "decode_1_us": 0.8})
    assert judge_passes(measured).kept
    assert started[0].poll() is not None


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([Line(same=True)], "it builds the same engine"),
        ([Line(problem="no such file")], "no such file"),
        ([], "ended without a figure"),
    ],
)
def test_what_cannot_be_timed(monkeypatch: pytest.MonkeyPatch, lines: list[Line], said: str) -> None:
    """A reason in a line."""
    child_that_says(monkeypatch, *lines)
    with pytest.raises(CannotMeasure, match=said):
        compare_passes()


def test_passes_that_are_faster_and_not_good_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    """Other KV cells that change the predictions are refused, however fast; so is a child that ended early or was cut."""
    faster = [Line(times={"decode_1_us": (10.0 + n, 5.0 + n / 2)}) for n in range(5)]
    child_that_says(monkeypatch, *faster, Line(problem="its KL divergence is 0.5"))
    verdict = judge_passes(compare_passes())
    assert (verdict.kept, verdict.reason) == (False, "its KL divergence is 0.5")
    child_that_says(monkeypatch, *faster[:3])
    assert "ended early" in judge_passes(compare_passes()).reason
    child_that_says(monkeypatch, *faster)
    assert "the time was over" in judge_passes(compare_passes(until=0.0)).reason


def test_a_server_that_does_not_start_is_a_reason(tmp_path: Path) -> None:
    """Its last line, and no process is left."""
    loaded = load(None, {}, {"model.path": str(tmp_path / "none.gguf")})
    with pytest.raises(CannotMeasure, match=r"the server does not start: poise: .*none\.gguf"):
        children.Server(loaded, {}, tmp_path)
