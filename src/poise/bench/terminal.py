"""A scenario's result as tables for the terminal. Reads the document."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.table import Table

from poise.bench.markdown import distinct_groups, figure_rows, show
from poise.bench.stats import failures

_CAPTION = "Medians over the rounds; ratios are ours/theirs (min–max). Rates stand under p50, the maximum under p99."
_COUNTS = ("sent", "ok", "cancelled", "unfinished", "without a token", "refused", "failed", "short", "prompt", "output")


def figure_table(run: Mapping[str, Any], title: str) -> Table:
    """The times and rates of every group: medians over the rounds, and in a comparison the ratios with their spread."""
    table = Table(title=title, title_justify="left", title_style="bold", caption=_CAPTION, caption_justify="left")
    header, rows = figure_rows(run, all_rows=True)
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number < 2 else "right", no_wrap=True)
    for label, group in groupby(rows, key=itemgetter(0)):
        for number, cells in enumerate(group):
            table.add_row("" if number else label, *cells[1:])
        table.add_section()
    return table


def count_table(run: Mapping[str, Any]) -> Table:
    """How the requests ended, in all rounds together, and how long the complete ones were."""
    table = Table(title="requests, all rounds", title_justify="left")
    for header in ("clients", "server", *_COUNTS, "failures"):
        table.add_column(header, justify="right" if header in _COUNTS else "left")
    for label, groups in distinct_groups(run):
        for side, group in groups.items():
            statuses, failed = Counter(group["statuses"]), failures(group["statuses"])
            counts = [statuses.total(), *(statuses[status] for status in ("ok", "cancelled", "unfinished"))]
            counts += [group["censored"], statuses["refused"], sum(failed.values()), group["short"]]
            lengths = [show(group["figures"].get(f"{kind}_tokens_p50")) for kind in ("prompt", "output")]
            words = ", ".join(f"{n} {status}" for status, n in failed.items())
            table.add_row(label, side, *map(str, counts), *lengths, words)
    return table
