"""What a scenario consists of, and how its clients' requests follow from a seed. The rules are in the package's docstring."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from hashlib import blake2b
from itertools import count
from statistics import NormalDist
from typing import Literal, get_args

from poise_lab.scenarios.trace import Trace, TraceRow

RequestClass = Literal["interactive", "background"]
ArrivalKind = Literal["poisson", "closed", "trace"]
LengthKind = Literal["constant", "uniform", "lognormal", "trace"]
ReadingKind = Literal["tokens", "bytes", "stuck"]
ARRIVAL_KINDS = get_args(ArrivalKind)

SHARED_PREFIX_SEED = 1
_NO_ROW = TraceRow(0.0, 0, 0)
_NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload: clients that send requests for `duration_s`, and `drain_s` more for what is then in flight."""

    name: str
    description: str
    duration_s: float
    drain_s: float
    warmup_requests: int
    clients: tuple[Client, ...]
    events: tuple[Event, ...] = ()
    targets: tuple[Targets, ...] = ()

    def requests(self, seed: int) -> tuple[RequestStream, ...]:
        """One stream for each client instance, in the order of the file.

        The streams are lazy and independent. A closed-loop stream without a limit never ends: its reader stops at
        `duration_s`. An open-loop stream ends with the last arrival before `duration_s`."""
        return tuple(
            RequestStream(client, instance, _generate(client, seed, instance, self.duration_s))
            for client in self.clients
            for instance in range(client.count)
        )

    def warmup(self, seed: int) -> tuple[PlannedRequest, ...]:
        """The requests to send, one after another and unmeasured, before the load: lengths of the first client."""
        client, rng = self.clients[0], rng_of(seed, "warm-up", 0)
        rows = client.arrival.trace.rows if client.arrival.trace is not None else (_NO_ROW,)
        return tuple(_draw_request(client, rng, None, row=rows[number % len(rows)]) for number in range(self.warmup_requests))


@dataclass(frozen=True, slots=True)
class Client:
    """`count` equal clients of one tenant and class, each with its own stream of requests."""

    name: str
    tenant: str
    request_class: RequestClass
    count: int
    arrival: Arrival
    prompt_tokens: Length
    output_tokens: Length
    cancel_after_tokens: Length | None = None
    n_requests_max: int | None = None
    temperature: float = 0.0
    shared_prefix_tokens: int = 0
    """Tokens that every prompt begins with, the same ones for whichever client asks for them; `prompt_tokens` come after."""
    turns: int = 1
    """Requests of one conversation: each prompt repeats the conversation so far, then come `prompt_tokens` new ones."""
    context_tokens: Length | None = None
    """What each conversation begins with, tokens of its own; the first `prompt_tokens` come after them."""
    cancel_after_ms: Length | None = None
    """Milliseconds after sending at which the client leaves."""
    cancel_before_first_token: bool = False
    """At `cancel_after_ms` only those leave that have no token yet."""
    cancel_share: float = 1.0
    """The share of the requests to which `cancel_after_tokens` and `cancel_after_ms` apply."""
    reading: Reading | None = None
    """How the answer is read; None: as fast as it comes."""
    malformed_share: float = 0.0
    """The share of the requests that are no valid requests, which the server must refuse."""
    fresh_tenants: bool = False
    """Each request comes with a key of its own, as a tenant that nobody has seen; `tenant` is what their names begin with."""

    @property
    def is_open_loop(self) -> bool:
        """It sends on schedule, however slow the answers are."""
        return self.arrival.kind != "closed"


