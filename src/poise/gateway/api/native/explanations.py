"""Explanations as the API sends them: the verdict, sentences and the figures behind them."""

from typing import Literal

import msgspec

from poise.gateway.api.native.views import RequestMoment, timeline_of
from poise.gateway.explain.facts import ExplanationFigures, Facts
from poise.gateway.explain.words import sentences_of, verdict_of


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
        figures=facts.figures,
        timeline=timeline_of(facts.record),
    )
