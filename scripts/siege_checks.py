"""What a siege holds a server to: pure functions over what was seen. `siege.py` does the seeing."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from soak import Check
from tests.attacks.polite import OK, Asked

CRASHES_MAX = 3
"""The default of `levels.crashes_max`."""
FRESH_S = 5.0
"""The server's history has a sample a second; one older than this means that nobody takes them any more."""
ENDS_S = 60.0
"""What is compared for memory: the medians over so long after the warm-up and before the end."""


@dataclass(frozen=True)
class Window:
    """From a kill until the server was itself again, on the clock of `time.monotonic`."""

    why: str
    from_s: float
    to_s: float

    def touches(self, asked: Asked) -> bool:
        return asked.began_s <= self.to_s and asked.ended_s >= self.from_s


@dataclass(frozen=True)
class Sample:
    """One process at one moment: `at_s` after the beginning of the siege (before it: negative)."""

    at_s: float
    process: str
    pid: int
    own_bytes: int
    n_files: int


@dataclass(frozen=True)
class Figures:
    """What the polite tenants saw in one phase, in milliseconds."""

    n: int
    ttft_p50: float
    ttft_p95: float
    ttft_max: float
    gap_p95: float
    gap_max: float


def apart(asked: Sequence[Asked], windows: Sequence[Window]) -> tuple[list[Asked], list[Asked]]:
    """Those outside of all windows, and those that touch one."""
    outside = [a for a in asked if not any(window.touches(a) for window in windows)]
    inside = [a for a in asked if any(window.touches(a) for window in windows)]
    return outside, inside


def figures(asked: Iterable[Asked]) -> Figures:
    whole = [a for a in asked if a.status == OK]
    ttft = [a.ttft_s * 1000 for a in whole]
    gaps = [gap * 1000 for a in whole for gap in a.gaps_s]
    ttft_p50, ttft_p95, ttft_max = (_quantile(ttft, q) for q in (0.5, 0.95, 1.0))
    return Figures(len(whole), ttft_p50, ttft_p95, ttft_max, _quantile(gaps, 0.95), _quantile(gaps, 1.0))


def _quantile(samples: Sequence[float], q: float) -> float:
    return sorted(samples)[min(len(samples) - 1, int(q * len(samples)))] if samples else 0.0


def check_polite(outside: Sequence[Asked], inside: Sequence[Asked]) -> Check:
    """All answered to their end; inside a window, one that was not accepted yet may be told to come later."""
    wrong = Counter(a.status for a in outside if a.status != OK)
    wrong.update(f"{a.status} (at a kill)" for a in inside if a.status != OK and not a.status.startswith("503"))
    later = sum(1 for a in inside if a.status.startswith("503"))
    whole = sum(1 for a in [*outside, *inside] if a.status == OK)
    detail = f"{whole} answered, {later} told to come later at a kill; wrong: {dict(wrong) or 'none'}"
    return Check("polite", not wrong and whole > 0, detail)


def check_ttft(reference: Figures, siege: Figures, most: float) -> Check:
    ratio = siege.ttft_p95 / reference.ttft_p95 if reference.ttft_p95 else float("inf")
    detail = f"p95 {reference.ttft_p95:.0f} ms beside a flood, {siege.ttft_p95:.0f} ms in the siege: x{ratio:.2f}, bound {most:g}"
    return Check("ttft", siege.n > 0 and ratio <= most, detail)


def check_attacks(outcomes: Mapping[str, Mapping[str, int]]) -> Check:
    """Each kind got at least one strike done, and none was answered that was hidden in another."""
    idle = [name for name, found in outcomes.items() if not sum(found.values())]
    smuggled = sum(found.get("smuggled", 0) for found in outcomes.values())
    n = sum(sum(found.values()) for found in outcomes.values())
    detail = f"{n} strikes of {len(outcomes)} kinds; without any: {idle or 'none'}; requests smuggled: {smuggled}"
    return Check("attacks", bool(outcomes) and not idle and not smuggled, detail)


