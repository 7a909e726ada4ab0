"""Findings: each condition is told when it holds, with its numbers, and is not when it does not."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from poise.gateway.condition import findings as findings_module
from poise.gateway.condition.findings import LINGER_S, NOTED_S, Findings, LiveFigures, Observation
from poise.metrics.audit import Standing

MIB = 1 << 20
RUNBOOK = (Path(__file__).parents[3] / "docs" / "runbook.md").read_text()


def requests(tenant: str, n: int, *, queued: int = 0, n_tokens: int = 100) -> list[LiveFigures]:
    states = ["queued"] * queued + ["running"] * (n - queued)
    return [LiveFigures(f"{tenant}-{i}", tenant, state, n_tokens) for i, state in enumerate(states)]


def after(seen: Iterator[Observation] | list[Observation], findings: Findings | None = None) -> dict[str, str]:
    """What is told after one look a second: name to text."""
    findings = findings or Findings()
    told = []
    for second, fact in enumerate(seen):
        told = findings.look(float(second), fact)
    return {found.name: found.text for found in told}


def growing(per_s: Callable[[int], int], seconds: int = 12, process: str = "engine") -> list[Observation]:
    total, seen = 1000 * MIB, []
    for second in range(seconds):
        total += per_s(second)
        seen.append(Observation(engine_bytes=total) if process == "engine" else Observation(gateway_bytes=total))
    return seen


def test_a_calm_server_has_none() -> None:
    live = requests("a", 5) + requests("b", 5)
    calm = Observation(live, {"a": 500, "b": 500}, engine_bytes=MIB, gateway_bytes=MIB, audit_worst_s=0.2, audit_queue=3)
    assert after([calm] * 400) == {}


def test_a_tenant_that_has_most_of_everything_is_a_hog() -> None:
    findings = Findings()
    live = requests("quiet", 2) + requests("greedy", 14, queued=6)
    (found,) = findings.look(0.0, Observation(live, {"quiet": 100, "greedy": 900}))
    assert found.text == (
        "One tenant has 14 of 16 live requests and 90% of the KV cells; waiting are 6 of its own and 0 of others"
    )
    assert found.detail["tenant"] == "greedy"
    assert found.row(0.0, named=False).detail is None
    assert "greedy" not in str(found.row(0.0, named=False))


@pytest.mark.parametrize(
    "live",
    [requests("alone", 40), requests("a", 5) + requests("b", 5), requests("a", 4) + requests("b", 1)],
    ids=["one tenant", "equal", "few"],
)
def test_many_requests_alone_are_no_hog(live: list[LiveFigures]) -> None:
    """One person's own requests, or a few."""
    assert after([Observation(live)]) == {}


def test_one_long_request_beside_short_ones_is_a_hog() -> None:
    live = [*requests("a", 3, n_tokens=200), LiveFigures("long", "a", "running", 3000)]
    assert after([Observation(live)])["hog"].startswith("One request has 3000 of the 3600 tokens")
    assert after([Observation([live[-1]])]) == {}


def test_a_request_that_was_downgraded_is_told_for_a_minute() -> None:
    findings = Findings()
    request = LiveFigures("x", "a", "running", 10, downgraded_for="output")
    (found,) = findings.look(0.0, Observation([request]))
    assert "output allowance" in found.text
    assert found.detail == {"requests": {"x": "output"}}
    assert findings.look(NOTED_S, Observation([request]))
    assert not findings.look(NOTED_S + LINGER_S + 1, Observation([request]))


@pytest.mark.parametrize("process", ["engine", "gateway"])
def test_memory_that_grows_and_does_not_stop_is_told_within_ten_seconds(process: str) -> None:
    told = after(growing(lambda _: 10 * MIB, seconds=10, process=process))
    assert re.search(rf"The {process}'s memory .* grew by 50 MB in 5 s", told["memory_growing"])


def test_memory_that_grows_slowly_is_told_in_minutes() -> None:
    assert after(growing(lambda _: MIB, seconds=250)) == {}
    assert "grew by 300 MB in 300 s" in after(growing(lambda _: MIB, seconds=330))["memory_growing"]


