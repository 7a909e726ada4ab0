"""The world around a simulated engine: clients that follow a scenario, as the engine's Inbox and Outbox.

Event-driven on virtual time (the loop shape is Vidur's: a heap of moments): an idle engine's wait jumps to the next moment.
The tests have a world in which things go wrong (tests/sim/checking/world.py)."""

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

from poise.wire import messages as wire
from poise.wire import to_engine
from poise.wire.to_engine import Accounts
from poise_lab.scenarios.model import PlannedRequest, RequestStream, Scenario, Segment
from poise_lab.sim.runner import VirtualClock

TEMPLATE = "shared"
"""The template that requests name whose prompts have a shared prefix."""


@dataclass(frozen=True, slots=True)
class TemplateTokens:
    """Tokens that a chat template adds to a prompt, and for each turn of the conversation that precedes it."""

    prompt: int = 0
    turn: int = 0


def template_tokens(scenario: Scenario, requests: Iterable[Mapping[str, Any]]) -> TemplateTokens:
    """From the requests that a benchmark sent, as its JSON file has them: medians of what was counted over what was planned."""
    turns = {client.name: client.turns for client in scenario.clients}
    extra: dict[bool, list[tuple[int, int]]] = {True: [], False: []}
    for request in requests:
        if request["prompt_tokens"] is not None:
            turn = request["index"] % turns[request["client"]]
            extra[turn == 0].append((turn, request["prompt_tokens"] - request["prompt_tokens_planned"]))
    if not extra[True]:
        return TemplateTokens()
    first = max(0, round(median(n for _, n in extra[True])))
    later = [(n - first) / turn for turn, n in extra[False]]
    return TemplateTokens(first, max(0, round(median(later))) if later else 0)


RETRY_PAUSE_NS = 500_000_000
"""A closed-loop client that was refused waits at least so long."""


def ignored(scenario: Scenario) -> list[str]:
    """What of a scenario this world does not simulate, in words."""
    clients = scenario.clients
    named = {
        "readers read at full speed here": [c.name for c in clients if c.reading is not None],
        "malformed requests are left out, no engine ever sees one": [c.name for c in clients if c.malformed_share],
        "each new key is an account here, a gateway lets eight at a time be one": [c.name for c in clients if c.fresh_tenants],
    }
    found = [f"{what}: {', '.join(names)}" for what, names in named.items() if names]
    return [*found, f"{len(scenario.events)} engine kill(s) do not happen here"] if scenario.events else found


@dataclass(slots=True)
class RequestResult:
    """What a client saw of one request. Times in virtual nanoseconds; None: it did not happen."""

    client: str
    request_class: str
    tenant: str
    sent_ns: int
    n_prompt: int
    finished_ns: int | None = None
    outcome: str = "unfinished"
    tokens: list[int] = field(default_factory=list)
    times_ns: list[int] = field(default_factory=list)
    """When each token came."""

    @property
    def first_ns(self) -> int | None:
        return self.times_ns[0] if self.times_ns else None

    @property
    def gaps_ns(self) -> list[int]:
        """Between each token and the next."""
        return [later - earlier for earlier, later in pairwise(self.times_ns)]

    def tokens_within(self, window_ns: int) -> int:
        """Tokens that came by then."""
        return bisect_right(self.times_ns, window_ns)


@dataclass(frozen=True, slots=True)
class NextRequest:
    """The next request of a stream."""

    stream: RequestStream
    planned: PlannedRequest


Moment = to_engine.ToEngine | NextRequest | int
"""What happens at one; a number is the request whose client loses its patience then."""


@dataclass(slots=True)
class _Sent:
    stream: RequestStream
    planned: PlannedRequest
    record: RequestResult


