"""Streams that are taken up again: a writer that knows what its reader has been sent."""

from poise.gateway.records.record import Record
from poise.gateway.records.writer import Writer
from poise.gateway.text.answers import EntryKind


def writer_behind(record: Record, n_entries: int, n_ends: int) -> Writer:
    """That of a reader that has been sent everything up to a place."""
    writer = record.writer()
    if record.downgraded:
        writer.downgrade()
    if n_entries or n_ends:
        writer.opening(len(record.choices))  # came before that
    runs: list[list[tuple[int, list[str]]]] = [[] for _ in record.choices]
    opened = {end.choice for end in record.ends[:n_ends]}
    for i in range(n_entries):
        of_choice, kind, text = runs[record.owners[i]], record.kinds[i], record.texts[i]
        if text and (not of_choice or of_choice[-1][0] != kind or kind == EntryKind.CALL_NAME):
            of_choice.append((kind, [text]))
        elif text:
            of_choice[-1][1].append(text)
        if record.wants_logprobs and record.logprobs[i]:
            opened.add(record.owners[i])
    for choice, of_choice in enumerate(runs):
        for kind, texts in of_choice or ([(EntryKind.TEXT, [])] if choice in opened else []):
            writer.passed(choice, "".join(texts), EntryKind(kind))
    return writer
