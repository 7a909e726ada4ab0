"""The facts of one request in sentences with numbers, and in one verdict where something stands out. Never a word of its text."""

from __future__ import annotations

from collections.abc import Iterator

from poise.gateway.explain import Away, Decode, Facts, Gap, Prefill, Wait, Weather
from poise.gateway.explain_phrases import (
    ENDS,
    LIMITS,
    STATES,
    count,
    duration,
    groups,
    held_by,
    holders,
    joined,
    one,
    share,
    work,
)
from poise.gateway.record import LEFT
from poise.gateway.spans import class_at

STANDS_OUT_S = 0.5
"""What takes less is nothing that anybody asks about."""
MOST = 0.5
AWAYS_TOLD = 5
SLOW = 1.5
LOST_TO = {
    "class": ", so that an interactive request could have its slot",
    "tenant": ", so that a tenant that had been served less could have its slot",
    "compute": ", because its tenant had been served far more than one that waited for compute",
    "turn": ", because its turn was over and other background work waited",
    "limit": ", because its tenant ran as many requests as it may",
}
"""Passes that take so many times as long as predicted: something else has the cores."""


def verdict_of(facts: Facts) -> str | None:
    """The one thing that stands out, if anything does: a bad end before all, else what took the most time."""
    outcome = facts.record.outcome or ""
    if outcome and outcome not in ("stop", "length", "stop+length", "length+stop"):
        return _end(facts)
    found: list[tuple[float, str]] = []
    wait, prefill = facts.wait, facts.prefill
    ttft_s = facts.ttft_s if facts.ttft_s is not None else facts.lived_s
    whole = (
        f"its {duration(ttft_s)} to the first token" if facts.ttft_s is not None else f"the {duration(ttft_s)} so far"
    )
    if facts.before_s is not None and facts.before_s > MOST * ttft_s:
        what = "the summary of its older turns" if facts.summary_turns is not None else "reading and preparing it"
        found.append(
            (facts.before_s, f"Most of {whole} was {what}, before the engine had it ({duration(facts.before_s)}).")
        )
    if wait is not None and wait.took_s > MOST * ttft_s:
        found.append(
            (wait.took_s, f"Most of {whole} was waiting for a slot ({duration(wait.took_s)}): {_why(facts, wait)}.")
        )
    if prefill is not None and prefill.took_s > MOST * ttft_s:
        doing = (
            f"computing its prompt: {_prefilling(prefill)}"
            if prefill.n_computed
            else "having a slot and no chunk computed"
        )
        found.append((prefill.took_s, f"Most of {whole} was {doing}."))
    if facts.decode is not None and facts.decode.gap.took_s > 5 * facts.decode.p50_s:
        gap = facts.decode.gap
        found.append(
            (gap.took_s, f"Its longest gap between two tokens was {duration(gap.took_s)}: {_causes(facts, gap)}.")
        )
    longest = max(found, default=(0.0, ""))
    return longest[1] if longest[0] >= STANDS_OUT_S else None


def sentences_of(facts: Facts) -> list[str]:
    """Its life in order."""
    return [
        *_who(facts),
        *(_waiting(facts, facts.wait) if facts.wait is not None else ["The engine has not had it."]),
        *(_prefill(facts, facts.prefill) if facts.prefill is not None else []),
        *(_decoding(facts, facts.decode) if facts.decode is not None else []),
        *_aways(facts),
        *_cost(facts),
        _end(facts),
        *_unknown(facts),
    ]


def _who(facts: Facts) -> Iterator[str]:
    record = facts.record
    origin, n = record.origin, len(record.choices)
    several = f", {n} choices" if n > 1 else ""
    goes_on = ", to go on without its client" if record.detached else ""
    yield (
        f"It is a request of class {origin.request_class.value} and tenant {origin.tenant}, "
        f"with {count(record.n_prompt, 'prompt token')}{several}{goes_on}."
    )
    if facts.summary_turns is not None and facts.before_s is not None:
        turns = count(facts.summary_turns, "older turn")
        yield f"A summary of its {turns} was made first; with it, {duration(facts.before_s)} passed before it was queued."
    elif facts.before_s is not None and facts.before_s >= 0.1:
        done = "its body was read, checked, made into tokens and handed to the engine"
        yield f"{duration(facts.before_s)} passed before it was queued: {done}."


