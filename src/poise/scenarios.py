"""Workloads as data: who sends what and when, read by the benchmark and by the simulator alike.

A scenario file names its clients; `Scenario.requests(seed)` turns it into one stream of requests per client instance.

1. A stream depends on the seed, the client's name and the instance number, and on nothing else. Adding a client to a
   scenario leaves the requests of the others as they were, and so does consuming the streams in another order.
2. Every request of a client costs the same number of draws, in the order: arrival, prompt, output, cancel, seed.
3. No clock is read and nothing is sent here. Times are seconds from the start of the load; the reader waits.
4. A prompt is a row of segments, each with a seed for its contents: what is common to two prompts has equal seeds. A shared
   prefix is the same for all clients of all files; the turns of a conversation repeat the prompts and answers before them.
5. A file is read strictly: an unknown key, a wrong type or a value out of range is a `ScenarioError` in one line.
"""

from __future__ import annotations

import math
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from statistics import NormalDist
from typing import Any, Literal, cast

RequestClass = Literal["interactive", "background"]
ArrivalKind = Literal["poisson", "closed"]
LengthKind = Literal["constant", "uniform", "lognormal"]

TOKENS_MAX = 1 << 20
SHARED_PREFIX_SEED = 1
_NORMAL = NormalDist()
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


class ScenarioError(ValueError):
    """A scenario that cannot be used; the message is one line for the person who wrote the file."""


@dataclass(frozen=True, slots=True)
class Scenario:
    """A workload: clients that send requests for `duration_s`, and `drain_s` more for what is then in flight."""

    name: str
    description: str
    duration_s: float
    drain_s: float
    warmup_requests: int
    clients: tuple[Client, ...]

    def requests(self, seed: int) -> tuple[RequestStream, ...]:
        """One stream for each client instance, in the order of the file.

        The streams are lazy and independent. A closed-loop stream without a limit never ends: its reader stops at
        `duration_s`. A Poisson stream ends with the last arrival before `duration_s`.
        """
        return tuple(
            RequestStream(client, instance, _generate(client, _rng(seed, client.name, instance), self.duration_s))
            for client in self.clients
            for instance in range(client.count)
        )

    def warmup(self, seed: int) -> tuple[PlannedRequest, ...]:
        """The requests to send, one after another and unmeasured, before the load: lengths of the first client."""
        rng = _rng(seed, "warm-up", 0)
        return tuple(_draw_request(self.clients[0], rng, None) for _ in range(self.warmup_requests))


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
    cancel_after_tokens: Length | None
    n_requests_max: int | None
    temperature: float
    shared_prefix_tokens: int = 0
    """Tokens that every prompt begins with, the same ones for whichever client asks for them; `prompt_tokens` come after."""
    turns: int = 1
    """Requests of one conversation: each prompt repeats the conversation so far, then come `prompt_tokens` new ones."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """When an instance sends.

    poisson  open loop: `rate_per_s` on average, however slow the answers are
    closed   the next request follows `think_s` after the end of the one before
    """

    kind: ArrivalKind
    rate_per_s: float = 0.0
    think_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Length:
    """A number of tokens, or a distribution of it within [low, high]. A log-normal draw outside is cut to the bound."""

    kind: LengthKind
    low: int
    high: int
    median: float = 0.0
    sigma: float = 0.0

    def draw(self, rng: random.Random) -> int:
        """Exactly one draw from `rng`, whatever the kind."""
        uniform = rng.random()
        if self.kind == "uniform":
            return self.low + int(uniform * (self.high - self.low + 1))
        if self.kind == "lognormal":
            exponent = self.sigma * _normal_quantile(uniform)
            return min(self.high, max(self.low, round(self.median * math.exp(exponent))))
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
    cancel_after_tokens  the client leaves after so many tokens; None: it stays to the end
    seed                 31 random bits of the request's own: for the prompt's words and the server's sampling
    before               what the prompt repeats: the shared prefix and the conversation so far; part of `n_prompt_tokens`
    """

    arrival_s: float | None
    n_prompt_tokens: int
    n_output_tokens: int
    cancel_after_tokens: int | None
    seed: int
    before: tuple[Segment, ...] = ()

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The whole prompt, in order."""
        n_before = sum(segment.n_tokens for segment in self.before)
        return (*self.before, Segment(self.seed, self.n_prompt_tokens - n_before))


def load_scenario(path: Path) -> Scenario:
    """Reads and checks a scenario file. Raises ScenarioError with one line."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ScenarioError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ScenarioError(f"{path}: is not UTF-8: byte {error.start}") from error
    return parse_scenario(text, str(path))


