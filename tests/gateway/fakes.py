"""Stand-ins for what the gateway talks to: an engine that follows the test, a toy vocabulary, and a client at the ASGI level.

Nothing here waits for time to pass: the engine says what the test tells it to say, and the client waits for messages.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cache
from typing import Any, TypeVar, cast

from llguidance import LLMatcher, LLTokenizer
from starlette.types import Message

from poise.config import Settings
from poise.gateway.app import Gateway, create_app
from poise.gateway.records.following import Stop
from poise.gateway.records.record import Record, Work
from poise.gateway.supervision.blame import Death, QuarantineReport
from poise.gateway.supervision.engine import EnginePhase, EngineState, EngineUnavailable, RequestHandle, WholeEngine
from poise.gateway.tenancy.tenants import LocalOperators
from poise.gateway.text.tokens import TextFigures, TextModel, TextSlot, TextWorkerRow, WorkerState
from poise.metrics.early import TextMetrics
from poise.scheduler.memory.kv import PoolStatus, SlotStatus
from poise.scheduler.memory.store import Purpose, StoreStatus
from poise.scheduler.request import Control, Hold, PreemptionKind, Queued, RequestClass, Started
from poise.scheduler.snapshot import ClassStatus
from poise.scheduler.totals import Totals
from poise.wire import text as text_wire
from poise.wire.figures import Bottleneck, Distribution, StepFigures
from poise.wire.messages import (
    Accepted,
    Change,
    Controlled,
    Drafted,
    Erased,
    Finish,
    Forgotten,
    PoolInfo,
    Prefill,
    PromptLogprobs,
    Ready,
    Refused,
    Token,
    TokenLogprob,
)
from poise.wire.status import Status
from poise.wire.to_engine import Power, SamplingParams, Submit
from poise.worker.text.chat_template import ChatTemplate
from poise.worker.text.desk import Desk, vocabulary
from poise.worker.text.tokeniser import Tokeniser
from tests.gateway import described

T = TypeVar("T")

BYTES = LLTokenizer("byte")
MODEL = "toy"
TOKEN = "po-token-of-this-server"
OPERATOR = {"authorization": f"Bearer {TOKEN}"}
"""The headers of an operator on this machine."""
BOS, IM_START, IM_END = 256, 257, 258
SPECIALS = {"<s>": BOS, "<|im_start|>": IM_START, "<|im_end|>": IM_END}
N_TOKENS = 259
SLOT_CELLS = 600
WAIT_S = 60.0
"""Longest wait for a message: only a failing test waits that long."""


class ToyVocab:
    """One token for each byte, and three control tokens."""

    n_tokens = N_TOKENS
    bos: int | None = BOS
    special: Mapping[str, int] = {"bos": BOS, "eos": IM_END}

    def __init__(self, add_bos: bool = False) -> None:
        self.add_bos = add_bos

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        ids = [BOS] if add_special and self.add_bos else []
        pattern = "(" + "|".join(map(re.escape, SPECIALS)) + ")"
        for part in re.split(pattern, text) if parse_special else [text]:
            ids += [SPECIALS[part]] if parse_special and part in SPECIALS else list(part.encode())
        return ids

    def piece(self, token: int, *, special: bool) -> bytes:
        if token < 256:
            return bytes([token])
        name = {value: name for name, value in SPECIALS.items()}[token]
        return name.encode() if special else b""


def readable(ids: Iterable[int]) -> str:
    """Token ids as text, control tokens in angle brackets of their own: `⟨257⟩user`."""
    out = b"".join(bytes([i]) if i < 256 else f"⟨{i}⟩".encode() for i in ids)
    return out.decode()


@dataclass
class Submission:
    """A request that reached the engine, and the means to answer it."""

    handle: RequestHandle
    tenant: str
    request_class: RequestClass
    prompt: list[int]
    max_output: int
    sampling: SamplingParams
    template: str = ""
    queue_timeout_ms: int = 0
    n_output: int = 0
    label: str = ""
    erased: bool = False
    prediction: Sequence[int] = ()

    def accept(self, position: int = 1, eta_us: int = 0, prompt_us: int = 0) -> None:
        self.handle.put(Accepted(self.handle.request_id, position, eta_us, prompt_us))

    def wait(self, position: int, eta_us: int) -> None:
        self.handle.put(Queued(self.handle.request_id, position, eta_us))

    def start(self, wait_us: int = 1000, n_cached: int = 0) -> None:
        self.handle.put(Started(self.handle.request_id, wait_us, "short", n_cached))

    def prefill(self, n_tokens: int, pass_us: int = 5000, n_beside: int = 0) -> None:
        self.handle.put(Prefill(self.handle.request_id, n_tokens, pass_us, n_beside))

    def score(self, start: int, logprobs: Sequence[float]) -> None:
        """Log probabilities of the prompt's tokens from one on; above each, a token is told that is as likely."""
        top = [[TokenLogprob(self.prompt[start + i], one)] for i, one in enumerate(logprobs)]
        k = self.sampling.n_prompt_logprobs
        self.handle.put(PromptLogprobs(self.handle.request_id, start, list(logprobs), top if k > 0 else [[]] * len(top)))

    def draft(self, n_drafted: int, n_accepted: int) -> None:
        self.handle.put(Drafted(self.handle.request_id, n_drafted, n_accepted))

    def change(self, what: str, why: str = "") -> None:
        self.handle.put(Change(self.handle.request_id, what, why))

    def refuse(self, reason: str, value: int = 0, limit: int = 0, retry_after_us: int = 0) -> None:
        self.handle.put(Refused(self.handle.request_id, reason, value, limit, retry_after_us))

    def say(self, text: str | bytes | Sequence[int]) -> None:
        """Tokens, all of one batch."""
        ids = text.encode() if isinstance(text, str) else text
        for token in ids:
            self.n_output += 1
            k = self.sampling.n_logprobs
            top = [TokenLogprob(token + i, -0.5 - i) for i in range(max(k, 0))]
            logprob = -0.5 if k >= 0 else None
            self.handle.put(Token(self.handle.request_id, token, logprob, top))

    def finish(self, reason: str = "stop", detail: str = "", n_cached: int = 0) -> None:
        n_prompt = len(self.prompt)
        self.handle.put(Finish(self.handle.request_id, reason, n_prompt, self.n_output, 1000, detail, n_cached))


