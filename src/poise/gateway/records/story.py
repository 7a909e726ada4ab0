"""From the record of a response that has ended to its story: times and counts, for metrics and traces."""

from poise.gateway.records.moments import PREFILL, ChoiceRecord
from poise.gateway.records.record import CANCELLED, Record
from poise.gateway.text.answers import EntryKind
from poise.metrics.story import ChoiceStory, Happened, RequestStory
from poise.metrics.tenants import OTHER


def story_of(record: Record) -> RequestStory:
    """The story of a record to which nothing is added any more."""
    origin = record.origin
    return RequestStory(
        request_id=origin.request_id,
        response_id=record.response_id,
        tenant=OTHER if record.erased else origin.tenant,
        request_class=origin.request_class.value,
        operation=origin.operation,
        traceparent=origin.traceparent,
        arrived_s=origin.arrived_s,
        n_prompt=record.n_prompt,
        choices=[_choice(record, choice) for choice in record.choices],
        # A span holds a limited number of events, the last ones: a long prompt's chunks would push the others out.
        timeline=[Happened(m.what, m.at_s, m.choice, m.detail) for m in record.timeline if m.what != PREFILL],
    )


def calls_of(record: Record, choice: int | None = None) -> int:
    """Calls of functions so far, in all choices or in one."""
    n = record.kinds.count(EntryKind.CALL_NAME)
    if not n or choice is None:
        return n
    return sum(kind == EntryKind.CALL_NAME for owner, kind in zip(record.owners, record.kinds, strict=True) if owner == choice)


def _choice(record: Record, choice: ChoiceRecord) -> ChoiceStory:
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
        ended_s=ended_s,
        n_calls=calls_of(record, choice.index),
    )
