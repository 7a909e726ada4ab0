"""Which process is the engine, from one kill to the next."""

from __future__ import annotations

from poise_lab.bench.target import same_command


def test_an_engine_with_other_file_descriptors_is_known_again() -> None:
    """Each one is told its own: a second kill in one run found nobody before."""
    command = ["python", "-m", "poise.worker.engine.process", "--box", "16", "15"]
    assert same_command(command, [*command[:-2], "15", "14"])
    assert not same_command(command, ["python", "-m", "poise.engine.other", "--box", "16", "15"])
