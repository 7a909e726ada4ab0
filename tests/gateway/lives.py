"""Records of requests with given times, for explanations: what a life would have left, at moments of the test's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from poise.gateway.explain.facts import Facts, Surroundings, Weather, facts_of
from poise.gateway.explain.neighbours import Neighbours, SlotLimits
from poise.gateway.records.moments import PREFILL, Moment
from poise.gateway.records.record import Origin, Record
from poise.gateway.records.values import Heading
from poise.scheduler.request import RequestClass

SECRET = "xyzzy"


class Life:
    """One record, written moment by moment. Times in seconds."""

    def __init__(
        self,
        name: str = "r",
        tenant: str = "a",
        request_class: str = "interactive",
        arrived_s: float = 0.0,
        n: int = 1,
        queue_timeout_ms: int = 0,
    ) -> None:
        heading = Heading(name, 0, "toy", "fp")
        origin = Origin(f"req-{name}", tenant, RequestClass(request_class), "messages", arrived_s, queue_timeout_ms)
        self.record = Record(origin, heading, n)
        self.record.n_prompt, self.record.is_open = 100, True

    def at(self, at_s: float, what: str, choice: int | None = 0, **detail: Any) -> Life:
        self.record.timeline.append(Moment(what, at_s, self.record.n_entries, choice, detail))
        self.record.downgraded |= what == "downgrade"
        return self

    def queued(self, at_s: float, position: int = 1, eta_ms: int = 0, choice: int = 0) -> Life:
        return self.at(at_s, "queued", choice, position=position, eta_ms=eta_ms)

    def started(self, at_s: float, pool: str = "short", cached: int = 0, choice: int = 0) -> Life:
        self.record.choices[choice].n_cached = cached
        return self.at(at_s, "started", choice, pool=pool, cached_tokens=cached, wait_ms=0)

    def prefill(self, at_s: float, n: int, pass_s: float = 0.1, beside: int = 0, chunks: int = 1, until_s: float = 0.0) -> Life:
        """Heard of at `at_s`; with several chunks, the last one at `until_s`."""
        until_ms = int((max(at_s, until_s) - self.record.origin.arrived_s) * 1000)
        counts = {"computed_tokens": n, "chunks": chunks, "pass_us": round(pass_s * 1e6), "beside_tokens": beside}
        return self.at(at_s, PREFILL, **counts, until_ms=until_ms)

    def tokens(self, *times_s: float, choice: int = 0) -> Life:
        for at_s in times_s:
            if choice not in self.record.owners:
                self.at(at_s, "first_token", choice)
            self.record.append(choice, SECRET, (), at_s)
        return self

    def ended(self, at_s: float, outcome: str = "stop") -> Life:
        for choice in self.record.choices:
            choice.outcome = outcome
            self.at(at_s, "finished", choice.index, reason=outcome, outcome=outcome)
        self.record.ended_s = at_s
        return self


def holder(name: str, begin_s: float, end_s: float, tenant: str = "b", request_class: str = "interactive") -> Life:
    """One that had a slot from `begin_s` to `end_s`, and gave a token each tenth of a second."""
    life = Life(name, tenant, request_class, begin_s).queued(begin_s).started(begin_s).prefill(begin_s + 0.05, 40, 0.05)
    n = int((end_s - begin_s) * 10)
    return life.tokens(*[begin_s + 0.1 * (i + 1) for i in range(n)]).ended(end_s)


def facts(
    life: Life,
    others: Sequence[Life] = (),
    *,
    now_s: float = 100.0,
    viewer: str | None = "a",
    limits: SlotLimits | None = None,
    weather: Weather | None = None,
    forgotten_s: float | None = None,
) -> Facts:
    records = [other.record for other in others]
    neighbours = Neighbours(life.record, records, lambda other: viewer in (None, other.origin.tenant), now_s)
    there = limits or SlotLimits("short", 8, 6)
    around = Surroundings(neighbours, lambda _: there, lambda *_: weather or Weather(), forgotten_s)
    return facts_of(life.record, around, now_s)
