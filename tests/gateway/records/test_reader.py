"""A stream that is taken up again at any place is the same stream: no text, log probability or end is lost or doubled."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from poise.gateway.api.openai.writer import ChatWriter, CompletionWriter
from poise.gateway.models.local.generation import ChoiceRequest, Generation
from poise.gateway.records.following import Stop
from poise.gateway.records.reader import Place, Reader, read_place
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import ContextNote, Heading, Notes
from poise.gateway.request.refusals import ApiError
from poise.metrics.clients import StreamMetrics
from poise.metrics.engine import EngineReading
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import RequestClass
from poise.wire.to_engine import SamplingParams
from tests.gateway.fakes import FakeEngine, frames, text_model

TEXT = text_model()
METRICS = GatewayMetrics(lambda: EngineReading(True, 0, None))
STREAMS = StreamMetrics(CollectorRegistry())


@dataclass
class Told:
    """What a client puts together from events."""

    texts: dict[int, str] = field(default_factory=dict)
    entries: dict[int, list[Any]] = field(default_factory=dict)
    ends: list[tuple[int, str]] = field(default_factory=list)
    roles: list[int] = field(default_factory=list)
    done: int = 0
    last: str = "0"

    def all(self, events: list[tuple[str, str]]) -> Told:
        for event_id, event in events:
            self.hear(event_id, event)
        return self

    def hear(self, at: str, data: str) -> None:
        self.last = at
        if data == "[DONE]":
            self.done += 1
            return
        (choice,) = json.loads(data)["choices"]
        index, delta = choice["index"], choice.get("delta", {})
        self.texts[index] = self.texts.get(index, "") + (delta.get("content") or choice.get("text") or "")
        if "role" in delta:
            self.roles.append(index)
        if logprobs := choice["logprobs"]:
            self.entries.setdefault(index, []).extend(logprobs.get("content") or logprobs.get("tokens") or [])
        if choice["finish_reason"]:
            self.ends.append((index, choice["finish_reason"]))


def begun(n: int, kind: type[ChatWriter] | type[CompletionWriter], stop: tuple[str, ...], n_logprobs: int) -> Any:
    heading = Heading("r", 0, "toy", "fp")
    origin = Origin("req", "a", RequestClass.INTERACTIVE, "messages", 0.0)
    record, engine = Record(origin, heading, n, kind), FakeEngine()
    generation = Generation(record, engine, TEXT, METRICS)
    record.start(generation)
    asked = ChoiceRequest([1], 1000, SamplingParams(n_logprobs=n_logprobs))
    generation.submit([asked] * n, stop)
    for submission in engine.submissions:
        submission.accept()
    return record, engine.submissions, generation


def rest(reader: Reader) -> list[tuple[str, str]]:
    """All that it still has to tell."""
    events = []
    while data := reader.take():
        events += frames(data, openings=True)
    return events


FINISH = ""
PIECES = st.sampled_from(["a", "b ", "é", "€uro", "EN", "END", "E", "ü", FINISH])
STEPS = st.lists(st.tuples(st.integers(0, 2), PIECES), max_size=30)


@settings(max_examples=120)
@given(
    steps=STEPS,
    cuts=st.lists(st.integers(0, 12), max_size=12),
    n=st.integers(1, 3),
    kind=st.sampled_from([ChatWriter, CompletionWriter]),
    n_logprobs=st.sampled_from([-1, 0, 2]),
    how=st.sampled_from(["stop", "length", "cancelled"]),
    pacing_s=st.sampled_from([0.0, 1e-9]),
)
def test_any_cut_is_invisible(
    steps: list[tuple[int, str]], cuts: list[int], n: int, kind: Any, n_logprobs: int, how: str, pacing_s: float
) -> None:
    """Several choices, multi-byte characters, stop strings that begin and do not end, a client that leaves after any event."""

    async def run() -> tuple[Told, Told, Record]:
        record, submissions, generation = begun(n, kind, ("END",), n_logprobs)
        told, cut = Told(), iter(cuts)
        reader = Reader(record, STREAMS, delay_s=pacing_s, has_ids=True)
        watcher = Reader(record, STREAMS, has_ids=True)

        def read() -> None:
            nonlocal reader
            left = next(cut, None)
            heard = 0
            while data := reader.take():
                for event_id, event in frames(data, openings=True):
                    if left is not None and heard == left:
                        # The rest was sent and never arrived.
                        reader = Reader(
                            record, STREAMS, delay_s=pacing_s, place=read_place(told.last, "from", record), has_ids=True
                        )
                        left = None
                        break
                    told.hear(event_id, event)
                    heard += 1

        for choice, piece in steps:
            submission = submissions[choice % n]
            if submission.handle.done:
                continue
            if piece == FINISH:
                submission.finish("length")
            for byte in piece.encode():
                submission.say(bytes([byte]))
            read()
        for submission in submissions:
            if how == "cancelled":
                generation.stop(Stop.CANCELLED)
            elif not submission.handle.done:
                submission.finish(how)
            read()
        for _ in range(len(cuts) + 1):
            read()
        events = rest(watcher)
        whole = Told().all(events)
        # The same for who comes when everything is over, and for who leaves and comes again.
        for some in (events, rest(Reader(record, STREAMS, place=Place(), has_ids=True))):
            for i, (event_id, _) in enumerate(some):
                again = rest(Reader(record, STREAMS, place=read_place(event_id, "from", record), has_ids=True))
                both = Told().all(some[: i + 1] + again)
                assert (both.texts, both.entries, both.ends) == (whole.texts, whole.entries, whole.ends), event_id
        return told, whole, record

    told, whole, record = asyncio.run(run())
    assert (told.texts, told.entries, told.ends) == (whole.texts, whole.entries, whole.ends)
    assert {answer.index: answer.text for answer in record.answers()} == whole.texts
    assert whole.done == 1 <= told.done
    assert sorted(index for index, _ in told.ends) == list(range(n))
    assert told.last == whole.last
    assert sorted(whole.roles) == (list(range(n)) if kind is ChatWriter else [])
    assert set(told.roles) == set(whole.roles)


async def test_every_place_of_a_finished_stream() -> None:
    """From each token on: the texts that became visible after it."""
    record, (one, two), _ = begun(2, ChatWriter, (), -1)
    for _ in range(5):
        one.say("x")
        two.say("y")
    one.finish()
    two.finish("length")
    for n_tokens in range(11):
        reader, told = Reader(record, STREAMS, place=Place(n_tokens, 0), has_ids=True), Told()
        for event_id, event in frames(reader.take()):
            told.hear(event_id, event)
        assert told.texts == {0: "x" * (5 - (n_tokens + 1) // 2), 1: "y" * (5 - n_tokens // 2)}
        assert told.ends == [(0, "stop"), (1, "length")]
        assert told.last == "10.2"


async def test_what_comes_after_it_was_told_everything() -> None:
    """The end alone, without another finish."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    one.say("xyz")
    one.finish()
    reader = Reader(record, STREAMS, place=read_place("3.1", "from", record), has_ids=True)
    assert frames(reader.take()) == [("3.1", "[DONE]")]
    assert reader.take() == b""
    assert reader.is_done


