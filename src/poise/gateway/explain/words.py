"""The facts of one request in sentences with numbers, and in one verdict where something stands out. Never a word of its text."""

from collections.abc import Iterator, Mapping, Sequence

from poise.gateway.explain.facts import Away, Decode, Facts, Gap, PrefillStretch, Wait, Weather
from poise.gateway.explain.neighbours import Beside, Company, Group
from poise.gateway.records.changes import STOPS, KeptBy
from poise.gateway.records.following import Stop
from poise.gateway.records.spans import QUEUED, class_at
from poise.metrics.story import WHOLE, Outcome
from poise.scheduler.bottleneck import Limit
from poise.scheduler.request import DowngradeReason, PreemptionReason

STANDS_OUT_S = 0.5
"""What takes less is nothing that anybody asks about."""
MOST = 0.5
AWAYS_MAX, NAMED_MAX = 5, 5
"""Stops that have a sentence each, and requests of a kind that are named."""
SLOW = 1.5
"""Passes that take so many times as long as predicted: something else has the cores."""

LIMITS: Mapping[str, str] = {
    Limit.HOST_MEMORY: "host memory",
    Limit.COMPUTE: "compute",
    Limit.KV_CELLS: "slots and KV cells",
    Limit.TENANT_LIMITS: "tenants' own limits",
    Limit.READERS: "readers that are behind",
    Limit.NONE: "nothing",
    Limit.IDLE: "nothing to do",
}
STATES = {QUEUED: "it was in the queue"} | {stop.span: stop.meanwhile for stop in STOPS.values()}
KEPT_BY = {KeptBy.OPERATOR: "after an operator had paused it", KeptBy.READER: "after its reader had fallen behind"}
LOST_TO: Mapping[str, str] = {
    PreemptionReason.CLASS: "so that an interactive request could have its slot",
    PreemptionReason.TENANT: "so that a tenant that had been served less could have its slot",
    PreemptionReason.COMPUTE: "because its tenant had been served far more than one that waited for compute",
    PreemptionReason.TURN: "because its turn was over and other background work waited",
    PreemptionReason.LIMIT: "because its tenant ran as many requests as it may",
    PreemptionReason.OUTGROWN: "because its answer had filled its slot and goes on in a longer one",
}
LOST_TO_ANOTHER = "so that another request could have its slot"
DOWNGRADES: Mapping[str, str] = {
    DowngradeReason.OPERATOR: "an operator wanted it",
    DowngradeReason.OUTPUT: "its class's allowance of output was used up",
    DowngradeReason.TIME: "its class's allowance of compute was used up",
}
ENDS: Mapping[str, str] = {
    Outcome.STOP: "the model ended its answer, or a stop string was found",
    Outcome.LENGTH: "its allowance of output was used up",
    Outcome.CANCELLED: "it was cancelled",
    Outcome.READER_TIMEOUT: "its client took nothing of the stream for too long, and the connection was closed",
    Outcome.EXPIRED: "it waited longer for a slot than its queue_timeout",
    Outcome.ENGINE_LOST: "the engine died under it more often than a request may lose one",
    Outcome.QUARANTINED: "engines died computing it, and it is not tried again",
    Outcome.SERVER_STOPPING: "the server was stopped, and its time for draining was over",
    Outcome.FAILED: "the engine could not compute it; the server's log says why",
    "internal_error": "something failed in the server; its log says what",
}


def verdict_of(facts: Facts) -> str | None:
    """The one thing that stands out, if anything does: a bad end before all, else what took the most time."""
    if not set((facts.record.outcome or Outcome.STOP).split("+")) <= set(WHOLE):
        return _end(facts)
    first_s = facts.ttft_s if facts.ttft_s is not None else facts.lived_s
    took = duration(first_s)
    most = f"Most of its {took} to the first token was" if facts.ttft_s is not None else f"Most of the {took} so far was"
    found: list[tuple[float, str]] = []
    if (before_s := facts.before_s or 0.0) > MOST * first_s:
        what = "the summary of its older turns" if facts.summary_turns is not None else "reading and preparing it"
        found.append((before_s, f"{most} {what}, before the engine had it ({duration(before_s)})."))
    if (wait := facts.wait) is not None and wait.took_s > MOST * first_s:
        found.append((wait.took_s, f"{most} waiting for a slot ({duration(wait.took_s)}): {_why(facts, wait)}."))
    if (prefill := facts.prefill) is not None and prefill.took_s > MOST * first_s:
        computing = f"computing its prompt: {_prefilling(prefill)}"
        doing = computing if prefill.n_computed else "having a slot and no chunk computed"
        found.append((prefill.took_s, f"{most} {doing}."))
    if (decode := facts.decode) is not None and (gap_s := decode.gap.took_s) > 5 * decode.p50_s:
        found.append((gap_s, f"Its longest gap between two tokens was {duration(gap_s)}: {_causes(decode.gap)}."))
    took_s, verdict = max(found, default=(0.0, ""))
    return verdict if took_s >= STANDS_OUT_S else None


