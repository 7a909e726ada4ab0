"""From a request to what the engine is asked, and from the engine's tokens to the response."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from poise.config import Settings
from poise.scheduler.request import RequestClass
from poise.wire.messages import Token, TokenLogprob
from tests.gateway.fakes import (
    MODEL,
    SLOT_CELLS,
    FakeEngine,
    Reply,
    Submission,
    ask,
    chat_body,
    exchange,
    frames,
    make_app,
    prompt_body,
    readable,
    says,
    usage,
)

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def submitted(path: str, body: dict[str, Any], settings: Settings | None = None) -> list[Submission]:
    """What the engine is asked for a request."""
    engine = FakeEngine(says("x"))
    reply = await ask(make_app(engine, settings), "POST", path, body)
    assert reply.status == 200, reply.body
    return engine.submissions


async def answered(engine: FakeEngine, body: dict[str, Any], path: str = CHAT) -> Reply:
    reply = await ask(make_app(engine), "POST", path, body)
    assert reply.status == 200, reply.body
    return reply


async def test_a_chat_answer_has_everything_a_client_looks_at() -> None:
    """Body, usage and headers of a plain request."""
    reply = await answered(FakeEngine(says("Hello")), chat_body())
    body = reply.json()
    assert body["id"].startswith("chatcmpl-")
    assert (body["object"], body["model"], body["service_tier"]) == ("chat.completion", MODEL, "default")
    assert body["system_fingerprint"].startswith("fp_")
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    n_prompt = len("_user\nHi_\n_assistant\n")
    assert body["usage"] == usage(n_prompt, 5)
    assert reply.headers["x-request-id"].startswith("req-")


async def test_the_prompt_is_the_rendered_conversation() -> None:
    """Parts are joined by newlines, the assistant is to speak next."""
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    body = {"model": "default", "messages": [{"role": "system", "content": "S"}, {"role": "user", "content": parts}]}
    (request,) = await submitted(CHAT, body)
    assert readable(request.prompt) == "⟨257⟩system\nS⟨258⟩\n⟨257⟩user\na\nb⟨258⟩\n⟨257⟩assistant\n"


async def test_parameters_reach_the_engine() -> None:
    """Each one under its own name, in the engine's terms."""
    body = chat_body(
        temperature=0,
        top_p=0.5,
        top_k=-1,
        min_p=0.25,
        presence_penalty=1,
        frequency_penalty=-1,
        repeat_penalty=1.5,
        logit_bias={"7": -100, "5": 2},
        seed=3,
        logprobs=True,
        top_logprobs=4,
        ignore_eos=True,
        min_tokens=2,
        max_completion_tokens=9,
        service_tier="flex",
        user="me",
    )
    (request,) = await submitted(CHAT, body)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.0, 0.5, 0, 0.25)
    assert (sampling.presence_penalty, sampling.frequency_penalty, sampling.repetition_penalty) == (1.0, -1.0, 1.5)
    assert sampling.logit_bias == ((5, 2.0), (7, float("-inf")))
    assert (sampling.seed, sampling.n_logprobs, sampling.ignore_eos, sampling.min_output) == (3, 4, True, 2)
    assert (request.max_output, request.request_class) == (9, RequestClass.BACKGROUND)


async def test_defaults_come_from_the_configuration() -> None:
    """Where the request says nothing."""
    settings = Settings.model_validate({"sampling": {"temperature": 0.3, "top_k": 7, "top_p": 0.9, "min_p": 0.1}})
    (request,) = await submitted(CHAT, chat_body(), settings)
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_k, sampling.top_p, sampling.min_p) == (0.3, 7, 0.9, 0.1)
    assert (sampling.n_logprobs, sampling.logit_bias, request.request_class) == (-1, (), RequestClass.INTERACTIVE)


@pytest.mark.parametrize(
    ("seed", "expected"),
    [(5, [5, 6]), (2**32 - 2, [2**32 - 2, 0]), (-2, [2**32 - 3, 2**32 - 2]), (2**63 - 1, [2**31 - 1, 2**31])],
)
async def test_choices_have_seeds_of_their_own(seed: int, expected: list[int]) -> None:
    """Seed + i, in 32 bits, and never the value that means random to llama.cpp."""
    requests = await submitted(CHAT, chat_body(seed=seed, n=2))
    assert [request.sampling.seed for request in requests] == expected


