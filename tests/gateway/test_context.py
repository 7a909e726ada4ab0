"""Conversations that are too long, over HTTP: refused with the numbers, trimmed with the numbers, or summarized."""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec
import pytest

from poise.config import Settings
from poise.config.serving import TemplateSettings, TenantSettings
from poise.gateway.models.local import summary
from poise.scheduler.request import RequestClass
from poise.wire.messages import PoolInfo
from poise.worker.text.chat_template import MERGED, ChatTemplate
from poise.worker.text.hidden import Piece
from tests.gateway.fakes import (
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
    ready,
    says,
    text_here,
    usage,
)

CHAT = "/v1/chat/completions"
SYSTEM = {"role": "system", "content": "S" * 20}


INTERACTIVE = Settings().classes.interactive.model_dump()


def limited(**limits: Any) -> Settings:
    return Settings.model_validate({"classes": {"interactive": {**INTERACTIVE, **limits}}})


def turn(i: int, n_chars: int = 40) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"q{i}".ljust(n_chars, "?")}, {"role": "assistant", "content": f"a{i}"}]


def conversation(n_turns: int, **parameters: Any) -> dict[str, Any]:
    """A system message, so many turns, and a question."""
    messages = [SYSTEM, *(message for i in range(n_turns) for message in turn(i)), {"role": "user", "content": "last"}]
    return {"model": "toy", "messages": messages, **parameters}


def n_tokens(messages: list[dict[str, str]]) -> int:
    """As the toy vocabulary and ChatML have it: bytes, and four tokens around each message."""
    return sum(len(m["role"]) + len(m["content"]) + 4 for m in messages) + len("_assistant\n")


async def answered(body: dict[str, Any], engine: FakeEngine | None = None, settings: Settings | None = None) -> Reply:
    reply = await ask(make_app(engine or FakeEngine(says("x")), settings), "POST", CHAT, body)
    assert reply.status == 200, reply.body
    return reply


def starts(request: Submission) -> list[str]:
    """The beginning of each message's text in a prompt, the assistant's cue left out."""
    return [part.split("\n", 1)[1][:4] for part in readable(request.prompt).split("⟨257⟩")[1:-1]]


async def test_the_prompt_limit_of_a_class() -> None:
    """One token more is refused, with every number and what to do."""
    app = make_app(FakeEngine(says("x")), limited(max_prompt_tokens=100))
    fits = chat_body("x" * (100 - n_tokens([{"role": "user", "content": ""}])))
    assert (await ask(app, "POST", CHAT, fits)).json()["usage"]["prompt_tokens"] == 100
    fits["messages"][0]["content"] += "x"
    reply = await ask(app, "POST", CHAT, fits | {"max_tokens": 7})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")
    for told in (
        "The prompt is too long: 101 tokens > 100 maximum. ",
        f"This model's maximum context length is {SLOT_CELLS} tokens in class 'interactive'",
        "'trim'",
        "'summarize'",
    ):
        assert told in reply.error["message"], told
    assert (await ask(app, "POST", CHAT, fits | {"service_tier": "flex"})).status == 200


async def test_the_context_limit_of_a_class() -> None:
    """Prompt and output together; an allowance is cut to what is left, and one that was named is told so."""
    engine = FakeEngine(says("x"))
    app = make_app(engine, limited(max_context_tokens=100))
    n_prompt = n_tokens(chat_body()["messages"])
    left = 100 - n_prompt
    replies = [await ask(app, "POST", CHAT, chat_body(max_tokens=n)) for n in (left, None, left + 1, 1 << 40)]
    assert [reply.status for reply in replies] == [200] * 4
    assert [s.max_output for s in engine.submissions] == [left] * 4
    assert ["x-poise-warning" in reply.headers for reply in replies] == [False, False, True, True]
    assert replies[2].headers["x-poise-warning"].startswith(f"output allowance of {left + 1} tokens is cut to {left}, ")
    reply = await ask(app, "POST", "/v1/completions", prompt_body([1] * 101, max_tokens=11))
    for told in ("is too long: 101 tokens > 99 maximum. ", "context length is 100 tokens in class 'interactive'"):
        assert told in reply.error["message"], told
    assert "context_policy" not in reply.error["message"]
    models = (await ask(app, "GET", "/v1/models")).json()
    assert models["data"][0]["context_length"] == SLOT_CELLS  # background still has all of a slot