def sentences_of(facts: Facts) -> list[str]:
    """The request's life in sentences, in order."""
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


# --- its life, part by part ----------------------------------------------------------------------------------------------------


def _who(facts: Facts) -> Iterator[str]:
    record = facts.record
    origin, n = record.origin, len(record.choices)
    several = f", {n} choices" if n > 1 else ""
    goes_on = ", to go on without its client" if record.detached else ""
    yield (
        f"It is a request of class {origin.request_class.value} and tenant {origin.tenant}, "
        f"with {count(record.n_prompt, 'prompt token')}{several}{goes_on}."
    )
    if facts.before_s is None:
        return
    passed = f"{duration(facts.before_s)} passed before it was queued"
    if facts.summary_turns is not None:
        yield f"A summary of its {count(facts.summary_turns, 'older turn')} was made first; with it, {passed}."
    elif facts.before_s >= 0.1:
        yield f"{passed}: its body was read, checked, made into tokens and handed to the engine."


def _waiting(facts: Facts, wait: Wait) -> Iterator[str]:
    eta = f"about {duration(wait.eta_s)}" if wait.eta_s > 0 else "no time"
    company, limits, took = wait.company, wait.limits, duration(wait.took_s)
    in_pool = f" in pool {limits.pool}" if limits.pool else ""
    waited = f"waited {took} for its slot{in_pool}" if wait.is_over else f"has waited {took} without a slot"
    yield f"It came to place {wait.position} of its class's queue, where it was to wait {eta}, and {waited}."
    if wait.took_s < 0.1:
        return
    if wait.paused_s > 0:
        yield f"For {duration(wait.paused_s)} of that an operator or its own reader kept it."
    if company.n_slots:
        were = "was" if company.n_slots == 1 else "were"
        slots = f"{company.n_slots} of the {limits.slots} slots" if limits.slots else count(company.n_slots, "slot")
        pool = f" of pool {limits.pool}" if limits.pool else ""
        yield f"When it came, {slots}{pool} {were} held: {held_by(company)}."
    if full := _full(facts, wait):
        yield f"Of the wait, {joined(full)}."
    if got := work(company):
        yield f"While it waited, others got {got}: {groups(company)}."
    yield from _weather(wait.weather)


def _full(facts: Facts, wait: Wait) -> list[str]:
    """For how long which limit was reached."""
    limits, company, request_class = wait.limits, wait.company, class_at(facts.record, wait.begin_s)
    full = []
    if company.slots_full_s > 0:
        full.append(f"for {duration(company.slots_full_s)} every slot of the pool was held")
    if company.class_full_s > 0 and limits.class_slots != limits.slots:
        most = f"class {request_class} held as many as it may ({limits.class_slots} of the pool)"
        full.append(f"for {duration(company.class_full_s)} {most}")
    if company.tenant_full_s > 0:
        most = f"its tenant ran as many requests as it may ({limits.tenant_running} at once)"
        full.append(f"for {duration(company.tenant_full_s)} {most}")
    return full


def _why(facts: Facts, wait: Wait) -> str:
    """What it waited for, as far as that is certain."""
    company, limits, most_s = wait.company, wait.limits, MOST * wait.took_s
    held, slots_of, full_s = held_by(company), f"slots of pool {limits.pool}", company.slots_full_s
    if wait.paused_s > most_s:
        return f"an operator or its own reader kept it for {duration(wait.paused_s)}"
    if full_s > most_s and company.n_slots != limits.slots:
        return f"for {duration(full_s)} all {limits.slots} {slots_of} were held, by {holders(company)}"
    if full_s > most_s:
        return f"{company.n_slots} of the {limits.slots} {slots_of} were held, {held}"
    if company.class_full_s > most_s and company.n_slots:
        request_class = class_at(facts.record, wait.begin_s)
        limit = f"class {request_class} held the {limits.class_slots} {slots_of} that it may hold"
        return f"{limit}; in use were {company.n_slots}, {held}"
    if company.tenant_full_s > most_s:
        return f"its tenant ran as many requests at once as it may ({limits.tenant_running})"
    limited = [(part, name) for name, part in wait.weather.limited.items() if name not in (Limit.NONE, Limit.IDLE)]
    if limited:
        part, name = max(limited, key=lambda known: known[0])
        limit = f"the server's limit was {LIMITS.get(name, name)} for {share(part)} of that time"
        return f"{limit}; {held}" if held else limit
    unknown = "which limit kept it cannot be told from what is kept"
    return f"{unknown}; slots held when it came: {held}" if held else unknown