async def test_without_a_seed_each_request_has_another() -> None:
    """Two equal requests are drawn differently."""
    (one,), (other,) = [await submitted(CHAT, chat_body()) for _ in range(2)]
    assert one.sampling.seed != other.sampling.seed


@pytest.mark.parametrize(
    ("tier", "shown"), [("auto", "default"), ("default", "default"), ("priority", "priority"), ("flex", "flex")]
)
async def test_the_service_tier_is_echoed(tier: str, shown: str) -> None:
    """auto is answered as what it became."""
    reply = await answered(FakeEngine(says("x")), chat_body(service_tier=tier))
    assert reply.json()["service_tier"] == shown


async def test_the_default_allowance_is_cut_to_what_the_context_has_left() -> None:
    """A caller that names no number does not have to do the sum."""
    (request,) = await submitted(COMPLETIONS, prompt_body([1] * 500))
    assert request.max_output == SLOT_CELLS - 500 + 1
    (request,) = await submitted(COMPLETIONS, prompt_body([1] * SLOT_CELLS))
    assert request.max_output == 1
    (request,) = await submitted(COMPLETIONS, prompt_body([1]))
    assert request.max_output == 300  # of the short pool


@pytest.mark.parametrize(("n_prompt", "extra"), [(SLOT_CELLS + 1, {}), (SLOT_CELLS + 1, {"max_tokens": 102})])
async def test_what_cannot_fit_is_refused_with_the_numbers(n_prompt: int, extra: dict[str, int]) -> None:
    """On arrival, before the engine sees it; one token less fits."""
    engine = FakeEngine(says("x"))
    app = make_app(engine)
    reply = await ask(app, "POST", COMPLETIONS, prompt_body([1] * n_prompt, **extra))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "prompt")
    assert str(n_prompt) in reply.error["message"]
    assert str(SLOT_CELLS) in reply.error["message"]
    assert not engine.submissions
    assert (await ask(app, "POST", COMPLETIONS, prompt_body([1] * (n_prompt - 1), **extra))).status == 200


async def test_completions_take_prompts_in_four_forms() -> None:
    """A text, texts, ids, lists of ids; a choice for each, in order."""
    for prompt, expected in [
        ("ab", [[97, 98]]),
        (["ab", "c"], [[97, 98], [99]]),
        ([97, 98], [[97, 98]]),
        ([[97], [98, 99]], [[97], [98, 99]]),
    ]:
        requests = await submitted(COMPLETIONS, prompt_body(prompt))
        assert [request.prompt for request in requests] == expected


async def test_several_prompts_with_several_choices() -> None:
    """Indices count prompt by prompt; each prompt is counted once, all output is."""
    engine = FakeEngine(lambda s: says(f"{bytes(s.prompt).decode()}{s.sampling.seed}")(s))
    body = (await answered(engine, prompt_body(["a", "bc"], n=2, seed=0), COMPLETIONS)).json()
    assert [(c["index"], c["text"]) for c in body["choices"]] == [(0, "a0"), (1, "a1"), (2, "bc0"), (3, "bc1")]
    assert body["usage"] == usage(3, 10)
    assert body["id"].startswith("cmpl-")
    assert body["object"] == "text_completion"


async def test_a_stream_has_one_event_for_each_batch_of_tokens() -> None:
    """Behind the one with the role; the last has the finish reason, then come usage and [DONE]."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, stream_options={"include_usage": True}))
    stream.open()
    request = await engine.submitted()
    request.accept()
    assert await stream.start() == 200
    chunks = []
    for text in ("Hel", "lo"):
        request.say(text)
        chunks.append(await stream.event())
    request.finish("length")
    chunks += [await stream.event(), await stream.event()]
    assert await stream.frame() == "[DONE]"
    await stream.ended()
    assert [c["choices"][0]["delta"] for c in chunks[:3]] == [{"content": "Hel"}, {"content": "lo"}, {}]
    assert [c["choices"][0]["finish_reason"] for c in chunks[:3]] == [None, None, "length"]
    assert [c["usage"] for c in chunks[:3]] == [None] * 3
    assert chunks[3]["choices"] == []
    assert chunks[3]["usage"] == usage(21, 5)
    assert len({(c["id"], c["created"], c["object"]) for c in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


async def test_usage_can_come_with_every_event() -> None:
    """continuous_usage_stats, as benchmark clients ask for it."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = await answered(FakeEngine(says("abc")), chat_body(stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in reply.chunks] == [3, 3, 3]
    reply = await answered(FakeEngine(says("abc")), chat_body(stream=True))
    assert all("usage" not in chunk for chunk in reply.chunks)


