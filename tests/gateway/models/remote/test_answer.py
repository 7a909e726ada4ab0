"""Answers of another server in records: as its events come, once, and nothing of it before the first content."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from poise.gateway.models.remote import turns
from poise.gateway.models.remote.answer import about_tokens
from poise.gateway.records.following import Stage, Stop
from poise.gateway.records.record import Record
from poise.gateway.records.values import Logprob, Usage
from poise.gateway.text.answers import EntryKind
from poise.scheduler.request import Hold, RequestClass
from poise.wire.to_engine import SamplingParams
from tests.egress import cloud as c
from tests.egress.cloud import Exchange, delta
from tests.gateway.models.remote.upstream import chat, upstream

QUICK: dict[str, Any] = {"connect_s": 0.3, "first_s": 0.2, "gap_s": 0.2}
USED_NANO = 6 * 2000 + 4 * 1000 + 3 * 10_000
"""What an answer with `cloud.USAGE` costs."""


def cost_of(record: Record) -> int:
    assert record.bill is not None
    assert (record.bill.backend, record.bill.label, record.bill.reason) == ("cloud", "public", "asked")
    assert record.bill.is_known == (record.told is not None)
    return record.bill.cost_nano


async def test_an_answer_is_written_as_it_comes_and_costs_what_the_server_says() -> None:
    """Its pieces are entries, its end is the choice's, its usage is the record's; nothing stays reserved."""
    async with upstream() as up:
        up.cloud.answers(c.says("hel", "lo"))
        life = await up.whole()
        record = life.record
        assert (life.text, record.outcome, record.failure, record.stage) == ("hello", "stop", None, Stage.ENDED)
        assert record.texts == ["hel", "lo"]
        assert record.usage() == record.usage(record.n_entries) == Usage(10, 3, 4, 0)
        assert (record.choices[0].n_output, record.choices[0].n_cached, record.n_prompt) == (3, 4, 10)
        assert life.moments == ["arrived", "queued", "started", "first_token", "finished"]
        assert record.timeline[2].detail == {"pool": "cloud", "cached_tokens": 0, "wait_ms": 0}
        assert (cost_of(record), up.n_reserved, up.model.turns.queue.n_busy) == (USED_NANO, 0, 0)
        sent = up.cloud.last.json
        assert (sent["model"], sent["max_tokens"], sent["stream"]) == ("big", 20, True)
        end = up.book.last("egress_end")
        assert (end["outcome"], end["output_tokens"], end["cost_nano"]) == ("done", 3, USED_NANO)
        shown = up.metrics.exposition(tenants_shown=False).decode()
        assert 'poise_requests_total{class="interactive",outcome="stop"} 1.0' in shown
        assert 'poise_prompt_tokens_total{class="interactive"} 10.0' in shown


@pytest.mark.parametrize(("asked", "sent"), [(None, 100), (7, 7), (1000, 100)])
async def test_the_allowance_is_that_of_the_class_and_of_the_backend(asked: int | None, sent: int) -> None:
    """It is always named: what may be spent is bounded by it."""
    async with upstream(output_tokens=100) as up:
        await up.whole(chat(max_tokens=asked))
        assert up.cloud.last.json["max_tokens"] == sent


async def test_calls_reasoning_and_choices_have_their_entries() -> None:
    """Each in the choice that it is of."""

    def of(choice: int, **said: Any) -> dict[str, Any]:
        return {"choices": [{"index": choice, "delta": said}]}

    call = {"index": 0, "id": "x", "function": {"name": "look", "arguments": ""}}
    events = (
        of(1, role="assistant"),
        of(1, reasoning_content="hm"),
        of(0, content="one"),
        of(1, tool_calls=[call]),
        of(1, tool_calls=[{"index": 0, "function": {"arguments": '{"a":1}'}}]),
        {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
        {"choices": [{"index": 1, "delta": {}, "finish_reason": "tool_calls"}]},
        {
            "choices": [],
            "usage": {"prompt_tokens": 5, "completion_tokens": 9, "completion_tokens_details": {"reasoning_tokens": 2}},
        },
        "data: [DONE]\n\n",
    )
    async with upstream() as up:
        up.cloud.answers(c.writes(*events))
        life = await up.whole(chat(n=2), n_choices=2)
        one, two = life.record.answers()
        assert (one.text, two.reasoning, two.text) == ("one", "hm", "")
        assert [(call.name, call.arguments) for call in two.calls] == [("look", '{"a":1}')]
        assert list(life.record.kinds) == [EntryKind.REASONING, EntryKind.TEXT, EntryKind.CALL_NAME, EntryKind.CALL_ARGUMENTS]
        assert life.record.usage() == Usage(5, 9, 0, 2)
        assert [choice.outcome for choice in life.record.choices] == ["stop", "stop"]


async def test_log_probabilities_come_with_the_text_that_they_are_of() -> None:
    """Not before a stop string is decided that the text may be part of."""

    def scored(text: str) -> dict[str, Any]:
        content = [{"token": text, "logprob": -0.5, "bytes": list(text.encode()), "top_logprobs": []}]
        return {"choices": [{"index": 0, "delta": {"content": text}, "logprobs": {"content": content}}]}

    async with upstream() as up:
        up.cloud.answers(c.writes(scored("ab"), scored("c"), scored("d"), delta(finish="stop"), "data: [DONE]\n\n"))
        life = await up.whole(chat(stop=("cx",), sampling=SamplingParams(n_logprobs=0)))
        assert life.record.texts == ["ab", "", "cd"]
        assert [[token.piece for token in some] for some in life.record.logprobs] == [[b"ab"], [], [b"c", b"d"]]
        assert life.record.logprobs[0] == [Logprob(b"ab", -0.5, (), 0, 2)]
        assert life.record.usage().completion_tokens == 3


async def test_a_stop_string_ends_it_here_though_the_server_goes_on() -> None:
    """In whatever pieces it comes: nothing of it is shown, and the connection is closed."""

    async def goes_on(exchange: Exchange) -> None:
        await exchange.begin()
        for text in ("one EN", "D two"):
            await exchange.event(delta(text))
        await exchange.gone.wait()

    async with upstream() as up:
        up.cloud.answers(goes_on)
        life = await up.whole(chat(stop=("END",)))
        assert (life.text, life.record.ends[0].reason, life.record.outcome) == ("one ", "stop", "stop")
        await asyncio.wait_for(up.cloud.last.gone.wait(), 30)
        most = len(up.cloud.last.body) * 2000 + 20 * 10_000
        assert (cost_of(life.record), up.n_reserved) == (most, 0)  # nobody has told what it took


async def test_what_is_said_beyond_the_allowance_is_cut_here() -> None:
    """A server that knows no end is left."""

    async def endless(exchange: Exchange) -> None:
        await exchange.begin()
        while not exchange.gone.is_set():
            await exchange.event(delta("x"))
            await asyncio.sleep(0)

    async with upstream() as up:
        up.cloud.answers(endless)
        life = await up.whole(chat(max_tokens=5))
        assert (life.record.outcome, life.record.ends[0].reason) == ("length", "length")
        assert 5 < len(life.text) < 40


async def test_an_answer_without_usage_counts_its_pieces_and_is_charged_whole() -> None:
    async with upstream() as up:
        up.cloud.answers(c.says("a", "b", usage=None))
        life = await up.whole()
        assert life.record.usage() == Usage(about_tokens(chat()), 2, 0, 0)
        assert cost_of(life.record) == len(up.cloud.last.body) * 2000 + 20 * 10_000


@pytest.mark.parametrize(
    ("script", "status", "code"),
    [
        (c.dies_after(), 502, "backend_failed"),
        (c.dies_after(c.ROLE), 502, "backend_failed"),
        (c.never, 504, "backend_timeout"),
        (c.is_json(b'{"error": {"message": "boom", "code": "oops"}}'), 502, "backend_failed"),
        (c.writes(c.ROLE), 502, "backend_failed"),
        (c.is_large(2 << 20), 502, "backend_failed"),
        (c.refuses("429 Too Many Requests", Retry_After="7"), 429, "backend_rate_limited"),
        (c.refuses("503 Busy", Retry_After="9"), 503, "backend_unavailable"),
        (c.refuses("500 No"), 502, "backend_failed"),
    ],
)
async def test_another_one_may_be_asked_before_the_first_content(script: Any, status: int, code: str) -> None:
    """The record is as it was; nobody else's words but the server's name are in the error."""
    async with upstream(**QUICK) as up:
        up.cloud.answers(script)
        refusal = await up.begin().refused()
        assert (refusal.error.status, refusal.error.code, refusal.is_retryable) == (status, code, True)
        assert "'cloud'" in refusal.error.message
        assert str(up.cloud.port) not in refusal.error.message
        assert (up.n_reserved, up.model.turns.queue.n_busy) == (0, 0)
        if status in (429, 503):
            assert refusal.error.headers["Retry-After"] in "79"


@pytest.mark.parametrize(
    ("status", "found", "code"),
    [
        ("400 Bad", 400, "backend_refused"),
        ("422 Bad", 400, "backend_refused"),
        ("401 Who", 502, "backend_unauthorized"),
        ("403 No", 502, "backend_unauthorized"),
        ("404 Where", 404, "model_not_found"),
        ("413 Large", 413, "request_too_large"),
        ("402 Pay", 502, "backend_failed"),
        ("307 There", 502, "backend_failed"),
    ],
)
async def test_what_is_wrong_with_the_request_is_said_and_asked_of_nobody_else(status: str, found: int, code: str) -> None:
    """The server's own words are its own, and short; what is between it and this server is not told. Nothing is charged."""
    async with upstream() as up:
        body = b'{"error": {"message": "a \\n%b", "code": "bad"}}' % (b"long " * 200)
        up.cloud.answers(c.refuses(status, body, Location="http://x.test/"))
        refusal = await up.begin().refused()
        assert (refusal.error.status, refusal.error.code) == (found, code)
        assert refusal.is_retryable == (status[:3] == "307")
        says = found == 400
        assert ('"a long long' in refusal.error.message) == says
        assert len(refusal.error.message) < 700
        assert not any(sum(window.charged.values()) for window in up.ledger._windows.values())


