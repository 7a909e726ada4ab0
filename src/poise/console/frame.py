"""A picture as text for a terminal or a pipe: what `poise top --once` prints, and the upper half of the live screen."""

from collections.abc import Iterable
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from poise.console.picture import Picture, RequestRow, age, bar, ordered, spark

BAR_WIDTH, SPARK_WIDTH = 24, 60
LEVEL_STYLES = {"normal": "green", "busy": "yellow", "constrained": "yellow", "degraded": "red", "draining": "magenta"}
STATE_STYLES = {"running": "green", "queued": "yellow", "paused": "magenta", "swapped": "cyan"}


def frame_of(picture: Picture) -> RenderableType:
    """Everything, one below the other, in 80 columns."""
    parts = (header(picture), classes(picture), curves(picture), bars(picture))
    return Group(*(x for part in parts for x in (part, Text())), *map(Text, picture.memory), Text(), requests(picture))


def as_text(explanation: dict[str, Any]) -> Text:
    """Why a request took as long as it did: the verdict, a blank line, and a sentence a line, indented where it wraps."""
    verdict, style = (explanation["verdict"], "bold") if explanation["verdict"] else ("Nothing about it stands out.", "")
    sentences = "\n".join(explanation["sentences"])
    return Text.assemble((f"{explanation['id']}\n", "dim"), (f"{verdict}\n\n", style), sentences)


def header(picture: Picture) -> Text:
    text = Text.assemble(("poise ", "bold"), picture.title, "\n", "level ")
    text.append(picture.level, style=LEVEL_STYLES.get(picture.level, ""))
    if picture.reasons:
        text.append(f": {'; '.join(picture.reasons)}")
    text.append(f"\nlimit {picture.bottleneck}")
    for finding in picture.findings:
        text.append(f"\nlook  {finding}", style="red")
    return text


def classes(picture: Picture) -> Table:
    names = ("class", "queued", "running", "paused", "swapped", "TTFT p50/p95", "ITL p50/p99", "wait")
    table = _table(names, right=range(1, len(names)))
    for row in picture.classes:
        table.add_row(row.name, *map(str, row.counts), row.ttft, row.itl, row.estimate)
    return table


def curves(picture: Picture) -> Table:
    table = Table.grid(padding=(0, 1))
    for curve in picture.curves:
        table.add_row(curve.name, Text(spark(curve.values, SPARK_WIDTH), style="cyan"), curve.now)
    return table


def bars(picture: Picture) -> Table:
    table = Table.grid(padding=(0, 1))
    for one in picture.bars:
        style = "red" if one.share >= 0.95 else "green"
        table.add_row(one.name, Text(bar(one.share, BAR_WIDTH), style=style), one.text)
    return table


def requests(picture: Picture) -> RenderableType:
    whose = "live requests" if picture.is_operator else "your live requests"
    if not picture.requests:
        return Text(f"no {whose}", style="dim")
    table = _table(("id", "class", "state", "prompt", "cached", "output", "age"), right=(3, 4, 5, 6))
    for row in ordered(picture.requests, "age"):
        table.add_row(*cells(row))
    return table


def cells(row: RequestRow) -> list[Text]:
    """A request's, but for its tenant."""
    state = Text(row.state, style=STATE_STYLES.get(row.state, ""))
    counts = [Text(f"{n:,}", justify="right") for n in (row.prompt, row.cached, row.output)]
    return [Text(row.id), Text(row.request_class), state, *counts, Text(age(row.age_ms))]


def _table(names: Iterable[str], right: Iterable[int]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1), collapse_padding=True)
    for i, name in enumerate(names):
        table.add_column(name, justify="right" if i in right else "left", no_wrap=True)
    return table
