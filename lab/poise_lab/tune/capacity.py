"""How much load a server takes until a target is missed: loads of one kind, searched with the simulator's guess and live rounds.

Three kinds are counted by how many are at once: interactive requests alone; background jobs beside a chat; long prompts beside
a chat. The fourth is the longest context that is answered beside a chat. Each closed-loop client sends the next request when
the last one ends, so their number is the number at once.

A load is kept when every target is, no request fails, and what is counted has answers at all."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poise.config import Settings
from poise.llama.fitting.capacity import Load
from poise.scheduler.request import RequestClass
from poise_lab.scenarios import model
from poise_lab.scenarios.model import Arrival, Client, Length, Scenario
from poise_lab.sim.breaking import Run, Target, find_break
from poise_lab.sim.pressure import Pressure
from poise_lab.sim.simulate import Options, sim_policy, simulate
from poise_lab.tune.goal import count_failed

KINDS = ("interactive", "background", "long")
TRIES = 4
"""Live rounds for each kind."""
CONTEXT_TRIES = 3
AT_ONCE_MAX = 256
CHAT_PER_S = 0.5
LONG_DRAIN_S = 90.0
"""Longer than a background request may wait for its first token: what is cut earlier shows nothing."""
CONTEXT_ROUNDS = 3
"""The round of a long context is so many times as long: it is read meanwhile."""
OUTPUT_TOKENS = 16
CONTEXT_SPARE = 96
"""Cells for the output, and for what the chat template adds."""
_REFUSALS = ("error:429/", "error:503/")


@dataclass(frozen=True, slots=True)
class Result:
    """One load: what each target came to, and what was missed, in words."""

    figures: Mapping[str, float]
    missed: str
    per_s: float = 0.0


def load_of(kind: str, n: int, settings: Settings, round_s: float) -> Scenario:
    """`n` at once of a kind. A long prompt is half as long again as what makes a prompt heavy."""
    if kind == "interactive":
        clients: tuple[Client, ...] = (_client("chats", "interactive", n, Length("lognormal", 30, 240, 80, 0.4), 36),)
        return _scenario(kind, round_s, round_s, clients)
    if kind == "background":
        return _scenario(kind, round_s, LONG_DRAIN_S, (_chat(), _client("jobs", "background", n, _constant(60), 100)))
    heavy = settings.classes.background.heavy_tokens
    tokens = min(heavy + heavy // 2, settings.pools.long.slot_tokens - CONTEXT_SPARE)
    readers = _client("readers", "background", n, _constant(max(heavy + 1, tokens)), OUTPUT_TOKENS)
    return _scenario(kind, round_s, LONG_DRAIN_S, (_chat(), readers))


def context_load(n_tokens: int, round_s: float) -> Scenario:
    """One request with a context of so many tokens, beside a chat."""
    reader = _client("reader", "background", 1, _constant(max(1, n_tokens - CONTEXT_SPARE)), OUTPUT_TOKENS)
    duration_s = CONTEXT_ROUNDS * round_s
    return _scenario("context", duration_s, 2 * LONG_DRAIN_S, (_chat(), replace(reader, n_requests_max=1)))


def slots_for(kind: str, settings: Settings) -> int:
    """What the settings give to a kind at once."""
    classes = settings.classes
    if kind == "long":
        return classes.background.heavy_max
    return classes.interactive.slots_max if kind == "interactive" else classes.background.slots_max


def guess(kind: str, settings: Settings, round_s: float, targets: Sequence[Target], options: Options, seed: int) -> int:
    """How many at once the simulator, with this host's costs, finds to keep the targets; 1 where it finds none."""
    policy = sim_policy(settings)

    def run(load: Scenario) -> list[Run]:
        return [(simulate(load, settings, seed, options), {c: Pressure(c, policy) for c in RequestClass})]

    n = slots_for(kind, settings)
    # Without the targets of a class that the load does not have.
    counted = [t for t in targets if kind != "interactive" or t.request_class is RequestClass.INTERACTIVE]
    kept, _ = find_break(load_of(kind, n, settings, round_s), counted, run, lambda _: None)
    return max(1, min(AT_ONCE_MAX, round(n * kept.factor))) if kept is not None else 1


