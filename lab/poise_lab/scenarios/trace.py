"""A trace: real arrival times and token counts, without text, from a CSV file.

The first line names the columns: `TIMESTAMP,ContextTokens,GeneratedTokens` as the Azure LLM inference traces have them, or
`timestamp,context,generated`; the letters' case does not matter, and other columns are skipped. A time is seconds or an ISO date
and time; times count from the first row's."""

from __future__ import annotations

import csv
import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from hashlib import blake2b
from pathlib import Path

from poise_lab.scenarios.files import InputError, explained

ROWS_MAX = 5_000_000
TOKENS_MAX = 1 << 20
COLUMNS = (("timestamp",), ("contexttokens", "context"), ("generatedtokens", "generated"))


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request of a trace: seconds since the trace's first one, and its lengths."""

    at_s: float
    n_context: int
    n_generated: int


@dataclass(frozen=True)
class Trace:
    """A trace in the order of time. `digest` identifies the file's contents; two traces are equal when it is."""

    path: str
    digest: str
    rows: tuple[TraceRow, ...] = field(compare=False, repr=False)


def load_trace(path: Path) -> Trace:
    """Reads and checks a trace. Raises InputError with one line."""
    with explained(path):
        data = path.read_bytes()
        lines = data.decode("utf-8-sig").splitlines()
    rows = _rows(str(path), csv.DictReader(lines))
    if not rows:
        raise InputError(f"{path}: holds no request")
    rows.sort(key=lambda row: row.at_s)
    first_s = rows[0].at_s
    digest = blake2b(data, digest_size=16).hexdigest()
    return Trace(str(path), digest, tuple(TraceRow(r.at_s - first_s, r.n_context, r.n_generated) for r in rows))


def _rows(source: str, reader: csv.DictReader[str]) -> list[TraceRow]:
    try:
        given = {name.strip().lower(): name for name in reader.fieldnames or () if name}
        names = [next((given[name] for name in allowed if name in given), None) for allowed in COLUMNS]
        if None in names:
            raise InputError(
                f"{source}: expected a first line with TIMESTAMP, ContextTokens, GeneratedTokens; "
                f"given: {', '.join(given) or 'nothing'}"
            )
        at, context, generated = (str(name) for name in names)
        rows = []
        for number, row in enumerate(reader):
            if number >= ROWS_MAX:
                raise InputError(f"{source}: more than {ROWS_MAX} requests; cut the file")
            here = f"{source}: line {reader.line_num}"
            rows.append(TraceRow(_seconds(row[at], here), _tokens(row[context], here, 1), _tokens(row[generated], here, 0)))
    except csv.Error as error:
        raise InputError(f"{source}: line {reader.line_num}: {error}") from error
    return rows


def _seconds(text: str | None, here: str) -> float:
    """Seconds, or an ISO date and time; one without a zone is taken as UTC, for only differences count."""
    try:
        value = float(text or "")
    except ValueError:
        try:
            moment = datetime.fromisoformat((text or "").strip())
        except ValueError:
            raise InputError(f"{here}: time {text!r}: expected seconds or an ISO date and time") from None
        value = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(value):
        raise InputError(f"{here}: time {text!r}: expected a finite number")
    return value


def _tokens(text: str | None, here: str, low: int) -> int:
    try:
        value = int(text or "")
    except ValueError:
        value = -1
    if not low <= value <= TOKENS_MAX:
        raise InputError(f"{here}: {text!r}: expected a number of tokens from {low} to {TOKENS_MAX}")
    return value
