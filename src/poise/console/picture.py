"""The server at one moment as a picture of texts and numbers, made from what its HTTP API tells; others draw it."""

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from poise.console.client import Client

MINUTES = 3
SAMPLES_MAX = MINUTES * 60
LATELY = 10
"""Of so many last samples, the newest with a figure counts."""
BLOCKS = " ▁▂▃▄▅▆▇█"
LIMITS = {
    "host_memory": "host memory: something is computed again for lack of it",
    "compute": "compute: every step is full",
    "kv_cells": "slots and KV cells: somebody waits for one",
    "tenant_limits": "tenants' own limits",
    "power": "power, heat or quota of the host",
    "readers": "readers that are behind",
    "none": "nothing: nobody waits",
    "idle": "idle",
}


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class. Figures are texts, "-" where there is none."""

    name: str
    counts: tuple[int, ...]
    """Queued, running, paused, swapped."""
    ttft: str
    itl: str
    estimate: str


@dataclass(frozen=True, slots=True)
class Bar:
    """Something of which there is only so much."""

    name: str
    used: float
    whole: float
    text: str

    @property
    def share(self) -> float:
        return min(1.0, self.used / self.whole) if self.whole else 0.0


@dataclass(frozen=True, slots=True)
class Curve:
    """A figure over the last minutes. `now` is the last value as a text."""

    name: str
    values: tuple[float, ...]
    now: str


class RequestRow(msgspec.Struct, frozen=True):
    """A row of /admin/requests, as far as it is shown."""

    id: str
    request_class: str = msgspec.field(name="class")
    state: str
    prompt: int = msgspec.field(name="prompt_tokens")
    cached: int = msgspec.field(name="cached_tokens")
    output: int = msgspec.field(name="output_tokens")
    age_ms: int
    tenant: str | None
    """None for who may not know it."""


@dataclass(frozen=True, slots=True)
class Picture:
    title: str
    level: str
    reasons: list[str]
    bottleneck: str
    findings: list[str]
    """What to look at now, each with its name in the runbook."""
    classes: list[ClassRow]
    curves: list[Curve]
    bars: list[Bar]
    memory: list[str]
    requests: list[RequestRow]
    is_operator: bool


def picture_of(
    status: dict[str, Any], kept: Sequence[dict[str, Any]], requests: Sequence[dict[str, Any]], *, is_operator: bool
) -> Picture:
    return Picture(
        title=f"{status['model']}, {_phase(status)}, up {age(int(status['uptime_s'] * 1000))}",
        level=status["level"],
        reasons=list(status["reasons"]),
        bottleneck=LIMITS.get(status["bottleneck"] or "", status["bottleneck"] or "not known yet"),
        findings=[f"{found['text']} (runbook: {found['finding']})" for found in status["findings"]],
        classes=[_class(name, figures, kept) for name, figures in status["classes"].items()],
        curves=_curves(kept),
        bars=list(_bars(status)),
        memory=list(_memory(status, kept)),
        requests=msgspec.convert(requests, list[RequestRow]),
        is_operator=is_operator,
    )


_ORDERS: dict[str, Callable[[RequestRow], tuple[object, ...]]] = {
    "age": lambda row: (-row.age_ms, row.id),
    "state": lambda row: (row.state, -row.age_ms, row.id),
    "tokens": lambda row: (-row.output, row.id),
    "class": lambda row: (row.request_class, -row.age_ms, row.id),
}
SORTS = tuple(_ORDERS)


def ordered(rows: Iterable[RequestRow], by: str) -> list[RequestRow]:
    """The oldest, the longest answer first; states and classes by name."""
    return sorted(rows, key=_ORDERS[by])


def spark(values: Sequence[float], width: int) -> str:
    """A curve as a line of blocks, the newest at the right; each block is the largest value of its part."""
    if not values or width <= 0:
        return ""
    n = min(width, len(values))
    parts = [values[len(values) * i // n : len(values) * (i + 1) // n] for i in range(n)]
    tops = [max(part) for part in parts]
    most = max(tops)
    return "".join(BLOCKS[round(top / most * (len(BLOCKS) - 1))] if most > 0 else BLOCKS[1] for top in tops)


def bar(share: float, width: int) -> str:
    full = round(share * width)
    return "█" * full + "░" * (width - full)


def age(ms: int) -> str:
    if ms < 10_000:
        return f"{ms / 1000:.1f} s"
    seconds = ms // 1000
    if seconds < 100:
        return f"{seconds} s"
    minutes, hours = seconds // 60, seconds // 3600
    if minutes < 100:
        return f"{minutes} min"
    return f"{hours} h" if hours < 100 else f"{hours // 24} days"


def size(n_bytes: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if abs(n_bytes) < 1024:
            return f"{n_bytes:.0f} {unit}"
        n_bytes /= 1024
    return f"{n_bytes:.1f} GiB"


def _phase(status: dict[str, Any]) -> str:
    if status["phase"] == "ready":
        restarts = status["restarts"]
        return "ready" + (f" after {restarts} restart{'s' * (restarts > 1)} of the engine" if restarts else "")
    return f"{status['phase']} ({status['stage']}, {status['progress']:.0%})"


def _class(name: str, figures: dict[str, Any], kept: Sequence[dict[str, Any]]) -> ClassRow:
    ttft, itl = figures["ttft_ms"], None
    for sample in list(kept)[-LATELY:]:
        itl = sample["classes"][name]["itl_ms"] or itl
    counts = tuple(figures[state] for state in ("queued", "running", "paused", "swapped"))
    estimate = figures["wait_estimate_ms"]
    gaps = pair(itl["p50"], itl["p99"]) if itl else "-"
    return ClassRow(name, counts, pair(ttft["p50"], ttft["p95"]), gaps, "-" if estimate is None else age(estimate))


def pair(low: float | None, high: float | None) -> str:
    if low is None or high is None:
        return "-"
    return f"{low:.0f} / {high:.0f} ms" if high < 1000 else f"{low / 1000:.2f} / {high / 1000:.2f} s"


def _curves(kept: Sequence[dict[str, Any]]) -> list[Curve]:
    tokens = tuple(sample["output_tokens_per_s"] for sample in kept)
    queue = tuple(float(sum(c["queued"] for c in sample["classes"].values())) for sample in kept)
    ttft: list[float] = []
    last_ms = None
    for sample in kept:
        figures = sample["classes"]["interactive"]["ttft_ms"]
        last_ms = figures["p95"] if figures else last_ms
        ttft.append(figures["p95"] if figures else 0.0)
    return [
        Curve("tokens/s", tokens, f"{tokens[-1]:,.0f}" if tokens else "-"),
        Curve("TTFT p95", tuple(ttft), "-" if last_ms is None else f"{last_ms:,.0f} ms"),
        Curve("queue", queue, f"{queue[-1]:,.0f}" if queue else "-"),
    ]


def _bars(status: dict[str, Any]) -> Iterable[Bar]:
    for pool in status["pools"]:
        warm = f", {pool['slots_warm']} warm" if pool["slots_warm"] else ""
        slots = f"{pool['slots_held']} of {pool['slots']}{warm}"
        yield Bar(f"{pool['name']} slots", pool["slots_held"], pool["slots"], slots)
        cells = f"{pool['cells_used']:,} of {pool['cells']:,}"
        yield Bar(f"{pool['name']} cells", pool["cells_used"], pool["cells"], cells)


def _memory(status: dict[str, Any], kept: Sequence[dict[str, Any]]) -> Iterable[str]:
    if (store := status["store"]) is not None:
        purposes = ", ".join(f"{name} {size(n)}" for name, n in store["bytes_by_purpose"].items())
        used = sum(store["bytes_by_purpose"].values())
        yield f"host store {size(used)} of {size(store['budget_bytes'])} ({purposes})"
    if (rss := status["engine_rss_bytes"]) is not None:
        unaccounted = size(status["engine_unaccounted_bytes"] or 0)
        gateway = f", gateway {size(kept[-1]['memory']['gateway_rss_bytes'])}" if kept else ""
        yield f"engine {size(rss)} resident, {unaccounted} unaccounted{gateway}"


class Watch:
    """One server over time. It may go away and come back."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.since = 0
        self.samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES_MAX)
        """The last minutes of the history, as far as they have been asked for."""

    async def look(self) -> Picture:
        """How it stands now. Raises ConsoleError."""
        status = await self.client.get("/status")
        self.add(await self.client.get(f"/status/history?since={self.since}"))
        rows, is_operator = await self.client.requests()
        return picture_of(status, self.samples, rows, is_operator=is_operator)

    def add(self, answer: dict[str, Any]) -> None:
        """An answer of /status/history. One that begins anew is of another server."""
        if answer["next"] < self.since:
            self.samples.clear()
        self.samples.extend(answer["samples"])
        self.since = answer["next"]