def parse_scenario(text: str, source: str) -> Scenario:
    """The scenario that `text` describes; `source` names it in errors."""
    try:
        values = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ScenarioError(f"{source}: not valid TOML: {error}") from error
    table = _Table(source, "", values)
    scenario = Scenario(
        name=table.name("name"),
        description=table.text("description"),
        duration_s=table.number("duration_s", 0.01, 86_400.0),
        drain_s=table.number("drain_s", 0.0, 3_600.0),
        warmup_requests=table.integer("warmup_requests", 0, 1_000, default=0),
        clients=tuple(_client(client) for client in table.tables("clients")),
    )
    table.reject_unknown()
    seen: set[str] = set()
    for index, client in enumerate(scenario.clients):
        if client.name in seen:
            raise ScenarioError(f"{source}: clients[{index}].name = {client.name!r}: another client has this name")
        seen.add(client.name)
    return scenario


def _client(table: _Table) -> Client:
    client = Client(
        name=table.name("name"),
        tenant=table.name("tenant"),
        request_class=cast(RequestClass, table.choice("class", ("interactive", "background"))),
        count=table.integer("count", 1, 10_000, default=1),
        arrival=_arrival(table.table("arrival")),
        prompt_tokens=_length(table, "prompt_tokens"),
        output_tokens=_length(table, "output_tokens"),
        cancel_after_tokens=_length(table, "cancel_after_tokens") if "cancel_after_tokens" in table.values else None,
        n_requests_max=table.integer("requests", 1, 1_000_000) if "requests" in table.values else None,
        temperature=table.number("temperature", 0.0, 2.0, default=0.8),
        shared_prefix_tokens=table.integer("shared_prefix_tokens", 0, TOKENS_MAX, default=0),
        turns=table.integer("turns", 1, 1_000, default=1),
    )
    table.reject_unknown()
    return client


def _arrival(table: _Table) -> Arrival:
    kind = cast(ArrivalKind, table.choice("kind", ("poisson", "closed")))
    if kind == "poisson":
        arrival = Arrival(kind, rate_per_s=table.number("rate_per_s", 0.001, 10_000.0))
    else:
        arrival = Arrival(kind, think_s=table.number("think_s", 0.0, 3_600.0, default=0.0))
    table.reject_unknown()
    return arrival


def _length(parent: _Table, key: str) -> Length:
    if not isinstance(parent.values.get(key), dict):
        tokens = parent.integer(key, 1, TOKENS_MAX)
        return Length("constant", tokens, tokens)
    table = parent.table(key)
    kind = cast(LengthKind, table.choice("kind", ("uniform", "lognormal")))
    low = table.integer("low", 1, TOKENS_MAX)
    high = table.integer("high", low, TOKENS_MAX)
    if kind == "uniform":
        length = Length(kind, low, high)
    else:
        median = table.number("median", low, high)
        length = Length(kind, low, high, median, table.number("sigma", 0.0, 10.0))
    table.reject_unknown()
    return length