@pytest.mark.parametrize("value", ["", "-1", "x", "1.", "4", "3.2", "1.1", "0" * 12, "1.1.1"])
async def test_places_that_are_none(value: str) -> None:
    """Not a number, or more than there is."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    one.say("xyz")
    one.finish()
    with pytest.raises(ApiError) as caught:
        read_place(value, "from", record)
    assert (caught.value.status, caught.value.param) == (400, "from")


async def test_a_reader_that_is_behind_costs_a_place_and_no_memory() -> None:
    """Nothing is formatted before it can be sent, and what is, is bounded."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    reader = Reader(record, STREAMS)
    for _ in range(60):
        one.say("x" * 1000)
    sizes = []
    while data := reader.take():
        sizes.append(len(data))
    assert sum(sizes) > 60_000
    assert max(sizes) < 9000


async def test_a_held_token_is_told_when_it_is_due() -> None:
    """The stream sleeps until then; what comes meanwhile does not wake it."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    reader = Reader(record, STREAMS, delay_s=0.05)
    one.say("a")
    assert len(frames(reader.take())) == 1
    for _ in range(20):  # an even pace of 5 ms is learnt
        await asyncio.sleep(0.005)
        one.say("b")
        reader.take()
    one.say("ccc")
    one.finish()
    told = Told()
    while not reader.is_done:
        if data := reader.take():
            for event_id, event in frames(data):
                told.hear(event_id, event)
        else:
            await asyncio.wait_for(reader.wait(), 5)
    assert told.texts[0].endswith("ccc")
    assert told.ends == [(0, "stop")]
    reader.leave()


async def test_leaving_while_a_token_is_held() -> None:
    """Its timer goes, too."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    reader = Reader(record, STREAMS, delay_s=1.0)
    one.say("a")
    await asyncio.sleep(0.03)
    one.say("bcd")
    reader.take()
    waiting = asyncio.create_task(reader.wait())
    await asyncio.sleep(0)
    reader.leave()
    waiting.cancel()
    assert reader not in record.followers
    assert reader._timer is None


def silent(record: Record, comment_s: float) -> Reader:
    """Of a stream that was told that its request was taken."""
    reader = Reader(record, STREAMS, comment_s=comment_s)
    assert b'"role":"assistant"' in reader.take()
    return reader


async def test_a_silent_stream_is_told_that_it_lives() -> None:
    """Once for each time of silence, also while text is held back; what is said begins it anew."""
    record, (one,), _ = begun(1, ChatWriter, ("END",), -1)
    reader = silent(record, 0.02)
    for _ in range(2):
        assert reader.take() == b""
        while not (data := reader.take()):
            await reader.wait()
        assert data.strip() == b": keep-alive"
    one.say("EN")  # may be a stop string
    while not (data := reader.take()):
        await reader.wait()
    assert data.strip() == b": keep-alive"
    one.say("x")
    assert b"ENx" in reader.take()
    assert reader.take() == b""
    reader.leave()


async def test_a_stream_that_left_is_woken_no_more() -> None:
    record, _, _ = begun(1, ChatWriter, (), -1)
    reader = silent(record, 3600.0)
    waiting = asyncio.ensure_future(reader.wait())
    await asyncio.sleep(0)
    assert reader._alarm is not None
    reader.leave()
    assert reader._alarm.cancelled()
    waiting.cancel()


async def test_nothing_is_said_where_no_comments_are_wanted() -> None:
    record, _, _ = begun(1, ChatWriter, (), -1)
    reader = silent(record, 0.0)
    waiting = asyncio.ensure_future(reader.wait())
    await asyncio.sleep(0.01)
    assert reader._alarm is None
    assert reader.take() == b""
    waiting.cancel()


async def test_how_an_answer_was_made_is_told_when_it_is_known() -> None:
    """Once; in the last event at the latest."""
    record, (one,), _ = begun(1, ChatWriter, (), -1)
    reader = silent(record, 0.0)
    one.say("a")
    told = reader.take()
    record.notes = Notes(ContextNote(policy="trim", prompt_tokens=1))
    one.finish()
    assert b'"poise"' not in told
    assert reader.take().count(b'"poise":{"context"') == 1