@pytest.mark.parametrize(
    "per_s",
    [lambda s: 400 * MIB if s == 6 else 0, lambda s: 20 * MIB if s < 4 else 0, lambda s: (-1) ** s * 90 * MIB],
    ids=["a jump", "an end", "up and down"],
)
def test_a_buffer_that_is_allocated_is_no_leak(per_s: Callable[[int], int]) -> None:
    assert after(growing(per_s, seconds=13)) == {}


def test_memory_of_another_engine_is_not_compared() -> None:
    before, later = growing(lambda _: 10 * MIB, 5), growing(lambda _: 10 * MIB, 5)
    shifted = [Observation(engine_bytes=(fact.engine_bytes or 0) + 500 * MIB) for fact in later]
    assert after([*before, Observation(), *shifted]) == {}


@pytest.mark.parametrize(
    ("seen", "told"),
    [
        (Observation(audit_busy_s=3.2), "The disk took 3.2 s for one piece of work of the audit log; entries that wait: 0"),
        (Observation(audit_worst_s=1.5), "The disk took 1.5 s"),
        (Observation(audit_queue=500), "entries that wait: 500"),
    ],
)
def test_a_slow_disk_is_told(seen: Observation, told: str) -> None:
    assert told in after([seen])["disk_slow"]


def test_lost_entries_are_told_for_a_minute() -> None:
    findings = Findings()
    assert findings.look(0.0, Observation(audit_lost=3))[0].text.endswith("since the start: 3")
    assert findings.look(NOTED_S, Observation(audit_lost=3))
    assert not findings.look(NOTED_S + LINGER_S + 1, Observation(audit_lost=3))


def test_two_ends_of_engines_in_two_minutes_are_a_loop() -> None:
    findings = Findings()
    assert not findings.look(0.0, Observation(engine_ends=["SIGSEGV"]))
    (found,) = findings.look(100.0, Observation(engine_ends=["hang"]))
    assert found.text == "The engine ended 2 times in 120 s (SIGSEGV, hang); streams go on with each new one"
    assert not findings.look(126.0, Observation())


def test_a_request_that_nobody_reads_is_told_when_it_lasts() -> None:
    def held(for_s: float) -> Observation:
        return Observation([LiveFigures("x", "a", "paused", 10, held_for_s=for_s)])

    assert after([held(1.0)]) == {}
    assert after([held(4.0)])["reader_stuck"].endswith("nobody reads their answers: 1, the longest for 4 s")


def test_a_finding_stays_a_moment_and_keeps_its_beginning() -> None:
    """Or it would flicker, and a page that looks once in two seconds would miss it."""
    findings = Findings()
    findings.look(0.0, Observation(audit_queue=200))
    (found,) = findings.look(1.0, Observation(audit_queue=300))
    assert (found.since_s, "300" in found.text) == (0.0, True)
    (row,) = [f.row(4.0, named=True) for f in findings.look(4.0, Observation())]
    assert row.age_s == 4.0
    assert not findings.look(20.0, Observation())


def test_each_has_its_entry_in_the_runbook() -> None:
    source = inspect.getsource(findings_module)
    names: Any = re.findall(r'^            "(\w+)": ', source, re.MULTILINE)
    assert len(names) == 10
    assert all(f"### {name}\n" in RUNBOOK for name in names)


def test_a_model_file_that_changed_is_told_as_long_as_it_is_another_one() -> None:
    """And whether there is an engine that still has the former one."""
    findings = Findings()
    assert "the engine goes on" in after([Observation(model_changed=True)] * 3, findings)["model_changed"]
    assert "no engine is started" in after([Observation(model_changed=True, engine_ready=False)], findings)["model_changed"]
    assert after([Observation()] * 60, findings) == {}


@pytest.mark.parametrize(
    ("standing", "names"),
    [
        (Standing(), []),
        (Standing(89 << 20, 100 << 20), []),
        (Standing(90 << 20, 100 << 20), ["audit_full"]),
        (Standing(1, 100 << 20, jumped=True), ["clock_jumped"]),
    ],
)
def test_how_the_audit_logs_files_stand(standing: Standing, names: list[str]) -> None:
    """Nearly full, or a clock that is days ahead; without a log neither."""
    assert [finding.name for finding in Findings().look(0.0, Observation(audit=standing))] == names