def _prefill(facts: Facts, prefill: PrefillStretch) -> Iterator[str]:
    has, been = ("had", "was") if facts.record.is_ended else ("has", "has been")
    if prefill.n_computed:
        yield f"Of its prompt, the engine computed {_prefilling(prefill)}."
        rest_s = prefill.took_s - prefill.away_s - prefill.pass_s
        if rest_s >= max(0.1, 0.1 * prefill.took_s):
            got = work(prefill.company)
            others = f" Others got {got} meanwhile." if got else ""
            passes = f"The passes with its chunks took {duration(prefill.pass_s)}"
            yield f"{passes}; {duration(rest_s)} passed without one.{others}"
    elif not prefill.is_over:
        yield f"It {has} its slot, and no chunk of its prompt {been} computed."
    if facts.ttft_s is not None:
        yield f"Its first token came {duration(facts.ttft_s)} after its arrival."
    else:
        yield "No token of it has come." if facts.record.is_ended else "No token of it has come yet."


def _prefilling(prefill: PrefillStretch) -> str:
    tokens, chunks = count(prefill.n_computed, "token"), count(prefill.n_chunks, "chunk")
    stopped = f" (of which it was stopped for {duration(prefill.away_s)})" if prefill.away_s >= 0.001 else ""
    rate = f", {prefill.per_s:,.0f} tokens a second" if prefill.per_s is not None else ""
    cached = f" ({prefill.n_cached:,} more were cached)" if prefill.n_cached else ""
    beside = f"; the same passes computed {count(prefill.n_beside, 'token')} of others" if prefill.n_beside else ""
    return f"{tokens} in {chunks}, in {duration(prefill.took_s)}{stopped}{rate}{cached}{beside}"


def _decoding(facts: Facts, decode: Decode) -> Iterator[str]:
    gap, tokens = decode.gap, count(facts.record.n_tokens, "token")
    half, most = duration(decode.p50_s), duration(decode.p99_s)
    yield (
        f"{tokens} came, half of them within {half} of the one before, 99 % within {most}; "
        f"the longest gap was {duration(gap.took_s)}, after token {gap.n_before}."
    )
    if gap.took_s > max(0.1, 3 * decode.p50_s):
        yield f"In that gap, {_causes(gap)}."


def _causes(gap: Gap) -> str:
    longest_first = sorted(gap.away.items(), key=lambda item: -item[1])
    causes = [f"for {duration(spent_s)} {STATES[state]}" for state, spent_s in longest_first]
    if gap.n_again:
        causes.append(f"{count(gap.n_again, 'token')} of its own were computed again")
    if gap.chunk is not None and (chunk := gap.chunk.computed) is not None:
        size = count(round(chunk.n_tokens / chunk.n_chunks), "token") + (" on average" if chunk.n_chunks > 1 else "")
        taking = f"in a pass of {duration(chunk.pass_s / chunk.n_chunks)}"
        causes.append(f"a prompt chunk of {size} of {one(gap.chunk)} was computed {taking}")
    if got := work(gap.company):
        causes.append(f"others got {got} in all")
    if gap.weather.slowest >= SLOW:
        causes.append(f"the engine's passes took up to {gap.weather.slowest:.1f} times as long as predicted")
    if len(gap.weather.levels) > 1:
        causes.append(f"the server's level was {' then '.join(gap.weather.levels)}")
    return joined(causes) or "nothing that is kept happened to it or to others"


def _aways(facts: Facts) -> Iterator[str]:
    yield from (_away(facts, away) for away in facts.aways[:AWAYS_MAX])
    if len(facts.aways) > AWAYS_MAX:
        yield f"It stopped {len(facts.aways) - AWAYS_MAX} more times."
    for why in facts.downgrades:
        yield f"It went on as background work, because {DOWNGRADES.get(why, why)}."
    if facts.n_recomputed:
        yield f"{count(facts.n_recomputed, 'token')} of it were computed more than once."


def _away(facts: Facts, away: Away) -> str:
    which = f"Choice {away.choice}" if len(facts.record.choices) > 1 else "It"
    at = duration(away.begin_s - facts.arrived_s)
    for_ = f"for {duration(away.end_s - away.begin_s)}" if away.end_s is not None else "and did not go on"
    why = ""
    if STOPS[away.what].gives_up_slot:
        why = f", {KEPT_BY.get(away.kept_by) or LOST_TO.get(away.why, LOST_TO_ANOTHER)}"
    if away.started:
        why += f" (at that moment {joined([one(other) for other in away.started[:3]])} got one)"
    return f"{which} {STOPS[away.what].stopped} {at} after its arrival, {for_}{why}."


