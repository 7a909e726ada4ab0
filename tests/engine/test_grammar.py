"""Constrained answers in the loop: prepared beside it, computed with their forced runs, and the same after any cut."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engine.ports import Row, Sampled
from poise.wire import to_engine
from poise.wire.messages import STRUCTURE_FAILED
from poise_lab.sim.replay import replay
from tests.engine.harness import GREEDY, Bench
from tests.engine.reference import answer

PROMPT = [3 + k for k in range(30)]
PLACES = [[5, 6, 7], [8], [9], [10], [11, 12], [13], [14], [15, 16], [17], [18]]


def grammar(places: Sequence[Sequence[int]] = PLACES) -> to_engine.Grammar:
    """As the simulated runner reads it."""
    return to_engine.Grammar(json.dumps(places))


def fits(tokens: list[int], places: Sequence[Sequence[int]] = PLACES) -> bool:
    return all(token in place for token, place in zip(tokens, places, strict=False))


def whole(places: Sequence[Sequence[int]] = PLACES, max_output: int = 40) -> list[int]:
    b = Bench()
    b.submit(1, PROMPT, max_output, grammar=grammar(places))
    b.run()
    return b.tokens(1)


def test_an_answer_follows_its_grammar_and_ends_with_it() -> None:
    """Drawn and forced tokens are all output; the end is a stop, in the step of the last token."""
    b = Bench()
    b.submit(1, PROMPT, 40, grammar=grammar())
    b.submit(2, PROMPT, 20)
    b.run()
    tokens = b.tokens(1)
    assert len(tokens) == len(PLACES)
    assert fits(tokens)
    assert (b.finish(1).reason, b.finish(1).n_output) == ("stop", len(PLACES))
    assert b.tokens(2) == answer(PROMPT, 20)
    last = next(step for step in b.steps if any(f.request_id == 1 for f in step.finishes))
    assert [t.token for t in last.tokens if t.request_id == 1][-2:] == [17, 18]


def test_a_run_ends_where_the_output_must() -> None:
    """By length, whether or not the grammar was done."""
    b = Bench()
    b.submit(1, PROMPT, 6, grammar=grammar())
    b.run()
    assert fits(b.tokens(1))
    assert (b.finish(1).reason, b.finish(1).n_output, len(b.tokens(1))) == ("length", 6, 6)


def test_what_was_closed_at_the_end_of_its_allowance_ended_by_length(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nothing can follow it, and a few tokens of the allowance are left; a replay sees the same."""
    b = Bench()
    execute = b.runner.execute

    def closing(pool: str, rows: Sequence[Row]) -> list[Sampled]:
        return [replace(s, closes=True, cut=True) if s.further else s for s in execute(pool, rows)]

    monkeypatch.setattr(b.runner, "execute", closing)
    b.submit(1, PROMPT, 40, grammar=grammar())
    b.submit(2, PROMPT, 20)
    b.run()
    assert (b.finish(1).reason, b.finish(1).n_output) == ("length", 4)
    assert fits(b.tokens(1))
    assert b.tokens(2) == answer(PROMPT, 20)
    assert replay(b.journal()).difference == ""


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 3), min_size=1, max_size=40), cut=st.floats(0.0, 1.0, exclude_max=True), suspect=st.booleans()
)
def test_it_is_the_same_wherever_it_was_cut(sizes: list[int], cut: float, suspect: bool) -> None:
    """Also within a run."""
    places = [[20 + 4 * i + k for k in range(n)] for i, n in enumerate(sizes)]
    expected = whole(places)
    n_known = int(cut * len(expected))
    b = Bench()
    b.submit(1, PROMPT, 40, grammar=grammar(places), output=expected[:n_known], suspect=suspect)
    b.submit(2, PROMPT, 30)
    b.run()
    assert b.tokens(1) == expected[n_known:]
    assert b.tokens(2) == answer(PROMPT, 30)