async def test_choices_of_a_stream_do_not_wait_for_each_other() -> None:
    """Their events come in the engine's order, each under its index."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, n=2)).open()
    one, two = await engine.submitted(1), await engine.submitted(2)
    one.accept()
    two.accept()
    assert await stream.start() == 200
    told = []
    for request, text in [(two, "B"), (one, "A"), (two, "b")]:
        request.say(text)
        choice = (await stream.event())["choices"][0]
        told.append((choice["index"], choice["delta"]))
    assert told == [(1, {"content": "B"}), (0, {"content": "A"}), (1, {"content": "b"})]
    for request in (one, two):
        request.finish()
        assert (await stream.event())["choices"][0]["finish_reason"] == "stop"
    await stream.ended()


async def test_an_answer_without_text_still_has_a_role() -> None:
    """The model may end at once."""
    reply = await answered(FakeEngine(says("")), chat_body(stream=True))
    told = [json.loads(data) for _, data in frames(reply.body, openings=True)[:-1]]
    assert [chunk["choices"][0]["delta"] for chunk in told] == [{"role": "assistant", "content": ""}, {}]


@pytest.mark.parametrize("n", [1, 3])
async def test_a_stream_begins_when_its_request_was_taken(n: int) -> None:
    """Headers, and the role of each choice, before anything is computed; nobody is told so before the last one is taken."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, n=n)).open()
    await engine.submitted(n)
    for request in engine.submissions[1:]:
        request.accept()
    for _ in range(20):
        await asyncio.sleep(0)
    assert stream.sent.empty()
    engine.submissions[0].accept()
    assert await stream.start() == 200
    told = [json.loads(data) for _, data in frames((await stream.message())["body"], openings=True)]
    assert [chunk["choices"][0]["index"] for chunk in told] == list(range(n))
    for chunk in told:
        (choice,) = chunk["choices"]
        assert (choice["delta"], choice["finish_reason"]) == ({"role": "assistant", "content": ""}, None)
    for request in engine.submissions:
        request.finish()
    await stream.ended()


async def test_a_refusal_is_no_stream() -> None:
    """Also when other choices were taken."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, n=2)).open()
    await engine.submitted(2)
    engine.submissions[0].accept()
    engine.submissions[1].refuse("queue_full", 64, 64)
    assert (await stream.reply()).status == 429


async def test_a_long_wait_is_told_in_a_comment() -> None:
    """Its place and the estimate; a short wait is not worth it."""

    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True)).open()
    (await engine.submitted()).accept(3, 1_200_000)
    assert await stream.start() == 200
    assert await stream.frame() == ": queued position=3 eta_ms=1200"
    engine.submissions[0].finish()
    await stream.ended()
    assert not (await answered(FakeEngine(says("x")), chat_body(stream=True))).body.startswith(b":")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_stop_string_ends_the_answer_and_the_work(stream: bool) -> None:
    """Also across tokens; it is not part of the answer, and the tokens it took are counted."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stop=["END", "never"], stream=stream)).open()
    request = await engine.submitted()
    request.accept()
    request.say("one EN")
    request.say("D and more")
    reply = await asked.reply()
    if stream:
        text = "".join(c["choices"][0]["delta"].get("content", "") for c in reply.chunks)
        reason = reply.chunks[-1]["choices"][0]["finish_reason"]
    else:
        choice = reply.json()["choices"][0]
        text, reason = choice["message"]["content"], choice["finish_reason"]
        assert reply.json()["usage"]["completion_tokens"] == len("one END")
    assert (text, reason) == ("one ", "stop")
    assert engine.aborted == [1]