class _Table:
    """A TOML table that is read key by key. Each read marks its key; `reject_unknown` complains about the others."""

    def __init__(self, source: str, path: str, values: Mapping[str, Any]) -> None:
        self.values = values
        self._source = source
        self._path = path
        self._known: list[str] = []

    def text(self, key: str) -> str:
        value = self._get(key, "a string", None)
        if not isinstance(value, str):
            raise self._error(key, "expected a string")
        return value

    def name(self, key: str) -> str:
        """A string that may stand in a header and in a table: lower-case letters, digits, '-' and '_'."""
        expected = "1 to 64 of a-z, 0-9, '-' and '_', the first a letter or digit"
        value = self._get(key, expected, None)
        if not isinstance(value, str) or not _NAME.fullmatch(value):
            raise self._error(key, f"expected {expected}")
        return value

    def choice(self, key: str, allowed: tuple[str, ...]) -> str:
        expected = " or ".join(f'"{option}"' for option in allowed)
        value = self._get(key, expected, None)
        if not isinstance(value, str) or value not in allowed:
            raise self._error(key, f"expected {expected}")
        return value

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        expected = f"an integer from {low} to {high}"
        value = self._get(key, expected, default)
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(key, f"expected {expected}")
        return value

    def number(self, key: str, low: float, high: float, default: float | None = None) -> float:
        expected = f"a number from {low:g} to {high:g}"
        value = self._get(key, expected, default)
        # A comparison with nan is false, so nan is out of range like any other.
        if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value <= high:
            raise self._error(key, f"expected {expected}")
        return float(value)

    def table(self, key: str) -> _Table:
        value = self._get(key, "a table", None)
        if not isinstance(value, dict):
            raise self._error(key, "expected a table")
        return _Table(self._source, f"{self._path}{key}.", value)

    def tables(self, key: str) -> list[_Table]:
        value = self._get(key, "one or more [[tables]]", None)
        if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
            raise self._error(key, "expected one or more [[tables]]")
        return [_Table(self._source, f"{self._path}{key}[{index}].", item) for index, item in enumerate(value)]

    def reject_unknown(self) -> None:
        """Call it after the last read."""
        for key in self.values:
            if key not in self._known:
                raise self._error(key, f"unknown key; known here: {', '.join(self._known)}")

    def _get(self, key: str, expected: str, default: object) -> object:
        self._known.append(key)
        value = self.values.get(key, default)
        if value is None:
            # A misspelt key is the likeliest reason for a missing one: both are in the message.
            given = ", ".join(self.values) or "nothing"
            problem = f"{self._path}{key} is missing: expected {expected}; given here: {given}"
            raise ScenarioError(f"{self._source}: {problem}")
        return value

    def _error(self, key: str, expected: str) -> ScenarioError:
        value = repr(self.values.get(key))
        shown = value if len(value) <= 80 else value[:77] + "..."
        return ScenarioError(f"{self._source}: {self._path}{key} = {shown}: {expected}")


def _generate(client: Client, rng: random.Random, duration_s: float) -> Iterator[PlannedRequest]:
    arrival_s = 0.0
    n_requests = 0
    prefix: tuple[Segment, ...] = ()
    if client.shared_prefix_tokens:
        prefix = (Segment(SHARED_PREFIX_SEED, client.shared_prefix_tokens),)
    before = prefix
    while client.n_requests_max is None or n_requests < client.n_requests_max:
        if client.arrival.kind == "poisson":
            arrival_s += -math.log(1.0 - rng.random()) / client.arrival.rate_per_s
            if arrival_s >= duration_s:
                return
            planned = _draw_request(client, rng, arrival_s, before)
        else:
            planned = _draw_request(client, rng, None, before)
        yield planned
        n_requests += 1
        if n_requests % client.turns == 0:
            before = prefix
        else:  # The answer's seed differs from the prompt's, or they would be the same words.
            before = (*planned.segments, Segment(planned.seed ^ 1, planned.n_output_tokens, is_answer=True))


def _draw_request(
    client: Client, rng: random.Random, arrival_s: float | None, before: tuple[Segment, ...] = ()
) -> PlannedRequest:
    n_prompt_tokens = client.prompt_tokens.draw(rng) + sum(segment.n_tokens for segment in before)
    n_output_tokens = client.output_tokens.draw(rng)
    cancel_after = client.cancel_after_tokens.draw(rng) if client.cancel_after_tokens is not None else None
    if cancel_after is not None and cancel_after >= n_output_tokens:
        cancel_after = None  # The answer ends first.
    return PlannedRequest(arrival_s, n_prompt_tokens, n_output_tokens, cancel_after, rng.getrandbits(31), before)


def _rng(seed: int, name: str, instance: int) -> random.Random:
    """`hash()` differs between processes, so the generator's seed is a digest."""
    digest = blake2b(f"{seed}\0{name}\0{instance}".encode(), digest_size=16).digest()
    return random.Random(int.from_bytes(digest, "big"))  # noqa: S311 - a workload, not a secret


def _normal_quantile(uniform: float) -> float:
    """The standard normal value below which a share `uniform` lies; kept within about six sigma."""
    return _NORMAL.inv_cdf(min(1.0 - 1e-9, max(1e-9, uniform)))
