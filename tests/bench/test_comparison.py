"""`poise bench compare`: intervals over paired rounds, guardrails, exit codes, and two servers in alternation."""

from __future__ import annotations

import asyncio
import json
import math
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from poise_lab.bench.compare_command import bench_compare
from poise_lab.bench.comparison import Estimate, compare, parse_guard, t95
from poise_lab.bench.record import Bound
from poise_lab.scenarios.files import InputError
from tests.bench.test_command import TEXT, Servers


def rounds(values: list[float], *, bound: str = "", seeds: list[int] | None = None) -> list[dict[str, Any]]:
    """Rounds in which the interactive class had this TTFT p95, and everybody one token a second."""
    return [
        {
            "seed": seed,
            "sides": {
                "ours": {
                    "groups": [
                        {"kind": "all", "name": "", "figures": {"output_tokens_per_s": {"value": 1.0, "bound": ""}}},
                        {"kind": "class", "name": "interactive", "figures": {"ttft_ms_p95": {"value": value, "bound": bound}}},
                    ]
                }
            },
        }
        for seed, value in zip(seeds or range(len(values)), values, strict=True)
    ]


def document(values: list[float], **more: Any) -> dict[str, Any]:
    found = rounds(values, **more)
    groups = [{**group, "clients": [str(n)]} for n, group in enumerate(found[0]["sides"]["ours"]["groups"])]
    run = {"name": "mixed", "text": "", "traces": [], "rounds": found, "medians": {"ours": groups}}
    return {"host": {"name": "h"}, "scenarios": [run]}


def invoke(*arguments: str) -> Result:
    app = typer.Typer()
    app.command()(bench_compare)
    return CliRunner().invoke(app, list(arguments))


def check(tmp_path: Path, a: list[float], b: list[float], guard: str, exit_code: int, **more: Any) -> dict[str, Any]:
    """Comparing files with these rounds ends with `exit_code`; what was written is returned."""
    (tmp_path / "a.json").write_text(json.dumps(document(a)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(document(b, **more)), encoding="utf-8")
    files = [str(tmp_path / name) for name in ("a.json", "b.json")]
    result = invoke(*files, "--guard", guard, "--json", str(tmp_path / "c.json"))
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads((tmp_path / "c.json").read_bytes())
    assert found["exit_code"] == exit_code
    return found


A = [100.0, 110.0, 90.0, 105.0, 95.0]


def scaled(factor: float, noise: float = 0.01) -> list[float]:
    return [value * factor * (1 + noise * (-1) ** number) for number, value in enumerate(A)]


def test_guardrails_decide_beyond_noise(tmp_path: Path) -> None:
    """0 kept, 1 violated, 3 too noisy or too few rounds to say."""
    guard = "interactive.ttft_p95<=1.1"
    found = check(tmp_path, A, scaled(1.02), guard, 0)
    assert found["guards"][0]["state"] == "kept"
    (ttft,) = [f for f in found["scenarios"][0]["figures"] if f["figure"] == "ttft_ms_p95"]
    assert ttft["ratio"] == pytest.approx(1.02, abs=0.005)
    assert ttft["low"] < ttft["ratio"] < ttft["high"]
    assert check(tmp_path, A, scaled(1.3), guard, 1)["guards"][0]["state"] == "violated"
    assert check(tmp_path, A, scaled(1.08, noise=0.2), guard, 3)["guards"][0]["state"] == "undecided"
    assert "no confidence interval" in check(tmp_path, A[:1], scaled(9)[:1], guard, 3)["guards"][0]["reason"]
    check(tmp_path, A, scaled(0.8), "mixed:interactive.ttft_ms_p95>=0.9", 1)
    check(tmp_path, A, scaled(0.8), "all.output_tokens_per_s>=0.95", 0)
    check(tmp_path, A, scaled(0.8), "interactive.goodput_share>=0.9", 3)


def test_bounds_decide_nothing_in_their_direction(tmp_path: Path) -> None:
    """B's requests were cut: its TTFT may be larger, so it is not shown to be small enough; too large it is all the same."""
    guard = "interactive.ttft_p95<=1.1"
    assert "cut" in check(tmp_path, A, scaled(1.0), guard, 3, bound=">=")["guards"][0]["reason"]
    check(tmp_path, A, scaled(1.5), guard, 1, bound=">=")


def test_rounds_are_paired_by_seed(tmp_path: Path) -> None:
    """A round without its partner is left out; without any pair there is nothing to say."""
    estimates, n_pairs = compare(rounds([1, 2, 3]), "ours", rounds([20, 30, 40], seeds=[1, 2, 9]), "ours")
    assert n_pairs == 2
    (ttft,) = [e for e in estimates if e.figure == "ttft_ms_p95"]
    assert (ttft.n_pairs, ttft.a, ttft.b) == (2, 2.5, 25.0)
    assert ttft.ratio == pytest.approx(10.0)
    check(tmp_path, A, A, "interactive.ttft_p95<=1.1", 3, seeds=[10, 11, 12, 13, 14])


def test_the_table_says_what_is_better(tmp_path: Path) -> None:
    """Times down is better; a ratio whose interval holds 1 shows nothing."""
    (tmp_path / "a.json").write_text(json.dumps(document(A)), encoding="utf-8")
    (tmp_path / "b.json").write_text(json.dumps(document(scaled(0.5))), encoding="utf-8")
    result = invoke(str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert result.exit_code == 0
    assert "better" in result.stdout
    assert "no difference shown" in result.stdout
    assert "Student's t" in result.stdout
    assert "one after the other" in result.stderr


def test_guards_from_a_file(tmp_path: Path) -> None:
    """A TOML file with one list, and one line for what is wrong with it."""
    (tmp_path / "a.json").write_text(json.dumps(document(A)), encoding="utf-8")
    file = tmp_path / "guards.toml"
    arguments = [f"{tmp_path / 'a.json'}#ours", str(tmp_path / "a.json"), "--guards", str(file)]
    file.write_text('guards = ["interactive.ttft_p95<=1.1", "all.output_tokens_per_s >= 0.9"]', encoding="utf-8")
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert result.stdout.count("kept: mixed: ") == 2
    for text in ("guards = 5", "limits = []", "guards = [1]", "guards = [", 'guards = ["a"]'):
        file.write_text(text, encoding="utf-8")
        assert invoke(*arguments).exit_code == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.json", "a.json"], "absent.json: cannot be read"),
        (["bad.json", "a.json"], "bad.json: not a file of poise bench --json"),
        (["a.json", "a.json#theirs"], "has no side 'theirs'; it has ours"),
        (["a.json", "a.json", "--guard", "nobody.ttft_p95<=1"], "no such scenario or clients; there are all, interactive"),
        (["a.json", "a.json", "--guard", "x:interactive.ttft_p95<=1"], "no such scenario"),
        (["a.json", "a.json", "--guard", "interactive.ttft=1"], "expected [SCENARIO:]GROUP.FIGURE<=RATIO"),
        (["a.json", "a.json", "--scenario", "mixed"], "are for two URLs"),
        (["http://h:1", "http://h:2"], "two URLs need a load"),
        (["http://h:1", "a.json"], "http://h:1: cannot be read"),
    ],
)
def test_bad_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str) -> None:
    """One line each, exit code 2."""
    monkeypatch.chdir(tmp_path)
    Path("a.json").write_text(json.dumps(document(A)), encoding="utf-8")
    Path("bad.json").write_text("[]", encoding="utf-8")
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("poise bench compare: ")