class FakeEngine:
    """An Engine and its EngineProcess. `script` is run for each submission; without one the test answers by hand."""

    def __init__(self, script: Callable[[Submission], None] | None = None) -> None:
        self.state = EngineState(EnginePhase.READY, progress=1.0, stage="ready", ready=ready(), status=status())
        self.script = script
        self.submissions: list[Submission] = []
        self.aborted: list[int] = []
        self.declared: dict[str, list[int]] = {}
        self.unavailable_after: int | None = None
        self.controlled: list[tuple[int, str]] = []
        self.control_answers: dict[int, tuple[str, str]] = {}
        """State and refusal by request id; others are done as told."""
        self.forgotten: list[str] = []
        self.erased: list[str] = []
        self.queued: dict[str, int] = {}
        """Requests of each class that have not begun."""
        self.held: list[tuple[int, str]] = []
        self.adjusted: list[tuple[float, float]] = []
        self.limited: list[Power] = []
        self.settings: Settings | None = None
        """What the next engine is to be started with."""
        self.replaced: list[str] = []
        self.listeners: list[Callable[[Death], None]] = []
        self.reports: list[QuarantineReport] = []
        self.journal_pages = [['{"step":1}'], ['{"step":2}']]
        self.next_page = asyncio.Semaphore(1000)
        """Acquired before each page but the first."""
        self.readers = 0
        """Of the journal, who have not been closed."""
        self._changed = asyncio.Event()

    def submit(self, submit: Submit, label: str = "") -> RequestHandle:
        if self.unavailable_after is not None and len(self.submissions) >= self.unavailable_after:
            raise EngineUnavailable("the engine is restarting", 2.5)
        handle = RequestHandle(len(self.submissions) + 1, self._abort)
        submission = Submission(
            handle,
            submit.tenant,
            RequestClass(submit.request_class),
            submit.prompt,
            submit.max_output,
            submit.sampling,
            submit.template,
            submit.queue_timeout_ms,
            label=label,
            erased=submit.erased,
            prediction=submit.prediction,
        )
        self.submissions.append(submission)
        self._note()
        if self.script is not None:
            self.script(submission)
        return handle

    def hold(self, request_id: int, level: str) -> None:
        self.held.append((request_id, level))
        self._note()

    def declare(self, templates: Mapping[str, list[int]]) -> None:
        self.declared = dict(templates)

    async def control(self, request_id: int, action: Control) -> Controlled:
        self._check_ready()
        self.controlled.append((request_id, action.value))
        done = {"pause": "paused", "resume": "running", "downgrade": "running"}[action.value]
        return Controlled(request_id, action.value, *self.control_answers.get(request_id, (done, "")))

    async def forget(self, tenant: str) -> Forgotten:
        self._check_ready()
        self.forgotten.append(tenant)
        return Forgotten(1, 3, 128)

    def disown(self, tenant: str) -> int:
        return sum(report.tenant == tenant for report in self.reports)

    async def erase(self, tenant: str) -> Erased:
        self._check_ready()
        self.erased.append(tenant)
        return Erased(1, 3, 128, 4096, 7)

    async def journal(self) -> AsyncGenerator[list[str], None]:
        self._check_ready()
        self.readers += 1
        try:
            for page in self.journal_pages:
                yield page
                await self.next_page.acquire()
        finally:
            self.readers -= 1

    @property
    def n_live(self) -> int:
        return sum(not submission.handle.done for submission in self.submissions)

    def queued_by_account(self, request_class: RequestClass) -> dict[str, int]:
        """Evenly of eight."""
        n = self.queued.get(request_class.value, 0)
        return {f"account-{i}": k for i in range(8) if (k := (n + i) // 8)}

    def adjust(self, queue_share: float, slots_share: float) -> None:
        self.adjusted.append((queue_share, slots_share))

    def limit(self, power: Power) -> None:
        self.limited.append(power)

    def release(self) -> None:
        self.state.is_released = True

    def use(self, settings: Settings) -> None:
        self.settings = settings

    def restart(self, why: str) -> None:
        self.replaced.append(why)

    def on_death(self, listener: Callable[[Death], None]) -> None:
        self.listeners.append(listener)

    def end_all(self, reason: str, detail: str) -> None:
        for submission in self.submissions:
            if not submission.handle.done:
                submission.finish(reason, detail)

    def quarantined(self) -> list[QuarantineReport]:
        return self.reports

    def _check_ready(self) -> None:
        if self.state.phase is not EnginePhase.READY:
            raise EngineUnavailable("the engine is restarting", 2.5)

    async def submitted(self, n: int = 1) -> Submission:
        """The n-th submission, when it has come."""
        await self._until(lambda: len(self.submissions) >= n)
        return self.submissions[n - 1]

    async def aborts(self, n: int) -> list[int]:
        """All aborted ids, when there are n."""
        await self._until(lambda: len(self.aborted) >= n)
        return self.aborted

    async def holds(self, n: int) -> list[tuple[int, str]]:
        """Everything that it was told of readers, when there is so much."""
        await self._until(lambda: len(self.held) >= n)
        return self.held

    def _abort(self, request_id: int) -> None:
        self.aborted.append(request_id)
        self.submissions[request_id - 1].finish("aborted")
        self._note()

    def _note(self) -> None:
        self._changed.set()

    async def _until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(WAIT_S):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


def says(text: str | bytes | Sequence[int], reason: str = "stop") -> Callable[[Submission], None]:
    """A script: accept, say this in one batch, finish."""

    def script(submission: Submission) -> None:
        submission.accept()
        submission.start()
        submission.say(text)
        submission.finish(reason)

    return script


def ready() -> Ready:
    pools = [PoolInfo("short", 4, 300, True, 1000), PoolInfo("long", 1, SLOT_CELLS, False, 2000)]
    return Ready("toy 1K", 1234, N_TOKENS, 1000, pools, 1)


def status(prompt_tokens: int = 100, output_tokens: int = 50) -> Status:
    interactive = ClassStatus(2, 3, 250_000, 1, 0, 0.25, 4_000_000, 0.9, 250_000)
    classes = {RequestClass.INTERACTIVE: interactive, RequestClass.BACKGROUND: ClassStatus(0, 1, 0, 0, 4)}
    by_class, by_tenant = {RequestClass.INTERACTIVE: 200, RequestClass.BACKGROUND: 10}, {"local": 190, "": 20}
    occupied = (SlotStatus(0, "running", "interactive", 200), SlotStatus(3, "warm", "", 40))
    short = PoolStatus("short", 3, 4, 210, 1200, 1, 40, 4, 900, by_class, by_tenant, holes=1, occupied=occupied)
    pools = [short, PoolStatus("long", 0, 1, 0, 600)]
    n_bytes = {Purpose.SWAP: 500, Purpose.PREFIX: 70, Purpose.TEMPLATE: 0}
    n_entries = {Purpose.SWAP: 1, Purpose.PREFIX: 2, Purpose.TEMPLATE: 0}
    store = StoreStatus(1 << 20, n_bytes, n_entries, 600)
    totals = Totals(
        {PreemptionKind.PAUSE: 5, PreemptionKind.SWAP: 4, PreemptionKind.DROP: 1}, 9, 2, 3, 11, 700, 60, 8, 5000, 4000
    )
    return Status(
        step=7,
        classes=classes,
        pools=pools,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        moves=0,
        rss_bytes=123_456,
        store=store,
        totals=totals,
        threads=2,
        unaccounted_bytes=23_456,
        steps=StepFigures({"plan": 1_000, "forward": 5_000_000}, *[Distribution((1.0, 2.0), (1, 3, 2), 7.0)] * 6),
        bottleneck=Bottleneck({"compute": 3_000_000, "idle": 0}, "compute", 0),
    )


class TextHere:
    """TextJobs without a process: each job is answered at once, by what a worker would answer with."""

    def __init__(self, tokeniser: Tokeniser) -> None:
        self.tokeniser = tokeniser
        self.metrics = TextMetrics()
        self.deaths: list[tuple[float, str]] = []
        self.asked: deque[tuple[str, text_wire.Job]] = deque(maxlen=16)
        """Account and job of the last ones, in order."""
        self._desk = Desk(tokeniser)

    async def run(self, job: text_wire.Job, account: str, n_bytes: int) -> text_wire.Answer:
        self.asked.append((account, job))
        if isinstance(job, text_wire.CheckGrammar):  # the toy vocabulary has no place in memory that llguidance could read
            why = LLMatcher.validate_grammar(job.text, BYTES)
            return text_wire.Refused(400, "invalid_schema", why) if why else text_wire.Checked()
        return self._desk.answer(job)

    def status(self) -> TextFigures:
        return TextFigures([TextWorkerRow(1, WorkerState.READY, 0)], 0, 0)


chat_template = cache(ChatTemplate)
"""Compiled once: hundreds of tests have the same one. What it learns of a conversation is each copy's own."""


def tokeniser(vocab: ToyVocab | None = None, template: str | None = None) -> Tokeniser:
    return Tokeniser(vocab or ToyVocab(), copy(chat_template(template)))


def text_here(vocab: ToyVocab | None = None, template: str | None = None) -> TextHere:
    return TextHere(tokeniser(vocab, template))


def text_model(vocab: ToyVocab | None = None, template: str | None = None, jobs: TextHere | None = None) -> TextModel:
    jobs = jobs or text_here(vocab, template)
    return TextModel(vocabulary(jobs.tokeniser), jobs)


class NoWork:
    """Work on a record that nobody does: the test writes the record, and sees here what was wanted of it."""

    def __init__(self) -> None:
        self.stops: list[Stop] = []
        self.holds: list[Hold] = []

    def stop(self, why: Stop) -> None:
        self.stops.append(why)

    def hold(self, level: Hold) -> None:
        self.holds.append(level)

    def requests(self) -> list[tuple[int, int]]:
        return []


def opened(record: Record, work: Work | None = None) -> Record:
    """A record that something is written into: it has begun, and every choice was taken."""
    record.start(work or NoWork())
    record.open()
    return record


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that never waits for anything, also where a loop runs."""
    try:
        work.send(None)
    except StopIteration as ended:
        return cast(T, ended.value)
    raise AssertionError("it waits")


def make_app(
    engine: WholeEngine,
    settings: Settings | None = None,
    *,
    jobs: TextHere | None = None,
    with_text: bool = True,
    **arguments: Any,
) -> Gateway:
    """`jobs` makes tokens of texts; without a text, the vocabulary is still to come."""
    jobs = jobs or text_here()
    arguments.setdefault("operators", LocalOperators(TOKEN))
    app = create_app(settings or unpaced(), engine, model_name=MODEL, text=TextSlot(jobs), **arguments)
    if with_text:
        at_once(app.set_text(text_model(jobs=jobs)))
    return app


def unpaced() -> Settings:
    """Tokens that come together are told together."""
    classes = Settings().classes
    interactive = classes.interactive.model_copy(update={"pacing_ms": 0})
    return Settings(classes=classes.model_copy(update={"interactive": interactive}))


OPENING = '"delta":{"role":"assistant","content":""}'
"""In the event that tells a chat's client that its request was taken."""


def frames(body: bytes, *, openings: bool = False) -> list[tuple[str, str]]:
    """Id and data of each event of a stream, no id where it has none; `openings`: also of those that say nothing yet."""
    found = re.findall(r"(?:^|\n)(?:id: ([0-9.]+)\n)?data: (.*)\n\n", body.decode().replace("\n\n", "\n\n\n"))
    assert len(found) == (b"\n" + body).count(b"\ndata: "), body
    return [(at, data) for at, data in found if openings or OPENING not in data]


@dataclass
class Reply:
    """A complete response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error, after a look at its form: nothing else may answer in the place of one."""
        body = self.json()
        assert set(body) == {"error"}, body
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert body["error"]["message"], body
        return dict(body["error"])

    @property
    def events(self) -> list[str]:
        """The data of the server-sent events."""
        return [data for _, data in frames(self.body)]

    @property
    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(event) for event in self.events if event != "[DONE]"]

    @property
    def text(self) -> str:
        """What a chat's stream said."""
        choices = [choice for chunk in self.chunks for choice in chunk.get("choices", ())]
        return "".join(choice["delta"].get("content", "") for choice in choices)


@dataclass
class Exchange:
    """One request at the ASGI level: what uvicorn would do, under the test's control."""

    app: Gateway
    scope: dict[str, Any]
    parts: list[bytes]
    complete: bool = True
    """False: the client has not sent everything and says nothing more."""
    sent: asyncio.Queue[Message] = field(default_factory=asyncio.Queue)
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None
    unread: list[str] = field(default_factory=list)

    def open(self) -> Exchange:
        self.task = asyncio.create_task(self.app(self.scope, self._receive, self._send))
        return self

    def disconnect(self) -> None:
        self.gone.set()

    async def message(self) -> Message:
        """The next message that the application sends."""
        return await asyncio.wait_for(self.sent.get(), WAIT_S)

    async def start(self) -> int:
        """The status, when the response begins."""
        message = await self.message()
        assert message["type"] == "http.response.start"
        return int(message["status"])

    async def frame(self) -> str:
        """The next part of a stream: a comment with its colon, or the data of an event that is no opening."""
        while not self.unread:
            body: bytes = (await self.message())["body"]
            lines = [line for line in body.decode().split("\n") if OPENING not in line]
            self.unread += [line.removeprefix("data: ") for line in lines if line.startswith((":", "data: "))]
        return self.unread.pop(0)

    async def event(self) -> Any:
        """The next part of a stream, an event."""
        return json.loads(await self.frame())

    async def ended(self) -> None:
        """The application has returned."""
        assert self.task is not None
        await asyncio.wait_for(self.task, WAIT_S)

    async def reply(self) -> Reply:
        await self.ended()
        messages = []
        while not self.sent.empty():
            messages.append(self.sent.get_nowait())
        assert messages, "no response"
        headers = {name.decode().lower(): value.decode() for name, value in messages[0]["headers"]}
        reply = Reply(messages[0]["status"], headers, b"".join(message["body"] for message in messages[1:]))
        kind = headers.get("content-type", "")
        described.check(self.app.operations, self.scope["method"], self.scope["path"], reply.status, kind, reply.body)
        return reply

    async def _receive(self) -> Message:
        if self.parts:
            body = self.parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self.parts) or not self.complete}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        self.sent.put_nowait(message)


