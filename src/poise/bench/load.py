"""One round: a scenario's load against one server, as its clients would send it.

1. Load starts at 0 and is generated until `duration_s`. What is then in flight has `drain_s` to finish and is cut after
   that: `unfinished`, with everything measured so far. No request that was sent is left out of the records.
2. An open-loop client sends on schedule, however slow the answers are; how late the sending was is recorded.
3. A closed-loop client sends its next request `think_s` after the end of the one before. After a failure it pauses for
   `retry_pause_s` at least, or a server that fails fast would be asked thousands of times.
4. Bodies are built before the clock starts; a chunk's time is read once, as soon as its bytes are there.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import aiohttp
import msgspec

from poise.bench.prompts import conversation, messages
from poise.bench.record import CANCELLED, DISCONNECTED, NS_PER_S, OK, PENDING, UNFINISHED, RequestRecord
from poise.bench.sse import StreamReader, error_type
from poise.bench.target import Target
from poise.scenarios import Client, PlannedRequest, RequestStream, Scenario

RETRY_PAUSE_S = 0.5


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What one round measured.

    window_ns  how long load was generated: `duration_s`, or less when every client ran out of requests before
    cpu_s      processor time that this client used meanwhile: it is taken from the server on a shared machine
    """

    url: str
    seed: int
    records: list[RequestRecord]
    warmup_statuses: list[str]
    window_ns: int
    elapsed_ns: int
    cpu_s: float

    @property
    def late_ns_max(self) -> int:
        return max((record.late_ns for record in self.records), default=0)


class RoundLoad:
    """Sends one round. `run` is called once; `records` and `elapsed_s` may be read meanwhile."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        session: aiohttp.ClientSession,
        *,
        seed: int,
        text_seed: int,
        retry_pause_s: float = RETRY_PAUSE_S,
    ) -> None:
        self.records: list[RequestRecord] = []
        self._scenario = scenario
        self._target = target
        self._session = session
        self._seed = seed
        self._text_seed = text_seed
        self._retry_pause_s = retry_pause_s
        self._origin_ns: int | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the load started; 0 before."""
        return 0.0 if self._origin_ns is None else self._now_ns() / NS_PER_S

    async def run(self) -> RoundResult:
        warmup_statuses = await self._warm_up()
        streams = self._scenario.requests(self._seed)
        cpu_s = time.process_time()
        self._origin_ns = time.perf_counter_ns()
        try:
            async with asyncio.timeout(self._scenario.duration_s + self._scenario.drain_s):
                async with asyncio.TaskGroup() as group:
                    for stream in streams:
                        group.create_task(self._drive(stream, group))
        except TimeoutError:
            self._cut()
        elapsed_ns = self._now_ns()
        return RoundResult(
            url=self._target.url,
            seed=self._seed,
            records=self.records,
            warmup_statuses=warmup_statuses,
            window_ns=min(elapsed_ns, round(self._scenario.duration_s * NS_PER_S)),
            elapsed_ns=elapsed_ns,
            cpu_s=time.process_time() - cpu_s,
        )

    async def _warm_up(self) -> list[str]:
        """Sends the warm-up requests one by one, each with at most the time of a round, and returns how they ended."""
        statuses = []
        client = self._scenario.clients[0]
        for index, plan in enumerate(self._scenario.warmup(self._seed)):
            record = _new_record(client, 0, index, plan, start_ns=0)
            self._origin_ns = time.perf_counter_ns()
            try:
                async with asyncio.timeout(self._scenario.duration_s + self._scenario.drain_s):
                    await self._exchange(record, plan, client, self._body(client, plan))
            except TimeoutError:
                record.status = UNFINISHED
            statuses.append(record.status)
        self._origin_ns = None
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
            record = await self._send(stream, index, plan, body)
            pause_s = stream.client.arrival.think_s
            if record.failed:
                pause_s = max(pause_s, self._retry_pause_s)
            await asyncio.sleep(min(pause_s, max(0.0, self._remaining_s())))

    async def _send(self, stream: RequestStream, index: int, plan: PlannedRequest, body: bytes) -> RequestRecord:
        record = _new_record(stream.client, stream.instance, index, plan, self._now_ns())
        self.records.append(record)
        await self._exchange(record, plan, stream.client, body)
        return record

    async def _exchange(self, record: RequestRecord, plan: PlannedRequest, client: Client, body: bytes) -> None:
        """One request and its answer. Modifies `record`, which is valid at any time, also when this is cancelled."""
        headers = {"Authorization": f"Bearer bench-{client.tenant}", "Content-Type": "application/json"}
        url = f"{self._target.url}/v1/chat/completions"
        try:
            async with self._session.post(url, data=body, headers=headers) as response:
                if response.status == 200:
                    await self._read_stream(record, plan, response)
                else:
                    answer = await response.read()
                    status = f"error:{response.status}/{error_type(answer)}"
                    self._end(record, status, answer[:200].decode(errors="replace"))
        except aiohttp.ClientConnectorError as error:
            self._end(record, "error:0/connect", str(error))
        except (aiohttp.ClientError, OSError) as error:
            self._end(record, DISCONNECTED, str(error))

    async def _read_stream(self, record: RequestRecord, plan: PlannedRequest, response: aiohttp.ClientResponse) -> None:
        """Reads to the end of the connection, past the end of the answer: whoever leaves early looks like a quitter."""
        reader = StreamReader()
        async for data in response.content.iter_any():
            arrived_ns = self._now_ns() - record.start_ns
            n_chunks = reader.feed(data)
            if n_chunks:
                record.chunks_ns.extend([arrived_ns] * n_chunks)
            record.n_prompt_reported = reader.n_prompt_tokens
            record.n_output_reported = reader.n_output_tokens
            if reader.error is not None:
                self._end(record, f"error:200/{reader.error}")
                response.close()
                return
            if reader.done:
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

    def _cut(self) -> None:
        for record in self.records:
            self._end(record, UNFINISHED)

    def _body(self, client: Client, plan: PlannedRequest) -> bytes:
        body: dict[str, object] = {
            "model": self._target.model,
            "messages": messages(conversation(plan.segments, self._text_seed)),
            "max_tokens": plan.n_output_tokens,
            "ignore_eos": True,
            "temperature": client.temperature,
            "seed": plan.seed,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if self._target.extensions:
            body["service_tier"] = "flex" if client.request_class == "background" else "default"
        return msgspec.json.encode(body)

    def _now_ns(self) -> int:
        assert self._origin_ns is not None, "the clock has not started"
        return time.perf_counter_ns() - self._origin_ns

    def _remaining_s(self) -> float:
        return self._scenario.duration_s - self._now_ns() / NS_PER_S


def _new_record(client: Client, instance: int, index: int, plan: PlannedRequest, start_ns: int) -> RequestRecord:
    arrival_ns = start_ns if plan.arrival_s is None else round(plan.arrival_s * NS_PER_S)
    return RequestRecord(
        client=client.name,
        tenant=client.tenant,
        request_class=client.request_class,
        instance=instance,
        index=index,
        n_prompt_planned=plan.n_prompt_tokens,
        n_output_planned=plan.n_output_tokens,
        start_ns=start_ns,
        late_ns=max(0, start_ns - arrival_ns),
    )
