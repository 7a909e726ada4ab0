"""Explanations as the API tells them: the verdict, sentences and the figures behind them."""

from typing import Annotated, Any, Literal

import msgspec

from poise.gateway.api.native.views import RequestMoment, timeline_of
from poise.gateway.explain.facts import Decode, Facts, PrefillStretch, Wait, Weather
from poise.gateway.explain.neighbours import Company
from poise.gateway.explain.words import sentences_of, verdict_of
from poise.gateway.records.changes import STOPS, KeptBy
from poise.gateway.records.moments import ChoiceState
from poise.gateway.records.story import calls_of
from poise.gateway.records.values import one_of
from poise.scheduler.request import PreemptionReason


class OtherRequests(msgspec.Struct, frozen=True, rename={"class_": "class"}):
    """Requests of one class, of the same tenant or of others, in a span of time."""

    class_: str
    same_tenant: bool
    requests: int
    slots: int
    prompt_tokens: int
    output_tokens: int
    ids: list[str]


class QueueFigures(msgspec.Struct, frozen=True, kw_only=True):
    position: int
    estimate_ms: int
    waited_ms: int
    over: bool
    held_back_ms: int
    pool: str | None
    slots: int | None
    slots_held: int
    slots_full_ms: int
    class_full_ms: int
    tenant_full_ms: int
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class PrefillFigures(msgspec.Struct, frozen=True, kw_only=True):
    cached_tokens: int
    computed_tokens: int
    chunks: int
    took_ms: int
    over: bool
    away_ms: int
    passes_ms: int
    beside_tokens: int
    tokens_per_s: float | None
    others: list[OtherRequests]


class GapFigures(msgspec.Struct, frozen=True, kw_only=True):
    took_ms: int
    ms: int
    choice: int
    after_tokens: int
    away_ms: dict[str, int]
    recomputed_tokens: int
    largest_chunk_tokens: int | None
    largest_chunk_pass_ms: int | None
    limited: dict[str, float]
    levels: list[str]
    others: list[OtherRequests]


class DecodeFigures(msgspec.Struct, frozen=True, kw_only=True):
    gaps: int
    itl_p50_ms: float
    itl_p99_ms: float
    longest_gap: GapFigures


class Stop(msgspec.Struct, frozen=True, kw_only=True):
    what: Annotated[str, one_of(*STOPS)]
    choice: int
    ms: int
    for_ms: int | None
    kept_by: Annotated[str, one_of(*KeptBy)]
    why: Annotated[str, one_of(*PreemptionReason)] | None


class ExplanationFigures(msgspec.Struct, frozen=True, kw_only=True, rename={"class_": "class"}):
    class_: str
    state: ChoiceState
    outcome: str | None
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    tool_calls: int
    recomputed_tokens: int
    lived_ms: int
    ttft_ms: int | None
    queue: QueueFigures | None
    prefill: PrefillFigures | None
    decode: DecodeFigures | None
    stops: list[Stop]
    engine_ms: int | None
    engine_share: float | None
    others_missing: bool
    others_left_out: int


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    id: str
    object: Literal["explanation"] = "explanation"
    verdict: str | None
    sentences: list[str]
    figures: ExplanationFigures
    timeline: list[RequestMoment]


def explanation_of(facts: Facts) -> Explanation:
    """The answer."""
    return Explanation(
        id=facts.record.response_id,
        verdict=verdict_of(facts),
        sentences=sentences_of(facts),
        figures=figures_of(facts),
        timeline=timeline_of(facts.record),
    )


def figures_of(facts: Facts) -> ExplanationFigures:
    """The numbers of the sentences, for programs."""
    record, usage = facts.record, facts.record.usage()
    return ExplanationFigures(
        class_=record.origin.request_class.value,
        state=record.state,
        outcome=record.outcome,
        prompt_tokens=usage.prompt_tokens,
        cached_tokens=usage.cached_tokens,
        output_tokens=usage.completion_tokens,
        tool_calls=calls_of(record),
        recomputed_tokens=facts.n_recomputed,
        lived_ms=_ms(facts.lived_s),
        ttft_ms=_ms(facts.ttft_s) if facts.ttft_s is not None else None,
        queue=_queue(facts.wait) if facts.wait is not None else None,
        prefill=_prefill(facts.prefill) if facts.prefill is not None else None,
        decode=_decode(facts, facts.decode) if facts.decode is not None else None,
        stops=[
            Stop(
                what=away.what,
                choice=away.choice,
                ms=_ms(away.begin_s - facts.arrived_s),
                for_ms=_ms(away.end_s - away.begin_s) if away.end_s is not None else None,
                kept_by=away.kept_by,
                why=away.why or None,
            )
            for away in facts.aways
        ],
        engine_ms=_ms(facts.served_s) if facts.served_s is not None else None,
        engine_share=round(facts.share, 4) if facts.share is not None else None,
        others_missing=facts.others_missing,
        others_left_out=facts.n_left_out,
    )


def _queue(wait: Wait) -> QueueFigures:
    limits, company = wait.limits, wait.company
    return QueueFigures(
        position=wait.position,
        estimate_ms=_ms(wait.eta_s),
        waited_ms=_ms(wait.took_s),
        over=wait.is_over,
        held_back_ms=_ms(wait.paused_s),
        pool=limits.pool or None,
        slots=limits.slots,
        slots_held=company.n_slots,
        slots_full_ms=_ms(company.slots_full_s),
        class_full_ms=_ms(company.class_full_s),
        tenant_full_ms=_ms(company.tenant_full_s),
        **_around(wait.weather, company),
    )


def _prefill(prefill: PrefillStretch) -> PrefillFigures:
    return PrefillFigures(
        cached_tokens=prefill.n_cached,
        computed_tokens=prefill.n_computed,
        chunks=prefill.n_chunks,
        took_ms=_ms(prefill.took_s),
        over=prefill.is_over,
        away_ms=_ms(prefill.away_s),
        passes_ms=_ms(prefill.pass_s),
        beside_tokens=prefill.n_beside,
        tokens_per_s=round(prefill.per_s, 1) if prefill.per_s is not None else None,
        others=_others(prefill.company),
    )


def _decode(facts: Facts, decode: Decode) -> DecodeFigures:
    gap = decode.gap
    chunk = gap.chunk.computed if gap.chunk is not None else None
    return DecodeFigures(
        gaps=decode.n_gaps,
        itl_p50_ms=round(decode.p50_s * 1000, 1),
        itl_p99_ms=round(decode.p99_s * 1000, 1),
        longest_gap=GapFigures(
            took_ms=_ms(gap.took_s),
            ms=_ms(gap.begin_s - facts.arrived_s),
            choice=gap.choice,
            after_tokens=gap.n_before,
            away_ms={state: _ms(spent_s) for state, spent_s in gap.away.items()},
            recomputed_tokens=gap.n_again,
            largest_chunk_tokens=round(chunk.n_tokens / chunk.n_chunks) if chunk is not None else None,
            largest_chunk_pass_ms=_ms(chunk.pass_s / chunk.n_chunks) if chunk is not None else None,
            **_around(gap.weather, gap.company),
        ),
    )


def _others(company: Company) -> list[OtherRequests]:
    return [OtherRequests(g.request_class, g.own, g.n_requests, g.n_slots, g.n_prompt, g.n_output, g.ids) for g in company.groups]


def _around(weather: Weather, company: Company) -> dict[str, Any]:
    limited = {name: round(part, 4) for name, part in weather.limited.items()}
    return {"limited": limited, "levels": list(weather.levels), "others": _others(company)}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