def exchange(
    app: Gateway,
    method: str,
    path: str,
    body: Any = None,
    headers: dict[str, str] | None = None,
    *,
    client: str = "127.0.0.1",
    complete: bool = True,
) -> Exchange:
    """A request that is not sent yet. `body`: JSON, or bytes, or a list of bytes that come one after the other."""
    parts = body if isinstance(body, list) and body and isinstance(body[0], bytes) else None
    if parts is None:
        parts = [body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()]
    fields = {"host": "localhost", "content-type": "application/json"} | (headers or {})
    path, _, query = path.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in fields.items() if value],
        "client": (client, 50000),
        "server": ("localhost", 8000),
        "state": {},
    }
    return Exchange(app, scope, list(parts), complete)


async def ask(app: Gateway, method: str, path: str, body: Any = None, **arguments: Any) -> Reply:
    """The complete response to a request."""
    return await exchange(app, method, path, body, **arguments).open().reply()


def usage(n_prompt: int, n_output: int, n_cached: int = 0) -> dict[str, Any]:
    """As answers tell it."""
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_output,
        "total_tokens": n_prompt + n_output,
        "prompt_tokens_details": {"cached_tokens": n_cached},
    }


def chat_body(content: str = "Hi", **parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "messages": [{"role": "user", "content": content}], **parameters}


def prompt_body(prompt: Any = "Hi", **parameters: Any) -> dict[str, Any]:
    return {"model": MODEL, "prompt": prompt, **parameters}