def _waiting(facts: Facts, wait: Wait) -> Iterator[str]:
    estimate = f"came to place {wait.position} of its class's queue, where it was to wait {_about(wait.eta_s)}"
    if wait.is_over:
        yield f"It {estimate}, and waited {duration(wait.took_s)} for its slot in pool {wait.capacity.pool}."
    else:
        yield f"It {estimate}, and has waited {duration(wait.took_s)} without a slot."
    if wait.took_s < 0.1:
        return
    if wait.paused_s > 0:
        yield f"For {duration(wait.paused_s)} of that an operator or its own reader kept it."
    company, capacity = wait.company, wait.capacity
    if company.n_slots:
        were = "was" if company.n_slots == 1 else "were"
        of = f" of the {capacity.slots}" if capacity.slots else ""
        pool = f" of pool {capacity.pool}" if capacity.pool else ""
        yield f"When it came, {company.n_slots}{of} slots{pool} {were} held: {held_by(company)}."
    yield from _full(facts, wait)
    if company.n_prompt or company.n_output:
        yield f"While it waited, others got {work(company)}: {groups(company)}."
    yield from _weather(wait.weather, "in that time")


def _full(facts: Facts, wait: Wait) -> Iterator[str]:
    capacity, company = wait.capacity, wait.company
    request_class = class_at(facts.record, wait.begin_s)
    parts = []
    if company.slots_full_s > 0:
        parts.append(f"for {duration(company.slots_full_s)} every slot of the pool was held")
    if company.class_full_s > 0 and capacity.class_slots != capacity.slots:
        most = f"{capacity.class_slots} of the pool"
        parts.append(f"for {duration(company.class_full_s)} class {request_class} held as many as it may ({most})")
    if company.tenant_full_s > 0:
        most = f"{capacity.tenant_running} at once"
        parts.append(f"for {duration(company.tenant_full_s)} its tenant ran as many requests as it may ({most})")
    if parts:
        yield f"Of the wait, {joined(parts)}."


def _why(facts: Facts, wait: Wait) -> str:
    """What it waited for, as far as that is certain."""
    company, capacity, most_s = wait.company, wait.capacity, MOST * wait.took_s
    if wait.paused_s > most_s:
        return f"an operator or its own reader kept it for {duration(wait.paused_s)}"
    if company.slots_full_s > most_s and company.n_slots != capacity.slots:
        full = f"for {duration(company.slots_full_s)} all {capacity.slots} slots of pool {capacity.pool} were held"
        return f"{full}, by {holders(company)}"
    if company.slots_full_s > most_s:
        return f"{company.n_slots} of the {capacity.slots} slots of pool {capacity.pool} were held, {held_by(company)}"
    if company.class_full_s > most_s and company.n_slots:
        request_class = class_at(facts.record, wait.begin_s)
        limit = f"class {request_class} held the {capacity.class_slots} slots of pool {capacity.pool} that it may hold"
        return f"{limit}; in use were {company.n_slots}, {held_by(company)}"
    if company.tenant_full_s > most_s:
        return f"its tenant ran as many requests at once as it may ({capacity.tenant_running})"
    limited = {name: part for name, part in wait.weather.limited.items() if name not in ("none", "idle")}
    if limited:
        name = max(limited, key=lambda known: limited[known])
        rest = f"; {held_by(company)}" if company.n_slots else ""
        return f"the server's limit was {LIMITS.get(name, name)} for {share(limited[name])} of that time{rest}"
    held = f"; slots held when it came: {held_by(company)}" if company.n_slots else ""
    return f"which limit kept it cannot be told from what is kept{held}"


