"""Answers that begin with their prompt, and with its log probabilities: what programs that score texts ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.gateway.fakes import (
    BOS,
    FakeEngine,
    Reply,
    Submission,
    ToyVocab,
    ask,
    exchange,
    make_app,
    prompt_body,
    says,
    text_here,
)

PATH = "/v1/completions"


def scores(*starts: int, text: str = "x") -> Callable[[Submission], None]:
    """A script: the prompt's log probabilities from each of `starts` on, the i-th token's is -i, then an answer."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start()
        for start in starts:
            submission.score(start, [-float(i) for i in range(start, len(submission.prompt))])
        submission.say(text)
        submission.finish("length")

    return script


async def answered(body: dict[str, Any], script: Callable[[Submission], None], **vocab: bool) -> tuple[Any, FakeEngine]:
    engine = FakeEngine(script)
    reply = await ask(make_app(engine, jobs=text_here(ToyVocab(**vocab))), "POST", PATH, body)
    assert reply.status == 200, reply.body
    return reply.json(), engine


async def test_an_answer_begins_with_its_prompt() -> None:
    """A text as it was sent, token ids as what they say, several prompts each its own; it counts as no output."""
    body, engine = await answered(prompt_body("Hé", echo=True), says("abc"))
    assert body["choices"][0]["text"] == "Héabc"
    assert body["choices"][0]["logprobs"] is None
    assert body["usage"]["completion_tokens"] == 3
    assert engine.submissions[0].sampling.n_prompt_logprobs == -1
    body, _ = await answered(prompt_body([[72, 105], [BOS, 72]], echo=True), says("!"))
    assert [choice["text"] for choice in body["choices"]] == ["Hi!", "<s>H!"]


async def test_the_prompts_log_probabilities_come_first() -> None:
    """As OpenAI has them: null for the first token, and offsets in the whole text."""
    body, engine = await answered(prompt_body("Hi!", echo=True, logprobs=1, max_tokens=1), scores(1))
    assert engine.submissions[0].sampling.n_prompt_logprobs == 1
    assert body["choices"][0]["text"] == "Hi!x"
    assert body["choices"][0]["logprobs"] == {
        "tokens": ["H", "i", "!", "x"],
        "token_logprobs": [None, -1.0, -2.0, -0.5],
        "top_logprobs": [None, {"i": -1.0}, {"!": -2.0}, {"x": -0.5}],
        "text_offset": [0, 1, 2, 3],
    }


async def test_what_comes_again_from_another_engine_is_not_told_twice() -> None:
    """It computes the prompt from its beginning, and may be lost half-way itself."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start()
        submission.score(1, [-1.0, -2.0])
        submission.score(1, [-1.0])
        submission.score(2, [-2.0, -3.0, -4.0])
        submission.score(1, [-1.0, -2.0, -3.0, -4.0])
        submission.say("x")
        submission.finish("length")

    body, _ = await answered(prompt_body("abcde", echo=True, logprobs=0), script)
    assert body["choices"][0]["text"] == "abcdex"
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -1.0, -2.0, -3.0, -4.0, -0.5]
    assert body["choices"][0]["logprobs"]["top_logprobs"][1] == {"b": -1.0}


async def test_a_token_that_the_caller_did_not_write_takes_no_room_in_the_text() -> None:
    """The beginning-of-text token is one of the prompt's."""
    body, _ = await answered(prompt_body("é", echo=True, logprobs=0), scores(1), add_bos=True)
    assert body["choices"][0]["text"] == "éx"
    told = body["choices"][0]["logprobs"]
    assert told["tokens"] == ["<s>", "bytes:\\xc3", "bytes:\\xa9", "x"]
    assert told["text_offset"] == [0, 0, 0, 1]


async def test_a_prompt_of_one_token_is_echoed_without_waiting_for_anything() -> None:
    body, _ = await answered(prompt_body([72], echo=True, logprobs=1), says("x"))
    assert body["choices"][0]["text"] == "Hx"
    assert body["choices"][0]["logprobs"]["token_logprobs"] == [None, -0.5]


async def test_a_text_is_only_scored_where_no_output_is_wanted() -> None:
    """`max_tokens: 0`: the token that the engine draws is nobody's."""
    body, _ = await answered(prompt_body("Hi", echo=True, logprobs=1, max_tokens=0), scores(1))
    choice = body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("Hi", "length")
    assert choice["logprobs"]["token_logprobs"] == [None, -1.0]
    assert body["usage"]["completion_tokens"] == 0


@pytest.mark.parametrize("n", [3, 300])
async def test_a_stream_has_what_the_whole_answer_has(n: int) -> None:
    """Joined, also where the prompt has more log probabilities than one event."""
    asked = prompt_body("p" * n, echo=True, logprobs=1, max_tokens=4, stop=["zz"])
    whole, _ = await answered(asked, scores(1, text="azzb"))
    stream = exchange(make_app(FakeEngine(scores(1, text="azzb"))), "POST", PATH, asked | {"stream": True})
    pieces = [chunk["choices"][0] for chunk in (await stream.open().reply()).chunks]
    assert "".join(piece["text"] for piece in pieces) == whole["choices"][0]["text"] == "p" * n + "a"
    told = [piece["logprobs"] for piece in pieces if piece["logprobs"]]
    for name, values in whole["choices"][0]["logprobs"].items():
        assert [value for one in told for value in one[name]] == values


async def test_a_suffix_needs_a_model_that_can_fill_in() -> None:
    """The refusal names the model and what it lacks; with `echo` or token ids it is refused anywhere."""
    for more, word in (({}, "infill tokens (fim_prefix, fim_suffix, fim_middle)"), ({"echo": True}, "without 'echo'")):
        reply: Reply = await ask(make_app(FakeEngine()), "POST", PATH, prompt_body("a", suffix="b", **more))
        assert reply.status == 400
        assert word in reply.json()["error"]["message"]
        assert reply.json()["error"]["param"] == "suffix"
    reply = await ask(make_app(FakeEngine()), "POST", PATH, prompt_body([1, 2], suffix="b"))
    assert (reply.status, reply.json()["error"]["param"]) == (400, "suffix")
    body, _ = await answered(prompt_body("a", suffix=""), says("x"))
    assert body["choices"][0]["text"] == "x"


async def test_text_is_filled_in_between_prompt_and_suffix() -> None:
    """Prefix, suffix, then the middle: what is in them stands for itself."""
    vocab = ToyVocab(add_bos=True)
    vocab.special = {"bos": BOS, "fim_prefix": 1, "fim_suffix": 2, "fim_middle": 3}
    engine = FakeEngine(says("x"))
    body = prompt_body(["a<s>", "b"], suffix="c")
    reply = await ask(make_app(engine, jobs=text_here(vocab)), "POST", PATH, body)
    assert reply.status == 200, reply.body
    assert [choice["text"] for choice in reply.json()["choices"]] == ["x", "x"]
    assert [s.prompt for s in engine.submissions] == [[BOS, 1, *b"a<s>", 2, *b"c", 3], [BOS, 1, *b"b", 2, *b"c", 3]]