async def test_a_context_that_is_too_long_there_keeps_its_code() -> None:
    """Clients that make room go by it."""
    async with upstream() as up:
        body = b'{"error": {"message": "too long: 9 > 8", "code": "context_length_exceeded"}}'
        up.cloud.answers(c.refuses("400 Bad", body))
        assert (await up.begin().refused()).error.code == "context_length_exceeded"


@pytest.mark.parametrize(
    "script",
    [
        c.dies_after(delta("one")),
        c.writes(c.ROLE, delta("one")),
        c.writes(delta("one"), {"error": {"message": "boom"}}),
        c.stops_talking,
    ],
)
async def test_after_the_first_content_an_error_is_its_end(script: Any) -> None:
    """What has come stays, and nobody else is asked."""
    async with upstream(**QUICK) as up:
        up.cloud.answers(script)
        life = up.begin()
        record = await life.over()
        assert record.failure is not None
        assert record.failure.status in (502, 504)
        assert record.failure.code in ("backend_failed", "backend_timeout")
        assert (life.text, record.outcome, record.stage) == ("one", "failed", Stage.ENDED)
        assert (up.n_reserved, up.model.turns.queue.n_busy) == (0, 0)
        assert up.cloud.n_requests == 1


async def test_a_server_that_dies_after_the_end_of_an_answer_has_answered() -> None:
    async with upstream() as up:
        up.cloud.answers(c.dies_after(delta("one"), delta(finish="stop")))
        assert (await up.whole()).record.outcome == "stop"