@dataclass(frozen=True, slots=True)
class Arrival:
    """When an instance sends.

    poisson  open loop: `rate_per_s` on average, however slow the answers are
    trace    open loop: at the times of `trace` from `start_s` of it on, times `time_scale`, `limit` requests at most
    closed   the next request follows `think_s` after the end of the one before, or with a `think_max_s` any time up to that; with
             a `rate_per_s`, not before its turn: one every 1/`rate_per_s` is due, and a request that is sent after it was due has
             waited since"""

    kind: ArrivalKind
    rate_per_s: float = 0.0
    think_s: float = 0.0
    think_max_s: float | None = None
    trace: Trace | None = None
    time_scale: float = 1.0
    start_s: float = 0.0
    limit: int | None = None

    def draw_think_s(self, rng: random.Random) -> float:
        """Between one answer and the next request."""
        return self.think_s if self.think_max_s is None else rng.uniform(self.think_s, self.think_max_s)

    def rows(self, instance: int, n_instances: int) -> Iterator[tuple[float, TraceRow]]:
        """The part of the trace that one of several instances sends, which share it turn by turn, with its times here."""
        assert self.trace is not None, "only a trace has rows"
        from_start = [row for row in self.trace.rows if row.at_s >= self.start_s][: self.limit]
        for row in from_start[instance::n_instances]:
            yield (row.at_s - self.start_s) * self.time_scale, row


@dataclass(frozen=True, slots=True)
class Reading:
    """How a client reads its answers.

    tokens  `per_s` chunks with text a second
    bytes   `per_s` bytes a second
    stuck   it stops after `after_tokens` chunks with text: for `stuck_s`, or for good"""

    kind: ReadingKind
    per_s: float = 0.0
    after_tokens: int = 0
    stuck_s: float | None = None


@dataclass(frozen=True, slots=True)
class Event:
    """Something that is done to the server `at_s` of the load. kill_engine: its engine process is killed."""

    kind: Literal["kill_engine"]
    at_s: float


@dataclass(frozen=True, slots=True)
class Targets:
    """What a request of a class must keep to count as good; None: no such target."""

    request_class: RequestClass
    ttft_ms: float | None = None
    itl_p99_ms: float | None = None
    e2e_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens, or a distribution of it within [low, high]. A log-normal draw outside is cut to the bound."""

    kind: LengthKind
    low: int
    high: int
    median: float = 0.0
    sigma: float = 0.0
    scale: float = 1.0

    def draw(self, rng: random.Random, traced: int = 0) -> int:
        """Exactly one draw from `rng`, whatever the kind; `traced` is what the trace says."""
        uniform = rng.random()
        if self.kind == "trace":
            return min(self.high, max(self.low, round(traced * self.scale)))
        if self.kind == "uniform":
            return self.low + int(uniform * (self.high - self.low + 1))
        if self.kind == "lognormal":
            sigmas = _NORMAL.inv_cdf(min(1.0 - 1e-9, max(1e-9, uniform)))  # within about six
            return min(self.high, max(self.low, round(self.median * math.exp(self.sigma * sigmas))))
        return self.low


@dataclass(frozen=True, slots=True)
class RequestStream:
    """The requests of one client instance. The iterator is consumed by reading it."""

    client: Client
    instance: int
    requests: Iterator[PlannedRequest]


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a prompt: `n_tokens` that depend on `seed` alone. With `is_answer`, it stands for the answer to what precedes
    it: a reader that has that answer puts it here."""

    seed: int
    n_tokens: int
    is_answer: bool = False


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    """One request to send.

    arrival_s            seconds from the start of the load; None in a closed loop
    due_s                when a closed loop with a rate means to send it; None without one
    cancel_after_tokens  the client leaves after so many tokens; None: it stays to the end
    seed                 31 random bits of the request's own: for the prompt's words and the server's sampling
    cancel_after_ms      the client leaves so long after sending; None: it does not look at the clock
    malformed            no valid request; its lengths mean nothing
    think_s              in a closed loop: how long after its end its client sends the next one
    before               what the prompt repeats: the shared prefix and the conversation so far; part of `n_prompt_tokens`"""

    arrival_s: float | None
    n_prompt_tokens: int
    n_output_tokens: int
    cancel_after_tokens: int | None
    seed: int
    before: tuple[Segment, ...] = ()
    due_s: float | None = None
    cancel_after_ms: int | None = None
    malformed: bool = False
    think_s: float = 0.0

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The whole prompt, in order."""
        n_before = sum(segment.n_tokens for segment in self.before)
        return (*self.before, Segment(self.seed, self.n_prompt_tokens - n_before))

    @property
    def answer_seed(self) -> int:
        """Of the segment that repeats the answer: not the prompt's, or they would be the same words."""
        return self.seed ^ 1


