"""The facts of one request in sentences with numbers, and in one verdict where something stands out. Never a word of its text."""

from collections.abc import Iterator, Mapping, Sequence

from poise.config.hybrid import amount_of
from poise.gateway.explain.facts import Around, DecodeFigures, Facts, GapFigures, PrefillFigures, QueueFigures, Stop, Weather
from poise.gateway.explain.neighbours import Beside, Company, Group
from poise.gateway.records.changes import STOPS, KeptBy
from poise.gateway.records.following import Stop as StoppedBy
from poise.gateway.records.spans import QUEUED
from poise.metrics.story import WHOLE, Outcome
from poise.scheduler.bottleneck import Limit
from poise.scheduler.request import DowngradeReason, PreemptionReason

STANDS_OUT_MS = 500
"""What takes less is nothing that anybody asks about."""
MOST = 0.5
STOPS_MAX, NAMED_MAX = 5, 5
"""Stops that have a sentence each, and requests of a kind that are named."""
SLOW = 1.5
"""Passes that take so many times as long as predicted: something else has the cores."""

LIMITS: Mapping[str, str] = {
    Limit.HOST_MEMORY: "host memory",
    Limit.COMPUTE: "compute",
    Limit.KV_CELLS: "slots and KV cells",
    Limit.TENANT_LIMITS: "tenants' own limits",
    Limit.POWER: "the host's power, heat or quota",
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
    PreemptionReason.LIMIT: "because as many ran as may: of its tenant, or of its class's heavy prompts",
    PreemptionReason.POWER: "because the host was short of power or too warm",
    PreemptionReason.OUTGROWN: "because its answer had filled its slot and goes on in a longer one",
}
LOST_TO_ANOTHER = "so that another request could have its slot"
DOWNGRADES: Mapping[str, str] = {
    DowngradeReason.OPERATOR: "an operator wanted it",
    DowngradeReason.OUTPUT: "its class's allowance of output was used up",
    DowngradeReason.TIME: "its class's allowance of compute was used up",
}
ROUTES: Mapping[str, str] = {
    "asked": "it asked for that one",
    "wait": "its wait for a slot here would have been too long",
    "heavy": "it is heavy work, and its wait for a slot here would have been too long",
    "too_long": "it is too long for a slot here",
    "incapable": "it asked for something that the model here cannot do",
    "engine_down": "there was no engine here",
    "only_upstream": "nothing is computed here",
    "fallback": "the one that was to answer it could not",
}
"""By the reasons of the policy."""
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
    figures = facts.figures
    first_ms = figures.ttft_ms if figures.ttft_ms is not None else figures.lived_ms
    took = duration(first_ms)
    most = f"Most of its {took} to the first token was" if figures.ttft_ms is not None else f"Most of the {took} so far was"
    found: list[tuple[float, str]] = []
    if (before_ms := facts.before_ms or 0) > MOST * first_ms:
        what = "the summary of its older turns" if facts.summary_turns is not None else "reading and preparing it"
        found.append((before_ms, f"{most} {what}, before the engine had it ({duration(before_ms)})."))
    if (wait := figures.queue) is not None and facts.queue is not None and wait.waited_ms > MOST * first_ms:
        why = _why(facts.queue, wait)
        found.append((wait.waited_ms, f"{most} waiting for a slot ({duration(wait.waited_ms)}): {why}."))
    if (prefill := figures.prefill) is not None and prefill.took_ms > MOST * first_ms:
        computing = f"computing its prompt: {_prefilling(prefill)}"
        doing = computing if prefill.computed_tokens else "having a slot and no chunk computed"
        found.append((prefill.took_ms, f"{most} {doing}."))
    if (decode := figures.decode) is not None and facts.gap is not None:
        gap_ms = decode.longest_gap.took_ms
        if gap_ms > 5 * decode.itl_p50_ms:
            causes = _causes(facts.gap, decode.longest_gap)
            found.append((gap_ms, f"Its longest gap between two tokens was {duration(gap_ms)}: {causes}."))
    took_ms, verdict = max(found, default=(0.0, ""))
    return verdict if took_ms >= STANDS_OUT_MS else None


