"""Answers the question why a request was slow: gathers what is known around its record, and tells it as sentences and figures."""

from __future__ import annotations

import time
from typing import Any

from poise.config import Settings
from poise.gateway.engine_client import EngineClient
from poise.gateway.explain import Decode, Facts, Prefill, Surroundings, Wait, Weather, facts_of
from poise.gateway.explain_words import sentences_of, verdict_of
from poise.gateway.history import History
from poise.gateway.neighbours import Capacity, Company, Neighbours
from poise.gateway.openai import class_settings
from poise.gateway.record import Record
from poise.gateway.records import Records
from poise.gateway.spans import timeline_of
from poise.scheduler.policy import LONG_POOL


class Explainer:
    """Explains records that are kept."""

    def __init__(self, settings: Settings, engine: EngineClient, records: Records, history: History) -> None:
        self._settings = settings
        self._engine = engine
        self._records = records
        self._history = history

    def explain(self, record: Record, tenant: str | None) -> dict[str, Any]:
        """For a caller of `tenant`, or for an operator (None). Only an operator is told ids of other tenants' requests."""
        now_s = time.perf_counter()
        self._records.purge()
        neighbours = Neighbours(
            record, self._records.newest(), lambda other: tenant in (None, other.origin.tenant), now_s
        )
        around = Surroundings(
            neighbours,
            lambda pool: self._capacity(record, pool),
            lambda begin_s, end_s: self._weather(begin_s, end_s, now_s),
            self._records.forgotten_s,
        )
        facts = facts_of(record, around, now_s)
        return {
            "id": record.response_id,
            "object": "explanation",
            "verdict": verdict_of(facts),
            "sentences": sentences_of(facts),
            "figures": figures_of(facts),
            "timeline": timeline_of(record),
        }

    def _capacity(self, record: Record, pool: str) -> Capacity:
        """`pool` is empty before it is known."""
        ready, origin = self._engine.state.ready, record.origin
        slots = {built.name: built.n_slots for built in ready.pools} if ready is not None else {}
        if not pool and len(slots) == 1:
            (pool,) = slots
        limits = class_settings(self._settings, origin.request_class)
        running_max = self._settings.tenant(origin.tenant).running_max or None
        if pool not in slots:
            return Capacity("", tenant_running=running_max)
        class_slots = limits.heavy_max if pool == LONG_POOL else limits.slots_max
        return Capacity(pool, slots[pool], min(class_slots, slots[pool]), running_max)

    def _weather(self, begin_s: float, end_s: float, now_s: float) -> Weather:
        """The samples are dated, the records are not: their clock counts from any moment."""
        offset_s = time.time() - now_s
        samples = self._history.between(begin_s + offset_s, end_s + offset_s)
        whole_s = sum(sample.seconds for sample in samples)
        limited: dict[str, float] = {}
        for sample in samples:
            for name, part in sample.limited.items():
                if part and whole_s:
                    limited[name] = limited.get(name, 0.0) + part * sample.seconds / whole_s
        levels: list[str] = []
        for sample in samples:
            if levels[-1:] != [sample.level]:
                levels.append(sample.level)
        slowest = max((sample.cost_ratio for sample in samples if sample.cost_ratio is not None), default=0.0)
        return Weather(limited, tuple(levels), slowest)


def figures_of(facts: Facts) -> dict[str, Any]:
    """The numbers of the sentences, for programs."""
    record, usage = facts.record, facts.record.usage()
    return {
        "class": record.origin.request_class.value,
        "state": record.state,
        "outcome": record.outcome,
        "prompt_tokens": usage.prompt_tokens,
        "cached_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
        "recomputed_tokens": facts.n_recomputed,
        "lived_ms": _ms(facts.lived_s),
        "ttft_ms": _ms(facts.ttft_s) if facts.ttft_s is not None else None,
        "queue": _queue(facts.wait) if facts.wait is not None else None,
        "prefill": _prefill(facts.prefill) if facts.prefill is not None else None,
        "decode": _decode(facts, facts.decode) if facts.decode is not None else None,
        "stops": [
            {
                "what": away.what,
                "choice": away.choice,
                "ms": _ms(away.begin_s - facts.arrived_s),
                "for_ms": _ms(away.end_s - away.begin_s) if away.end_s is not None else None,
                "kept_by": away.kept_by or "scheduler",
                "why": away.why or None,
            }
            for away in facts.aways
        ],
        "engine_ms": _ms(facts.served_s) if facts.served_s is not None else None,
        "engine_share": round(facts.share, 4) if facts.share is not None else None,
        "others_missing": facts.others_missing,
        "others_left_out": facts.n_left_out,
    }


def _queue(wait: Wait) -> dict[str, Any]:
    capacity, company = wait.capacity, wait.company
    return {
        "position": wait.position,
        "estimate_ms": _ms(wait.eta_s),
        "waited_ms": _ms(wait.took_s),
        "over": wait.is_over,
        "held_back_ms": _ms(wait.paused_s),
        "pool": capacity.pool or None,
        "slots": capacity.slots,
        "slots_held": company.n_slots,
        "slots_full_ms": _ms(company.slots_full_s),
        "class_full_ms": _ms(company.class_full_s),
        "tenant_full_ms": _ms(company.tenant_full_s),
        "limited": _limited(wait.weather),
        "levels": list(wait.weather.levels),
        "others": _others(company),
    }


def _prefill(prefill: Prefill) -> dict[str, Any]:
    return {
        "cached_tokens": prefill.n_cached,
        "computed_tokens": prefill.n_computed,
        "chunks": prefill.n_chunks,
        "took_ms": _ms(prefill.took_s),
        "over": prefill.is_over,
        "away_ms": _ms(prefill.away_s),
        "passes_ms": _ms(prefill.pass_s),
        "beside_tokens": prefill.n_beside,
        "tokens_per_s": round(prefill.per_s, 1) if prefill.per_s is not None else None,
        "others": _others(prefill.company),
    }


def _decode(facts: Facts, decode: Decode) -> dict[str, Any]:
    gap = decode.gap
    chunk = gap.chunk.computed if gap.chunk is not None else None
    return {
        "gaps": decode.n_gaps,
        "itl_p50_ms": round(decode.p50_s * 1000, 1),
        "itl_p99_ms": round(decode.p99_s * 1000, 1),
        "longest_gap": {
            "took_ms": _ms(gap.took_s),
            "ms": _ms(gap.begin_s - facts.arrived_s),
            "choice": gap.choice,
            "after_tokens": gap.n_before,
            "away_ms": {state: _ms(spent_s) for state, spent_s in gap.away.items()},
            "recomputed_tokens": gap.n_again,
            "largest_chunk_tokens": round(chunk.n_tokens / chunk.n_chunks) if chunk is not None else None,
            "largest_chunk_pass_ms": _ms(chunk.pass_s / chunk.n_chunks) if chunk is not None else None,
            "limited": _limited(gap.weather),
            "levels": list(gap.weather.levels),
            "others": _others(gap.company),
        },
    }


def _others(company: Company) -> list[dict[str, Any]]:
    return [
        {
            "class": group.request_class,
            "same_tenant": group.own,
            "requests": group.n_requests,
            "slots": group.n_slots,
            "prompt_tokens": group.n_prompt,
            "output_tokens": group.n_output,
            "ids": group.ids,
        }
        for group in company.groups
    ]


def _limited(weather: Weather) -> dict[str, float]:
    return {name: round(part, 4) for name, part in weather.limited.items()}


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