@pytest.mark.parametrize("why", Stop)
async def test_it_stops_at_once(why: Stop) -> None:
    """In the moment in which it is asked to; the server sees the connection close, and its place is free."""
    async with upstream() as up:
        up.cloud.answers(c.stops_talking)
        life = up.begin()
        await life.until(lambda record: record.texts)
        life.answer.stop(why)
        assert (life.record.stage, life.record.stopped_by, life.n_ends) == (Stage.ENDED, why, 1)
        await life.over()
        assert (life.text, life.record.ends[0].reason) == ("one", "cancelled")
        await asyncio.wait_for(up.cloud.last.gone.wait(), 30)
        assert (up.n_reserved, up.model.turns.queue.n_busy) == (0, 0)
        assert up.book.last("egress_end")["outcome"] == "cancelled"


async def test_it_stops_before_it_was_sent() -> None:
    """Before it runs, while it waits for its turn, and while it waits for an answer."""
    async with upstream(slots=1) as up:
        up.cloud.answers(c.never)
        first, second, third = up.begin(), up.begin(), up.begin()
        third.answer.stop(Stop.LEFT)
        await third.over()
        await second.until(lambda record: record.timeline[-1].what == "queued")
        second.answer.stop(Stop.CANCELLED)
        await second.over()
        while not up.cloud.exchanges:  # noqa: ASYNC110 (it has no event for that)
            await asyncio.sleep(0.001)
        first.answer.stop(Stop.LEFT)
        await first.over()
        assert [life.record.is_open for life in (first, second, third)] == [False] * 3
        assert (up.cloud.n_requests, up.n_reserved, up.model.turns.queue.n_busy) == (1, 0, 0)
        assert up.model.breaker.is_free(time.monotonic())