def test_what_is_forced_is_computed_at_once_only_when_nobody_waits_for_it() -> None:
    """Alone, a run costs one step; beside another stream, that one has a token in each step, and rows of one token beside it."""
    run = [[50, 51], *([100 + k] for k in range(12)), [60, 61]]
    alone = Bench()
    alone.submit(1, PROMPT, 40, grammar=grammar(run))
    alone.run()
    beside = Bench()
    beside.submit(2, PROMPT, 60)
    beside.step(5)
    beside.submit(1, PROMPT, 40, grammar=grammar(run))
    beside.run()
    assert alone.tokens(1) == beside.tokens(1)
    assert len(alone.steps) < 6
    entries = [json.loads(line) for line in beside.journal()]
    sizes = {
        chunk["n_tokens"]
        for entry in entries if entry["kind"] == "plan"
        for batch in entry["values"][0]["batches"]
        for chunk in batch["chunks"] if not chunk["is_prompt"]
    }  # fmt: skip
    assert sizes == {1}
    assert beside.tokens(2) == answer(PROMPT, 60)


def test_a_grammar_that_cannot_be_made_fails_its_request_and_no_other() -> None:
    b = Bench()
    b.submit(1, PROMPT, 20, grammar=to_engine.Grammar("no grammar"))
    b.submit(2, PROMPT, 20)
    b.run()
    assert b.finish(1).reason == "failed"
    assert b.finish(1).detail.startswith(STRUCTURE_FAILED)
    assert b.tokens(2) == answer(PROMPT, 20)


def test_nothing_is_computed_before_the_grammar_is_made_and_its_place_is_kept() -> None:
    """It starts before those that came after it, and an abort in between ends it as usual."""
    b = Bench(slots=1)
    late: list[tuple[int, int]] = []
    prepared = b.runner.prepared
    b.runner.prepared = list  # type: ignore[method-assign]
    b.submit(1, [1, 2, 3], 4)
    b.submit(2, PROMPT, 20, grammar=grammar(), tenant="a")
    b.submit(3, PROMPT, 20, grammar=grammar(), tenant="a")
    b.submit(4, PROMPT, 20, GREEDY, tenant="a")
    b.step(2)
    b.send(to_engine.Abort(3))
    b.step(2)
    assert b.finish(3).reason == "aborted"
    assert not b.tokens(2)
    late += prepared()
    b.runner.prepared = lambda: [late.pop(0)] if late else []  # type: ignore[method-assign]
    b.run()
    starts = [start.request_id for step in b.steps for start in step.starts]
    assert starts.index(2) < starts.index(4)
    assert fits(b.tokens(2))


def test_the_journal_has_a_digest_and_replays() -> None:
    b = Bench()
    b.submit(1, PROMPT, 40, grammar=grammar())
    b.submit(2, PROMPT, 40, GREEDY)
    b.run()
    lines = b.journal()
    assert replay(lines).difference == ""
    assert any('"prepared"' in line for line in lines)
    assert not any(json.dumps(PLACES) in line or "[5, 6, 7]" in line for line in lines)


def test_held_answers_survive_preemption_in_a_crowd() -> None:
    """More requests than slots, tenants in turn, some held to a form and some free: each as it would be alone."""
    b = Bench(slots=2)
    forms = {i: [[20 + i, 30 + i], *([40 + k] for k in range(i)), [60, 61], [70]] * 3 for i in range(0, 12, 2)}
    alone = {i: whole(places, 60) for i, places in forms.items()}
    for i in (*range(0, 12, 2), *range(1, 12, 2)):
        held = grammar(forms[i]) if i in forms else None
        n, request_class = (60, "background") if i in forms else (25, "interactive")
        b.submit(i + 1, PROMPT, n, grammar=held, tenant=f"t{i % 3}", request_class=request_class)
        b.step(2)
    b.run()
    for i in range(12):
        assert b.tokens(i + 1) == (alone[i] if i in forms else answer(PROMPT, 25)), i
    assert sum(len(b.changes(i + 1)) for i in range(12)) > 0, "nobody lost its slot: the test shows nothing"
