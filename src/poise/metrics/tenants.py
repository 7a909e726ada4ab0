"""Metrics by tenant, for a bounded number of them: whoever was active last, by name, and the rest together as "other".

What is counted of a tenant that has to make way moves to "other", so that sums over all tenants never go back. When it returns,
it begins again at 0, as Prometheus expects of a series that was gone. A tenant that was declared as "other" is among the rest."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, Metric, SummaryMetricFamily

from poise.metrics.story import RequestStory

OTHER = "other"

_TOKENS = "Tokens of requests that ended, by tenant and kind: prompt, cached (of the prompt, not computed), output."
_REJECTED = "Generation requests answered with an error before anything was computed, by tenant and error code."
COUNTS = {
    "requests": (("class", "outcome"), "Choices that ended, by tenant."),
    "tokens": (("class", "kind"), _TOKENS),
    "rejected": (("reason",), _REJECTED),
}
"""The labels besides the tenant, and what it is."""
TIMES = {
    "queue_wait": "Time in the scheduler's queue, by tenant.",
    "time_to_first_token": "From the arrival of a request to its first token, by tenant.",
    "complete_answer": "From the arrival of a request to the end of an answer that is whole, by tenant.",
    "request_duration": "From the arrival of a request to the end of a choice, however it ended, by tenant.",
}


@dataclass(slots=True)
class _Books:
    """Counts of one tenant, by metric and labels. Of times, `counts` has how many there are, `seconds` what they add up to."""

    counts: Counter[tuple[str, ...]] = field(default_factory=Counter)
    seconds: Counter[tuple[str, ...]] = field(default_factory=Counter)

    def time(self, name: str, request_class: str, seconds: float | None) -> None:
        if seconds is not None:
            self.counts[name, request_class] += 1
            self.seconds[name, request_class] += seconds  # type: ignore[assignment] # a Counter adds up floats as well

    def swallow(self, other: "_Books") -> None:
        """Add what another one has."""
        self.counts.update(other.counts)
        self.seconds.update(other.seconds)


class TenantMetrics:
    """The `tenants_max` tenants that were active last, least recent first, and "other"."""

    def __init__(self, registry: CollectorRegistry, tenants_max: int) -> None:
        self._tenants_max = tenants_max
        self._tenants: dict[str, _Books] = {}
        self._other = _Books()
        registry.register(self)

    def ended(self, story: RequestStory) -> None:
        """A request has ended."""
        books, request_class = self._of(story.tenant), story.request_class
        arrived_s = story.arrived_s
        books.counts["tokens", request_class, "prompt"] += story.n_prompt
        for choice in story.choices:
            books.counts["requests", request_class, choice.outcome] += 1
            books.counts["tokens", request_class, "cached"] += choice.n_cached
            books.counts["tokens", request_class, "output"] += choice.n_output
            books.time("queue_wait", request_class, choice.wait_s)
            ttft_s = None if choice.first_s is None else choice.first_s - arrived_s
            books.time("time_to_first_token", request_class, ttft_s)
            books.time("request_duration", request_class, choice.ended_s - arrived_s)
            if choice.is_complete:
                books.time("complete_answer", request_class, choice.ended_s - arrived_s)

    def rejected(self, tenant: str, reason: str) -> None:
        self._of(tenant).counts["rejected", reason] += 1

    def forget(self, tenant: str) -> int:
        """Count what is the tenant's among the others'; returns how many choices that were."""
        books = self._tenants.pop(tenant, None)
        if books is None:
            return 0
        self._other.swallow(books)
        return sum(n for key, n in books.counts.items() if key[0] == "requests")

    def collect(self) -> Iterator[Metric]:
        everybody = {**self._tenants, OTHER: self._other}
        for name, (labels, text) in COUNTS.items():
            counter = CounterMetricFamily(f"poise_tenant_{name}", text, labels=["tenant", *labels])
            for tenant, books in everybody.items():
                for (counted, *key), n in books.counts.items():
                    if counted == name:
                        counter.add_metric([tenant, *key], n)
            yield counter
        for name, text in TIMES.items():
            family = SummaryMetricFamily(f"poise_tenant_{name}_seconds", text, labels=["tenant", "class"])
            for tenant, books in everybody.items():
                for (timed, request_class), seconds in books.seconds.items():
                    if timed == name:
                        family.add_metric([tenant, request_class], books.counts[name, request_class], seconds)
            yield family

    def _of(self, tenant: str) -> _Books:
        """The tenant's books. It is the most recent one now; the least recent one may have to make way."""
        if tenant == OTHER:
            return self._other
        books = self._tenants.pop(tenant, None) or _Books()
        self._tenants[tenant] = books
        if len(self._tenants) > self._tenants_max:
            least = next(iter(self._tenants))
            self._other.swallow(self._tenants.pop(least))
        return self._other if tenant not in self._tenants else books
