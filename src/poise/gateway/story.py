"""From the record of a response that has ended to its story: times and counts, for metrics and traces."""

from __future__ import annotations

from poise.gateway.record import CANCELLED, PREFILL, ChoiceRecord, Record
from poise.gateway.segments import END, Segmenter
from poise.metrics.story import WHOLE, ChoiceStory, Happened, RequestStory
from poise.metrics.tenants import OTHER

SEGMENT_TOKENS_MAX, READ_TOKENS_MAX = 512, 2048
"""Of a longer first segment, a long code block say, nobody wants to know when it was complete."""


def story_of(record: Record) -> RequestStory:
    """The story of a record to which nothing is added any more."""
    origin, ends = record.origin, _segment_ends(record)
    return RequestStory(
        request_id=origin.request_id,
        response_id=record.response_id,
        tenant=OTHER if record.erased else origin.tenant,
        request_class=origin.request_class.value,
        operation="chat" if origin.prompt_param == "messages" else "text_completion",
        traceparent=origin.traceparent,
        arrived_s=origin.arrived_s,
        n_prompt=record.n_prompt,
        choices=[_choice(record, choice, ends) for choice in record.choices],
        # A span holds a limited number of events, the last ones: a long prompt's chunks would push the others out.
        timeline=[Happened(m.what, m.at_s, m.choice, m.detail) for m in record.timeline if m.what != PREFILL],
    )


def _choice(record: Record, choice: ChoiceRecord, segment_ends: dict[int, float | None]) -> ChoiceStory:
    own = [moment for moment in record.timeline if moment.choice == choice.index]
    started = next((moment for moment in own if moment.what == "started"), None)
    ended_s = next((moment.at_s for moment in own if moment.what == "finished"), record.timeline[-1].at_s)
    return ChoiceStory(
        outcome=choice.outcome or CANCELLED,
        n_output=choice.n_output,
        n_cached=choice.n_cached,
        wait_s=started.detail["wait_ms"] / 1000 if started is not None else None,
        first_s=choice.first_s,
        last_s=choice.last_s,
        segment_s=segment_ends.get(choice.index, ended_s if _is_whole(choice) else None),
        ended_s=ended_s,
    )


def _is_whole(choice: ChoiceRecord) -> bool:
    return choice.first_s is not None and choice.outcome in WHOLE


def _segment_ends(record: Record) -> dict[int, float | None]:
    """By choice, when its first segment had ended for certain, if that is known; None: it is longer than what is looked at.

    Of all choices together a bounded number of tokens is read: this is done in one go, at the end of the request. A choice of
    which nothing is said ended before its first segment did.
    """
    segmenters = [Segmenter() for _ in record.choices]
    n_read = [0] * len(segmenters)
    found: dict[int, float | None] = {}
    for i in range(min(len(record.texts), READ_TOKENS_MAX)):
        owner = record.owners[i]
        if owner in found:
            continue
        n_read[owner] += 1
        if any(mark.event == END for mark in segmenters[owner].push(record.texts[i])):
            found[owner] = record.arrivals[i]
        elif n_read[owner] == SEGMENT_TOKENS_MAX:
            found[owner] = None
    if len(record.texts) > READ_TOKENS_MAX:
        found = {choice.index: found.get(choice.index) for choice in record.choices}
    return found
