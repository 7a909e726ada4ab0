"""A request's story: what its record says when it has ended, once for each request, in the order in which it happened."""

from __future__ import annotations

from poise.metrics.story import RequestStory
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, prompt_body, says


async def stories(text: str, *bodies: tuple[str, dict[str, object]], **headers: str) -> list[RequestStory]:
    """Of requests to the paths that are given."""
    told: list[RequestStory] = []
    app = make_app(FakeEngine(says(text)))
    app.metrics.on_story = told.append
    for path, body in bodies:
        await ask(app, "POST", path, body, headers=headers)
    return told


async def test_the_story_of_a_request() -> None:
    """It has both choices, with their tokens, their times in order, and how they ended."""
    chat, completion = ("/v1/chat/completions", chat_body(n=2)), ("/v1/completions", prompt_body())
    story, other = await stories("Yes. No", chat, completion, traceparent="00-1-2-01")
    assert (story.operation, other.operation) == ("chat", "text_completion")
    assert (story.tenant, story.request_class, story.traceparent) == ("local", "interactive", "00-1-2-01")
    assert len(story.choices) == 2
    for index, choice in enumerate(story.choices):
        own = [happened for happened in story.timeline if happened.choice == index]
        assert [happened.what for happened in own] == ["queued", "started", "first_token", "finished"]
        assert (choice.n_output, choice.outcome, choice.is_complete, choice.wait_s) == (7, "stop", True, 0.001)
        assert choice.first_s is not None
        assert story.arrived_s <= own[0].at_s <= choice.first_s <= choice.ended_s
        assert choice.ended_s == own[-1].at_s
        assert choice.per_token_s is not None
        assert choice.per_token_s >= 0
    assert [happened.at_s for happened in story.timeline] == sorted(happened.at_s for happened in story.timeline)


async def test_refused_requests_have_no_story() -> None:
    """They are counted among the rejected."""
    assert await stories("x", ("/v1/chat/completions", chat_body(temperature=9))) == []