async def test_a_character_split_over_tokens_comes_whole() -> None:
    """Held until complete; what stays incomplete becomes U+FFFD at the end."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True)).open()
    request = await engine.submitted()
    request.accept()
    await stream.start()
    request.say(b"a\xe2\x82")
    assert (await stream.event())["choices"][0]["delta"]["content"] == "a"
    request.say(b"\xac\xc3")
    assert (await stream.event())["choices"][0]["delta"]["content"] == "€"
    request.finish()
    assert (await stream.event())["choices"][0]["delta"]["content"] == "\ufffd"


async def test_chat_log_probabilities() -> None:
    """One entry for each token, with the alternatives asked for and the bytes."""
    reply = await answered(FakeEngine(says("aé")), chat_body(logprobs=True, top_logprobs=2))
    content = reply.json()["choices"][0]["logprobs"]["content"]
    assert [entry["token"] for entry in content] == ["a", "bytes:\\xc3", "bytes:\\xa9"]
    assert content[0] == {
        "token": "a",
        "logprob": -0.5,
        "bytes": [97],
        "top_logprobs": [{"token": "a", "logprob": -0.5, "bytes": [97]}, {"token": "b", "logprob": -1.5, "bytes": [98]}],
    }


async def test_completion_log_probabilities() -> None:
    """The older form, with places in the text; 0 asks for the chosen token only."""
    reply = await answered(FakeEngine(says("ab")), prompt_body(logprobs=1), COMPLETIONS)
    assert reply.json()["choices"][0]["logprobs"] == {
        "tokens": ["a", "b"],
        "token_logprobs": [-0.5, -0.5],
        "top_logprobs": [{"a": -0.5}, {"b": -0.5}],
        "text_offset": [0, 1],
    }


async def test_log_probabilities_do_not_tell_what_is_held_back() -> None:
    """Neither the tokens of a stop string nor those that may become one are shown early."""
    engine = FakeEngine()
    stream = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, stop="END", logprobs=True)).open()
    request = await engine.submitted()
    request.accept()
    await stream.start()
    request.say("aE")
    first = (await stream.event())["choices"][0]
    assert [entry["token"] for entry in first["logprobs"]["content"]] == ["a"]
    request.say("xEND")
    second = (await stream.event())["choices"][0]
    assert second["delta"]["content"] == "Ex"
    assert [entry["token"] for entry in second["logprobs"]["content"]] == ["E", "x"]


async def test_a_minus_infinite_log_probability_is_a_number() -> None:
    """JSON has no infinity; OpenAI writes -9999."""

    def script(submission: Submission) -> None:
        submission.accept()
        inf = float("-inf")
        submission.handle.put(Token(submission.handle.request_id, 97, inf, [TokenLogprob(258, inf)]))
        submission.finish()

    reply = await answered(FakeEngine(script), chat_body(logprobs=True, top_logprobs=1))
    (entry,) = reply.json()["choices"][0]["logprobs"]["content"]
    assert entry["logprob"] == -9999.0
    assert entry["top_logprobs"][0]["token"] == "<|im_end|>"


@pytest.mark.parametrize(
    ("headers", "parameters", "has_ids"),
    [
        ({}, {}, False),
        ({"accept": "*/*"}, {}, False),
        ({"accept": "application/json"}, {}, False),
        ({"accept": "application/json, text/event-stream"}, {}, True),
        ({"last-event-id": "0"}, {}, True),
        ({"x-poise-detach": "1"}, {}, True),
        ({}, {"background": True}, True),
    ],
)
async def test_ids_are_for_who_asks(headers: dict[str, str], parameters: dict[str, Any], has_ids: bool) -> None:
    """Others get what simple clients know: blocks of one `data:` line each, a comment in a block of its own."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start()
        submission.change("pause")
        submission.say("x")
        submission.finish()

    body = chat_body(stream=True, **parameters)
    reply = await ask(make_app(FakeEngine(script)), "POST", "/v1/chat/completions", body, headers=headers)
    blocks = reply.body.decode().removesuffix("\n\n").split("\n\n")
    if has_ids:
        assert all("id: " in block for block in blocks)
    else:
        assert {block[:6] for block in blocks} == {": paus", "data: "}
        assert not any("\n" in block for block in blocks)