@pytest.mark.parametrize("policy", ["trim", "summarize"])
async def test_what_fits_is_left_alone(policy: str) -> None:
    """Nothing is dropped, nothing is added to the answer."""
    engine = FakeEngine(says("x"))
    body = conversation(3, max_tokens=10)
    reply = await answered(body | {"context_policy": policy}, engine)
    assert engine.submissions[0].prompt == (await submitted_without(body)).prompt
    assert "poise" not in reply.json()
    assert "x-poise-context" not in reply.headers


async def submitted_without(body: dict[str, Any]) -> Submission:
    engine = FakeEngine(says("x"))
    await answered(body, engine)
    return engine.submissions[0]


async def test_trim_drops_the_fewest_oldest_turns_and_says_so() -> None:
    """In the body and in a header; the system message and the last turn stay."""
    engine = FakeEngine(says("x"))
    body = conversation(12, max_tokens=100, context_policy="trim")
    whole = n_tokens(body["messages"])
    reply = await answered(body, engine)
    note = reply.json()["poise"]["context"]
    n = note["dropped_turns"]
    kept = [SYSTEM, *body["messages"][1 + 2 * n :]]
    assert note == {
        "policy": "trim",
        "dropped_turns": n,
        "dropped_messages": 2 * n,
        "dropped_tokens": whole - n_tokens(kept),
        "prompt_tokens": n_tokens(kept),
    }
    assert n_tokens(kept) + 100 <= SLOT_CELLS + 1 < n_tokens([SYSTEM, *body["messages"][2 * n - 1 :]]) + 100
    assert engine.submissions[0].prompt == (await submitted_without(body | {"messages": kept})).prompt
    assert reply.json()["usage"]["prompt_tokens"] == n_tokens(kept)
    header = f"trim; dropped_turns={n}; dropped_tokens={whole - n_tokens(kept)}"
    assert reply.headers["x-poise-context"] == header


async def test_trim_tells_a_stream_in_its_first_chunk() -> None:
    """Only there, and in the header."""
    reply = await answered(conversation(12, context_policy="trim", stream=True, n=2))
    assert reply.headers["x-poise-context"].startswith("trim; dropped_turns=")
    told = [json.loads(data) for _, data in frames(reply.body, openings=True)[:-1]]
    assert [chunk.get("poise", {}).get("context", {}).get("policy") for chunk in told] == ["trim", *[None] * 5]


async def test_tool_results_go_with_their_turn() -> None:
    """A turn is a user message with everything up to the next one."""
    turn = [{"role": "user", "content": "Q" * 150}, {"role": "assistant", "content": "call"}]
    turn += [{"role": "tool", "content": "data"}, {"role": "assistant", "content": "done"}]
    messages = [*turn, {"role": "developer", "content": "note"}, *turn, *turn, {"role": "user", "content": "last"}]
    engine = FakeEngine(says("x"))
    body = {"model": "toy", "messages": messages, "max_tokens": 100, "context_policy": "trim"}
    note = (await answered(body, engine)).json()["poise"]["context"]
    assert (note["dropped_turns"], note["dropped_messages"]) == (1, 4)
    assert starts(engine.submissions[0]) == ["note", *["QQQQ", "call", "data", "done"] * 2, "last"]