def _generate(client: Client, seed: int, instance: int, duration_s: float) -> Iterator[PlannedRequest]:
    rng, behaviour = rng_of(seed, client.name, instance), rng_of(seed, f"{client.name} behaves", instance)
    prefix: tuple[Segment, ...] = ()
    if client.shared_prefix_tokens:
        prefix = (Segment(SHARED_PREFIX_SEED, client.shared_prefix_tokens),)
    begins, thinks = (rng_of(seed, f"{client.name} {does}", instance) for does in ("begins", "thinks"))
    before = prefix
    for number, (at_s, row) in enumerate(_arrivals(client, rng, instance, duration_s)):
        if client.n_requests_max is not None and number >= client.n_requests_max:
            return
        if number % client.turns == 0:
            before = prefix
            if client.context_tokens is not None:
                before = (*prefix, Segment(begins.getrandbits(31), client.context_tokens.draw(begins)))
        planned = _draw_request(client, rng, at_s, before, row=row, behaviour=behaviour)
        planned = replace(planned, think_s=client.arrival.draw_think_s(thinks))
        yield planned
        if (number + 1) % client.turns:
            before = (*planned.segments, Segment(planned.answer_seed, planned.n_output_tokens, is_answer=True))


def _arrivals(client: Client, rng: random.Random, instance: int, duration_s: float) -> Iterator[tuple[float | None, TraceRow]]:
    """When each request is sent or, in a closed loop with a rate, due; with what the trace says of it."""
    arrival = client.arrival
    if arrival.kind == "trace":
        for at_s, row in arrival.rows(instance, client.count):
            if at_s >= duration_s:
                return
            yield at_s, row
    elif arrival.kind == "poisson":
        at_s = 0.0
        while (at_s := at_s - math.log(1.0 - rng.random()) / arrival.rate_per_s) < duration_s:
            yield at_s, _NO_ROW
    else:  # Instances that are due at the same moment would be a crowd.
        for number in count():
            yield (number + instance / client.count) / arrival.rate_per_s if arrival.rate_per_s else None, _NO_ROW


def _draw_request(
    client: Client,
    rng: random.Random,
    at_s: float | None,
    before: tuple[Segment, ...] = (),
    *,
    row: TraceRow = _NO_ROW,
    behaviour: random.Random | None = None,
) -> PlannedRequest:
    """One request. Without `behaviour` it is a well-formed one whose client stays."""
    n_prompt = client.prompt_tokens.draw(rng, row.n_context) + sum(segment.n_tokens for segment in before)
    n_output = client.output_tokens.draw(rng, row.n_generated)
    cancel_after = client.cancel_after_tokens.draw(rng) if client.cancel_after_tokens is not None else None
    if cancel_after is not None and cancel_after >= n_output:
        cancel_after = None  # The answer ends first.
    cancel_after_ms, malformed = None, False
    if behaviour is not None:
        leaves = behaviour.random() < client.cancel_share
        after_ms = client.cancel_after_ms.draw(behaviour) if client.cancel_after_ms is not None else None
        cancel_after, cancel_after_ms = (cancel_after, after_ms) if leaves else (None, None)
        malformed = behaviour.random() < client.malformed_share
    arrival_s, due_s = (at_s, None) if client.is_open_loop else (None, at_s)
    seed = rng.getrandbits(31)
    return PlannedRequest(arrival_s, n_prompt, n_output, cancel_after, seed, before, due_s, cancel_after_ms, malformed=malformed)


def rng_of(*parts: int | str) -> random.Random:
    """A generator of its own for these parts. `hash()` differs between processes, so its seed is a digest."""
    digest = blake2b("\0".join(map(str, parts)).encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))  # noqa: S311 - a workload, not a secret
