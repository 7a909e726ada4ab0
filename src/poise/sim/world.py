"""The world around a simulated engine: clients that follow a scenario, as the engine's Inbox and Outbox.

Event-driven on virtual time (the loop shape is Vidur's: a heap of moments): an idle engine's wait jumps to the next moment.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field

from poise.scenarios import PlannedRequest, RequestStream, Scenario
from poise.sim.clock import VirtualClock
from poise.wire import messages as wire


@dataclass(slots=True)
class Record:
    """What a client saw of one request. Times in virtual nanoseconds; None: it did not happen."""

    client: str
    request_class: str
    tenant: str
    sent_ns: int
    n_prompt: int
    first_ns: int | None = None
    last_ns: int | None = None
    finished_ns: int | None = None
    outcome: str = "unfinished"
    gaps_ns: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)


@dataclass(slots=True)
class _Sent:
    stream: RequestStream
    planned: PlannedRequest
    record: Record


class World:
    """Inbox and Outbox of a simulated engine. `drain` raises EOFError when the scenario is over and nothing is in flight."""

    def __init__(self, scenario: Scenario, seed: int, clock: VirtualClock) -> None:
        self.records: list[Record] = []
        self._clock = clock
        self._ends_ns = int(scenario.duration_s * 1e9)
        self._moments: list[tuple[int, int, wire.ToEngine]] = []
        self._n_moments = 0
        self._n_requests = 0
        self._in_flight: dict[int, _Sent] = {}
        for stream in scenario.requests(seed):
            if stream.client.arrival.kind == "closed":
                self._send_next(stream, 0)
            else:
                for planned in stream.requests:
                    self._submit(stream, planned, int((planned.arrival_s or 0.0) * 1e9))

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[wire.ToEngine]:
        if block and not self._is_due():
            if not self._moments and wait_until_ns is None:
                raise EOFError("the scenario is over")
            moment_ns = min([m[0] for m in self._moments[:1]] + ([wait_until_ns] if wait_until_ns is not None else []))
            self._clock.advance_to(moment_ns)
        return list(self._due())

    def send(self, message: wire.ToGateway) -> None:
        now_ns = self._clock.now_ns()
        match message:
            case wire.Refused():
                self._end(message.request_id, message.reason, now_ns)
            case wire.Step():
                for token in message.tokens:
                    self._token(token, now_ns)
                for finish in message.finishes:
                    self._end(finish.request_id, finish.reason, now_ns)

    def _is_due(self) -> bool:
        return bool(self._moments) and self._moments[0][0] <= self._clock.now_ns()

    def _due(self) -> Iterator[wire.ToEngine]:
        while self._is_due():
            yield heapq.heappop(self._moments)[2]

    def _at(self, when_ns: int, message: wire.ToEngine) -> None:
        self._n_moments += 1
        heapq.heappush(self._moments, (when_ns, self._n_moments, message))

    def _send_next(self, stream: RequestStream, when_ns: int) -> None:
        if when_ns < self._ends_ns and (planned := next(stream.requests, None)) is not None:
            self._submit(stream, planned, when_ns)

    def _submit(self, stream: RequestStream, planned: PlannedRequest, when_ns: int) -> None:
        self._n_requests += 1
        client = stream.client
        record = Record(client.name, client.request_class, client.tenant, when_ns, planned.n_prompt_tokens)
        self.records.append(record)
        self._in_flight[self._n_requests] = _Sent(stream, planned, record)
        sampling = wire.SamplingParams(temperature=client.temperature, seed=planned.seed, ignore_eos=True)
        prompt = [planned.seed % 997 + k % 89 for k in range(planned.n_prompt_tokens)]
        self._at(
            when_ns,
            wire.Submit(
                self._n_requests, client.tenant, client.request_class, prompt, planned.n_output_tokens, sampling
            ),
        )

    def _token(self, token: wire.Token, now_ns: int) -> None:
        sent = self._in_flight.get(token.request_id)
        if sent is None:
            return
        record = sent.record
        if record.last_ns is None:
            record.first_ns = now_ns
        else:
            record.gaps_ns.append(now_ns - record.last_ns)
        record.last_ns = now_ns
        record.tokens.append(token.token)
        if len(record.tokens) == sent.planned.cancel_after_tokens:
            self._at(now_ns, wire.Abort(token.request_id))

    def _end(self, request_id: int, outcome: str, now_ns: int) -> None:
        sent = self._in_flight.pop(request_id)
        sent.record.outcome, sent.record.finished_ns = outcome, now_ns
        arrival = sent.stream.client.arrival
        if arrival.kind == "closed":
            pause_ns = max(int(arrival.think_s * 1e9), 1_000_000 if outcome == "queue_full" else 0)
            self._send_next(sent.stream, now_ns + pause_ns)
