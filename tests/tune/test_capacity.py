"""The search for how much a server takes, the loads it uses, and how a live round is held against the targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from poise.config import Settings, load
from poise_lab.bench.rounds import OURS
from poise_lab.sim.breaking import DEFAULT_TARGETS, parse_target
from poise_lab.sim.simulate import Options
from poise_lab.tune import capacity_command
from poise_lab.tune.capacity import (
    AT_ONCE_MAX,
    KINDS,
    Result,
    context_load,
    guess,
    judge,
    load_of,
    longest_context,
    search,
    slots_for,
)
from poise_lab.tune.capacity_command import Measuring
from poise_lab.tune.children import CannotMeasure

TARGETS = [parse_target(text) for text in DEFAULT_TARGETS]


def never() -> bool:
    return False


@pytest.mark.parametrize("first", [1, 3, 9, 10, 17, 60])
def test_the_search_brackets_the_truth(first: int) -> None:
    """What is recorded as kept was kept, what is recorded as broken was not, with any guess."""
    tried: list[int] = []

    def attempt(n: int) -> Result:
        tried.append(n)
        return Result({"x": float(n)}, "" if n <= 9 else f"{n} is too much", per_s=2.0)

    load = search(first, attempt, slots=12, tries=8, until=never)
    assert (load.at_once, load.broken) == (9, 10)
    assert (load.figures, load.missed, load.slots, load.per_s) == ({"x": 9.0}, "10 is too much", 12, 2.0)
    assert len(tried) == len(set(tried))


def test_the_search_has_bounds() -> None:
    """A number of rounds, and a largest load."""
    seen: list[int] = []
    load = search(8, lambda n: seen.append(n) or Result({}, ""), slots=1, tries=3, until=never)  # type: ignore[func-returns-value]
    assert (load.at_once, load.broken, seen) == (32, None, [8, 16, 32])
    most = search(AT_ONCE_MAX, lambda n: Result({}, ""), slots=1, until=never)
    assert most.at_once == AT_ONCE_MAX
    nothing = search(4, lambda n: Result({}, "all"), slots=1, until=never)
    assert (nothing.at_once, nothing.broken) == (0, 1)


@pytest.mark.parametrize(("missed", "found"), [("", (4, None)), ("slow", (0, 4))])
def test_the_guess_is_tried_though_the_time_is_over(missed: str, found: tuple[int, int | None]) -> None:
    """On a slow host the guess alone may take all the time: what was begun has a result, of one round."""
    load = search(4, lambda n: Result({}, missed), slots=1, until=lambda: True)
    assert (load.at_once, load.broken) == found


def test_a_slow_host_measures_what_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    """When preparing the guess took all the time, the first kind still has a round; the others are said not to be measured."""
    said: list[str] = []
    measuring = Measuring(load(None, {}, {}), Path("m.gguf"), "", TARGETS, 1.0, 1, until=float("inf"), say=said.append)

    def calibrated(*_: object) -> None:
        measuring.until = 0.0
        raise CannotMeasure("nothing was computed")

    monkeypatch.setattr(capacity_command, "calibrated_round", calibrated)
    monkeypatch.setattr(capacity_command, "live_round", lambda *_: {"sides": {OURS: side()}})
    monkeypatch.setattr(capacity_command, "read_header", lambda _: SimpleNamespace(number=lambda _: None))
    assert measuring.run() is False
    record = measuring.record({"host": {"cpu": "x", "n_cpus_usable": 2}, "model": {}})
    assert record.interactive is not None
    slots = Settings().classes.interactive.slots_max
    assert (record.interactive.at_once, record.interactive.broken) == (slots, None)
    assert (record.background, record.long, record.context_tokens) == (None, None, None)
    assert [line for line in said if "time is over" in line] == [
        f"{kind}: not measured, the time is over" for kind in ("background", "long")
    ]


def test_the_longest_context() -> None:
    """The whole slot, half of it, a quarter; 0 when none is answered, None when there was no time."""
    assert longest_context(8192, lambda n: Result({}, "" if n <= 5000 else "slow"), never) == 4096
    assert longest_context(8192, lambda n: Result({}, "slow"), never) == 0
    assert longest_context(8192, lambda n: Result({}, ""), lambda: True) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_loads(kind: str) -> None:
    """So many at once of the class that is counted; long prompts are heavy and fit; the simulator finds a number for each."""
    settings = Settings()
    load = load_of(kind, 3, settings, 2.0)
    counted = load.clients[-1]
    assert counted.count == 3
    assert counted.request_class == ("interactive" if kind == "interactive" else "background")
    if kind == "long":
        assert settings.classes.background.heavy_tokens < counted.prompt_tokens.low < settings.pools.long.slot_tokens
    found = guess(kind, settings, 2.0, TARGETS, Options(), 1)
    assert 1 <= found <= AT_ONCE_MAX
    assert slots_for(kind, settings) >= 1


def test_the_load_of_a_context() -> None:
    """One request, which fits with its output, beside a chat."""
    load = context_load(1000, 2.0)
    assert [client.n_requests_max for client in load.clients] == [None, 1]
    assert load.clients[1].prompt_tokens.low + load.clients[1].output_tokens.low < 1000


def side(ttft: float = 500.0, bound: str = "", statuses: dict[str, int] | None = None) -> dict[str, Any]:
    statuses = statuses or {"ok": 10}
    figures = {"ttft_ms_p95": {"value": ttft, "bound": bound}, "gap_ms_p95": {"value": 100.0, "bound": ""}}
    groups = [
        {"kind": kind, "name": name, "statuses": statuses, "figures": figures}
        for kind, name in (("all", ""), ("class", "interactive"))
    ]
    return {"groups": groups, "elapsed_s": 5.0}


@pytest.mark.parametrize(
    ("turn", "missed"),
    [
        (side(), ""),
        (side(ttft=2500.0), "interactive.ttft_p95_ms=2000: 2500"),
        (side(bound=">="), "interactive.ttft_p95_ms=2000: at least 500"),
        (side(statuses={"ok": 10, "error:429/queue_full": 5}), "interactive.refused_pct=1: 33.333"),
        (side(statuses={"ok": 10, "error:500/x": 1}), "1 requests failed"),
        (side(statuses={"unfinished": 3}), "no interactive request was answered to its end"),
    ],
)
def test_a_round_is_held_against_the_targets(turn: dict[str, Any], missed: str) -> None:
    """Of the classes that it has; a lower bound may be worse and so keeps nothing; refusals are no failures."""
    result = judge("interactive", turn, TARGETS)
    assert result.missed == missed
    assert "interactive.ttft_p95_ms=2000" in result.figures
    if not missed:
        assert result.per_s == 2.0
