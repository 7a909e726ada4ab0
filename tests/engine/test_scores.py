"""Prompts whose log probabilities are wanted: each token scored once, whatever becomes of the request meanwhile."""

from __future__ import annotations

from msgspec.structs import replace

from poise.wire import messages as wire
from tests.engine.harness import GREEDY, Bench

SCORED = replace(GREEDY, n_prompt_logprobs=1)


def prompt(seed: int, n: int) -> list[int]:
    return [(seed * 31 + k * 7) % 900 + 1 for k in range(n)]


def scores(bench: Bench, request_id: int) -> list[wire.PromptLogprobs]:
    steps = [message for message in bench.mail.sent if isinstance(message, wire.Step)]
    return [scored for step in steps for scored in step.scores if scored.request_id == request_id]


def joined(pieces: list[wire.PromptLogprobs]) -> list[float]:
    """All log probabilities, from token 1 on, where they come in order and none twice."""
    found: list[float] = []
    for piece in pieces:
        assert piece.start == 1 + len(found)
        assert len(piece.top) == len(piece.logprobs)
        found += piece.logprobs
    return found


def test_every_token_of_a_prompt_but_the_first_is_scored_once() -> None:
    """Whatever chunks it was computed in, and beside others; the answer is the one that it would have had."""
    alone, plain, crowd = Bench(), Bench(), Bench()
    alone.submit(1, prompt(1, 300), 5, SCORED)
    plain.submit(1, prompt(1, 300), 5)
    for i in range(2, 9):
        crowd.submit(i, prompt(i, 20 * i), 40)
    for _ in range(6):
        crowd.engine.step()
    crowd.submit(1, prompt(1, 300), 5, SCORED)
    for bench in (alone, plain, crowd):
        bench.run()
    assert len(joined(scores(alone, 1))) == 299
    assert joined(scores(crowd, 1)) == joined(scores(alone, 1))
    assert len(scores(crowd, 1)) > len(scores(alone, 1)), "beside others its chunks are smaller"
    assert alone.tokens(1) == crowd.tokens(1) == plain.tokens(1)
    assert scores(plain, 1) == []


def test_nothing_of_it_is_taken_from_what_was_computed_before() -> None:
    """A cached prefix has no logits. What it leaves behind serves others."""
    bench = Bench()
    for i, sampling in ((1, GREEDY), (2, SCORED), (3, GREEDY)):
        bench.submit(i, prompt(1, 200), 5, sampling)
        bench.run()
    assert [bench.start(i).n_cached for i in (1, 2, 3)] == [0, 0, 199]
    assert len(joined(scores(bench, 2))) == 199


def test_another_engine_finds_the_same() -> None:
    """It is given the output so far, and scores the prompt again."""
    whole, again = Bench(), Bench()
    whole.submit(1, prompt(1, 100), 20, SCORED)
    whole.run()
    again.submit(1, prompt(1, 100), 20, SCORED, output=whole.tokens(1)[:8])
    again.run()
    assert joined(scores(again, 1)) == joined(scores(whole, 1)) != []
    assert again.tokens(1) == whole.tokens(1)[8:]


def test_a_prompt_of_one_token_has_nothing_to_score() -> None:
    bench = Bench()
    bench.submit(1, [5], 3, SCORED)
    bench.run()
    assert scores(bench, 1) == []
    assert len(bench.tokens(1)) == 3


def test_a_row_that_cannot_be_scored_ends_its_own_request_only() -> None:
    """As one that cannot be drawn from."""
    bench = Bench()

    def broken(pool: str, row: object, targets: object) -> wire.PromptLogprobs:
        raise ZeroDivisionError

    bench.runner.score = broken  # type: ignore[method-assign]
    bench.submit(1, prompt(1, 40), 5, SCORED)
    bench.submit(2, prompt(2, 40), 5)
    bench.run()
    assert (bench.finish(1).reason, bench.finish(1).detail) == ("failed", "an unforeseen error: ZeroDivisionError")
    assert (bench.finish(2).reason, len(bench.tokens(2))) == ("length", 5)


def test_the_time_is_charged_to_who_wanted_it() -> None:
    """Scoring takes the runner longer; a neighbour's share of the step does not grow with it."""
    costs = {}
    for sampling in (GREEDY, SCORED):
        bench = Bench()
        honest, clock = bench.runner.score, bench.clock

        def slow(pool: str, row, targets, honest=honest, clock=clock):  # type: ignore[no-untyped-def]
            clock.advance(50_000_000)
            return honest(pool, row, targets)

        bench.runner.score = slow  # type: ignore[method-assign]
        bench.submit(1, prompt(1, 60), 40, tenant="neighbour")
        for _ in range(5):
            bench.engine.step()
        bench.submit(2, prompt(2, 200), 1, sampling, tenant="scorer")
        bench.run()
        costs[sampling] = {i: bench.finish(i).served_us for i in (1, 2)}
    assert costs[SCORED][2] > costs[GREEDY][2] + 50_000
    assert costs[SCORED][1] < costs[GREEDY][1] * 1.5