def _prefilling(prefill: Prefill) -> str:
    rate = f", {prefill.per_s:,.0f} tokens a second" if prefill.per_s is not None else ""
    cached = f" ({prefill.n_cached:,} more were cached)" if prefill.n_cached else ""
    beside = f"; the same passes computed {count(prefill.n_beside, 'token')} of others" if prefill.n_beside else ""
    tokens, chunks = count(prefill.n_computed, "token"), count(prefill.n_chunks, "chunk")
    stopped = f" (of which it was stopped for {duration(prefill.away_s)})" if prefill.away_s >= 0.001 else ""
    return f"{tokens} in {chunks}, in {duration(prefill.took_s)}{stopped}{rate}{cached}{beside}"


def _prefill(facts: Facts, prefill: Prefill) -> Iterator[str]:
    if not prefill.n_computed and not prefill.is_over:
        ended = facts.record.is_ended
        yield f"It {'had' if ended else 'has'} its slot, and no chunk of its prompt {'was' if ended else 'has been'} computed."
    if prefill.n_computed:
        yield f"Of its prompt, the engine computed {_prefilling(prefill)}."
        rest_s = prefill.took_s - prefill.away_s - prefill.pass_s
        if rest_s >= max(0.1, 0.1 * prefill.took_s):
            company = prefill.company
            others = f" Others got {work(company)} meanwhile." if company.n_prompt or company.n_output else ""
            yield (
                f"The passes with its chunks took {duration(prefill.pass_s)}; {duration(rest_s)} passed without one.{others}"
            )
    if facts.ttft_s is not None:
        yield f"Its first token came {duration(facts.ttft_s)} after its arrival."
    else:
        yield "No token of it has come." if facts.record.is_ended else "No token of it has come yet."


def _decoding(facts: Facts, decode: Decode) -> Iterator[str]:
    tokens = count(len(facts.record.texts), "token")
    yield (
        f"{tokens} came, half of them within {duration(decode.p50_s)} of the one before, 99 % within "
        f"{duration(decode.p99_s)}; the longest gap was {duration(decode.gap.took_s)}, after token {decode.gap.n_before}."
    )
    if decode.gap.took_s > max(0.1, 3 * decode.p50_s):
        yield f"In that gap, {_causes(facts, decode.gap)}."


def _causes(facts: Facts, gap: Gap) -> str:
    causes = [
        f"for {duration(spent_s)} {STATES[state]}"
        for state, spent_s in sorted(gap.away.items(), key=lambda item: -item[1])
        if state in STATES
    ]
    if gap.n_again:
        causes.append(f"{count(gap.n_again, 'token')} of its own were computed again")
    if gap.chunk is not None and gap.chunk.computed is not None:
        chunk = gap.chunk.computed
        each = "" if chunk.n_chunks == 1 else " on average"
        size = count(round(chunk.n_tokens / chunk.n_chunks), "token")
        taking = f"in a pass of {duration(chunk.pass_s / chunk.n_chunks)}"
        causes.append(f"a prompt chunk of {size}{each} of {one(gap.chunk)} was computed {taking}")
    if gap.company.n_prompt or gap.company.n_output:
        causes.append(f"others got {work(gap.company)} in all")
    if gap.weather.slowest >= SLOW:
        causes.append(f"the engine's passes took up to {gap.weather.slowest:.1f} times as long as predicted")
    if len(gap.weather.levels) > 1:
        causes.append(f"the server's level was {' then '.join(gap.weather.levels)}")
    return joined(causes) if causes else "nothing that is kept happened to it or to others"