async def test_two_servers_in_alternation(tmp_path: Path) -> None:
    """URLs are measured in alternating rounds; the result can be compared again from its file, and gives the same."""
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    servers = Servers()
    results = str(tmp_path / "r.json")
    async with servers.running("a") as a, servers.running("b") as b:
        arguments = [a, b, "--scenario", str(tmp_path / "tiny.toml"), "--rounds", "2", "--pause", "0"]
        arguments += ["--results", results, "--json", str(tmp_path / "c.json")]
        result = await asyncio.to_thread(invoke, *arguments)
    assert result.exit_code == 0, result.output
    order = [name for name, path in servers.journal if path == "/v1/chat/completions"]
    assert "".join(dict.fromkeys(order[:5])) == "ba"
    assert [order[index] for index in (0, 4, 8, 12)] == ["b", "a", "a", "b"]
    again = invoke(f"{results}#theirs", results, "--json", str(tmp_path / "d.json"))
    assert again.exit_code == 0
    first, second = (json.loads((tmp_path / name).read_bytes()) for name in ("c.json", "d.json"))
    assert result.stdout.count("chat (interactive)") == 1
    assert "class interactive" not in result.stdout
    assert "one after the other" not in again.stderr
    assert first["scenarios"][0]["figures"] == second["scenarios"][0]["figures"] != []


@given(st.floats(0.2, 5.0), st.floats(0.0, 0.5), st.integers(2, 12))
def test_the_interval_is_around_the_ratio(factor: float, noise: float, n: int) -> None:
    """Whatever the noise, the ratio of equal noise on both sides of the factor is the factor, inside its interval."""
    spread = [math.exp(noise * (-1) ** number) for number in range(2 * n)]
    estimates, _ = compare(rounds([1.0] * 2 * n), "ours", rounds([factor * s for s in spread]), "ours")
    (ttft,) = [e for e in estimates if e.figure == "ttft_ms_p95"]
    assert ttft.ratio == pytest.approx(factor)
    assert ttft.low is not None
    assert ttft.high is not None
    assert ttft.low <= ttft.ratio * 1.0000001
    assert ttft.ratio <= ttft.high * 1.0000001


def test_students_t() -> None:
    """The table and the series beyond it meet, and both are the known values."""
    assert [t95(n) for n in (1, 4, 30)] == [12.706, 2.776, 2.042]
    assert t95(31) == pytest.approx(2.0395, abs=0.001)
    assert t95(60) == pytest.approx(2.0003, abs=0.001)
    assert t95(120) == pytest.approx(1.9799, abs=0.001)


def test_guard_texts() -> None:
    """Short and full names mean the same figure; nonsense is refused."""
    assert parse_guard("interactive.ttft_p95 <= 1.1").figure == parse_guard("interactive.ttft_ms_p95<=1.1").figure
    assert parse_guard("flood:polite.goodput_per_s>=0.9").scenario == "flood"
    for text in ("", "interactive<=1", "interactive.ttft_p95<1", "interactive.ttft_p95<=x", "interactive.speed<=1"):
        with pytest.raises(InputError):
            parse_guard(text)


@pytest.mark.parametrize(
    ("bound", "low", "high", "state"),
    [
        ("", 0.9, 1.0, "kept"),
        ("", 1.2, 1.3, "violated"),
        ("", 1.0, 1.2, "undecided"),
        (">=", 0.9, 1.0, "undecided"),
        (">=", 1.2, 1.3, "violated"),
        ("<=", 0.9, 1.0, "kept"),
        ("<=", 1.2, 1.3, "undecided"),
        ("~", 1.2, 1.3, "undecided"),
    ],
)
def test_states(bound: Bound, low: float, high: float, state: str) -> None:
    """Interval and bound against a limit of 1.1."""
    estimate = Estimate("class", "interactive", "ttft_ms_p95", 1.0, 1.0, (low + high) / 2, low, high, 5, bound)
    assert parse_guard("interactive.ttft_p95<=1.1").judge(estimate)[0] == state