async def test_trimming_a_long_chat_costs_few_renderings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two hundred turns: the whole, the least, and a search between them, all in one job of a text worker."""
    n_rendered = 0
    render = ChatTemplate.render

    def counting(*arguments: Any) -> list[Piece]:
        nonlocal n_rendered
        n_rendered += 1
        return render(*arguments)

    jobs = text_here()
    app = make_app(FakeEngine(says("x")), jobs=jobs)
    monkeypatch.setattr(ChatTemplate, "render", counting)
    jobs.asked.clear()
    note = (await ask(app, "POST", CHAT, conversation(200, context_policy="trim"))).json()["poise"]["context"]
    assert note["dropped_turns"] > 190
    assert n_rendered <= 10
    assert len(jobs.asked) == 1


async def test_without_a_named_allowance_trim_leaves_room_for_an_answer() -> None:
    """A quarter of the context, rather than the one token that reject would make do with."""
    engine = FakeEngine(says("x"))
    await answered(conversation(12, context_policy="trim"), engine)
    (request,) = engine.submissions
    assert SLOT_CELLS // 4 <= request.max_output <= SLOT_CELLS // 4 + n_tokens(turn(0))


async def test_a_number_that_nobody_means_drops_no_turns() -> None:
    """Agents ask for 32,000 tokens as a matter of course: turns are dropped as for a request that names none."""
    engine = FakeEngine(says("x"))
    body = conversation(12, context_policy="trim")
    await answered(body, engine)
    reply = await answered(body | {"max_tokens": 32_000}, engine)
    plain, agent = engine.submissions
    assert (plain.prompt, plain.max_output) == (agent.prompt, agent.max_output)
    assert f"32000 tokens is cut to {agent.max_output}" in reply.headers["x-poise-warning"]


@pytest.mark.parametrize("policy", ["trim", "summarize"])
async def test_what_cannot_be_made_to_fit_is_refused(policy: str) -> None:
    """The numbers are those of the least that could be sent."""
    engine = FakeEngine(says("x"))
    body = conversation(3, max_tokens=100, context_policy=policy)
    body["messages"][-1]["content"] = "x" * 600
    reply = await ask(make_app(engine), "POST", CHAT, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "context_length_exceeded", "messages")
    least = n_tokens([SYSTEM, body["messages"][-1]])
    if policy == "trim":
        assert f"{least} tokens" in reply.error["message"]
    assert re.search(r"last turn.* the prompt is too long: \d+ tokens > \d+ maximum", reply.error["message"])
    assert not engine.submissions


async def test_a_last_turn_that_only_cuts_the_default_allowance() -> None:
    """It fits as it would under reject, so no turn is dropped for nothing."""
    engine = FakeEngine(says("x"))
    body = conversation(1, context_policy="trim")
    body["messages"][-1]["content"] = "x" * 420
    assert "poise" not in (await answered(body, engine)).json()
    assert engine.submissions[0].max_output == SLOT_CELLS + 1 - n_tokens(body["messages"])


async def test_raw_prompts_cannot_be_trimmed() -> None:
    """They have no turns; asking for the default is no harm."""
    app = make_app(FakeEngine(says("x")))
    reply = await ask(app, "POST", "/v1/completions", prompt_body(context_policy="trim"))
    assert (reply.status, reply.error["code"], reply.error["param"]) == (400, "unsupported_parameter", "context_policy")
    assert "no turns" in reply.error["message"]
    assert (await ask(app, "POST", "/v1/completions", prompt_body(context_policy="reject"))).status == 200
    assert (await ask(app, "POST", CHAT, chat_body(context_policy="cut"))).error["code"] == "invalid_value"


def summarizes(text: str | bytes, cells: int = 2000) -> FakeEngine:
    """Answers summary requests (the background ones) with this text and all others with x."""
    return roomy(FakeEngine(lambda s: says(text if s.request_class is RequestClass.BACKGROUND else "x")(s)), cells)


def roomy(engine: FakeEngine, cells: int = 2000) -> FakeEngine:
    """With slots that hold the instruction to summarize and some text: in the toy vocabulary each byte is a token."""
    engine.state.ready = msgspec.structs.replace(ready(), pools=[PoolInfo("long", 1, cells, True, 1)])
    return engine


TIGHT = limited(max_context_tokens=SLOT_CELLS)
"""The limits of the other tests again, for one class."""


async def test_summarize_puts_a_summary_in_the_place_of_the_turns() -> None:
    """Background work of the same tenant, greedy and bounded; told in full, its cost apart from the usage."""
    engine = summarizes(" They talked. ")
    body = conversation(12, max_tokens=100, context_policy="summarize")
    reply = await ask(make_app(engine, TIGHT), "POST", CHAT, body, headers={"x-api-key": "k"})
    note = reply.json()["poise"]["context"]
    asked, request = engine.submissions
    n = note["summarized_turns"]
    kept = [SYSTEM, *body["messages"][1 + 2 * n :]]
    assert (asked.tenant, asked.request_class) == (request.tenant, RequestClass.BACKGROUND)
    assert asked.sampling.temperature == 0.0
    assert asked.max_output == SLOT_CELLS // summary.CONTEXT_SHARE
    assert summary.INSTRUCTION in readable(asked.prompt)
    assert [f"q{i}?" in readable(asked.prompt) for i in range(12)] == [i < n for i in range(12)]
    stands = {"role": "system", "content": summary.HEADING + "They talked."}
    expected = [SYSTEM, stands, *kept[1:]]
    assert request.prompt == (await submitted_without(body | {"messages": expected, "max_tokens": 1})).prompt
    used = len(asked.prompt)
    assert note == {
        "policy": "summarize",
        "summarized_turns": n,
        "summarized_messages": 2 * n,
        "summarized_tokens": n_tokens(body["messages"]) - n_tokens(kept),
        "summary_tokens": len(stands["content"]),
        "summary": "They talked.",
        "summary_usage": usage(used, 14),
        "prompt_tokens": n_tokens(expected),
    }
    assert reply.json()["usage"]["prompt_tokens"] == n_tokens(expected)
    assert reply.headers["x-poise-context"] == f"summarize; summarized_turns={n}; " + (
        f"summarized_tokens={note['summarized_tokens']}"
    )


async def test_a_summary_that_comes_out_longer_is_cut() -> None:
    """Text can have more tokens than it was made of: half characters, for one."""
    engine = summarizes(b"\xe2" * 75)
    body = conversation(12, max_tokens=100, context_policy="summarize")
    note = (await answered(body, engine, TIGHT)).json()["poise"]["context"]
    assert len(engine.submissions[1].prompt) == note["prompt_tokens"] <= SLOT_CELLS - 100
    assert 0 < len(note["summary"]) < 75


async def test_a_long_past_is_summarized_in_pieces() -> None:
    """Each fits into a slot, none is left out, and the answers are joined."""
    engine = summarizes("Part.", 900)
    body = conversation(25, max_tokens=100, context_policy="summarize")
    note = (await answered(body, engine, TIGHT)).json()["poise"]["context"]
    *pieces, _ = engine.submissions
    assert len(pieces) > 1
    assert note["summary"] == "\n".join(["Part."] * len(pieces))
    assert all(len(piece.prompt) + piece.max_output <= 900 for piece in pieces)
    told = "".join(readable(piece.prompt).split(summary.INSTRUCTION)[1].split("⟨258⟩")[0] for piece in pieces)
    assert all(told.count(f"user: q{i}?") == 1 for i in range(note["summarized_turns"]))
    assert note["summary_usage"]["prompt_tokens"] == sum(len(piece.prompt) for piece in pieces)


async def test_a_past_that_is_too_long_for_a_summary_is_refused() -> None:
    """Before anything is computed, also for a stream."""
    engine = FakeEngine(says("x"))
    body = conversation(200, context_policy="summarize", stream=True)
    reply = await ask(make_app(engine), "POST", CHAT, body)
    assert (reply.status, reply.error["code"]) == (400, "context_length_exceeded")
    assert "pieces" in reply.error["message"]
    assert not engine.submissions


async def test_a_chat_template_that_takes_no_second_system_message() -> None:
    """The summary goes to the beginning, and the caller is told."""
    source = (
        "{% for m in messages %}{% if loop.index0 > 0 and m.role == 'system' %}"
        "{{ raise_exception('system comes first') }}{% endif %}{{ m.content }}{% endfor %}"
    )
    engine = FakeEngine(says("x"))
    app = make_app(engine, jobs=text_here(template=source))
    reply = await ask(app, "POST", CHAT, conversation(20, context_policy="summarize"))
    assert reply.status == 200
    assert readable(engine.submissions[-1].prompt).startswith(f"{SYSTEM['content']}\n\n{summary.HEADING}")
    assert MERGED in reply.headers["x-poise-warning"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("fail", "code", "status"),
    [
        (lambda s: s.refuse("queue_full", 9, 9, 4_000_000), "queue_full", 429),
        (lambda s: (s.accept(), s.finish("engine_lost")), "engine_lost", 503),
        (lambda s: (s.accept(), s.finish("stop")), "summary_failed", 500),
    ],
)
async def test_a_summary_that_fails_fails_the_request(stream: bool, fail: Any, code: str, status: int) -> None:
    """With its own error, as an event where the headers are out; it never becomes a trim."""
    engine = roomy(FakeEngine(fail))
    app = make_app(engine, TIGHT)
    reply = await ask(app, "POST", CHAT, conversation(12, context_policy="summarize", stream=stream))
    assert len(engine.submissions) == 1
    if stream:
        assert reply.status == 200
        assert reply.body.startswith(b": summarizing turns=")
        assert [chunk["error"]["code"] for chunk in reply.chunks] == [code]
        assert "[DONE]" not in reply.events
    else:
        assert (reply.status, reply.error["code"]) == (status, code)
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert f'poise_rejected_total{{class="interactive",reason="{code}"}} 1.0' in metrics


async def test_a_stream_is_told_that_it_waits_for_a_summary() -> None:
    """At once, with the header; the answer follows as ever, with the note in its first event."""
    engine = roomy(FakeEngine())
    body = conversation(12, context_policy="summarize", stream=True)
    stream = exchange(make_app(engine, TIGHT), "POST", CHAT, body).open()
    start = await stream.message()
    header = dict(start["headers"])[b"x-poise-context"].decode()
    n = int(header.split("summarized_turns=")[1].split(";")[0])
    assert await stream.frame() == f": summarizing turns={n}"
    says("In short.")(await engine.submitted(1))
    says("Yes.")(await engine.submitted(2))
    told = b""
    while b"[DONE]" not in told:
        told += (await stream.message())["body"]
    opening, said, end = [json.loads(data) for _, data in frames(told, openings=True)[:-1]]
    assert opening["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert opening["poise"]["context"]["summary"] == "In short."
    assert said["choices"][0]["delta"] == {"content": "Yes."}
    assert end["choices"][0]["finish_reason"] == "stop"
    await stream.ended()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_ends_the_summary(stream: bool) -> None:
    """Nothing is computed for nobody, and nothing is asked after it."""
    engine = roomy(FakeEngine())
    app = make_app(engine, TIGHT)
    asked = exchange(app, "POST", CHAT, conversation(12, context_policy="summarize", stream=stream)).open()
    request = await engine.submitted()
    request.accept()
    request.say("They")
    asked.disconnect()
    assert await engine.aborts(1) == [1]
    await asked.ended()
    assert len(engine.submissions) == 1
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_requests_total{class="background",outcome="cancelled"} 1.0' in metrics


@pytest.mark.parametrize("stream", [False, True])
async def test_a_long_system_prompt_is_answered_with_a_warning(stream: bool) -> None:
    """And counted; one at the limit is not."""
    app = make_app(FakeEngine(says("x")))
    for n, warned in ((300, False), (301, True)):
        messages = [{"role": "system", "content": "s" * n}, {"role": "user", "content": "Hi"}]
        reply = await ask(app, "POST", CHAT, {"model": "toy", "messages": messages, "stream": stream})
        assert reply.status == 200
        assert ("x-poise-warning" in reply.headers) == warned
    assert reply.headers["x-poise-warning"].startswith("system prompt takes 301 of 600 tokens")
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_long_system_prompts_total{class="interactive"} 1.0' in metrics
    assert 'poise_long_system_prompts_total{class="background"} 0.0' in metrics


async def test_a_template_survives_trimming_and_summaries() -> None:
    """It is the first message in both cases, so the engine can use what it has kept of it."""
    settings = TIGHT.model_copy(update={"templates": {"t": TemplateSettings(text="Be kind.")}})
    for policy in ("trim", "summarize"):
        engine = summarizes("So far.")
        body = conversation(12, context_policy=policy, template="t")
        body["messages"] = body["messages"][1:]
        note = (await answered(body, engine, settings)).json()["poise"]["context"]
        request = engine.submissions[-1]
        assert request.template == "t"
        assert starts(request)[0] == "Be k"
        assert note["prompt_tokens"] == len(request.prompt)
        assert [s.template for s in engine.submissions[:-1]] == [""] * (len(engine.submissions) - 1)


async def test_a_summary_needs_what_background_work_needs() -> None:
    """The class, and a level that has a place for it, before anything is computed. A conversation that fits needs neither."""
    body = conversation(12, max_tokens=100, context_policy="summarize")
    settings = TIGHT.model_copy(update={"tenants": {"local": TenantSettings(classes=["interactive"])}})
    engine = roomy(FakeEngine(says("x")))
    reply = await ask(make_app(engine, settings), "POST", CHAT, body)
    assert (reply.status, reply.error["code"], reply.error["param"]) == (403, "class_not_allowed", "context_policy")
    assert "'context_policy': 'trim'" in reply.error["message"]
    assert not engine.submissions
    short = await ask(make_app(engine, settings), "POST", CHAT, conversation(1, context_policy="summarize"))
    assert short.status == 200
    app = make_app(busy := roomy(FakeEngine(says("x"))), TIGHT)
    busy.queued = {"background": 1000}
    app.degradation.look()
    shed = await ask(app, "POST", CHAT, body)
    assert (shed.status, shed.error["code"]) == (429, "shed_background")