class World:
    """Inbox and Outbox of a simulated engine. `drain` raises EOFError when the scenario is over and nothing is in flight.

    `template`: what a server's chat template adds to prompts. `way_us`: from a client to the engine, and as long back. `power`:
    what may be used from the start on."""

    def __init__(
        self,
        scenario: Scenario,
        seed: int,
        clock: VirtualClock,
        template: TemplateTokens | None = None,
        way_us: float = 0.0,
        power: to_engine.Power | None = None,
    ) -> None:
        self.records: list[RequestResult] = []
        self.is_stopped = False
        self._clock = clock
        self._added = template or TemplateTokens()
        self._way_ns = int(way_us * 1000)
        self._ends_ns = int(scenario.duration_s * 1e9)
        self._moments: list[tuple[int, int, Moment]] = []
        self._n_moments = 0
        self._n_requests = 0
        self._in_flight: dict[int, _Sent] = {}
        self._answers: dict[int, list[int]] = {}
        """What conversations go on from, by the seed of the segment that repeats it."""
        self._at(0, Accounts(0, []))
        if power is not None:
            self._at(0, power)
        for stream in scenario.requests(seed):
            self._schedule_next(stream, 0)

    def stop(self) -> None:
        """No new request from now on; what is in flight may end, and all else that was to happen happens."""
        self.is_stopped = True
        self._moments = [moment for moment in self._moments if not isinstance(moment[2], NextRequest)]
        heapq.heapify(self._moments)

    def wake(self) -> None:
        """What a simulated runner prepares, it has at once."""

    def drain(self, wait_until_ns: int | None, *, block: bool) -> list[to_engine.ToEngine]:
        if block and not self._is_due():
            self._wait(wait_until_ns)
        return list(self._due())

    def send(self, message: wire.ToGateway) -> None:
        arrives_ns = self._clock.now_ns() + self._way_ns
        match message:
            case wire.Refused():
                self._end(message.request_id, message.reason, arrives_ns)
            case wire.Step():
                for token in message.tokens:
                    self._token(token, arrives_ns)
                for finish in message.finishes:
                    self._end(finish.request_id, finish.reason, arrives_ns)

    def _wait(self, wait_until_ns: int | None) -> None:
        """Move the clock to the next thing that happens. Raises EOFError when nothing will."""
        next_ns = self._next_ns(wait_until_ns)
        if next_ns is None:
            raise EOFError("the scenario is over")
        self._clock.advance_to(next_ns)

    def _next_ns(self, wait_until_ns: int | None) -> int | None:
        """When something happens, or the engine wants to go on; None: never."""
        while self._moments and self._is_over(self._moments[0][2]):
            heapq.heappop(self._moments)  # Or the clock would run on for nobody.
        moments = [*(m[0] for m in self._moments[:1]), *([wait_until_ns] if wait_until_ns is not None else [])]
        return min(moments, default=None)

    def _is_due(self) -> bool:
        return bool(self._moments) and self._moments[0][0] <= self._clock.now_ns()

    def _due(self) -> Iterator[to_engine.ToEngine]:
        """Deliver what is due, in order."""
        while self._is_due():
            when_ns, _, what = heapq.heappop(self._moments)
            if self._is_over(what):
                continue
            if isinstance(what, NextRequest):
                yield self._submit(what, when_ns - self._way_ns)
            else:
                yield to_engine.Abort(what) if isinstance(what, int) else what

    def _is_over(self, what: Moment) -> bool:
        """Nobody leaves who is gone, or who wanted no more than a first token and has it."""
        if not isinstance(what, int):
            return False
        sent = self._in_flight.get(what)
        return sent is None or (sent.stream.client.cancel_before_first_token and sent.record.first_ns is not None)

    def _at(self, when_ns: int, what: Moment) -> None:
        self._n_moments += 1
        heapq.heappush(self._moments, (when_ns, self._n_moments, what))

    def _schedule_next(self, stream: RequestStream, when_ns: int) -> None:
        """A closed-loop client sends at `when_ns` or when its next request is due after that, an open-loop one when it has
        planned to. A malformed request never reaches an engine: it is passed over."""
        if self.is_stopped or when_ns >= self._ends_ns:
            return
        for planned in stream.requests:
            at_s = planned.arrival_s if planned.arrival_s is not None else planned.due_s
            open_loop = planned.arrival_s is not None
            at_ns = when_ns if at_s is None else int(at_s * 1e9) if open_loop else max(when_ns, int(at_s * 1e9))
            if at_ns >= self._ends_ns:
                return
            if not planned.malformed:
                self._at(at_ns + self._way_ns, NextRequest(stream, planned))
                return
            when_ns = at_ns + max(int(planned.think_s * 1e9), RETRY_PAUSE_NS)

    def _submit(self, request: NextRequest, when_ns: int) -> to_engine.Submit:
        """The request, sent at `when_ns`, as the gateway would hand it on; an open-loop stream's next one is planned at once."""
        self._n_requests += 1
        stream, planned, request_id = request.stream, request.planned, self._n_requests
        client = stream.client
        prompt = self._prompt(planned)
        tenant = f"{client.tenant}-{request_id}" if client.fresh_tenants else client.tenant
        record = RequestResult(client.name, client.request_class, tenant, when_ns, len(prompt))
        self.records.append(record)
        if planned.arrival_s is not None:
            self._schedule_next(stream, when_ns)
        if planned.cancel_after_ms is not None:
            self._at(when_ns + planned.cancel_after_ms * 1_000_000 + self._way_ns, request_id)
        # Requests of the scenario use all their output, as the benchmark's do; others may end by themselves.
        ignore_eos = planned.arrival_s is not None or client.arrival.kind == "closed"
        sampling = to_engine.SamplingParams(temperature=client.temperature, seed=planned.seed, ignore_eos=ignore_eos)
        self._in_flight[request_id] = _Sent(stream, planned, record)
        return to_engine.Submit(
            request_id, tenant, client.request_class, prompt, planned.n_output_tokens, sampling,
            template=TEMPLATE if client.shared_prefix_tokens else "",
        )  # fmt: skip

    def _prompt(self, planned: PlannedRequest) -> list[int]:
        tokens = segment_tokens(Segment(997, self._added.prompt))
        for segment in planned.segments:
            tokens += self._answers.get(segment.seed) or segment_tokens(segment)
            if segment.is_answer:
                tokens += segment_tokens(Segment(996, self._added.turn))
        return tokens

    def _token(self, token: wire.Token, now_ns: int) -> None:
        """A token reaches its client."""
        sent = self._in_flight[token.request_id]
        record = sent.record
        record.times_ns.append(now_ns)
        record.tokens.append(token.token)
        if len(record.tokens) == sent.planned.cancel_after_tokens:
            self._at(now_ns + self._way_ns, token.request_id)

    def _end(self, request_id: int, outcome: str, now_ns: int) -> None:
        sent = self._in_flight.pop(request_id)
        record = sent.record
        record.outcome, record.finished_ns = outcome, now_ns
        client = sent.stream.client
        if client.turns > 1 and len(record.tokens) == sent.planned.n_output_tokens:
            self._answers[sent.planned.answer_seed] = record.tokens
        if client.arrival.kind == "closed":
            failed = outcome not in ("length", "stop", "aborted")
            pause_ns = max(int(sent.planned.think_s * 1e9), RETRY_PAUSE_NS if failed else 0)
            self._schedule_next(sent.stream, now_ns + pause_ns)


def segment_tokens(segment: Segment) -> list[int]:
    """The tokens of a part of a prompt."""
    return [segment.seed % 997 + k % 89 for k in range(segment.n_tokens)]
