"""Traces: what a CSV file may look like, and how a client follows one."""

from __future__ import annotations

from pathlib import Path

import pytest

from poise_lab.scenarios.files import InputError
from poise_lab.scenarios.model import PlannedRequest, Scenario
from poise_lab.scenarios.parser import load_scenario, parse_scenario
from poise_lab.scenarios.trace import TraceRow, load_trace

AZURE = """TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:48.6805900,1000,0
2023-11-16 18:16:46.6805900,7,600
"""
SCENARIO = """
name = "traced"
description = "For tests."
duration_s = 10.0
drain_s = 5.0
warmup_requests = 2
[[clients]]
name = "chat"
tenant = "chat"
class = "interactive"
arrival = { kind = "trace", file = "small.csv", time_scale = 0.5 }
prompt_tokens = { kind = "trace", scale = 0.1, low = 2, high = 50 }
output_tokens = { kind = "trace", high = 100 }
"""


def scenario(tmp_path: Path, old: str = "", new: str = "", trace: Path | None = None) -> Scenario:
    (tmp_path / "small.csv").write_text(AZURE, encoding="utf-8")
    (tmp_path / "traced.toml").write_text(SCENARIO.replace(old, new), encoding="utf-8")
    return load_scenario(tmp_path / "traced.toml", trace)


def planned(found: Scenario) -> list[PlannedRequest]:
    return [request for stream in found.requests(1) for request in stream.requests]


def test_rows_are_in_the_order_of_time(tmp_path: Path) -> None:
    """Times count from the first row, whatever the order of the file and however many digits a second has."""
    (tmp_path / "t.csv").write_text(AZURE, encoding="utf-8")
    rows = load_trace(tmp_path / "t.csv").rows
    assert [row.n_context for row in rows] == [374, 1000, 396, 7]
    assert [row.at_s for row in rows] == pytest.approx([0.0, 2.0, 4.314579, 60.0])
    (tmp_path / "s.csv").write_text("generated,id,context,timestamp\n5,a,3,17.5\n6,b,4,17.0\n", encoding="utf-8")
    assert load_trace(tmp_path / "s.csv").rows == (TraceRow(0.0, 4, 6), TraceRow(0.5, 3, 5))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "given: nothing"),
        ("a,b\n1,2\n", "given: a, b"),
        ("timestamp,context,generated\n", "holds no request"),
        ("timestamp,context,generated\nnoon,1,1\n", "line 2: time 'noon': expected seconds or an ISO date"),
        ("timestamp,context,generated\ninf,1,1\n", "expected a finite number"),
        ("timestamp,context,generated\n1,0,1\n", "line 2: '0': expected a number of tokens from 1"),
        ("timestamp,context,generated\n1,5\n", "line 2: None: expected a number of tokens from 0"),
    ],
)
def test_bad_traces_are_explained(tmp_path: Path, text: str, part: str) -> None:
    """The message names the file, the line, the value and what is expected."""
    path = tmp_path / "bad.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(InputError) as caught:
        load_trace(path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(str(path))
    with pytest.raises(InputError, match="cannot be read"):
        load_trace(tmp_path / "absent.csv")


def test_a_client_follows_its_trace(tmp_path: Path) -> None:
    """Arrivals are scaled and end with the load; lengths are scaled and cut to their bounds; the file is found beside the
    scenario."""
    requests = planned(scenario(tmp_path))
    assert [r.arrival_s for r in requests] == pytest.approx([0.0, 1.0, 2.1572895])
    assert [(r.n_prompt_tokens, r.n_output_tokens) for r in requests] == [(37, 44), (50, 1), (40, 100)]
    assert len({r.seed for r in requests}) == 3
    assert [w.n_prompt_tokens for w in scenario(tmp_path).warmup(1)] == [37, 50]


def test_part_of_a_trace(tmp_path: Path) -> None:
    """`start_s` counts in the trace's own time, `limit` from there; instances take turns."""
    later = planned(scenario(tmp_path, "time_scale = 0.5", "time_scale = 0.5, start_s = 1.0, limit = 2"))
    assert [(r.arrival_s, r.n_prompt_tokens) for r in later] == [(0.5, 50), (pytest.approx(1.6572895), 40)]
    shared = scenario(tmp_path, 'class = "interactive"', 'class = "interactive"\ncount = 2').requests(1)
    assert [[r.n_prompt_tokens for r in stream.requests] for stream in shared] == [[37, 40], [50]]


def test_a_trace_given_beside_the_scenario(tmp_path: Path) -> None:
    """A client that names no file takes the one that is given; without one the scenario says how to give it."""
    other = tmp_path / "other.csv"
    other.write_text("timestamp,context,generated\n0,300,7\n", encoding="utf-8")
    assert [r.n_output_tokens for r in planned(scenario(tmp_path, 'file = "small.csv", ', "", other))] == [7]
    assert len(planned(scenario(tmp_path, trace=other))) == 3
    with pytest.raises(InputError, match="names no trace: give one with --trace FILE"):
        scenario(tmp_path, 'file = "small.csv", ', "")


def test_trace_lengths_need_a_trace() -> None:
    """Another kind of arrival has no row to take a length from."""
    text = SCENARIO.replace('kind = "trace", file = "small.csv", time_scale = 0.5', 'kind = "closed"')
    with pytest.raises(InputError, match=r"prompt_tokens.kind = 'trace': expected \"uniform\" or \"lognormal\""):
        parse_scenario(text, "x.toml")