def _cost(facts: Facts) -> Iterator[str]:
    if facts.served_s is not None and facts.share is not None:
        spent = f"{duration(facts.served_s)} of the engine's computing were charged to it"
        yield f"{spent}, {share(facts.share)} of the {duration(facts.lived_s)} that it lived."
    elif facts.record.is_ended and any(away.kept_by is KeptBy.ENGINE for away in facts.aways):
        yield "What it cost is not known: the engine that was lost did not tell."


def _end(facts: Facts) -> str:
    record = facts.record
    lived, tokens = duration(facts.lived_s), count(record.n_tokens, "token")
    if not record.is_ended:
        return f"It is {record.state}, {lived} after its arrival, with {tokens} so far."
    outcomes, after = (record.outcome or "").split("+"), f"after {lived} and {tokens}"
    if record.failure is not None and not record.is_open:
        return f"It was refused {after}, with the error {record.failure.code}."
    if outcomes == [Outcome.EXPIRED]:
        return f"It was given up {after}: {ENDS[Outcome.EXPIRED]} of {duration(record.origin.queue_timeout_ms / 1000)}."
    if outcomes == [Outcome.CANCELLED] and record.stopped_by is Stop.LEFT:
        return f"It ended {after}: its client left."
    return f"It ended {after}: {joined([ENDS.get(outcome, f'it ended as {outcome}') for outcome in outcomes])}."


def _unknown(facts: Facts) -> Iterator[str]:
    if facts.others_missing:
        yield "Some requests of that time are no longer kept, so there may have been more than is said here."
    if facts.n_left_out:
        yield f"{count(facts.n_left_out, 'request')} more were there that were not looked at, so counts are the least there were."
    if facts.record.is_cut:
        yield "So much happened to it that some of it is not on its timeline."


def _weather(weather: Weather) -> Iterator[str]:
    parts = sorted(((part, name) for name, part in weather.limited.items() if part >= 0.05), reverse=True)
    if parts:
        limits = joined([f"{LIMITS.get(name, name)} {share(part)}" for part, name in parts])
        yield f"What limited the server in that time: {limits}."
    if weather.slowest >= SLOW:
        yield f"The engine's passes took up to {weather.slowest:.1f} times as long as predicted in that time."
    if weather.levels and weather.levels != ("normal",):
        yield f"The server's level in that time was {' then '.join(weather.levels)}."


# --- numbers, and who the others are -------------------------------------------------------------------------------------------


def duration(seconds: float) -> str:
    """As people say it."""
    if seconds < 0.001:
        return "under 1 ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"


def share(part: float) -> str:
    return f"{part:.0%}".replace("%", " %") if part >= 0.01 or part == 0 else "under 1 %"


def count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def joined(parts: Sequence[str]) -> str:
    """ "a, b and c"; empty if there are no parts."""
    return " and ".join([", ".join(parts[:-1]), *parts[-1:]] if len(parts) > 1 else parts)


def work(company: Company) -> str:
    """What the others got; empty if they got nothing."""
    about = "" if company.is_exact else "about "
    parts = [about + count(company.n_prompt, "prompt token")] if company.n_prompt else []
    return joined([*parts, count(company.n_output, "output token")] if company.n_output else parts)


def held_by(company: Company) -> str:
    """Who held slots when the time began; empty if nobody did."""
    holding = [group for group in company.groups if group.n_slots]
    return joined([f"{g.n_slots} by {_requests(g, g.n_slots)}{_names(g.holders)}" for g in holding])


def holders(company: Company) -> str:
    """Who held slots at any moment of that time."""
    return joined([_some(group, group.n_held) for group in company.groups if group.n_held])


def groups(company: Company) -> str:
    """Who was there in that time."""
    return joined([f"{_some(group, group.n_requests)}{_names(group.ids)}" for group in company.groups])


def one(other: Beside) -> str:
    """Names one of the other requests."""
    return _requests(other, 1) + (f" ({other.response_id})" if other.response_id else "")


def _some(group: Group, n: int) -> str:
    return (f"{n} " if n > 1 else "") + _requests(group, n)


def _requests(of: Group | Beside, n: int) -> str:
    if n == 1:
        article = "an" if of.request_class == "interactive" else "a"
        return f"{article} {of.request_class} request of {'the same' if of.own else 'another'} tenant"
    return f"{of.request_class} requests of {'the same tenant' if of.own else 'other tenants'}"


def _names(ids: Sequence[str]) -> str:
    if not ids:
        return ""
    more = f" and {len(ids) - NAMED_MAX} more" if len(ids) > NAMED_MAX else ""
    return f" ({', '.join(ids[:NAMED_MAX])}{more})"
