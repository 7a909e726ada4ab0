"""A request's story: what the gateway sees of it, once each, in the order in which it happened."""

from __future__ import annotations

import pytest

from poise.metrics.story import EVENTS_MAX, ChoiceStory, RequestStory
from tests.gateway.fakes import FakeEngine, ask, chat_body, make_app, prompt_body, says


async def test_the_story_of_a_request() -> None:
    """It has both choices, with their tokens, their times in order, and how they ended."""
    told: list[RequestStory] = []
    app = make_app(FakeEngine(says("Yes. No")))
    app.state.metrics.on_story = told.append
    await ask(app, "POST", "/v1/chat/completions", chat_body(n=2), headers={"traceparent": "00-1-2-01"})
    await ask(app, "POST", "/v1/completions", prompt_body())
    (story, other) = told
    assert (story.operation, other.operation) == ("chat", "text_completion")
    assert (story.tenant, story.request_class, story.traceparent) == ("local", "interactive", "00-1-2-01")
    assert [choice.index for choice in story.choices] == [0, 1]
    for choice in story.choices:
        assert [name for _, name in choice.events] == ["queued", "started", "first_token", "finished: stop"]
        times = [at_s for at_s, _ in choice.events]
        assert times == sorted(times)
        assert (choice.n_output, choice.outcome, choice.is_complete) == (7, "stop", True)
        assert choice.segment_s is not None
        assert story.arrived_s <= times[0] <= choice.segment_s <= choice.ended_s


@pytest.mark.parametrize(("text", "complete"), [("No end", False), ("Yes. And", True), ("a\n", True), ("好。", True)])
def test_a_segment_is_a_sentence_or_a_line(text: str, complete: bool) -> None:
    """Something that can be read while the rest comes. The first one counts."""
    story = ChoiceStory(0)
    story.says(1.0, text)
    story.says(2.0, text)
    assert story.segment_s == (1.0 if complete else None)


def test_the_first_end_counts_and_events_are_bounded() -> None:
    """Closing a request that has ended cancels nothing; pausing one for ever fills no memory."""
    story = ChoiceStory(0)
    story.ended(1.0, "length")
    story.ended(2.0, "cancelled")
    assert (story.outcome, story.ended_s) == ("length", 1.0)
    for i in range(2 * EVENTS_MAX):
        story.note(i, "pause")
    assert len(story.events) == EVENTS_MAX
