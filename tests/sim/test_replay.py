"""A journal is run again, and what is different is found."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from poise.config import Settings
from poise.engine.journal import Journal, JournalError, read_journal
from poise.scheduler.planning.budget import CostModel
from poise_lab.scenarios.parser import load_scenario
from poise_lab.sim.replay import replay
from poise_lab.sim.simulate import Options
from tests.sim.checking.faults import Fault
from tests.sim.checking.simulate import simulate

STORM = Path(__file__).parents[2] / "scenarios" / "storm.toml"


@pytest.fixture(scope="module")
def recorded() -> list[str]:
    """A run in which everything went wrong that leaves the journal whole, from its beginning to its end."""
    faults = tuple(fault for fault in Fault if fault not in (Fault.ENGINE_CRASH, Fault.ERASE))
    options = Options(n_steps=300, keep_journal=True)
    return list(simulate(load_scenario(STORM), Settings(), 2, options, faults).journal.lines())


def edited(lines: Iterable[str], kind: str, change: Any) -> list[str]:
    """The journal with its first entry of a kind changed."""
    result, done = [], False
    for text in lines:
        line = json.loads(text)
        if line["kind"] == kind and not done:
            change(line["values"])
            done = True
        result.append(json.dumps(line))
    return result


def test_a_journal_with_its_beginning_replays(recorded: list[str]) -> None:
    """Every kind of call is in it, and every plan comes out as it was."""
    found = replay(recorded)
    assert found.difference == ""
    assert found.n_plans >= 300
    kinds = {entry.kind for entry in read_journal(recorded).entries}
    assert kinds >= {"add", "abort", "control", "hold", "forget", "plan", "result", "rest"}


def test_the_life_of_an_engine_after_another_replays() -> None:
    """Readmitted requests and suspects are in what the scheduler was asked, and so in its plans."""
    options = Options(n_steps=600, keep_journal=True)
    readmitted = []
    for seed in (3, 5, 11):  # in which steps an engine dies is each seed's own
        done = simulate(load_scenario(STORM), Settings(), seed, options, (Fault.ENGINE_CRASH, Fault.STALL))
        assert done.n_crashes > 0
        lines = list(done.journal.lines())
        assert replay(lines).difference == ""
        readmitted += [e.values[0] for e in read_journal(lines).entries if e.kind == "add" and e.values[0]["readmitted"]]
    assert any(request["suspect"] and request["n_output"] for request in readmitted)


def test_the_first_difference_is_named(recorded: list[str]) -> None:
    """Where it is, what it was and what it is now."""

    def another_chunk(values: list[Any]) -> None:
        values[0]["batches"][0]["chunks"][0]["n_tokens"] += 1

    found = replay(edited(recorded, "plan", another_chunk))
    assert "plan.batches[0].chunks[0].n_tokens was" in found.difference
    assert found.n_plans == 0


def test_another_policy_is_another_scheduler(recorded: list[str]) -> None:
    """The replay takes what the journal says, not this host's settings."""
    found = replay(edited(recorded, "policy", lambda values: values[0].update(step_max_us=20_000)))
    assert found.difference


def test_other_code_is_told_apart(recorded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a replay is for: code that decides otherwise."""
    monkeypatch.setattr(CostModel, "observe", lambda self, shape, cost_us: None)
    assert replay(recorded).difference


def test_a_journal_that_has_lost_its_beginning_cannot_be_replayed(recorded: list[str]) -> None:
    """It says so, and what to do about it."""
    header = json.dumps({"kind": "journal", "recorded": 9999, "dropped": 17})
    with pytest.raises(JournalError, match=r"first 17 entries.*journal_entries"):
        replay([header, *recorded[1:]])


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "empty"),
        (["nonsense"], "line 1"),
        (['{"kind": "plan"}'], "not the beginning"),
        (['{"kind": "journal", "dropped": 0, "recorded": 0}'], "which policy"),
    ],
)
def test_what_is_no_journal_is_refused(lines: list[str], complaint: str) -> None:
    """In one line."""
    with pytest.raises(JournalError, match=complaint):
        replay(lines)


def test_a_call_that_is_not_known_is_refused(recorded: list[str]) -> None:
    """A newer journal than this code is not replayed in part."""
    lines = [*recorded[:2], json.dumps({"now_ns": 1, "kind": "dance", "values": []})]
    with pytest.raises(JournalError, match="not known here: dance"):
        replay(lines)


def test_an_empty_journal_has_a_header() -> None:
    """A dump of a scheduler that was never called."""
    assert read_journal(Journal().lines()).entries == []
