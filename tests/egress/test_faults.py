"""Faults of a cloud, read through the door by the reader of its format: each ends once, as what it is, after what came."""

from __future__ import annotations

import gzip
import json

import pytest

from poise.gateway.models.egress.door import EgressError
from poise.gateway.models.remote import anthropic, openai
from poise.gateway.models.remote.events import AnswerReader, Delta, Ended, Failed, Used, failure_of
from tests.egress import cloud as c
from tests.egress.cloud import Cloud, Script
from tests.gateway.models.egress.test_door import CALL, QUICK, Door, permitted

ONE = (c.ROLE, c.delta("one"))
HALF = f"data: {json.dumps(c.delta('one'))}\n\ndata: " + json.dumps(c.delta("two"))[:30]
DATE = {"Retry_After": "Tue, 01 Dec 2026 12:00:30 GMT", "Date": "Tue, 01 Dec 2026 12:00:20 GMT"}
FAULTS: dict[str, tuple[Script, str, str]] = {
    "an answer": (c.says("one"), "one", "done"),
    "an answer without usage": (c.says("one", usage=None), "one", "done"),
    "dies after the role": (c.dies_after(c.ROLE), "", "broken"),
    "dies after a token": (c.dies_after(*ONE), "one", "broken"),
    "ends after a token": (c.writes(*ONE), "one", "upstream_incomplete"),
    "ends within an event": (c.writes(HALF), "one", "upstream_broken"),
    "dies within an event": (c.dies_after_bytes(HALF.encode()), "one", "broken"),
    "an error in a 200": (c.is_json(b'{"error": {"message": "no", "code": "overloaded"}}'), "", "overloaded"),
    "an error in a stream": (c.writes(*ONE, {"error": {"message": "no", "code": "engine"}}), "one", "engine"),
    "a page in a 200": (c.is_json(b"<html>log in</html>", Cache_Control="no-store"), "", "upstream_incomplete"),
    "too many requests": (c.refuses("429 Too Many", b'{"error": {"code": "slow"}}', **DATE), "", "429 in 10: slow"),
    "stops talking": (c.stops_talking, "one", "timeout"),
    "drips": (c.drips(b"x", HALF.encode()), "one", "timeout"),
    "drips comments": (c.drips(b": ping\n", HALF.encode().split(b"\n\n")[0] + b"\n\n"), "one", "timeout"),
    "redirects": (c.redirects("https://elsewhere.example/"), "", "redirect"),
    "a gzip bomb": (c.is_json(gzip.compress(b"\0" * (1 << 20)), Content_Encoding="gzip"), "", "encoding"),
    "a large event": (c.is_large(10 << 20), "", "upstream_too_large"),
    "never": (c.never, "", "timeout"),
}


async def outcome(door: Door, events: AnswerReader) -> tuple[str, str]:
    """The text that came, and how it ended."""
    found = []
    try:
        async with door.egress.send(permitted(), CALL) as reply:
            async for data in reply.chunks():
                found += (new := events.feed(data))
                if any(isinstance(event, Delta) for event in new):
                    reply.progressed()
                if events.is_over:
                    break
            else:
                found += events.end()
        ends = ["done"] if isinstance(found[-1], Ended | Used) else []
    except EgressError as error:
        said = failure_of(error.body, error.status)
        ends = [f"{error.status} in {error.retry_after_s:g}: {said.code}" if error.kind == "status" else error.kind]
    ends += [event.code for event in found if isinstance(event, Failed)]
    assert len(ends) == 1
    return "".join(event.text for event in found if isinstance(event, Delta)), ends[0]


@pytest.mark.parametrize("fault", FAULTS)
async def test_each_fault_ends_once(fault: str) -> None:
    script, text, how = FAULTS[fault]
    async with Cloud() as cloud:
        cloud.answers(script)
        door = Door(cloud.backend(**QUICK))
        assert await outcome(door, openai.Events()) == (text, how)
        assert cloud.n_requests == 1
        await door.egress.close()


@pytest.mark.parametrize(
    ("events", "how"),
    [
        ((), "upstream_incomplete"),
        (({"type": "error", "error": {"type": "overloaded_error", "message": "no"}},), "overloaded_error"),
        (({"type": "message_stop"},), "done"),
    ],
)
async def test_in_the_other_format(events: tuple[dict[str, object], ...], how: str) -> None:
    start = {"type": "message_start", "message": {"usage": {"input_tokens": 3, "output_tokens": 0}}}
    word = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "one"}}
    async with Cloud() as cloud:
        cloud.answers(c.writes(start, {"type": "ping"}, word, *events))
        door = Door(cloud.backend(format="anthropic", **QUICK))
        assert await outcome(door, anthropic.Events()) == ("one", how)
        await door.egress.close()
