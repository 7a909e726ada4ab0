"""Draws that a grammar allows: exactly the masked distribution, and nothing else. Needs no model."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import jsonschema_rs
import numpy as np
import numpy.typing as npt
import pytest
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from poise.engine.ports import RunnerError
from poise.llama.running.closing import SPARE, Closers
from poise.llama.running.grammar import RUN_MAX, Constraint, make_matcher
from poise.llama.running.sampler import Drawn, Sampler
from poise.wire.figures import StructureFigures
from poise.wire.messages import STRUCTURE_FAILED
from poise.wire.to_engine import Grammar, SamplingParams

END, THOUGHT = 0, 257
N_VOCAB = 261
YES, NO, THINK = 258, 259, 260


class Bytes:
    """A vocabulary of all bytes, each one after END, and a few more."""

    eos_token_id = END
    bos_token_id = None
    special_token_ids = (END, THOUGHT, 260)
    tokens = (b"<|end|>", *(bytes([byte]) for byte in range(256)), b"</think>", b"yes", b"no", b"<think>")

    def __call__(self, text: bytes) -> list[int]:
        return ids(text)


def ids(text: bytes | str) -> list[int]:
    return [1 + byte for byte in (text.encode() if isinstance(text, str) else text)]


def text_of(tokens: list[int]) -> str:
    return b"".join(Bytes.tokens[token] for token in tokens).decode()


TOKENIZER = LLTokenizer(TokenizerWrapper(Bytes()), eos_token=[END])
CLOSERS = Closers(Bytes.tokens)
LETTERS = np.array([6.0 if len(name) == 1 and name.isalpha() else 0.0 for name in Bytes.tokens], np.float32)
"""Added to a row: letters are likely, so that strings are long."""


def constraint(of: Any, closes: str = "", output: tuple[int, ...] = (), until: int = 0, opens: int | None = None) -> Constraint:
    """`of`: a Lark grammar, or a schema."""
    compact = {"x-guidance": {"whitespace_flexible": False}}
    grammar = {"lark_grammar": of} if isinstance(of, str) else {"json_schema": of | compact}
    made, held_to = matcher(json.dumps({"grammars": [grammar]})).deep_copy(), Grammar("", closes, opens, until)
    return Constraint(made, [END], held_to, output, StructureFigures(), Bytes.tokens.__getitem__, CLOSERS)


@cache
def matcher(grammar: str) -> LLMatcher:
    return make_matcher(TOKENIZER, grammar)


def sampler(
    of: Any, output: tuple[int, ...] = (), closes: str = "", until: int = 0, opens: int | None = None, **params: Any
) -> Sampler:
    limits = constraint(of, closes, output, until, opens)
    return Sampler(SamplingParams(**params), (), N_VOCAB, [END], output, constraint=limits)


def row(seed: int = 0, **logits: float) -> npt.NDArray[np.float32]:
    values = np.random.default_rng(seed).standard_normal(N_VOCAB).astype(np.float32)
    for name, value in logits.items():
        values[{"yes": YES, "no": NO, "end": END, "y": ids("y")[0], "n": ids("n")[0]}[name]] = value
    return values


def output(drawing: Sampler, seed: int = 0, most: int = 400) -> tuple[list[int], Drawn]:
    """All tokens until it ends, or `most`, from rows that like the end, and the last draw."""
    tokens: list[int] = []
    while len(tokens) < most:
        drawn = drawing.draw(row(seed + len(tokens), end=2.0))
        if drawn.token == END:
            return tokens, drawn
        tokens += [drawn.token, *drawn.forced]
        if drawn.closes:
            return tokens, drawn
    return tokens, drawn


def test_the_distribution_is_exactly_the_masked_one() -> None:
    """Four tokens are allowed, of which two make the same text; each comes with its share of what is allowed (chi-squared).

    The end is as likely as all of them and not allowed: numbers that missed must not be used again.
    """
    logits = np.full(N_VOCAB, -20.0, np.float32) + row(1, yes=20.5, no=21.0, y=21.5, n=19.5, end=23.0)
    allowed = np.array([YES, NO, ids("y")[0], ids("n")[0]])
    weights = np.exp(logits[allowed].astype(np.float64))
    n = 2000
    drawn = [sampler('start: "yes" | "no"', temperature=1.0, seed=seed).draw(logits).token for seed in range(n)]
    counts = np.array([drawn.count(int(token)) for token in allowed])
    assert counts.sum() == n
    expected = n * weights / weights.sum()
    assert float(((counts - expected) ** 2 / expected).sum()) < 16.27  # three degrees of freedom, p = 0.001


def test_greedy_takes_the_likeliest_that_is_allowed() -> None:
    assert sampler('start: "yes" | "no"', temperature=0.0).draw(row(2, yes=0.1, no=0.2, y=-9, n=-9)).token == NO


def test_a_draw_that_is_allowed_stands() -> None:
    """It is the draw of a sampler without a grammar."""
    for seed in range(200):
        free = Sampler(SamplingParams(temperature=1.0, seed=seed), (), N_VOCAB, [END]).draw(row(3, yes=7.0)).token
        held = sampler('start: "yes" | "no"', temperature=1.0, seed=seed).draw(row(3, yes=7.0)).token
        assert held == free or free not in (YES, NO, *ids("yn"))


@pytest.mark.parametrize("seed", range(20))
def test_every_output_is_valid_and_says_when_it_is_over(seed: int) -> None:
    """At temperature 1, with penalties and filters: JSON that the schema has, compact, and its end with its last token."""
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["London", "Paris"]}, "n": {"type": "integer", "maximum": 99}, "ok": {"type": "boolean"}},
        "required": ["city", "n", "ok"],
        "additionalProperties": False,
    }  # fmt: skip
    params: dict[str, Any] = {"repetition_penalty": 1.3, "top_p": 0.9} if seed % 2 else {"top_k": 40, "presence_penalty": 0.5}
    tokens, last = output(sampler(schema, temperature=1.0, seed=seed, **params), seed)
    value = json.loads(text_of(tokens))
    assert set(value) == {"city", "n", "ok"}
    assert value["city"] in ("London", "Paris")
    assert json.dumps(value, separators=(",", ":")) == text_of(tokens)
    assert last.closes


def test_what_is_forced_comes_with_the_draw_before_it() -> None:
    """Its log probability is asked of nobody; a long one comes in parts."""
    drawing = sampler('start: ("a" | "b") "' + "x" * 50 + '" ("c" | "d")', temperature=1.0, n_logprobs=2)
    first = drawing.draw(row())
    assert text_of(list(first.forced)) == "x" * RUN_MAX
    second = drawing.draw(row())
    assert text_of([second.token, *second.forced]) == "x" * (50 - RUN_MAX)
    assert not second.closes
    assert drawing.draw(row()).closes


@pytest.mark.parametrize("cut", range(0, 40, 3))
def test_it_goes_on_after_any_cut_as_it_would_have(cut: int) -> None:
    """The constraint is made again from the output; draws depend on place and seed alone."""
    schema = {"type": "array", "items": {"type": "integer"}, "minItems": 20}
    whole, _ = output(sampler(schema, temperature=1.0, seed=3), most=60)
    again = sampler(schema, tuple(whole[:cut]), temperature=1.0, seed=3)
    rest: list[int] = []
    while len(rest) < 60 - cut:
        drawn = again.draw(row(cut + len(rest), end=2.0))
        rest += [drawn.token, *drawn.forced]
    assert (whole[:cut] + rest)[:60] == whole[:60]


def test_it_begins_after_the_reasoning() -> None:
    """Before that everything may come but the end, also where the output before a cut has the mark already."""
    drawing = sampler('start: "yes"', closes="</think>", temperature=0.0)
    thoughts = row(4, end=20.0)
    thoughts[ids("t")[0]] = 10.0
    assert drawing.draw(thoughts).token == ids("t")[0]
    thoughts[THOUGHT] = 30.0
    drawn = drawing.draw(thoughts)
    assert (drawn.token, text_of(list(drawn.forced)), drawn.closes) == (THOUGHT, "yes", True)
    later = sampler('start: "yes" | "no"', output=(*ids("hm"), THOUGHT), closes="</think>", temperature=0.0)
    assert later.draw(row(5, no=50.0)).token == NO


def test_the_end_of_the_reasoning_may_come_in_several_tokens() -> None:
    """As text, wherever tokens begin and end."""
    drawing = sampler('start: "yes"', output=(*ids("hm</thi"),), closes="</think>", temperature=0.0)
    for letter in "nk":
        drawn = drawing.draw(row(4) + 50 * np.eye(N_VOCAB, dtype=np.float32)[ids(letter)[0]])
        assert (text_of([drawn.token]), list(drawn.forced)) == (letter, [])
    drawn = drawing.draw(row(4) + 50 * np.eye(N_VOCAB, dtype=np.float32)[ids(">")[0]])
    assert (text_of([drawn.token, *drawn.forced]), drawn.closes) == (">yes", True)


def test_an_output_may_begin_to_reason_by_itself() -> None:
    """With the token that begins it, or with what the grammar has, and never later."""
    wish = 50 * np.eye(N_VOCAB, dtype=np.float32)
    more: dict[str, Any] = {"closes": "</think>", "opens": THINK, "temperature": 0.0}
    drawing = sampler('start: "yes"', **more)
    assert drawing.draw(row(4) + wish[THINK]).token == THINK
    assert drawing.draw(row(4) + wish[ids("h")[0]]).token == ids("h")[0]
    drawn = drawing.draw(row(4) + wish[THOUGHT])
    assert (text_of(list(drawn.forced)), drawn.closes) == ("yes", True)
    again = sampler('start: "yes"', output=(THINK, *ids("h")), **more)
    assert again.draw(row(4) + wish[ids("h")[0]]).token == ids("h")[0]
    at_once = sampler('start: ("a" | "b") ("c" | "d")', **more)
    assert at_once.draw(row(4) + wish[ids("a")[0]]).token == ids("a")[0]
    assert at_once.draw(row(4) + wish[THINK]).token in ids("cd")


ROOMY: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "inner": {"type": "object", "properties": {"n": {"type": "number"}}, "required": ["n"]},
    },
    "required": ["name", "tags"],
}


@pytest.mark.parametrize(
    "of", [{"type": "object"}, {"type": "array", "items": {"type": "array"}}, ROOMY], ids=["any", "nested", "held"]
)
@pytest.mark.parametrize("until", [24, 40, 90])
@pytest.mark.parametrize("seed", range(8))
def test_what_is_open_at_the_end_of_the_allowance_is_closed(of: dict[str, Any], until: int, seed: int) -> None:
    """Rows that never end by themselves: it is what the schema has, as long as may be, and says that it is cut."""
    drawing = sampler(of, until=until, temperature=1.0, seed=seed)
    tokens: list[int] = []
    drawn = Drawn(END)
    while len(tokens) < until and not drawn.closes:
        drawn = drawing.draw(row(seed + len(tokens), end=-20.0) + LETTERS)
        tokens += [drawn.token, *drawn.forced]
    assert len(tokens) <= until
    assert jsonschema_rs.is_valid(of, json.loads(text_of(tokens)))
    if drawn.cut:
        assert drawn.closes
        assert len(tokens) >= until - SPARE - 1


def test_an_engine_that_takes_over_closes_at_the_same_place() -> None:
    """After every draw the rest is what it would have been."""

    def rest(before: list[int]) -> list[list[int]]:
        drawing, draws, n = sampler({"type": "object"}, tuple(before), until=30, temperature=1.0, seed=5), [], len(before)
        drawn = Drawn(END)
        while not drawn.closes:
            drawn = drawing.draw(row(n, end=-20.0) + LETTERS)
            draws.append([drawn.token, *drawn.forced])
            n += len(draws[-1])
        return draws

    draws = rest([])
    assert len(draws) > 5
    for cut in range(1, len(draws)):
        assert rest([token for draw in draws[:cut] for token in draw]) == draws[cut:]


def test_what_cannot_be_closed_in_time_is_cut_where_it_is() -> None:
    """A constant that is longer than what is left; and without an allowance nothing is ever closed."""
    long = {"type": "object", "properties": {"a": {"type": "string"}, "b": {"const": "y" * 99}}, "required": ["a", "b"]}
    for until in (40, 0):
        drawing = sampler(long, until=until, temperature=1.0)
        tokens: list[int] = []
        while len(tokens) < 40:
            drawn = drawing.draw(row(len(tokens), end=-20.0) + LETTERS)
            assert not drawn.cut
            tokens += [drawn.token, *drawn.forced]
        assert text_of(tokens).startswith('{"a":"')


def test_the_reasoning_counts_into_the_allowance() -> None:
    drawing = sampler({"type": "object"}, output=(*ids("hm" * 8), THOUGHT), closes="</think>", until=27, temperature=1.0)
    tokens: list[int] = []
    drawn = Drawn(END)
    while not drawn.closes:
        drawn = drawing.draw(row(len(tokens), end=-20.0) + LETTERS)
        tokens += [drawn.token, *drawn.forced]
    assert drawn.cut
    assert len(tokens) <= 10
    assert isinstance(json.loads(text_of(tokens)), dict)


def test_an_end_that_is_banned_and_forced_is_an_end() -> None:
    """`min_output` and `ignore_eos` do not make an answer longer than its grammar."""
    drawing = sampler("start: /[ab]?/", temperature=0.0, min_output=10)
    assert drawing.draw(row()).token in ids("ab")
    over = sampler('start: "a"', output=tuple(ids("a")), temperature=0.0, ignore_eos=True)
    assert over.draw(row()).token == END


def test_what_cannot_go_on_fails_by_name() -> None:
    """A bias that bans all that is allowed; an output that the grammar has not; a grammar that is none."""
    bias = tuple((token, -np.inf) for token in (YES, ids("y")[0]))
    with pytest.raises(RunnerError, match=f"{STRUCTURE_FAILED}: no token fits"):
        sampler('start: "yes"', temperature=1.0, logit_bias=bias).draw(row())
    with pytest.raises(RunnerError, match=STRUCTURE_FAILED):
        constraint('start: "yes"', output=tuple(ids("x")))
    with pytest.raises(RunnerError, match=STRUCTURE_FAILED):
        constraint("start: nowhere")
