"""docs/simulation.md names every option, fault and resource, so that it cannot fall behind."""

from __future__ import annotations

from pathlib import Path

import typer

from poise_lab.sim.breaking import DEFAULT_TARGETS
from poise_lab.sim.command import sim
from poise_lab.sim.pressure import Resource
from tests.sim.checking.__main__ import app as checking
from tests.sim.checking.faults import Fault

TEXT = (Path(__file__).parents[2] / "docs" / "simulation.md").read_text(encoding="utf-8")


def test_the_document_is_complete() -> None:
    """Every option of `poise sim` and of what checks it, every fault, every resource, every default target."""
    app = typer.Typer(add_completion=False)
    app.command()(sim)
    commands = (typer.main.get_command(app), typer.main.get_command(checking))
    options = [option for command in commands for parameter in command.params for option in parameter.opts]
    named = [option for option in options if option.startswith("--")]
    assert len(named) >= 13
    named += [f"| `{fault}` |" for fault in Fault]
    named += [f"| {resource} |" for resource in Resource]
    named += list(DEFAULT_TARGETS)
    missing = [name for name in named if name not in TEXT]
    assert not missing