async def test_the_end_of_the_server_cuts_it() -> None:
    """Whoever runs it is cancelled: what has come is an answer that was cut; what has not is refused."""
    async with upstream() as up:
        up.cloud.answers(c.stops_talking, c.never)
        life, silent = up.begin(), up.begin()
        await life.until(lambda record: record.texts)
        for one in (life, silent):
            one.task.cancel()
            await asyncio.wait([one.task])
            assert one.task.cancelled()
            assert one.n_ends == 1
        assert (life.record.failure, life.record.outcome) == (None, "server_stopping")
        assert silent.record.failure is not None
        assert silent.record.failure.code == "server_stopping"


async def test_while_it_is_held_nothing_is_read_and_the_silence_is_nobodys_fault() -> None:
    """The server fills the connection and has to wait; afterwards nothing is missing."""
    text = "x" * 1000
    n_sent = 0

    async def much(exchange: Exchange) -> None:
        nonlocal n_sent
        await exchange.begin()
        for _ in range(20_000):
            await exchange.event(delta(text))
            n_sent += 1
        await exchange.event(delta(finish="stop"))
        await exchange.end()

    async with upstream(gap_s=0.05, first_s=30, output_tokens=100_000) as up:
        up.cloud.answers(much)
        life = up.begin(chat(max_tokens=4096))
        await life.until(lambda record: record.texts)
        life.answer.hold(Hold.PAUSE)
        life.answer.hold(Hold.SWAP)
        until_s = time.monotonic() + 0.3
        while time.monotonic() < until_s:  # noqa: ASYNC110 (longer than a silence may be)
            await asyncio.sleep(0.01)
        n_entries = life.record.n_entries
        await asyncio.sleep(0.01)
        assert life.record.n_entries == n_entries < 4096
        assert n_sent < 20_000
        assert life.record.state == "paused"
        life.answer.hold(Hold.RUN)
        assert (await life.over()).outcome == "length"
        assert [what for what in life.moments if what in ("stall", "resume")] == ["stall", "resume"]