def sentences_of(facts: Facts) -> list[str]:
    """The request's life in sentences, in order."""
    figures = facts.figures
    return [
        *_who(facts),
        *_elsewhere(facts),
        *(_waiting(facts.queue, figures.queue) if facts.queue and figures.queue else []),
        *(_prefill(facts, facts.prefill, figures.prefill) if facts.prefill and figures.prefill else []),
        *(_decoding(facts, facts.gap, figures.decode) if facts.gap and figures.decode else []),
        *_stops(facts),
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
    if facts.before_ms is None:
        return
    passed = f"{duration(facts.before_ms)} passed before it was queued"
    if facts.summary_turns is not None:
        yield f"A summary of its {count(facts.summary_turns, 'older turn')} was made first; with it, {passed}."
    elif facts.before_ms >= 100:
        yield f"{passed}: its body was read, checked, made into tokens and handed to the engine."


def _elsewhere(facts: Facts) -> Iterator[str]:
    """Where it was answered, if not by the engine of this host."""
    if (bill := facts.record.bill) is None:
        if not (facts.queue and facts.figures.queue):
            yield "The engine has not had it."
        return
    why = ROUTES.get(bill.reason, bill.reason)
    yield f"It was answered by the backend {bill.backend}, because {why}; its label is {bill.label}."
    prompt, output = count(bill.prompt_tokens, "prompt token"), count(bill.output_tokens, "output token")
    took = f"{prompt} ({bill.cached_tokens:,} cached) and {output}"
    by = f", by prices of {bill.price_version}" if bill.price_version else ""
    unknown = "what it took was not told, so all that was reserved is charged"
    yield f"It cost {amount_of(bill.cost_nano)}{by}: {took if bill.is_known else unknown}."


def _waiting(around: Around, wait: QueueFigures) -> Iterator[str]:
    eta = f"about {duration(wait.estimate_ms)}" if wait.estimate_ms > 0 else "no time"
    company, limits, took = around.company, around.limits, duration(wait.waited_ms)
    in_pool = f" in pool {limits.pool}" if limits.pool else ""
    waited = f"waited {took} for its slot{in_pool}" if wait.over else f"has waited {took} without a slot"
    yield f"It came to place {wait.position} of its class's queue, where it was to wait {eta}, and {waited}."
    if wait.waited_ms < 100:
        return
    if wait.held_back_ms > 0:
        yield f"For {duration(wait.held_back_ms)} of that an operator or its own reader kept it."
    if company.n_slots:
        were = "was" if company.n_slots == 1 else "were"
        slots = f"{company.n_slots} of the {limits.slots} slots" if limits.slots else count(company.n_slots, "slot")
        pool = f" of pool {limits.pool}" if limits.pool else ""
        yield f"When it came, {slots}{pool} {were} held: {held_by(company)}."
    if full := _full(around, wait):
        yield f"Of the wait, {joined(full)}."
    if got := work(company):
        yield f"While it waited, others got {got}: {groups(company)}."
    yield from _weather(around.weather)


def _full(around: Around, wait: QueueFigures) -> list[str]:
    """For how long which limit was reached."""
    limits, full = around.limits, []
    if wait.slots_full_ms > 0:
        full.append(f"for {duration(wait.slots_full_ms)} every slot of the pool was held")
    if wait.class_full_ms > 0 and limits.class_slots != limits.slots:
        most = f"class {around.company.request_class} held as many as it may ({limits.class_slots} of the pool)"
        full.append(f"for {duration(wait.class_full_ms)} {most}")
    if wait.tenant_full_ms > 0:
        most = f"its tenant ran as many requests as it may ({limits.tenant_running} at once)"
        full.append(f"for {duration(wait.tenant_full_ms)} {most}")
    return full


def _why(around: Around, wait: QueueFigures) -> str:
    """What it waited for, as far as that is certain."""
    company, limits, most_ms = around.company, around.limits, MOST * wait.waited_ms
    held, slots_of, full_ms = held_by(company), f"slots of pool {limits.pool}", wait.slots_full_ms
    if wait.held_back_ms > most_ms:
        return f"an operator or its own reader kept it for {duration(wait.held_back_ms)}"
    if full_ms > most_ms and company.n_slots != limits.slots:
        return f"for {duration(full_ms)} all {limits.slots} {slots_of} were held, by {holders(company)}"
    if full_ms > most_ms:
        return f"{company.n_slots} of the {limits.slots} {slots_of} were held, {held}"
    if wait.class_full_ms > most_ms and company.n_slots:
        limit = f"class {company.request_class} held the {limits.class_slots} {slots_of} that it may hold"
        return f"{limit}; in use were {company.n_slots}, {held}"
    if wait.tenant_full_ms > most_ms:
        return f"its tenant ran as many requests at once as it may ({limits.tenant_running})"
    limited = [(part, name) for name, part in wait.limited.items() if name not in (Limit.NONE, Limit.IDLE)]
    if limited:
        part, name = max(limited, key=lambda known: known[0])
        limit = f"the server's limit was {LIMITS.get(name, name)} for {share(part)} of that time"
        return f"{limit}; {held}" if held else limit
    unknown = "which limit kept it cannot be told from what is kept"
    return f"{unknown}; slots held when it came: {held}" if held else unknown


def _prefill(facts: Facts, around: Around, prefill: PrefillFigures) -> Iterator[str]:
    has, been = ("had", "was") if facts.record.is_ended else ("has", "has been")
    if prefill.computed_tokens:
        yield f"Of its prompt, the engine computed {_prefilling(prefill)}."
        rest_ms = prefill.took_ms - prefill.away_ms - prefill.passes_ms
        if rest_ms >= max(100, 0.1 * prefill.took_ms):
            got = work(around.company)
            others = f" Others got {got} meanwhile." if got else ""
            passes = f"The passes with its chunks took {duration(prefill.passes_ms)}"
            yield f"{passes}; {duration(rest_ms)} passed without one.{others}"
    elif not prefill.over:
        yield f"It {has} its slot, and no chunk of its prompt {been} computed."
    if facts.figures.ttft_ms is not None:
        yield f"Its first token came {duration(facts.figures.ttft_ms)} after its arrival."
    else:
        yield "No token of it has come." if facts.record.is_ended else "No token of it has come yet."


def _prefilling(prefill: PrefillFigures) -> str:
    tokens, chunks = count(prefill.computed_tokens, "token"), count(prefill.chunks, "chunk")
    stopped = f" (of which it was stopped for {duration(prefill.away_ms)})" if prefill.away_ms >= 1 else ""
    rate = f", {prefill.tokens_per_s:,.0f} tokens a second" if prefill.tokens_per_s is not None else ""
    cached = f" ({prefill.cached_tokens:,} more were cached)" if prefill.cached_tokens else ""
    beside = f"; the same passes computed {count(prefill.beside_tokens, 'token')} of others" if prefill.beside_tokens else ""
    return f"{tokens} in {chunks}, in {duration(prefill.took_ms)}{stopped}{rate}{cached}{beside}"


def _decoding(facts: Facts, around: Around, decode: DecodeFigures) -> Iterator[str]:
    gap, tokens = decode.longest_gap, count(facts.record.n_tokens, "token")
    half, most = duration(decode.itl_p50_ms), duration(decode.itl_p99_ms)
    yield (
        f"{tokens} came, half of them within {half} of the one before, 99 % within {most}; "
        f"the longest gap was {duration(gap.took_ms)}, after token {gap.after_tokens}."
    )
    if gap.took_ms > max(100, 3 * decode.itl_p50_ms):
        yield f"In that gap, {_causes(around, gap)}."


def _causes(around: Around, gap: GapFigures) -> str:
    longest_first = sorted(gap.away_ms.items(), key=lambda item: -item[1])
    causes = [f"for {duration(spent_ms)} {STATES[state]}" for state, spent_ms in longest_first]
    if gap.recomputed_tokens:
        causes.append(f"{count(gap.recomputed_tokens, 'token')} of its own were computed again")
    if around.chunk is not None and (chunk := around.chunk.computed) is not None:
        size = count(round(chunk.n_tokens / chunk.n_chunks), "token") + (" on average" if chunk.n_chunks > 1 else "")
        taking = f"in a pass of {duration(1000 * chunk.pass_s / chunk.n_chunks)}"
        causes.append(f"a prompt chunk of {size} of {one(around.chunk)} was computed {taking}")
    if got := work(around.company):
        causes.append(f"others got {got} in all")
    if around.weather.slowest >= SLOW:
        causes.append(f"the engine's passes took up to {around.weather.slowest:.1f} times as long as predicted")
    if len(gap.levels) > 1:
        causes.append(f"the server's level was {' then '.join(gap.levels)}")
    return joined(causes) or "nothing that is kept happened to it or to others"


def _stops(facts: Facts) -> Iterator[str]:
    stops = facts.figures.stops
    for stop, started in zip(stops[:STOPS_MAX], facts.started, strict=False):
        yield _stop(facts, stop, started)
    if len(stops) > STOPS_MAX:
        yield f"It stopped {len(stops) - STOPS_MAX} more times."
    for why in facts.downgrades:
        yield f"It went on as background work, because {DOWNGRADES.get(why, why)}."
    if n := facts.figures.recomputed_tokens:
        yield f"{count(n, 'token')} of it were computed more than once."


def _stop(facts: Facts, stop: Stop, started: Sequence[Beside]) -> str:
    which = f"Choice {stop.choice}" if len(facts.record.choices) > 1 else "It"
    for_ = f"for {duration(stop.for_ms)}" if stop.for_ms is not None else "and did not go on"
    why = ""
    if STOPS[stop.what].gives_up_slot:
        why = f", {KEPT_BY.get(KeptBy(stop.kept_by)) or LOST_TO.get(stop.why or '', LOST_TO_ANOTHER)}"
    if started:
        why += f" (at that moment {joined([one(other) for other in started[:3]])} got one)"
    return f"{which} {STOPS[stop.what].stopped} {duration(stop.ms)} after its arrival, {for_}{why}."


def _cost(facts: Facts) -> Iterator[str]:
    figures = facts.figures
    if figures.engine_ms is not None and figures.engine_share is not None:
        spent = f"{duration(figures.engine_ms)} of the engine's computing were charged to it"
        yield f"{spent}, {share(figures.engine_share)} of the {duration(figures.lived_ms)} that it lived."
        if figures.joules_estimate is not None:
            yield f"That took about {figures.joules_estimate:.3g} J of energy, an estimate: its share of the busy time."
    elif facts.record.is_ended and any(stop.kept_by == KeptBy.ENGINE for stop in figures.stops):
        yield "What it cost is not known: the engine that was lost did not tell."


def _end(facts: Facts) -> str:
    record = facts.record
    lived, tokens = duration(facts.figures.lived_ms), count(record.n_tokens, "token")
    if not record.is_ended:
        return f"It is {record.state}, {lived} after its arrival, with {tokens} so far."
    outcomes, after = (record.outcome or "").split("+"), f"after {lived} and {tokens}"
    if record.failure is not None and not record.is_open:
        return f"It was refused {after}, with the error {record.failure.code}."
    if outcomes == [Outcome.EXPIRED]:
        return f"It was given up {after}: {ENDS[Outcome.EXPIRED]} of {duration(record.origin.queue_timeout_ms)}."
    if outcomes == [Outcome.CANCELLED] and record.stopped_by is StoppedBy.LEFT:
        return f"It ended {after}: its client left."
    return f"It ended {after}: {joined([ENDS.get(outcome, f'it ended as {outcome}') for outcome in outcomes])}."


def _unknown(facts: Facts) -> Iterator[str]:
    if facts.figures.others_missing:
        yield "Some requests of that time are no longer kept, so there may have been more than is said here."
    if n := facts.figures.others_left_out:
        yield f"{count(n, 'request')} more were there that were not looked at, so counts are the least there were."
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


def duration(ms: float) -> str:
    """As people say it."""
    if ms < 1:
        return "under 1 ms"
    if ms < 999.5:
        return f"{ms:.0f} ms"
    return f"{ms / 1000:.1f} s" if ms < 100_000 else f"{ms / 1000:,.0f} s"


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
