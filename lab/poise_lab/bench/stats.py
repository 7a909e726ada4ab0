"""Figures of a round, medians over rounds, ratios between two servers. Pure.

1. A request that was cut counts with what is known: it took at least so long. A figure that such a lower bound may have
   touched is a lower bound itself (">="); one that it cannot have touched stays exact.
2. A quantile interpolates linearly between the two closest samples; with few samples p99 is close to the maximum.
3. Rounds are never pooled: a figure is computed in each round, then the median over the rounds is taken. Ratios likewise.

Goodput: which requests kept every target of their class.

1. A target is held against one request: its TTFT, the 99th percentile of its own gaps, its end to end.
2. A request that failed or was refused missed. One that was cut has missed what it can no longer keep; else it is undecided.
3. One whose client left is judged by what it got until then; without a token there is nothing to judge, unless it had waited
   too long.
4. A slow reader's gaps and end are its own doing: its TTFT alone counts. Malformed requests are in no share."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace

import msgspec

from poise_lab.bench.record import CANCELLED, NS_PER_MS, NS_PER_S, OK, PENDING, REFUSED, UNFINISHED, Bound, Figure, RequestRecord
from poise_lab.scenarios.model import Client, Targets

TargetsByClass = Mapping[str, Targets]


@dataclass(frozen=True, slots=True)
class Goodput:
    """Of the requests with targets: how many met all, missed one, or were cut before either was certain.

    n_met_within  those of the first that ended while load was generated: the rate counts them"""

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


# Each measure of time and the quantiles that are reported of it.
_USUAL = ("p50", "p95", "p99")
MEASURES = {"ttft_ms": _USUAL, "gap_ms": _USUAL, "max_gap_ms": ("p50", "p95", "max"), "e2e_ms": _USUAL}
CORRECTED = {"ttft_corrected_ms": _USUAL, "e2e_corrected_ms": _USUAL}
"""Only of closed-loop clients with a rate."""
LATER = {"ttft_later_ms": _USUAL, "e2e_later_ms": _USUAL}
"""Only of conversations of several turns."""
GOODPUT = ("goodput_share", "goodput_per_s")
"""Only where there are targets."""
RATES = ("output_tokens_per_s", "prompt_tokens_per_s", "stream_tokens_per_s_p50")
_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True)
class Group:
    """Some of a scenario's clients: all, or those of one class, one tenant or one name. Clients are in alphabetical order."""

    kind: str
    name: str
    clients: tuple[str, ...]


class Summary(msgspec.Struct, frozen=True, rename={"n_censored": "censored", "n_short": "short"}):
    """A group's figures by name (only those that exist) and how its requests ended.

    n_censored  requests cut before their first text: in the TTFT figures with their waiting time as a lower bound
    n_short     answers that the server ended before the length that was asked for
    goodput     how many kept their targets; None: they have none"""

    kind: str
    name: str
    clients: tuple[str, ...]
    statuses: dict[str, int]
    n_censored: int
    n_short: int
    goodput: Goodput | None
    figures: dict[str, Figure]


class Ratio(msgspec.Struct, frozen=True, rename={"low": "min", "high": "max", "n_rounds": "rounds"}):
    """Ours / theirs of one figure: the median over the rounds where both have it, and the spread."""

    median: float
    bound: Bound
    low: float
    high: float
    n_rounds: int


def failures(statuses: Mapping[str, int]) -> dict[str, int]:
    """Of the requests by status, those that ended in an error or without an end."""
    return {status: n for status, n in statuses.items() if status not in (OK, CANCELLED, UNFINISHED, REFUSED)}


def groups_of(clients: Sequence[Client]) -> list[Group]:
    """All, each class, each tenant, each client name; in the order of the file."""
    members: dict[tuple[str, str], set[str]] = {}
    for kind, attribute in (("all", ""), ("class", "request_class"), ("tenant", "tenant"), ("client", "name")):
        for client in clients:
            name = getattr(client, attribute) if attribute else ""
            members.setdefault((kind, name), set()).add(client.name)
    return [Group(kind, name, tuple(sorted(names))) for (kind, name), names in members.items()]