async def test_one_waits_for_the_slot_of_another_and_knows_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its place is on its timeline, and gone when it begins: at once, not when somebody looks."""
    monkeypatch.setattr(turns, "TELL_S", 3600.0)
    async with upstream(slots=1) as up:
        up.cloud.answers(c.stops_talking, c.says("two"))
        first = up.begin()
        await first.until(lambda record: record.texts)
        second = up.begin()
        await second.until(lambda record: record.place)
        assert second.record.place is not None
        assert second.record.place[0] == 1
        assert second.record.accepted is not None
        assert up.model.view(RequestClass.INTERACTIVE).wait_s > 0
        first.answer.stop(Stop.CANCELLED)
        await second.over()
        assert second.text == "two"
        assert second.moments == ["arrived", "queued", "started", "first_token", "finished"]
        assert second.record.timeline[1].detail["position"] == 1


async def test_who_finds_no_place_or_waits_too_long_is_told() -> None:
    """The first may be asked elsewhere; the second has had its time."""
    async with upstream(slots=1, queue_max=1) as up:
        up.cloud.answers(c.never)
        life = up.begin()
        late = up.begin(chat(queue_timeout_ms=20))
        full = await up.begin().refused()
        assert (full.error.status, full.error.code, full.is_retryable) == (429, "queue_full", True)
        assert int(full.error.headers["Retry-After"]) >= 1
        expired = await late.refused()
        assert (expired.error.status, expired.error.code, expired.is_retryable) == (503, "queue_timeout", False)
        life.answer.stop(Stop.LEFT)
        await life.over()


async def test_without_money_nothing_is_sent() -> None:
    async with upstream({"budget_day": "0.001"}) as up:
        refusal = await up.begin(chat(max_tokens=200)).refused()
        assert (refusal.error.status, refusal.error.code, refusal.is_retryable) == (429, "budget_exhausted", True)
        assert (up.cloud.n_requests, up.model.turns.queue.n_busy) == (0, 0)


async def test_behind_a_closed_door_nothing_is_sent_and_nothing_charged() -> None:
    async with upstream() as up:
        up.egress.shut("for the test")
        refusal = await up.begin().refused()
        assert (refusal.error.status, refusal.error.code, refusal.is_retryable) == (503, "egress_closed", True)
        assert "for the test" not in refusal.error.message
        assert (up.cloud.n_requests, up.n_reserved) == (0, 0)
        assert up.model.is_healthy


async def test_a_server_that_fails_is_left_alone_and_one_probe_brings_it_back() -> None:
    """Five failures; and a key that is wrong until an operator acts."""
    async with upstream() as up:
        up.cloud.answers(c.refuses("500 No"))
        for _ in range(5):
            await up.begin().refused()
        n_requests = up.cloud.n_requests
        assert not up.model.view(RequestClass.INTERACTIVE).is_healthy
        refusal = await up.begin().refused()
        assert (refusal.error.code, refusal.is_retryable) == ("backend_unavailable", True)
        assert int(refusal.error.headers["Retry-After"]) > 0
        assert up.cloud.n_requests == n_requests
        up.model.reset()
        up.cloud.answers(c.refuses("401 Who"), c.says("hello"))
        await up.begin().refused()
        refusal = await up.begin().refused()
        assert (refusal.error.status, refusal.error.code) == (502, "backend_unauthorized")
        up.model.reset()
        assert (await up.whole()).text == "hello"


async def test_one_of_many_answers_says_nothing_of_another() -> None:
    """Twenty at once through three slots: each is whole, and all ended."""
    async with upstream(slots=3) as up:
        up.cloud.answers(c.says("a", "b", "c"))
        lives = [up.begin() for _ in range(20)]
        for life in lives:
            await life.over()
        assert {life.text for life in lives} == {"abc"}
        assert max(life.record.timeline[2].detail["wait_ms"] for life in lives) >= 0
        assert (up.n_reserved, up.model.turns.queue.n_busy) == (0, 0)


def test_a_prompts_length_is_guessed() -> None:
    assert about_tokens(chat("x" * 400)) == 101
    assert about_tokens(chat(prompt=["x" * 40, "y" * 40])) == 20
    assert about_tokens(chat(prompt=[[1, 2, 3]])) == 3