def check_tasks(status: Mapping[str, Any], history_age_s: float, level_changes: int, health: str, engine_kills: int) -> Check:
    """`level_changes`: how often the level was seen to change; a siege is no calm, so a level that never moved was not judged.

    After as many kills of engines as `levels.crashes_max` the server is degraded for a while, as it should be.
    """
    dead = [task["name"] for task in status.get("tasks", []) if task["state"] in ("given_up", "failing")]
    calm = ("normal", "degraded") if engine_kills >= CRASHES_MAX else ("normal",)
    ok = not dead and history_age_s <= FRESH_S and health == "ok" and status["level"] in calm
    detail = (
        f"{len(status.get('tasks', []))} tasks, not running: {dead or 'none'}; "
        f"last sample of the history {history_age_s:.1f} s old; "
        f"level {status['level']} after {level_changes} changes; /health {health}"
    )
    return Check("tasks", ok, detail)


def check_processes(
    samples: Sequence[Sample], restarts: int, kills: Mapping[str, int], gateway_ended: int | None, text_deaths: Mapping[str, int]
) -> Check:
    """As many processes as were there at the beginning, and one for each that was killed.

    `text_deaths`: of text workers, by cause, as the server counts them. One that works for a client that has left ("gone"),
    or for too long ("timeout"), is ended by the server, which is a bound and no fault.
    """
    pids: dict[str, set[int]] = {}
    for sample in samples:
        pids.setdefault(sample.process, set()).add(sample.pid)
    first = min((s.at_s for s in samples), default=0.0)
    there = Counter(s.process for s in samples if s.at_s == first)
    ended = {"text": text_deaths.get("gone", 0) + text_deaths.get("timeout", 0)}
    extra = {name: len(seen) - there[name] - kills.get(name, 0) - ended.get(name, 0) for name, seen in pids.items()}
    wrong = {name: n for name, n in extra.items() if n > 0}
    ok = not wrong and restarts == kills.get("engine", 0) and gateway_ended is None
    told = f"killed {dict(kills)}; text workers that ended {dict(text_deaths)}; engines started again {restarts}"
    detail = f"{told}; more than killed: {wrong or 'none'}"
    return Check("processes", ok, detail + ("" if gateway_ended is None else f"; the gateway ended with {gateway_ended}"))


def check_files(samples: Sequence[Sample], most: int) -> Check:
    """The first sample of each kind of process against its last."""
    first, last = _ends(samples)
    grown = {name: last[name] - n for name, n in first.items() if name in last}
    told = ", ".join(f"{name} {first[name]} to {last.get(name, 0)}" for name in first)
    return Check("descriptors", bool(grown) and all(n <= most for n in grown.values()), told)


def _ends(samples: Sequence[Sample]) -> tuple[dict[str, int], dict[str, int]]:
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for sample in samples:
        first.setdefault(sample.process, sample.n_files)
        last[sample.process] = sample.n_files
    return first, last


def growth_mib(samples: Sequence[Sample], process: str, from_s: float, to_s: float) -> float | None:
    """Medians of what is the process's own: of a minute from `from_s`, and of the last one before `to_s`. None: no samples.

    Of a kind of process that was killed, the last one is looked at, from its beginning."""
    last_pid = next((s.pid for s in reversed(samples) if s.process == process), None)
    own = [s for s in samples if s.pid == last_pid and from_s <= s.at_s <= to_s]
    from_s = max(from_s, own[0].at_s) if own else from_s
    length_s = min(ENDS_S, (to_s - from_s) / 4)
    first = [s.own_bytes for s in own if s.at_s <= from_s + length_s]
    last = [s.own_bytes for s in own if s.at_s >= to_s - length_s]
    if not first or not last:
        return None
    return (statistics.median(last) - statistics.median(first)) / 2**20


def check_memory(samples: Sequence[Sample], from_s: float, to_s: float, most_mib: float) -> Check:
    growth = growth_mib(samples, "gateway", from_s, to_s)
    others = sorted({s.process for s in samples} - {"gateway"})
    told = [(name, growth_mib(samples, name, from_s, to_s)) for name in others]
    beside = "".join(f"; {name} {grown:+.1f}" for name, grown in told if grown is not None)
    shown = "no samples" if growth is None else f"gateway {growth:+.1f} MiB after {from_s / 60:.1f} min, bound {most_mib:g}"
    return Check("memory", growth is not None and growth <= most_mib, shown + beside)
