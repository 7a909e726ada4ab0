"""Drafts with the real sampler and grammars: what is drawn after guesses is what is drawn without. The last needs a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from zlib import crc32

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from poise.engine.drafting import NgramIndex, draw_along
from poise.engine.ports import NO_TOKEN, Row, RunnerError, Sampled
from poise.engine.thinking import Budget
from poise.llama.binding.model import Model
from poise.llama.files.memory import PoolSpec
from poise.llama.running.runner import LlamaRunner
from poise.llama.running.sampler import Sampler
from poise.wire.messages import Token
from poise.wire.to_engine import SamplingParams, Thinking
from tests.llama.test_grammar import END, N_VOCAB, NO, YES, constraint, ids

Floats = npt.NDArray[np.float32]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "kind": {"enum": ["circle", "square"]}, "n": {"type": "integer"}},
    "required": ["name", "kind", "n"],
    "additionalProperties": False,
}
SAMPLINGS = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.7, 1.3]),
    top_p=st.sampled_from([1.0, 0.9]),
    top_k=st.sampled_from([0, 5, 40]),
    min_p=st.sampled_from([0.0, 0.05]),
    presence_penalty=st.sampled_from([0.0, 0.7]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    repetition_penalty=st.sampled_from([1.0, 1.2]),
    logit_bias=st.sampled_from([(), ((YES, 4.0), (NO, -100.0))]),
    seed=st.integers(0, 1 << 20),
    n_logprobs=st.sampled_from([-1, 0, 2]),
    min_output=st.sampled_from([0, 12]),
    thinking=st.sampled_from([None, Thinking(5, (YES, NO))]),
)
CONSTRAINTS: list[Callable[[], object] | None] = [
    None,
    partial(constraint, SCHEMA, until=60),
    partial(constraint, 'start: /[a-c]{1,30}/ " done"'),
]


def logits(tokens: Sequence[int]) -> Floats:
    """A made-up model, whose next token follows from the last three; in the 7 likeliest it is not sure."""
    rng = np.random.default_rng(crc32(repr(list(tokens[-3:])).encode()))
    row = rng.standard_normal(N_VOCAB).astype(np.float32)
    row[rng.integers(1, 30, 7)] += 6.0
    row[END] += 2.0
    return row


def make(sampling: SamplingParams, held_to: Callable[[], object] | None, prompt: Sequence[int]) -> Sampler:
    budget = Budget(sampling.thinking, lambda _: b"x") if sampling.thinking is not None else None
    return Sampler(sampling, prompt, N_VOCAB, [END], constraint=held_to() if held_to else None, budget=budget)  # type: ignore[arg-type]


def draw(sampler: Sampler, known: list[int], guesses: list[int], i: int) -> Sampled:
    """As the runner does it."""
    try:
        drawn = sampler.draw(logits([*known, *guesses[:i]]))
    except RunnerError as error:
        return Sampled(Token(1, NO_TOKEN), ends=False, failed=str(error))
    further = tuple([Token(1, token) for token in drawn.forced])
    token = Token(1, drawn.token, drawn.logprob, drawn.top)
    return Sampled(token, drawn.token == END, further=further, closes=drawn.closes, cut=drawn.cut)


Guess = Callable[[list[int]], list[int]]


def output(sampler: Sampler, prompt: list[int], n_max: int, guess: Guess) -> tuple[list[Token], str, int]:
    """The tokens, how they ended, and in how many passes they came."""
    known, told, n_passes = list(prompt), list[Token](), 0
    while len(told) < n_max:
        guesses = guess(known)[: n_max - len(told) - 1]
        found = draw_along(guesses, partial(draw, sampler, known, guesses))
        n_passes += 1
        if found.failed or found.ends:
            return told, found.failed or "end", n_passes
        brought = [found.token, *found.further]
        assert [t.token for t in brought[: found.n_accepted]] == guesses[: found.n_accepted]
        told += brought
        known += [token.token for token in brought]
        if found.closes:
            return told, "cut" if found.cut else "end", n_passes
    return told, "length", n_passes


@settings(max_examples=150, deadline=None)
@given(sampling=SAMPLINGS, held_to=st.sampled_from(CONSTRAINTS), wrong=st.integers(0, 5), most=st.integers(1, 8))
def test_guesses_change_no_draw(sampling: SamplingParams, held_to: Callable[[], object] | None, wrong: int, most: int) -> None:
    """Right ones, wrong ones, those that end too early: penalties, forced ends of reasoning and grammars go token by token."""
    prompt = ids('{"name":"abc","kind":"square","n":12}')
    expected, how, n_passes = output(make(sampling, held_to, prompt), prompt, 60, lambda known: [])
    whole = [*prompt, *(token.token for token in expected), END]

    def guess(known: list[int]) -> list[int]:
        right = whole[len(known) : len(known) + most]
        if wrong and len(known) % wrong == 0 and right:
            right[len(known) % len(right)] = (right[0] + 1) % N_VOCAB
        return right

    found, ended, n_drafted = output(make(sampling, held_to, prompt), prompt, 60, guess)
    assert (found, ended) == (expected, how)
    assert n_drafted <= n_passes


def test_a_draw_that_fails_after_guesses_fails_for_itself() -> None:
    """What was drawn before it stands; the last of it is computed once more, and then the request fails as it would have."""
    prompt = [5, 6, 7]
    calls = []

    def drawing(i: int) -> Sampled:
        calls.append(i)
        return Sampled(Token(1, (11, 12, 13)[i]), ends=False) if i < 2 else Sampled(Token(1, NO_TOKEN), ends=False, failed="no")

    found = draw_along([11, 12, 13], drawing)
    assert [found.token.token, *(t.token for t in found.further)] == [11, 12]
    assert (found.n_accepted, found.failed, calls) == (1, "", [0, 1, 2])
    assert prompt == [5, 6, 7]


@pytest.mark.slow
@pytest.mark.parametrize("sampling", [SamplingParams(temperature=0.0), SamplingParams(temperature=0.7, seed=5)], ids=["0", "0.7"])
def test_each_token_is_the_rows_own_draw(model_path: Path, sampling: SamplingParams) -> None:
    """Of the real model's logits at its position, by a sampler like the request's. Other sums make other last digits: where the
    text is another one than without drafts, two tokens were as good as equal."""
    text = b"The cat sat on the mat. The dog sat on the log. The cat sat on the mat. The dog sat on the"
    with LlamaRunner(Model.load(model_path), [PoolSpec("only", 1, 512, True)], batch_tokens=128, threads=1) as runner:
        prompt = runner.model.vocab.tokenize(text.decode(), add_special=False, parse_special=False)
        kept: list[Floats] = []
        compute = runner._compute

        def computing(pool: str, rows: Sequence[Row]) -> list[npt.NDArray[np.floating]]:
            found = compute(pool, rows)
            kept.extend(row.copy() for row in found)
            return found

        runner._compute = computing  # type: ignore[method-assign]
        outputs, n_accepted = [], 0
        for request_id, most in ((1, 0), (2, 6)):
            runner.open(request_id, prompt, sampling)
            index, known, row = NgramIndex(), list(prompt), Row(request_id, 0, 0, prompt, True)
            own = Sampler(sampling, prompt, runner.model.n_vocab, runner.model.vocab.eog_tokens)
            while len(known) < len(prompt) + 60:
                kept.clear()
                (found,) = runner.execute("only", [row])
                tokens = [found.token.token, *(token.token for token in found.further)]
                drawn = [own.draw(logits).token for logits in islice(kept, len(tokens))]
                assert drawn[: len(tokens)] == tokens
                if found.ends or found.closes:
                    break
                n_cells = row.start + len(row.tokens) - row.n_guessed + found.n_accepted
                assert runner.slot_positions("only", 0) == n_cells - 1
                n_accepted += found.n_accepted
                known += tokens
                index.extend(known)
                guesses = index.guess(most)[0] if most else []
                row = Row(request_id, 0, n_cells, [*known[n_cells:], *guesses], True, len(guesses))
            outputs.append(known[len(prompt) : len(prompt) + 60])
            runner._contexts["only"].release(0)
        plain, drafted = outputs
        assert n_accepted > 10
        n_alike = next((i for i, (a, b) in enumerate(zip(plain, drafted, strict=False)) if a != b), 60)
        if n_alike < min(len(plain), len(drafted)) and sampling.temperature == 0:
            runner.open(3, prompt, sampling)
            kept.clear()
            runner.execute("only", [Row(3, 0, 0, [*prompt, *plain[:n_alike]], True)])
            logits_there = kept[0]
            assert abs(float(logits_there[plain[n_alike]] - logits_there[drafted[n_alike]])) < 0.3