def summarize(group: Group, records: Iterable[RequestRecord], window_ns: int, targets: TargetsByClass | None = None) -> Summary:
    """The figures of one round for the records that belong to `group`; `window_ns` is the time of load generation."""
    own = [record for record in records if record.client in group.clients]
    figures: dict[str, Figure] = {}
    for measure, labels in (MEASURES | CORRECTED | LATER).items():
        samples = [gap for r in own for gap in r.gaps_ms()] if measure == "gap_ms" else [getattr(r, measure)() for r in own]
        _put_quantiles(figures, measure, labels, samples)
    _put_quantiles(figures, "stream_tokens_per_s", ("p50",), [record.decode_tokens_per_s() for record in own])
    finished = [record for record in own if record.status == OK]
    _put_quantiles(figures, "prompt_tokens", ("p50",), [record.n_prompt_tokens for record in finished])
    _put_quantiles(figures, "output_tokens", ("p50",), [record.n_output_tokens for record in finished])
    if window_ns > 0:
        n_output = sum(record.output_tokens_within(window_ns) for record in own)
        n_prompt = sum(record.prompt_tokens_within(window_ns) for record in own)
        figures["output_tokens_per_s"] = Figure(n_output * NS_PER_S / window_ns)
        figures["prompt_tokens_per_s"] = Figure(n_prompt * NS_PER_S / window_ns)
    good = goodput(own, targets or {}, window_ns)
    if good is not None and good.share is not None:
        figures["goodput_share"] = Figure(good.share, "~" if good.n_undecided else "")
        figures |= {"goodput_per_s": Figure(good.n_met_within * NS_PER_S / window_ns)} if window_ns > 0 else {}
    statuses = dict(sorted(Counter(record.status for record in own).items()))
    n_censored = sum(record.status == UNFINISHED and not record.chunks_ns for record in own)
    n_short = sum(record.short for record in own)
    return Summary(group.kind, group.name, group.clients, statuses, n_censored, n_short, good, figures)


def over_rounds(rounds: Sequence[Summary]) -> Summary:
    """One group's median figures over its rounds; the counts are totals. `rounds` is not empty."""
    names = dict.fromkeys(name for summary in rounds for name in summary.figures)
    judged = [astuple(summary.goodput) for summary in rounds if summary.goodput is not None]
    statuses = sum((Counter(summary.statuses) for summary in rounds), Counter[str]())
    return msgspec.structs.replace(
        rounds[0],
        statuses=dict(sorted(statuses.items())),
        n_censored=sum(summary.n_censored for summary in rounds),
        n_short=sum(summary.n_short for summary in rounds),
        goodput=Goodput(*map(sum, zip(*judged, strict=True))) if judged else None,
        figures={name: median([s.figures[name] for s in rounds if name in s.figures]) for name in names},
    )


def ratios(pairs: Sequence[tuple[Summary, Summary]]) -> dict[str, Ratio]:
    """Ours / theirs of each figure. `pairs` holds one (ours, theirs) for each round that both sides finished."""
    names = dict.fromkeys(name for ours, _ in pairs for name in ours.figures)
    found: dict[str, Ratio] = {}
    for name in names:
        per_round = [
            Figure(a.figures[name].value / b.figures[name].value, ratio_bound(a.figures[name], b.figures[name]))
            for a, b in pairs
            if name in a.figures and name in b.figures and b.figures[name].value > 0
        ]
        if per_round:
            values, middle = [ratio.value for ratio in per_round], median(per_round)
            found[name] = Ratio(middle.value, middle.bound, min(values), max(values), len(values))
    return found


def median(figures: Sequence[Figure]) -> Figure:
    """The median of at least one figure, with what its bounds leave certain."""
    middle = quantile(figures, 0.5)
    assert middle is not None, "the median of nothing"
    bounds = {figure.bound for figure in figures}
    return middle if bounds <= {"", ">="} else Figure(middle.value, "<=" if bounds <= {"", "<="} else "~")


def quantile(samples: Sequence[Figure], q: float) -> Figure | None:
    """The q-quantile of exact samples and lower bounds; None of nothing.

    A lower bound above the quantile's position does not move it when it grows. One at or below may: then the result is a
    lower bound too."""
    if not samples:
        return None
    values = sorted(sample.value for sample in samples)
    position = q * (len(values) - 1)
    below, above = values[math.floor(position)], values[math.ceil(position)]
    bounded = any(sample.bound and sample.value <= above for sample in samples)
    return Figure(below + (above - below) * (position - math.floor(position)), ">=" if bounded else "")


def ratio_bound(ours: Figure, theirs: Figure) -> Bound:
    """What is known of ours / theirs."""
    if ours.bound and theirs.bound:
        return "~"
    if theirs.bound:
        return "<="
    return ours.bound


def _put_quantiles(
    figures: dict[str, Figure], measure: str, labels: Iterable[str], samples: Iterable[Figure | float | None]
) -> None:
    """Adds `<measure>_<label>` to `figures` for each label, when there is any sample."""
    present = [s if isinstance(s, Figure) else Figure(s) for s in samples if s is not None]
    for label in labels:
        figure = quantile(present, _QUANTILES[label])
        if figure is not None:
            figures[f"{measure}_{label}"] = figure
