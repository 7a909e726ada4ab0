"""Markdown and HTML reports: made from the document, complete, self-contained and safe."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from poise_lab.bench import provenance
from poise_lab.bench.page import POINTS_MAX, plotly_script, plots, to_html
from poise_lab.bench.tables import to_markdown
from poise_lab.scenarios.files import InputError
from tests.bench.test_command import TEXT, Servers, check_refused, invoke

TARGETS = "[targets.interactive]\nttft_ms = 60000\n"


@pytest.fixture
async def files(tmp_path: Path) -> dict[str, str]:
    """What a comparison of two servers writes, with a scenario whose description is an attack."""
    (tmp_path / "tiny.toml").write_text(TEXT.replace("For tests.", "</script><b>") + TARGETS, encoding="utf-8")
    names = ("json", "markdown", "html")
    servers = Servers()
    async with servers.running("ours") as ours, servers.running("theirs") as theirs:
        arguments = [str(tmp_path / "tiny.toml"), "--url", ours, "--against", theirs, "--rounds", "2", "--pause", "0"]
        for name in names:
            arguments += [f"--{name}", str(tmp_path / f"out.{name}")]
        result = await asyncio.to_thread(invoke, *arguments, "--target", "background.e2e_ms=60000")
    assert result.exit_code == 0, result.output
    assert "goodput, share" in result.stdout
    return {name: (tmp_path / f"out.{name}").read_text(encoding="utf-8") for name in names}


async def test_results_say_where_they_come_from(files: dict[str, str]) -> None:
    """Host, versions, commit, seeds, targets, and what each server says of itself."""
    document: dict[str, Any] = json.loads(files["json"])
    assert document["format"] == 2
    assert document["commit"] == provenance.commit()
    assert document["host"]["memory_bytes"] > 0
    assert document["targets"]["ours"]["told"] == {"/status": {"phase": "ready"}}
    (run,) = document["scenarios"]
    assert [t["request_class"] for t in run["targets"]] == ["interactive", "background"]
    assert run["medians"]["ours"][0]["goodput"] == {"n_met": 6, "n_missed": 0, "n_undecided": 0, "n_met_within": 6}
    assert any("closed loops: chat, writer" in note for note in run["notes"])


async def test_markdown(files: dict[str, str]) -> None:
    """The same tables, with ratios, in a form that a pull request shows."""
    text = files["markdown"]
    document = json.loads(files["json"])
    assert text == to_markdown(document)
    assert f"- commit: {document['commit']}" in text
    assert "| chat (interactive) | TTFT ms |" in text
    assert "| 4 of 4 |" in text
    rows = [line for line in text.splitlines() if line.startswith("| chat (interactive) | TTFT ms |")]
    assert len(rows[0].split("|")) == 2 + 2 + 3 * 3


async def test_the_page_is_self_contained(files: dict[str, str]) -> None:
    """No other host is asked for anything, and nothing in a scenario or an answer becomes markup."""
    page = files["html"]
    own = page.replace(plotly_script(), "")
    assert len(page) > len(own) + 1_000_000
    assert not re.search(r"(?:src|href)\s*=", own)
    assert "</script><b>" not in own
    drawn = json.loads(re.search(r'id="plots">(.*?)</script>', own)[1])  # type: ignore[index]
    assert [plot["title"] for plot in drawn.values()] == [
        "Time to first token", "Gaps between tokens", "Tokens over time", "Requests", "Rounds",
    ]  # fmt: skip
    assert all(f'id="{name}"' in own for name in drawn)
    assert "chat (interactive)" in own


async def test_the_page_escapes(files: dict[str, str]) -> None:
    """Whatever a server calls itself or a message says stands there as text."""
    document = json.loads(files["json"])
    document["targets"]["ours"]["software"] = "<img src=x>"
    document["scenarios"][0]["rounds"][0]["sides"]["ours"]["requests"][0]["status"] = "</script><script>"
    page = to_html(document, "")
    assert "<img" not in page
    assert page.count("</script>") == 3


async def test_distributions_are_thinned(files: dict[str, str]) -> None:
    """A million gaps are four hundred points, the smallest and the largest among them."""
    (run,) = json.loads(files["json"])["scenarios"]
    request = run["rounds"][0]["sides"]["ours"]["requests"][0]
    request["chunks_ms"] = [0.5 * n * n for n in range(5000)]
    gaps = next(plot for plot in plots(run) if plot["title"] == "Gaps between tokens")["data"][0]
    assert len(gaps["x"]) == POINTS_MAX
    assert gaps["x"][-1] == pytest.approx(4998.5)
    assert (gaps["y"][-1], gaps["x"]) == (1.0, sorted(gaps["x"]))


def test_a_page_needs_plotly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without the package the message says how to get it, before any load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(InputError):
        plotly_script()
    check_refused("pip install plotly", "tiny.toml", "--html", "x.html")


def test_options_of_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mistake is one line, before any load."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.toml").write_text(TEXT, encoding="utf-8")
    (tmp_path / "t.csv").write_text("timestamp,context,generated\n1,1,1\n", encoding="utf-8")
    check_refused("--html absent/x.html: cannot be written", "tiny.toml", "--html", "absent/x.html")
    check_refused("--markdown absent/x.md: cannot be written", "tiny.toml", "--markdown", "absent/x.md")
    check_refused("target 'ttft=5': expected CLASS.NAME", "tiny.toml", "--target", "ttft=5")
    check_refused("--trace t.csv: no client of tiny.toml follows a trace", "tiny.toml", "--trace", "t.csv")
