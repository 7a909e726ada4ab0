"""One round: a scenario's load against one server, as its clients would send it.

1. Load starts at 0 and is generated until `duration_s`. What is then in flight has `drain_s` to finish and is cut after
   that: `unfinished`, with everything measured so far. No request that was sent is left out of the records.
2. An open-loop client sends on schedule, however slow the answers are; how late the sending was is recorded.
3. A closed-loop client sends its next request `think_s` after the end of the one before, and with a rate not before it is due.
   After a failure or a refusal it pauses for `retry_pause_s` at least, or a server that fails fast would be asked thousands of
   times.
4. Bodies are built before the clock starts; a chunk's time is read once, as soon as its bytes are there.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from asyncio import Timeout
from contextlib import AsyncExitStack
from dataclasses import KW_ONLY, dataclass, field

import aiohttp
import msgspec
from aiohttp import ClientResponse

from poise.bench.prompts import malformed_body, messages
from poise.bench.reading import pieces, slow_session
from poise.bench.record import CANCELLED, DISCONNECTED, NS_PER_S, OK, PENDING, REFUSED, UNFINISHED, RequestRecord
from poise.bench.sse import EventDecoder, error_type
from poise.bench.target import EngineKiller, Target
from poise.scenarios.model import Client, PlannedRequest, RequestStream, Scenario

RETRY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round measured.

    window_ns  how long load was generated: `duration_s`, or less when every client ran out of requests before
    cpu_s      processor time that this client used meanwhile: it is taken from the server on a shared machine
    events     what was done to the server: when, what, and whether it was done
    """

    url: str
    seed: int
    records: list[RequestRecord]
    warmup_statuses: list[str]
    window_ns: int
    elapsed_ns: int
    cpu_s: float
    events: list[EventRecord] = field(default_factory=list)

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
        url, events = self.target.url, self.events
        return RoundResult(url, self.seed, self.records, warmup, window_ns, elapsed_ns, cpu_s, events)

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
            pause_s = stream.client.arrival.think_s
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
        """Reads to the end of the connection, past the end of the answer: whoever leaves early looks like a quitter."""
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
            if reader.error is not None:
                self._end(record, f"error:200/{reader.error}")
                response.close()
                return
            if reader.done:
                if client.turns > 1:
                    self._answers[plan.answer_seed] = "".join(reader.texts)
                self._end(record, OK if record.chunks_ns else "error:200/no_text")
            elif plan.cancel_after_tokens is not None and len(record.chunks_ns) >= plan.cancel_after_tokens:
                self._end(record, CANCELLED)
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
            "max_tokens": plan.n_output_tokens,
            "ignore_eos": True,
            "temperature": client.temperature,
            "seed": plan.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
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
        n_prompt_planned=plan.n_prompt_tokens,
        n_output_planned=plan.n_output_tokens,
        start_ns=start_ns,
        late_ns=max(0, start_ns - planned_ns),
        is_open_loop=plan.arrival_s is not None,
        is_paced=plan.due_s is not None,
        is_slow_reader=client.reading is not None,
        is_malformed=plan.malformed,
    )
