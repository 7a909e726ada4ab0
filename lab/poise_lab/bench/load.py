"""One round: a scenario's load against one server, as its clients would send it.

1. Load starts at 0 and is generated until `duration_s`. What is then in flight has `drain_s` to finish and is cut after
   that: `unfinished`, with everything measured so far. No request that was sent is left out of the records.
2. An open-loop client sends on schedule, however slow the answers are; how late the sending was is recorded.
3. A closed-loop client sends its next request after the end of the one before and its time to think, and with a rate not before
   it is due. After a failure or a refusal it pauses for `retry_pause_s` at least, or a server that fails fast would be asked
   thousands of times.
4. A slow reader has to be slow where the server can feel it: its connection takes little in advance (`RECEIVE_BYTES` in the
   kernel, a small buffer here), so that what it does not read waits at the server. It reads at full speed until the first text,
   and its pace counts from there: the TTFT is the server's, the rest is the reader's own.
5. Bodies are built before the clock starts; a chunk's time is read once, as soon as its bytes are there."""

import asyncio
import secrets
import socket
import time
from asyncio import Timeout
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

import aiohttp
import msgspec
from aiohttp import ClientResponse

from poise_lab.bench.prompts import malformed_body, messages
from poise_lab.bench.record import CANCELLED, DISCONNECTED, NS_PER_S, OK, PENDING, REFUSED, UNFINISHED, RequestRecord
from poise_lab.bench.sse import EventDecoder, error_type
from poise_lab.bench.target import EngineKiller, Target, told_at
from poise_lab.scenarios.model import Client, PlannedRequest, Reading, RequestStream, Scenario

RETRY_PAUSE_S = 0.5
RECEIVE_BYTES = 4096
"""The kernel gives a socket about twice of it, which still is a few dozen events only."""
PIECE_BYTES = 256
"""About one event of a chat stream."""


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round measured.

    window_ns  how long load was generated: `duration_s`, or less when every client ran out of requests before
    cpu_s      processor time that this client used meanwhile: it is taken from the server on a shared machine
    joules     energy that the server says it used meanwhile, by source and quality; empty where it knows none
    events     what was done to the server: when, what, and whether it was done"""

    url: str
    seed: int
    records: list[RequestRecord]
    warmup_statuses: list[str]
    window_ns: int
    elapsed_ns: int
    cpu_s: float
    events: "list[EventRecord]" = field(default_factory=list)
    joules: dict[str, float] = field(default_factory=dict)

    @property
    def late_ns_max(self) -> int:
        """Of open-loop clients: one that waits for its answer is late by the server's doing."""
        return max((record.late_ns for record in self.records if record.is_open_loop), default=0)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """An event of the scenario and what came of it, in words."""

    kind: str
    at_s: float
    done: bool
    detail: str


