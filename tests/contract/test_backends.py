"""What every backend promises, for a scripted one, for another server behind the door, and for a local model over a simulated
engine and over the real one (slow).

Nothing waits for time to pass: whatever was sent to a backend before another request has had its effect when that one ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import pytest_asyncio

from poise.config import Settings
from poise.gateway import intake
from poise.gateway.api.openai.parser import spoken
from poise.gateway.models.backend import Backend, BackendState, Card, Job
from poise.gateway.models.local.model import LocalModel
from poise.gateway.models.local.prompts import Prompts
from poise.gateway.models.local.templates import Templates
from poise.gateway.models.remote.answer import NotAnswered
from poise.gateway.records.following import Stage, Stop
from poise.gateway.records.record import Follower, Origin, Record
from poise.gateway.records.values import Heading
from poise.gateway.request.generate import AnswerOptions, Conversation, Generate
from poise.gateway.request.refusals import ApiError
from poise.gateway.supervision.engine import Engine, EnginePhase
from poise.gateway.supervision.supervisor import ENGINE_COMMAND, Supervisor
from poise.gateway.text.tokens import TextModel, TextSlot
from poise.gateway.text.workers import TextWorkers
from poise.llama.files.default_model import default_model
from poise.metrics.engine import EngineReading
from poise.metrics.gateway import GatewayMetrics
from poise.scheduler.request import Hold, RequestClass
from poise.wire.text import Message
from poise.wire.to_engine import SamplingParams
from tests.egress.cloud import Exchange
from tests.gateway.fakes import FakeEngine, Reply, ToyVocab, ask, chat_body, make_app, text_here, text_model
from tests.gateway.models.remote.upstream import Upstream, upstream
from tests.gateway.scripted_backend import ScriptedBackend

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT, N_VOCAB = 600, 1000
LONG = 200
"""Tokens that take longer than anything that is done to them meanwhile."""
SENTENCE = "A ship left the harbour at dawn, and nobody on the quay knew where it was going or why it went."
WAIT_S = 120.0
"""Only a failing test waits that long."""


class Vocabulary(ToyVocab):
    """A letter for each of the ids that the simulated engine draws."""

    n_tokens = N_VOCAB

    def piece(self, token: int, *, special: bool) -> bytes:
        return super().piece(token, special=special) if token < 259 else b"abcdefghij"[token % 10 :][:1]


@dataclass
class Subject:
    """A backend under test.

    n_live        requests that something is computed for
    unavailable   while it lasts, none are taken
    n_comparable  letters that must agree when a request is answered again: neighbours change the order of floating-point sums
    is_here       prompts are made here, and an engine of this host has a number for what it computes
    """

    backend: Backend
    n_live: Callable[[], int]
    unavailable: Callable[[], AbstractContextManager[None]]
    n_comparable: int = 10_000
    is_here: bool = True

    def says_the_same(self, texts: list[str]) -> bool:
        """As far as that can be compared."""
        return len({text[: self.n_comparable] for text in texts}) == 1


def scripted() -> Subject:
    backend = ScriptedBackend(chars_max=CONTEXT)

    @contextlib.contextmanager
    def unavailable() -> Iterator[None]:
        backend.state = BackendState(is_ready=False, retry_after_s=2.0)
        yield
        backend.state = BackendState(is_ready=True, retry_after_s=1.0)

    return Subject(backend, lambda: len(backend.live), unavailable)


@asynccontextmanager
async def local(*, real: bool) -> AsyncIterator[Subject]:
    """A model on this host, with an engine process of its own."""
    interactive = Settings().classes.interactive.model_dump() | {"max_context_tokens": CONTEXT}
    settings = Settings.model_validate({"classes": {"interactive": interactive}})
    path = str(default_model()) if real else "model.gguf"
    command = ENGINE_COMMAND if real else (sys.executable, "-m", "tests.gateway.simulated_engine", "slow")
    engine = Supervisor(settings, path, command)
    workers = TextWorkers(settings.text, path, fingerprint=engine.model.fingerprint) if real else None
    metrics = GatewayMetrics(lambda: EngineReading(True, 0, None))
    model = LocalModel(settings, "local", engine, TextSlot(workers or text_here(Vocabulary())), metrics)
    await engine.start()
    if workers is not None:
        workers.start()
    try:
        text = text_model(Vocabulary()) if workers is None else TextModel(await workers.vocabulary(), workers)
        await engine.until(lambda state: state.is_settled)
        await model.set_text(text)
        yield Subject(model, lambda: engine.n_live, lambda: restarting(engine), 4 if real else 10_000)
    finally:
        if workers is not None:
            await workers.stop()
        await engine.stop()


class RemoteAlone:
    """Another server without anybody who chooses between it and others: what it does not answer has failed."""

    is_late, headers, ignored, fingerprint = False, {}, (), ""  # type: ignore[var-annotated]

    def __init__(self, up: Upstream, request: Generate) -> None:
        self._up, self._request, self.n_choices = up, request, request.n
        self._task: asyncio.Task[None] | None = None

    def start(self, record: Record) -> None:
        answer = self._up.model.answer(self._request, record, self._up.permit)
        record.start(answer)

        async def run() -> None:
            try:
                await answer.run()
            except NotAnswered as error:
                record.end(error.error)

        self._task = asyncio.create_task(run())


class RemoteBackend:
    """A server whose door can be shut."""

    def __init__(self, up: Upstream) -> None:
        self._up = up

    @property
    def card(self) -> Card:
        return self._up.model.card

    @property
    def state(self) -> BackendState:
        return BackendState(not self._up.egress.why_closed, self._up.model.retry_after_s)

    async def prepare(self, request: Generate, origin: Origin) -> Job:
        if self._up.egress.why_closed:
            raise ApiError(503, "egress_closed", "It is closed.", headers={"Retry-After": "5"})
        return RemoteAlone(self._up, request)


@asynccontextmanager
async def remote() -> AsyncIterator[Subject]:
    """A server that says `0 1 2 ...` in every choice, as many numbers as may be."""

    async def counts(exchange: Exchange) -> None:
        await exchange.begin()
        n_choices, n_tokens = exchange.json.get("n", 1), exchange.json["max_tokens"]
        for i in range(n_tokens):
            for choice in range(n_choices):
                await exchange.event({"choices": [{"index": choice, "delta": {"content": f"{i} "}}]})
            await asyncio.sleep(0.001)
        for choice in range(n_choices):
            await exchange.event({"choices": [{"index": choice, "delta": {}, "finish_reason": "length"}]})
        await exchange.event({"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": n_tokens * n_choices}})
        await exchange.event("[DONE]")
        await exchange.end()

    async with upstream() as up:
        up.cloud.answers(counts)

        @contextlib.contextmanager
        def shut() -> Iterator[None]:
            up.egress.shut("for a test")
            yield
            up.egress.open()

        yield Subject(RemoteBackend(up), lambda: up.model.turns.queue.n_busy, shut, is_here=False)


@contextlib.contextmanager
def restarting(engine: Supervisor) -> Iterator[None]:
    engine.state.phase = EnginePhase.RESTARTING
    yield
    engine.state.phase = EnginePhase.READY


@pytest_asyncio.fixture(
    loop_scope="module", scope="module", params=["scripted", "remote", "simulated", pytest.param("real", marks=pytest.mark.slow)]
)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "scripted":
        yield scripted()
    elif request.param == "remote":
        async with remote() as made:
            yield made
    else:
        async with local(real=request.param == "real") as made:
            yield made


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test does, nothing is computed behind it."""
    yield
    if "subject" in request.fixturenames:
        assert request.getfixturevalue("subject").n_live() == 0


