"""An answer that outgrows its slot, through the whole engine: its tokens are those of an undisturbed run."""

from __future__ import annotations

from dataclasses import replace

from poise.scheduler.policy import LengthPolicy
from poise.scheduler.request import PreemptionReason
from poise.wire import messages as wire
from tests.engine.harness import Bench
from tests.engine.reference import answer


def prompt(seed: int, n: int) -> list[int]:
    return [(seed * 37 + k * 11) % 997 + 1 for k in range(n)]


def test_tokens_are_those_of_an_undisturbed_run() -> None:
    """Beside others, twice as many as there are long slots; a ceiling above all slots ends there."""
    bench = Bench(lengths=replace(LengthPolicy(), first_tokens=20))
    asked = {i: (prompt(i, 100 + 40 * i), 700 if i % 2 else 5000) for i in range(1, 6)}
    for request_id, (tokens, max_output) in asked.items():
        bench.submit(request_id, tokens, max_output, tenant=f"t{request_id % 2}")
    bench.run()
    moved = [
        change.request_id
        for step in bench.mail.sent
        if isinstance(step, wire.Step)
        for change in step.changes
        if change.why == PreemptionReason.OUTGROWN
    ]
    assert sorted(moved) == list(asked)
    for request_id, (tokens, max_output) in asked.items():
        n_output = min(max_output, 2048 + 1 - len(tokens))
        assert bench.tokens(request_id) == answer(tokens, n_output), f"request {request_id}"
        assert [f.reason for f in bench.finishes(request_id)] == ["length"]