@dataclass(slots=True)
class RoundLoad:
    """Sends one round. `run` is called once; `records` and `elapsed_s` may be read meanwhile."""

    scenario: Scenario
    target: Target
    session: aiohttp.ClientSession
    _: KW_ONLY
    seed: int
    text_seed: int
    retry_pause_s: float = RETRY_PAUSE_S
    killer: EngineKiller | None = None
    key: str = ""
    """Of all clients; empty: each has its own."""
    max_tokens: bool = True
    """Whether clients name one. Without it each leaves when it has as much as it would have asked for."""
    records: list[RequestRecord] = field(default_factory=list)
    events: list[EventRecord] = field(default_factory=list)
    _slow_session: aiohttp.ClientSession | None = None
    """Where some client reads slowly."""
    _began_ns: int | None = None
    _answers: dict[int, str] = field(default_factory=dict)
    """What conversations go on from, by the seed of the segment that repeats it."""

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load started; 0 before."""
        return 0.0 if self._began_ns is None else self._now_ns() / NS_PER_S

    async def run(self) -> RoundResult:
        warmup = await self._warm_up()
        streams = self.scenario.requests(self.seed)
        joules = await self._joules()
        cpu_s = time.process_time()
        self._began_ns = time.perf_counter_ns()
        async with AsyncExitStack() as stack:
            if any(client.reading is not None for client in self.scenario.clients):
                self._slow_session = await stack.enter_async_context(slow_session())
            happening = asyncio.create_task(self._let_happen())
            try:
                async with asyncio.timeout(self.scenario.duration_s + self.scenario.drain_s):
                    async with asyncio.TaskGroup() as group:
                        for stream in streams:
                            group.create_task(self._drive(stream, group))
            except TimeoutError:
                for record in self.records:
                    self._end(record, UNFINISHED)
            finally:
                happening.cancel()
            elapsed_ns = self._now_ns()
        window_ns = min(elapsed_ns, round(self.scenario.duration_s * NS_PER_S))
        cpu_s = time.process_time() - cpu_s
        spent = {name: value - joules.get(name, 0.0) for name, value in (await self._joules()).items()}
        url, events = self.target.url, self.events
        return RoundResult(url, self.seed, self.records, warmup, window_ns, elapsed_ns, cpu_s, events, spent)

    async def _joules(self) -> dict[str, float]:
        """What the server has used so far. Servers that do not know it are asked no more than that."""
        if "power" not in self.target.told.get("/status", {}):
            return {}
        power = (await told_at(self.session, self.target.url, "/status")).get("power", {})
        return {str(name): float(value) for name, value in power.get("joules", {}).items()}

    async def _let_happen(self) -> None:
        """The scenario's events, in order."""
        for event in sorted(self.scenario.events, key=lambda event: event.at_s):
            await asyncio.sleep(max(0.0, event.at_s - self._now_ns() / NS_PER_S))
            done, detail = False, "needs --allow-kill"
            if self.killer is not None:
                done, detail = await self.killer.kill(self.session)
            self.events.append(EventRecord(event.kind, event.at_s, done, detail))

    async def _warm_up(self) -> list[str]:
        """Sends the warm-up requests one by one, each with at most the time of a round, and returns how they ended."""
        statuses = []
        client = self.scenario.clients[0]
        for index, plan in enumerate(self.scenario.warmup(self.seed)):
            record = _new_record(client, 0, index, plan, start_ns=0)
            self._began_ns = time.perf_counter_ns()
            try:
                async with asyncio.timeout(self.scenario.duration_s + self.scenario.drain_s):
                    await self._exchange(record, plan, client, self._body(client, plan))
            except TimeoutError:
                record.status = UNFINISHED
            statuses.append(record.status)
        self._began_ns = None
        return statuses

    async def _drive(self, stream: RequestStream, group: asyncio.TaskGroup) -> None:
        """Sends one instance's requests until they or the time run out."""
        for index, plan in enumerate(stream.requests):
            if self._remaining_s() <= 0.0:
                return
            body = self._body(stream.client, plan)
            if plan.arrival_s is not None:
                await asyncio.sleep(max(0.0, plan.arrival_s - self._now_ns() / NS_PER_S))
                group.create_task(self._send(stream, index, plan, body))
                continue
            if plan.due_s is not None:
                if plan.due_s >= self.scenario.duration_s:
                    return
                await asyncio.sleep(max(0.0, plan.due_s - self._now_ns() / NS_PER_S))
            record = await self._send(stream, index, plan, body)
            pause_s = plan.think_s
            if record.failed or record.status == REFUSED:
                pause_s = max(pause_s, self.retry_pause_s)
            await asyncio.sleep(min(pause_s, max(0.0, self._remaining_s())))

    async def _send(self, stream: RequestStream, index: int, plan: PlannedRequest, body: bytes) -> RequestRecord:
        record = _new_record(stream.client, stream.instance, index, plan, self._now_ns())
        self.records.append(record)
        await self._exchange(record, plan, stream.client, body)
        return record

    async def _exchange(self, record: RequestRecord, plan: PlannedRequest, client: Client, body: bytes) -> None:
        """One request and its answer, or as much of it as the client has patience for. Modifies `record`, which is valid at
        any time, also when this is cancelled."""
        patience_s = None if plan.cancel_after_ms is None else plan.cancel_after_ms / 1000
        try:
            async with asyncio.timeout(patience_s) as patience:
                await self._ask(record, plan, client, body, patience)
        except TimeoutError:
            self._end(record, CANCELLED)

    async def _ask(self, record: RequestRecord, plan: PlannedRequest, client: Client, body: bytes, patience: Timeout) -> None:
        key = self.key or f"bench-{client.tenant}" + (f"-{secrets.token_hex(8)}" if client.fresh_tenants else "")
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        url = f"{self.target.url}/v1/chat/completions"
        session = (self._slow_session if client.reading is not None else None) or self.session
        try:
            async with session.post(url, data=body, headers=headers) as response:
                if plan.malformed and response.status == 200:
                    self._end(record, "error:200/not_refused")
                    response.close()
                elif response.status == 200:
                    await self._read_stream(record, plan, client, response, patience)
                else:
                    answer = await response.read()
                    status = f"error:{response.status}/{error_type(answer)}"
                    is_right = plan.malformed and 400 <= response.status < 500
                    self._end(record, REFUSED if is_right else status, answer[:200].decode(errors="replace"))
        except aiohttp.ClientConnectorError as error:
            self._end(record, "error:0/connect", str(error))
        except (aiohttp.ClientError, OSError) as error:
            self._end(record, DISCONNECTED, str(error))

    async def _read_stream(
        self, record: RequestRecord, plan: PlannedRequest, client: Client, response: ClientResponse, patience: Timeout
    ) -> None:
        """Reads past the end of the answer to that of the connection: whoever leaves before looks like a quitter."""
        reader = EventDecoder()
        async for data in pieces(response.content, client.reading, lambda: len(record.chunks_ns)):
            arrived_ns = self._now_ns() - record.start_ns
            n_chunks = reader.feed(data)
            if n_chunks:
                record.chunks_ns.extend([arrived_ns] * n_chunks)
                if client.cancel_before_first_token:
                    patience.reschedule(None)
            record.n_prompt_reported = reader.n_prompt_tokens
            record.n_output_reported = reader.n_output_tokens
            n_text = len(record.chunks_ns)
            if reader.error is not None:
                self._end(record, f"error:200/{reader.error}")
            elif reader.done or (not self.max_tokens and n_text >= plan.n_output_tokens):
                if client.turns > 1:
                    self._answers[plan.answer_seed] = "".join(reader.texts)
                self._end(record, OK if n_text else "error:200/no_text")
            elif plan.cancel_after_tokens is not None and n_text >= plan.cancel_after_tokens:
                self._end(record, CANCELLED)
            if record.status != PENDING and not reader.done:
                response.close()
                return
        self._end(record, DISCONNECTED, "the answer stopped before [DONE]")

    def _end(self, record: RequestRecord, status: str, message: str = "") -> None:
        """Ends a pending record. The first end stands: what happens to the connection after it changes nothing."""
        if record.status == PENDING:
            record.status = status
            record.message = message[:200]
            record.end_ns = self._now_ns() - record.start_ns

    def _body(self, client: Client, plan: PlannedRequest) -> bytes:
        if plan.malformed:
            return malformed_body(plan.seed)
        body: dict[str, object] = {
            "model": self.target.model,
            "messages": messages(plan.segments, self.text_seed, self._answers),
            "ignore_eos": True,
            "temperature": client.temperature,
            "seed": plan.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self.max_tokens:
            body["max_tokens"] = plan.n_output_tokens
        if self.target.extensions:
            body["service_tier"] = "flex" if client.request_class == "background" else "default"
        return msgspec.json.encode(body)

    def _now_ns(self) -> int:
        assert self._began_ns is not None, "the clock has not started"
        return time.perf_counter_ns() - self._began_ns

    def _remaining_s(self) -> float:
        return self.scenario.duration_s - self._now_ns() / NS_PER_S


def _new_record(client: Client, instance: int, index: int, plan: PlannedRequest, start_ns: int) -> RequestRecord:
    planned_s = plan.due_s if plan.arrival_s is None else plan.arrival_s
    planned_ns = start_ns if planned_s is None else round(planned_s * NS_PER_S)
    return RequestRecord(
        client=client.name,
        tenant=client.tenant,
        request_class=client.request_class,
        instance=instance,
        index=index,
        turn=index % client.turns,
        n_prompt_planned=plan.n_prompt_tokens,
        n_output_planned=plan.n_output_tokens,
        start_ns=start_ns,
        late_ns=max(0, start_ns - planned_ns),
        is_open_loop=plan.arrival_s is not None,
        is_paced=plan.due_s is not None,
        is_slow_reader=client.reading is not None,
        is_malformed=plan.malformed,
    )


def slow_session() -> aiohttp.ClientSession:
    """Connections that take little in advance, each used once."""

    def small_socket(address: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol = address[:3]
        made = socket.socket(family=family, type=kind, proto=protocol)
        # Before connecting, for the window that the server is sent depends on it.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
        return made

    connector = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=small_socket)
    forever = aiohttp.ClientTimeout(total=None)
    return aiohttp.ClientSession(connector=connector, timeout=forever, read_bufsize=2 * PIECE_BYTES)


async def pieces(content: aiohttp.StreamReader, reading: Reading | None, n_chunks: Callable[[], int]) -> AsyncIterator[bytes]:
    """The answer as this reader gets it; `n_chunks` says how many chunks with text it has so far."""
    if reading is not None:
        while n_chunks() < (reading.after_tokens if reading.kind == "stuck" else 1):
            data = await content.read(PIECE_BYTES)
            if not data:
                return
            yield data
        if reading.kind == "stuck":
            await asyncio.sleep(reading.stuck_s if reading.stuck_s is not None else float("inf"))
        else:
            async for data in _paced(content, reading, n_chunks):
                yield data
            return
    async for data in content.iter_any():
        yield data


async def _paced(content: aiohttp.StreamReader, reading: Reading, n_chunks: Callable[[], int]) -> AsyncIterator[bytes]:
    """What is read never exceeds the pace since the first text, in bytes or in chunks."""
    began_s, n_began, n_bytes = time.perf_counter(), n_chunks(), 0
    while data := await content.read(PIECE_BYTES):
        yield data
        n_bytes += len(data)
        n_read = n_bytes if reading.kind == "bytes" else n_chunks() - n_began
        await asyncio.sleep(max(0.0, began_s + n_read / reading.per_s - time.perf_counter()))