def asks(max_tokens: int = 5, n: int = 1, n_turns: int = 0, policy: str = "reject", text: str = "Say it.") -> Generate:
    turns = [Message(role, f"{i} {SENTENCE}") for i in range(n_turns) for role in ("user", "assistant")]
    return Generate(
        model="m",
        prompt=Conversation([*turns, Message("user", text)], policy),
        n=n,
        stream=True,
        max_tokens=max_tokens,
        stop=(),
        seed=1,
        sampling=SamplingParams(temperature=0.0, ignore_eos=True),
        request_class=RequestClass.INTERACTIVE,
        queue_timeout_ms=0,
        background=False,
        answer=AnswerOptions(),
    )


TOO_LONG, SUMMARIZED = asks(n_turns=15), asks(n_turns=15, policy="summarize")


def origin() -> Origin:
    return Origin("req", "a", RequestClass.INTERACTIVE, "messages", time.perf_counter())


class Life(Follower):
    """A record of a job, and who follows it."""

    def __init__(self, job: Job) -> None:
        super().__init__(Record(origin(), Heading("r", 0, "toy", job.fingerprint), job.n_choices))
        self.n_ends = 0
        self.record.on_end = self._ended
        job.start(self.record)

    def _ended(self, record: Record) -> None:
        self.n_ends += 1

    async def until(self, condition: Callable[[Record], object]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition(self.record):
                await self._wakeup.wait()

    async def over(self) -> Record:
        """The record, when it has ended."""
        await self.until(lambda record: record.is_ended)
        assert (self.n_ends, self.record.work) == (1, None)
        assert all(choice.outcome for choice in self.record.choices)
        return self.record

    @property
    def texts(self) -> list[str]:
        return [answer.text for answer in self.record.answers()]


async def begin(subject: Subject, request: Generate) -> Life:
    return Life(await subject.backend.prepare(request, origin()))


def only_here(subject: Subject) -> None:
    if not subject.is_here:
        pytest.skip("another server makes its prompts itself, and numbers its work itself")


async def until_done(subject: Subject) -> None:
    """What was sent before has had its effect, because another request was answered behind it."""
    await (await begin(subject, asks(max_tokens=2))).over()


async def test_what_cannot_be_served_is_refused_before_anything_begins(subject: Subject) -> None:
    """As the client's mistake, with the field that it made it in."""
    only_here(subject)
    with pytest.raises(ApiError) as caught:
        await subject.backend.prepare(TOO_LONG, origin())
    assert (caught.value.status, caught.value.code) == (400, "context_length_exceeded")
    assert caught.value.param == "messages"


async def test_a_job_that_is_given_up_leaves_nothing(subject: Subject) -> None:
    """It was not started: nothing is computed, and what comes next is served."""
    job = await subject.backend.prepare(asks(), origin())
    assert (job.n_choices, job.is_late, subject.n_live()) == (1, False, 0)
    del job
    await until_done(subject)


async def test_a_record_ends_once_with_all_its_tokens_in_order(subject: Subject) -> None:
    """Open first, then one token after the other, then the end; and the same again for the same request."""
    first = await begin(subject, asks(20))
    assert first.record.stage is Stage.STARTED
    again = await begin(subject, asks(20))
    await first.until(lambda record: record.is_open)
    record = await first.over()
    await again.over()
    assert (record.stage, record.failure, record.outcome) == (Stage.ENDED, None, "length")
    assert record.usage().completion_tokens == record.choices[0].n_output == 20
    assert record.usage().prompt_tokens > 0
    assert list(record.arrivals) == sorted(record.arrivals)
    assert [end.reason for end in record.ends] == ["length"]
    assert subject.says_the_same(first.texts + again.texts)
    assert first.texts[0]


async def test_every_choice_has_an_answer(subject: Subject) -> None:
    """Each with its own tokens; greedy, all say the same."""
    life = await begin(subject, asks(8, n=3))
    record = await life.over()
    assert [record.owners.count(i) for i in range(3)] == [8, 8, 8]
    assert sorted(end.choice for end in record.ends) == [0, 1, 2]
    assert subject.says_the_same(life.texts)


async def test_requests_are_those_that_are_computed(subject: Subject) -> None:
    """One for each choice that has not ended, with an id that no other has."""
    only_here(subject)
    one, two = await begin(subject, asks(LONG, n=2)), await begin(subject, asks(LONG))
    assert one.record.work is not None
    assert two.record.work is not None
    both = one.record.work.requests() + two.record.work.requests()
    assert [index for index, _ in both] == [0, 1, 0]
    assert len({request_id for _, request_id in both}) == 3
    for life in (one, two):
        life.leave()
        await life.over()
    await until_done(subject)


@pytest.mark.parametrize("why", Stop)
async def test_it_stops_at_once_and_what_has_come_stays(subject: Subject, why: Stop) -> None:
    """In the moment in which it is asked to, whoever asks; nothing comes afterwards, and its place is free."""
    life = await begin(subject, asks(LONG, n=2))
    await life.until(lambda record: len(record.texts) >= 3)
    record = life.record
    assert record.work is not None
    record.work.stop(why)
    assert (record.stage, record.stopped_by, life.n_ends) == (Stage.ENDED, why, 1)
    texts = life.texts
    assert texts[0]
    await until_done(subject)
    assert life.texts == texts
    assert record.usage().completion_tokens < 2 * LONG


async def test_it_is_stopped_before_anything_has_come(subject: Subject) -> None:
    """In the moment after its start: it ends, with nothing, and computes nothing."""
    life = await begin(subject, asks(LONG))
    life.leave()
    assert (life.record.stage, life.record.stopped_by, life.texts) == (Stage.ENDED, Stop.LEFT, [""])
    await until_done(subject)
    assert (await life.over()).usage().completion_tokens == 0


@pytest.mark.parametrize("level", [Hold.PAUSE, Hold.SWAP])
async def test_a_request_that_is_held_waits_and_goes_on(subject: Subject, level: Hold) -> None:
    """While it is held nothing comes of it, but of others; afterwards nothing is missing."""
    life = await begin(subject, asks(LONG))
    await life.until(lambda record: record.texts)
    life.lag = list(Hold).index(level)
    life.record.review()
    await until_done(subject)
    n_held = len(life.record.texts)
    await until_done(subject)
    assert len(life.record.texts) == n_held < LONG
    life.lag = 0
    life.record.review()
    assert (await life.over()).usage().completion_tokens == LONG
    whole = await begin(subject, asks(LONG))
    await whole.over()
    assert subject.says_the_same(life.texts + whole.texts)


async def test_a_summary_comes_first(subject: Subject) -> None:
    """Its job says so before it starts; then it is a request like any other."""
    only_here(subject)
    job = await subject.backend.prepare(SUMMARIZED, origin())
    assert job.is_late
    assert job.headers["X-Poise-Context"].startswith("summarize")
    life = Life(job)
    record = await life.over()
    assert (record.failure, record.usage().completion_tokens, record.outcome) == (None, 5, "length")
    assert record.timeline[1].what == "summarizing"


async def test_a_summary_is_stopped_like_anything_else(subject: Subject) -> None:
    """Before the request itself is begun."""
    only_here(subject)
    life = await begin(subject, SUMMARIZED)
    life.leave()
    assert (life.record.is_ended, life.record.is_open, life.n_ends) == (True, False, 1)
    await until_done(subject)


async def test_a_backend_that_is_not_ready_says_when_to_come_back(subject: Subject) -> None:
    """Nothing is prepared; what was prepared before is refused when it is started, once."""
    job = await subject.backend.prepare(asks(), origin())
    with subject.unavailable():
        state = subject.backend.state
        assert not state.is_ready
        assert state.retry_after_s > 0
        with pytest.raises(ApiError) as caught:
            await subject.backend.prepare(asks(), origin())
        life = Life(job)
        with pytest.raises(ApiError) as refused:
            await life.opened()
    for error in (caught.value, refused.value):
        assert error.status == 503
        assert int(error.headers["Retry-After"]) > 0
    assert (life.record.stage, life.n_ends, subject.n_live()) == (Stage.REFUSED, 1, 0)
    await until_done(subject)
    assert subject.backend.state.is_ready


async def test_the_intake_knows_backends_and_no_engine() -> None:
    """Nor how a prompt is made, nor any dialect: whoever adds a backend leaves it as it is."""
    known = {getattr(what, "__module__", "") for what in vars(intake).values()}
    assert Backend.__module__ in known
    assert not known & {kind.__module__ for kind in (Supervisor, Engine, TextModel, Prompts, Templates, spoken)}


async def answers(backend: ScriptedBackend, **parameters: Any) -> tuple[Reply, FakeEngine]:
    """What the whole gateway answers that has it beside its own engine."""
    engine = FakeEngine()
    app = make_app(engine, backends={"scripted": backend})
    body = chat_body(max_tokens=4, **parameters) | {"model": "scripted"}
    return await ask(app, "POST", "/v1/chat/completions", body), engine


async def test_the_gateway_streams_from_any_backend() -> None:
    """Intake, record, reader and dialect know of no engine; the local one hears nothing."""
    reply, engine = await answers(ScriptedBackend(), stream=True, stream_options={"include_usage": True})
    assert (reply.status, reply.text, reply.events[-1]) == (200, "0 1 2 3 ", "[DONE]")
    assert reply.chunks[0]["model"] == "scripted"
    assert reply.chunks[0]["system_fingerprint"] == "fp_scripted"
    assert reply.chunks[-1]["usage"]["completion_tokens"] == 4
    assert engine.submissions == []


async def test_the_gateway_answers_and_refuses_for_any_backend() -> None:
    """A whole answer, an error before it, and the list of models."""
    backend = ScriptedBackend()
    reply, _ = await answers(backend, n=2)
    assert [choice["message"]["content"] for choice in reply.json()["choices"]] == ["0 1 2 3 "] * 2
    backend.state = BackendState(is_ready=False, retry_after_s=7.0)
    refused, _ = await answers(backend)
    assert (refused.status, refused.headers["retry-after"]) == (503, "7")
    listed = await ask(make_app(FakeEngine(), backends={"scripted": backend}), "GET", "/v1/models")
    assert [card["id"] for card in listed.json()["data"]] == ["toy", "scripted"]