def _aways(facts: Facts) -> Iterator[str]:
    for away in facts.aways[:AWAYS_TOLD]:
        yield _away(facts, away)
    if len(facts.aways) > AWAYS_TOLD:
        yield f"It stopped {len(facts.aways) - AWAYS_TOLD} more times."
    for why in facts.downgrades:
        reason = {
            "operator": "an operator wanted it",
            "output": "its class's allowance of output was used up",
            "time": "its class's allowance of compute was used up",
        }.get(why, why)
        yield f"It went on as background work, because {reason}."
    if facts.n_recomputed:
        yield f"{count(facts.n_recomputed, 'token')} of it were computed more than once."


def _away(facts: Facts, away: Away) -> str:
    which = f"Choice {away.choice}" if len(facts.record.choices) > 1 else "It"
    at = duration(away.begin_s - facts.arrived_s)
    for_ = f"for {duration(away.end_s - away.begin_s)}" if away.end_s is not None else "and did not go on"
    done = {
        "pause": "was paused by an operator",
        "stall": "was held, because its reader was behind",
        "lost": "lost its engine, which died",
        "swap": "was swapped to host memory",
        "drop": "had its KV cells given up",
    }[away.what]
    why = ""
    if away.what in ("swap", "drop"):
        why = {
            "operator": ", after an operator had paused it",
            "reader": ", after its reader had fallen behind",
            "engine": "",
            "": LOST_TO.get(away.why, ", so that another request could have its slot"),
        }[away.kept_by]
        if away.started:
            why += f" (at that moment {joined([one(other) for other in away.started[:3]])} got one)"
    return f"{which} {done} {at} after its arrival, {for_}{why}."


def _cost(facts: Facts) -> Iterator[str]:
    if facts.served_s is not None and facts.share is not None:
        spent = f"{duration(facts.served_s)} of the engine's computing were charged to it"
        yield f"{spent}, {share(facts.share)} of the {duration(facts.lived_s)} that it lived."
    elif facts.record.is_ended and any(away.what == "lost" for away in facts.aways):
        yield "What it cost is not known: the engine that was lost did not tell."


def _end(facts: Facts) -> str:
    record = facts.record
    tokens = count(len(record.texts), "token")
    if not record.is_ended:
        return f"It is {record.state}, {duration(facts.lived_s)} after its arrival, with {tokens} so far."
    outcomes = (record.outcome or "").split("+")
    after = f"after {duration(facts.lived_s)} and {tokens}"
    if record.failure is not None and not record.is_open:
        return f"It was refused {after}, with the error {record.failure.code}."
    if outcomes == ["expired"]:
        limit = duration(record.origin.queue_timeout_ms / 1000)
        return f"It was given up {after}: it waited longer for a slot than its queue_timeout of {limit}."
    meanings = [ENDS.get(outcome, f"it ended as {outcome}") for outcome in outcomes]
    if outcomes == ["cancelled"] and record.stopped_by == LEFT:
        meanings = ["its client left"]
    return f"It ended {after}: {joined(meanings)}."


def _unknown(facts: Facts) -> Iterator[str]:
    if facts.others_missing:
        yield "Some requests of that time are no longer kept, so there may have been more than is said here."
    if facts.n_left_out:
        yield f"{count(facts.n_left_out, 'request')} more were there that were not looked at, so counts are the least there were."
    if facts.timeline_cut:
        yield "So much happened to it that some of it is not on its timeline."


def _weather(weather: Weather, when: str) -> Iterator[str]:
    parts = sorted(((part, name) for name, part in weather.limited.items() if part >= 0.05), reverse=True)
    if parts:
        yield f"What limited the server {when}: {joined([f'{LIMITS.get(name, name)} {share(p)}' for p, name in parts])}."
    if weather.slowest >= SLOW:
        yield f"The engine's passes took up to {weather.slowest:.1f} times as long as predicted {when}."
    if weather.levels and weather.levels != ("normal",):
        yield f"The server's level {when} was {' then '.join(weather.levels)}."


def _about(eta_s: float) -> str:
    return f"about {duration(eta_s)}" if eta_s > 0 else "no time"
