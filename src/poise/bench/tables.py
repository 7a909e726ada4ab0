"""A result as tables: for the terminal, and as Markdown with where they come from. Reads the document."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.table import Table

from poise.bench.report import SIGNS, label_of, number, title_of
from poise.bench.stats import CORRECTED, GOODPUT, MEASURES, RATES, failures

Rows = list[list[str]]
_CAPTION = "Medians over the rounds; ratios are ours/theirs (min–max). Rates stand under p50, the maximum under p99."
_COUNTS = ("sent", "ok", "cancelled", "unfinished", "without a token", "refused", "failed", "short", "prompt", "output")


def to_markdown(document: Mapping[str, Any]) -> str:
    """The whole result, ready for a pull request."""
    parts = ["# poise bench", "", *(f"- {key}: {value}" for key, value in provenance(document)), ""]
    for run in document["scenarios"]:
        parts += [f"## {run['name']}", "", run_line(run), ""]
        parts += [markdown_table(*figure_rows(run)), "", markdown_table(*count_rows(run)), ""]
        parts += [*(f"- {note}" for note in run["notes"]), ""] if run["notes"] else []
    return "\n".join(parts)


def provenance(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Who measured what, where and with which seeds."""
    host, options = document["host"], document["options"]
    cpus = f"{host['n_cpus_usable']} of {host['n_cpus']}"
    asked = "" if options.get("max_tokens", True) else "; requests name no max_tokens"
    found = [
        ("started", f"{document['started_at']}{'' if document['complete'] else ' (interrupted)'}"),
        ("host", f"{host['name']}, {host['cpu']}, {cpus} CPUs, {host['memory_bytes'] / 2**30:.1f} GiB, {host['system']}"),
        ("versions", ", ".join(f"{name} {version}" for name, version in document["versions"].items())),
        ("commit", document["commit"] or "not from a checkout"),
        ("seeds", f"arrivals from {options['seed']} on, words {options['text_seed']}; {options['rounds']} round(s){asked}"),
    ]
    for side, target in document["targets"].items():
        software = f", {target['software']}" if target["software"] else ""
        told = target["told"].get("/status", {})
        pools = ", ".join(f"pool {p['name']}: {p['slots']} x {p['slot_cells']} cells" for p in told.get("pools") or [])
        found.append((side, f"{target['url']}, model {target['model']}{software}{', ' + pools if pools else ''}"))
    return found


def run_line(run: Mapping[str, Any]) -> str:
    targets = [
        f"{t['request_class']}: " + ", ".join(f"{k} <= {v:g}" for k, v in t.items() if k != "request_class" and v)
        for t in run["targets"]
    ]
    traces = [f"trace {t['path']} ({t['requests']} requests, {t['digest']})" for t in run["traces"]]
    return "; ".join([f"{len(run['rounds'])} round(s) of {run['path']}", *targets, *traces])


def figure_rows(run: Mapping[str, Any], *, all_rows: bool = False) -> tuple[list[str], Rows]:
    """Medians over the rounds for each set of clients, and in a comparison the ratios with their spread.

    `all_rows`: also those of usual figures that nobody has here."""
    sides = list(run["medians"])
    labels = ("p50", "p95", "p99")
    blocks = [*sides, "ratio"] if len(sides) > 1 else [""]
    header = ["clients", "figure", *(f"{block} {label}".strip() for block in blocks for label in labels)]
    ratios = {(r["kind"], r["name"]): r["figures"] for r in run["ratios"]}
    rows: Rows = []
    for label, groups in distinct_groups(run):
        any_side = next(iter(groups.values()))
        known = {name for group in groups.values() for name in group["figures"]}
        if all_rows:
            known.update(RATES, (f"{measure}_p50" for measure in MEASURES))
        for name, figures in _lines(known, is_all=label == "all"):
            cells = [show(groups.get(side, {}).get("figures", {}).get(f)) for side in sides for f in figures]
            if len(sides) > 1:
                own = ratios.get((any_side["kind"], any_side["name"]), {})
                cells += [_show_ratio(own.get(f)) for f in figures]
            rows.append([label, name, *cells])
    return header, rows


def count_rows(run: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """How the requests ended, and how many kept their targets."""
    header = ["clients", "server", "requests", "how they ended", "without a token", "short", "targets met"]
    rows: Rows = []
    for label, groups in distinct_groups(run):
        for side, group in groups.items():
            ends = ", ".join(f"{n} {status}" for status, n in group["statuses"].items())
            rows.append(
                [label, side, str(sum(group["statuses"].values())), ends, str(group["censored"]), str(group["short"]),
                 _goodput(group["goodput"])]
            )  # fmt: skip
    return header, rows


def distinct_groups(run: Mapping[str, Any]) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """One entry for each set of clients: what to call it, and its median figures by side."""
    found: dict[tuple[str, ...], tuple[dict[str, str], dict[str, Mapping[str, Any]]]] = {}
    for side, groups in run["medians"].items():
        for group in groups:
            kinds, by_side = found.setdefault(tuple(group["clients"]), ({}, {}))
            kinds[group["kind"]] = group["name"]
            by_side.setdefault(side, group)
    return [(label_of(kinds), by_side) for kinds, by_side in found.values()]


def figure_table(run: Mapping[str, Any], title: str) -> Table:
    """The times and rates of every group: medians over the rounds, and in a comparison the ratios with their spread."""
    table = Table(title=title, title_justify="left", title_style="bold", caption=_CAPTION, caption_justify="left")
    header, rows = figure_rows(run, all_rows=True)
    for place, name in enumerate(header):
        table.add_column(name, justify="left" if place < 2 else "right", no_wrap=True)
    for label, group in groupby(rows, key=itemgetter(0)):
        for row, cells in enumerate(group):
            table.add_row("" if row else label, *cells[1:])
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


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def show(figure: Mapping[str, Any] | None) -> str:
    """A figure with its bound; nothing where there is none."""
    return "" if figure is None else SIGNS[figure["bound"]] + number(figure["value"])


def _lines(known: Container[str], *, is_all: bool) -> list[tuple[str, tuple[str, ...]]]:
    """The rows' titles, each with the names of its three figures."""
    quantiles = {} if is_all else MEASURES | CORRECTED
    lines = [(title_of(m), tuple(f"{m}_{q}" for q in own)) for m, own in quantiles.items() if f"{m}_p50" in known]
    return lines + [(title_of(name), (name, "", "")) for name in (*RATES, *GOODPUT) if name in known]


def _show_ratio(ratio: Mapping[str, Any] | None) -> str:
    if ratio is None:
        return ""
    return f"{SIGNS[ratio['bound']]}{ratio['median']:.3g} ({ratio['min']:.2g}–{ratio['max']:.2g})"


def _goodput(found: Mapping[str, int] | None) -> str:
    if found is None:
        return ""
    undecided = f", {found['n_undecided']} undecided" if found["n_undecided"] else ""
    return f"{found['n_met']} of {found['n_met'] + found['n_missed']}{undecided}"