def search(first: int, attempt: Callable[[int], Result], *, slots: int, tries: int = TRIES, until: Callable[[], bool]) -> Load:
    """The most that keeps the targets, by doubling, halving and bisecting from a guess.

    `until` says when the time is over. The guess itself is always tried: making it may have taken all the time, and a kind
    that was begun is to have a result on the slowest host."""
    n = max(1, min(AT_ONCE_MAX, first))
    kept: tuple[int, Result] | None = None
    broken: tuple[int, Result] | None = None
    for number in range(tries):
        if number and until():
            break
        result = attempt(n)
        if result.missed:
            broken = (n, result)
        else:
            kept = (n, result)
        low, high = kept[0] if kept else 0, broken[0] if broken else 2 * AT_ONCE_MAX
        if high - low <= 1 or low == AT_ONCE_MAX:
            break
        n = min(AT_ONCE_MAX, 2 * low if broken is None else (low + high) // 2)
    return Load(
        at_once=kept[0] if kept else 0,
        broken=broken[0] if broken else None,
        slots=slots,
        per_s=round(kept[1].per_s, 3) if kept else 0.0,
        figures=dict(kept[1].figures) if kept else {},
        missed=broken[1].missed if broken else "",
    )


def longest_context(most: int, attempt: Callable[[int], Result], until: Callable[[], bool]) -> int | None:
    """The first of `most`, half of it and a quarter that is answered beside a chat; 0: none of them."""
    for halvings in range(CONTEXT_TRIES):
        if until():
            return None
        n_tokens = most >> halvings
        if n_tokens <= CONTEXT_SPARE:
            break
        if not attempt(n_tokens).missed:
            return n_tokens
    return 0


def judge(kind: str, side: Mapping[str, Any], targets: Sequence[Target]) -> Result:
    """A live turn held against the targets."""
    groups = {group["name"]: group for group in side["groups"] if group["kind"] == "class"}
    counted = "interactive" if kind == "interactive" else "background"
    figures: dict[str, float] = {}
    missed: list[str] = []
    for target in targets:
        group = groups.get(str(target.request_class))
        if group is None:
            continue
        value, is_bound = _figure(target, group)
        if value is not None:
            figures[str(target)] = round(value, 3)
        if value is None and target.measure == "ttft":
            missed.append(f"{target}: no answer")
        elif value is not None and (value > target.most or is_bound):
            missed.append(f"{target}: {'at least ' if is_bound else ''}{value:.5g}")
    statuses = groups.get(counted, {}).get("statuses", {})
    n_failed = count_failed([side]) - sum(_refused(group) for group in groups.values())
    if n_failed:
        missed.append(f"{n_failed} requests failed")
    if not statuses.get("ok"):
        missed.append(f"no {counted} request was answered to its end")
    per_s = statuses.get("ok", 0) / side["elapsed_s"] if side["elapsed_s"] else 0.0
    return Result(figures, "; ".join(missed), per_s)


def _figure(target: Target, group: Mapping[str, Any]) -> tuple[float | None, bool]:
    """The value that a target is about, and whether the truth may be worse."""
    if target.measure == "refused":
        n = sum(group["statuses"].values())
        return (100.0 * _refused(group) / n if n else None), False
    found = group["figures"].get(f"{target.measure}_ms_p{target.quantile}")
    return (None, False) if found is None else (found["value"], found["bound"] in (">=", "~"))


def _refused(group: Mapping[str, Any]) -> int:
    return sum(n for status, n in group["statuses"].items() if status.startswith(_REFUSALS))


def _scenario(name: str, duration_s: float, drain_s: float, clients: tuple[Client, ...]) -> Scenario:
    return Scenario(f"capacity-{name}", "Made by poise capacity.", duration_s, drain_s, 1, clients)


def _chat() -> Client:
    """Somebody who waits at a screen."""
    one = _client("chat", "interactive", 1, Length("lognormal", 30, 240, 80, 0.4), 36)
    return replace(one, arrival=Arrival("poisson", rate_per_s=CHAT_PER_S))


def _client(name: str, request_class: model.RequestClass, count: int, prompt: Length, n_output: int) -> Client:
    return Client(name, name, request_class, count, Arrival("closed"), prompt, _constant(n_output))


def _constant(n: int) -> Length:
    return Length("constant", n, n)
