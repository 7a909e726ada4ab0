"""What is counted of work for other servers: how much was sent where, what came of it and what it cost, as /metrics shows it.

Every label is bounded: backends and budgets are the configuration's, and an outcome that is not known here is `other`. Who has a
budget is told to operators only, as all that is told by tenant."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nsmallest
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from poise.config.hybrid import NANO

OUTCOMES = (
    "done", "cancelled", "closed", "no_audit", "connect", "tls", "redirect", "timeout", "too_large", "encoding", "broken",
    "status",
)  # fmt: skip
OTHER = "other"
BUDGETS_MAX = 100

_SENT = "Requests that were sent to another server, counted before their first byte."
_REQUESTS = (
    "Requests that were to be sent to another server and have ended: done, cancelled (nobody wanted it any more), status (it "
    "answered with an error), closed (nothing may leave), no_audit (the audit log could not be written), connect, tls, redirect, "
    "timeout, too_large, encoding, broken (its answer is none)."
)
_BYTES = "Bytes of bodies sent to other servers and received from them."
_TOKENS = "Tokens of answers of other servers, as they told them: prompt, cached (of the prompt), output."
_COST = "What answers of other servers cost, in the operator's currency."
_OPEN = "1 while requests may leave this host, else 0."
_SLOTS = "Places for requests at another server, by state: busy, free."
_QUEUE = "Requests that wait for a place at another server."
_UP = "1 while another server is taken to answer, else 0."
_LEFT = "What is left of a budget in its present hour, day or month (UTC), reservations taken off; the scarcest hundred."


class BackendFigures(NamedTuple):
    """How another server stands, as this one sees it."""

    n_slots: int
    n_busy: int
    queued: Mapping[str, int]
    """Requests that wait, by class."""
    is_up: bool


class BudgetLeft(NamedTuple):
    """What is left of a budget, in nano-units. `scope`: "tenant" or "backend"; `period`: "hour", "day" or "month"."""

    scope: str
    name: str
    period: str
    left_nano: int
    limit_nano: int


class EgressMetrics:
    """Of one gateway, written and read in its event loop."""

    def __init__(self, registry: CollectorRegistry, operators: CollectorRegistry) -> None:
        """`operators`: what only they are shown."""
        self._sent: Counter[tuple[str, ...]] = Counter()
        self._requests: Counter[tuple[str, ...]] = Counter()
        self._bytes: Counter[tuple[str, ...]] = Counter()
        self._tokens: Counter[tuple[str, ...]] = Counter()
        self._cost_nano: Counter[str] = Counter()
        self._backends: dict[str, Callable[[], BackendFigures]] = {}
        self._open: Callable[[], bool] = lambda: False
        self._budgets: Callable[[], Iterable[BudgetLeft]] = tuple
        registry.register(self)
        operators.register(_Budgets(lambda: self._budgets()))

    def sent(self, backend: str, label: str) -> None:
        """Its first byte is about to leave."""
        self._sent[backend, label] += 1

    def ended(self, backend: str, label: str, outcome: str, n_sent: int, n_received: int) -> None:
        """It is over, also where nothing was sent. `n_sent`, `n_received`: bytes of bodies."""
        self._requests[backend, label, outcome if outcome in OUTCOMES else OTHER] += 1
        self._bytes[backend, "sent"] += n_sent
        self._bytes[backend, "received"] += n_received

    def used(self, backend: str, n_prompt: int, n_cached: int, n_output: int, cost_nano: int) -> None:
        """What an answer took."""
        for kind, n_tokens in (("prompt", n_prompt), ("cached", n_cached), ("output", n_output)):
            self._tokens[backend, kind] += n_tokens
        self._cost_nano[backend] += cost_nano

    def is_open(self, ask: Callable[[], bool]) -> None:
        """Where to ask whether requests may leave."""
        self._open = ask

    def watch_backend(self, name: str, figures: Callable[[], BackendFigures]) -> None:
        """Where to ask how another server stands. Its series begin at 0."""
        self._backends[name] = figures
        self.used(name, 0, 0, 0, 0)
        self._bytes.update({(name, "sent"): 0, (name, "received"): 0})

    def watch_budgets(self, budgets: Callable[[], Iterable[BudgetLeft]]) -> None:
        """Where to ask what is left of them."""
        self._budgets = budgets

    def collect(self) -> Iterator[Metric]:
        yield _counter("sent", _SENT, ("backend", "label"), self._sent)
        yield _counter("requests", _REQUESTS, ("backend", "label", "outcome"), self._requests)
        yield _counter("bytes", _BYTES, ("backend", "direction"), self._bytes)
        yield _counter("tokens", _TOKENS, ("backend", "kind"), self._tokens)
        costs: dict[tuple[str, ...], float] = {(backend,): nano / NANO for backend, nano in self._cost_nano.items()}
        yield _counter("cost_units", _COST, ("backend",), costs)
        yield GaugeMetricFamily("poise_egress_open", _OPEN, value=self._open())
        slots = GaugeMetricFamily("poise_backend_slots", _SLOTS, labels=["backend", "state"])
        queue = GaugeMetricFamily("poise_backend_queue", _QUEUE, labels=["backend", "class"])
        up = GaugeMetricFamily("poise_backend_up", _UP, labels=["backend"])
        for name, ask in self._backends.items():
            figures = ask()
            slots.add_metric([name, "busy"], figures.n_busy)
            slots.add_metric([name, "free"], max(0, figures.n_slots - figures.n_busy))
            for request_class, n_queued in figures.queued.items():
                queue.add_metric([name, request_class], n_queued)
            up.add_metric([name], figures.is_up)
        yield from (slots, queue, up)


class _Budgets:
    """What is left of budgets, of those with the least of it."""

    def __init__(self, ask: Callable[[], Iterable[BudgetLeft]]) -> None:
        self._ask = ask

    def collect(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("poise_budget_left_units", _LEFT, labels=["scope", "name", "period"])
        for left in nsmallest(BUDGETS_MAX, self._ask(), key=lambda one: one.left_nano / max(1, one.limit_nano)):
            family.add_metric([left.scope, left.name, left.period], left.left_nano / NANO)
        yield family


def _counter(name: str, text: str, labels: tuple[str, ...], counts: Mapping[tuple[str, ...], float]) -> Metric:
    family = CounterMetricFamily(f"poise_egress_{name}", text, labels=labels)
    for values, count in counts.items():
        family.add_metric(values, count)
    return family
