"""Goodput: which requests kept every target of their class. Pure.

1. A target is held against one request: its TTFT, the 99th percentile of its own gaps, its end to end.
2. A request that failed or was refused missed. One that was cut has missed what it can no longer keep; else it is undecided.
3. One whose client left is judged by what it got until then; without a token there is nothing to judge, unless it had waited
   too long.
4. A slow reader's gaps and end are its own doing: its TTFT alone counts. Malformed requests are in no share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from poise.bench.record import CANCELLED, NS_PER_MS, PENDING, UNFINISHED, RequestRecord
from poise.scenarios.model import Targets

TargetsByClass = Mapping[str, Targets]


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of the requests with targets: how many met all, missed one, or were cut before either was certain.

    n_met_within  those of the first that ended while load was generated: the rate counts them
    """

    n_met: int
    n_missed: int
    n_undecided: int
    n_met_within: int

    @property
    def share(self) -> float | None:
        judged = self.n_met + self.n_missed
        return self.n_met / judged if judged else None


def goodput(records: Iterable[RequestRecord], targets: TargetsByClass, window_ns: int) -> Goodput | None:
    """None: no request has a target."""
    verdicts = [
        (record, judge(record, targets[record.request_class]))
        for record in records
        if record.request_class in targets and not record.is_malformed
    ]
    if not verdicts:
        return None
    counts = Counter(met for _, met in verdicts)
    n_met_within = sum(1 for record, met in verdicts if met and record.start_ns + record.end_ns <= window_ns)
    return Goodput(counts[True], counts[False], counts[None], n_met_within)


def judge(record: RequestRecord, targets: Targets) -> bool | None:
    """Whether the request kept its targets; None: that cannot be said."""
    if record.failed or _missed(record, targets):
        return False
    if record.status in (UNFINISHED, PENDING) or (record.status == CANCELLED and not record.chunks_ns):
        return None
    return True


def by_class(*rows: Iterable[Targets]) -> dict[str, Targets]:
    """One entry for each class; of two targets for the same thing the later one counts."""
    found: dict[str, Targets] = {}
    for row in rows:
        for one in row:
            given = {name: value for name, value in asdict(one).items() if value is not None}
            found[one.request_class] = replace(found.get(one.request_class, one), **given)
    return found


def _missed(record: RequestRecord, targets: Targets) -> bool:
    """Whether a target is broken already, whatever would have come."""
    waited_ms = (record.end_ns + (record.late_ns if record.is_open_loop else 0)) / NS_PER_MS
    ttft = record.ttft_ms()
    ttft_ms = ttft.value if ttft is not None else waited_ms  # Who left without a token has waited so long.
    if targets.ttft_ms is not None and ttft_ms > targets.ttft_ms:
        return True
    if record.is_slow_reader:
        return False
    if targets.itl_p99_ms is not None and record.gap_p99_ms() > targets.itl_p99_ms:
        return True
    return targets.e2e_ms is not None and record.status != CANCELLED and waited_ms > targets.e2e_ms
