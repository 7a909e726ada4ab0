"""What the scheduler does with a request that runs, as its client sees it; and what of its prompt was cached."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from poise.gateway.records.changes import MEANINGS
from poise.scheduler.request import PreemptionKind
from poise.wire.changes import ChangeKind
from tests.gateway.fakes import FakeEngine, Submission, ask, chat_body, exchange, make_app, prompt_body, usage

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def test_each_change_has_its_meaning() -> None:
    """All but a downgrade, which neither stops a choice nor lets it go on; and the scheduler has no kind that is not sent."""
    assert set(MEANINGS) == set(ChangeKind) - {ChangeKind.DOWNGRADE}
    assert {kind.value for kind in PreemptionKind} <= {kind.value for kind in ChangeKind}


def preempted(request: Submission) -> None:
    request.accept()
    request.start()
    for what in ("pause", "resume", "swap", "resume", "drop", "resume"):
        request.change(what)
    request.say("x")
    request.finish()


async def test_preemption_is_told_in_comments() -> None:
    """Which clients of the API do not see; the answer is what it would have been."""
    app = make_app(FakeEngine(preempted))
    reply = await ask(app, "POST", CHAT, chat_body(stream=True))
    comments = [line for line in reply.body.decode().split("\n") if line.startswith(":")]
    assert comments == [": paused", ": resumed", ": swapped", ": resumed", ": dropped", ": resumed"]
    assert reply.chunks[0]["choices"][0]["delta"]["content"] == "x"
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_changes_total{change="resume",class="interactive"} 3.0' in metrics
    assert 'poise_changes_total{change="drop",class="interactive"} 1.0' in metrics


async def test_a_lost_engine_is_told_in_comments() -> None:
    """The stream goes on; the answer and the counts are what they would have been."""

    def script(request: Submission) -> None:
        request.accept()
        request.start(n_cached=1)
        request.say("ab")
        request.change("lost")
        request.change("recover", "812")
        request.say("c")
        request.finish(n_cached=1)

    body = chat_body(stream=True, stream_options={"include_usage": True})
    reply = await ask(make_app(FakeEngine(script)), "POST", CHAT, body)
    comments = [line for line in reply.body.decode().split("\n") if line.startswith(":")]
    assert comments == [": recovering", ": recovered recomputed=812"]
    assert reply.text == "abc"
    assert reply.chunks[-1]["usage"]["completion_tokens"] == 3
    assert "[DONE]" in reply.events


async def test_with_several_choices_the_comment_says_which() -> None:
    """They are preempted one by one."""

    def script(request: Submission) -> None:
        request.accept()
        if request.handle.request_id == 2:
            request.change("pause")
        request.finish()

    reply = await ask(make_app(FakeEngine(script)), "POST", CHAT, chat_body(stream=True, n=2))
    assert ": paused choice=1\n" in reply.body.decode()


async def test_a_comment_does_not_wait_for_the_next_token() -> None:
    """A paused stream is told at once: that no token comes is the news."""
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True)).open()
    request = await engine.submitted()
    request.accept()
    await asked.start()
    request.start()
    request.change("pause")
    assert await asked.frame() == ": paused"
    request.finish()
    await asked.ended()


async def test_a_downgrade_shows_in_the_stream_from_there_on() -> None:
    """A comment with the reason, and the tier of the following events."""
    engine = FakeEngine()
    app = make_app(engine)
    asked = exchange(app, "POST", CHAT, chat_body(stream=True, stream_options={"include_usage": True})).open()
    request = await engine.submitted()
    request.accept()
    await asked.start()
    request.start()
    request.say("a")
    assert (await asked.event())["service_tier"] == "default"
    request.change("downgrade", "output")
    assert await asked.frame() == ": downgraded why=output"
    request.say("b")
    assert (await asked.event())["service_tier"] == "flex"
    request.finish()
    finish, used = await asked.event(), await asked.event()
    assert (finish["service_tier"], used["service_tier"]) == ("flex", "flex")
    await asked.ended()
    metrics = (await ask(app, "GET", "/metrics")).body.decode()
    assert 'poise_output_tokens_total{class="background"} 1.0' in metrics
    assert 'poise_requests_total{class="interactive",outcome="stop"} 1.0' in metrics


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_a_downgrade_shows_in_the_body(path: str) -> None:
    """The tier that the answer was made in."""

    def script(request: Submission) -> None:
        request.accept()
        request.start()
        request.change("downgrade", "time")
        request.finish()

    body = chat_body() if path == CHAT else prompt_body()
    reply = await ask(make_app(FakeEngine(script)), "POST", path, body)
    assert reply.json()["service_tier"] == "flex"


def cached(n_started: int, n_finished: int, reason: str = "stop") -> Callable[[Submission], None]:
    def script(request: Submission) -> None:
        request.accept()
        request.start(n_cached=n_started)
        request.say("four")
        request.finish(reason, n_cached=n_finished)

    return script


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_cached_tokens_are_counted_over_all_choices(path: str) -> None:
    """The prompt once, as ever; what is cached in the engine's last word, since a slot can be lost after the start."""
    body = (chat_body if path == CHAT else prompt_body)(n=2)
    reply = await ask(make_app(FakeEngine(cached(8, 16))), "POST", path, body)
    n_prompt = 21 if path == CHAT else 2
    assert reply.json()["usage"] == usage(n_prompt, 8, 32)


async def test_cached_tokens_in_a_stream() -> None:
    """From the start on in every event, if asked for; the last one is exact."""
    options = {"include_usage": True, "continuous_usage_stats": True}
    engine = FakeEngine()
    asked = exchange(make_app(engine), "POST", CHAT, chat_body(stream=True, stream_options=options)).open()
    request = await engine.submitted()
    request.accept()
    await asked.start()
    request.start(n_cached=8)
    request.say("x")
    assert (await asked.event())["usage"] == usage(21, 1, 8)
    request.finish("length", n_cached=16)
    assert (await asked.event())["usage"] == usage(21, 1, 16)
    assert (await asked.event())["usage"] == usage(21, 1, 16)
    await asked.ended()


async def test_cached_tokens_of_an_answer_that_a_stop_string_ended() -> None:
    """The engine's last word on it is not waited for."""
    reply = await ask(make_app(FakeEngine(cached(8, 0, "aborted"))), "POST", CHAT, chat_body(stop="ou"))
    assert reply.json()["usage"] == usage(21, 3, 8)
