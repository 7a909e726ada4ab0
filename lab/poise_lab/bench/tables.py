"""A result as tables: for the terminal, and as Markdown with where they come from. Reads the document."""

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from rich.table import Table

from poise_lab.bench.stats import CORRECTED, GOODPUT, LATER, MEASURES, RATES, failures

Rows = list[list[str]]
SIGNS: dict[str, str] = {"": "", ">=": "≥", "<=": "≤", "~": "~"}
FIGURES_CAPTION = "Medians over the rounds; ratios are ours/theirs (min–max). Rates stand under p50, the maximum under p99."
_COUNTS = ("sent", "ok", "cancelled", "unfinished", "without a token", "refused", "failed", "short", "prompt", "output")
_WORDS = ("clients", "server", "figure", "failures", "targets met", "")
"""Columns that are no numbers."""


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


def figure_rows(run: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """Medians over the rounds for each set of clients, and in a comparison the ratios with their spread."""
    sides = list(run["medians"])
    labels = ("p50", "p95", "p99")
    blocks = [*sides, "ratio"] if len(sides) > 1 else [""]
    header = ["clients", "figure", *(f"{block} {label}".strip() for block in blocks for label in labels)]
    ratios = {(r["kind"], r["name"]): r["figures"] for r in run["ratios"]}
    rows: Rows = []
    for label, groups in distinct_groups(run):
        any_side = next(iter(groups.values()))
        known = {name for group in groups.values() for name in group["figures"]}
        for name, figures in _lines(known, is_all=label == "all"):
            cells = [show(groups.get(side, {}).get("figures", {}).get(f)) for side in sides for f in figures]
            if len(sides) > 1:
                own = ratios.get((any_side["kind"], any_side["name"]), {})
                cells += [_show_ratio(own.get(f)) for f in figures]
            rows.append([label, name, *cells])
    return header, rows


def count_rows(run: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """How the requests ended in all rounds together, how long the complete ones were, and how many kept their targets."""
    rows: Rows = []
    for label, groups in distinct_groups(run):
        for side, group in groups.items():
            statuses, failed = Counter(group["statuses"]), failures(group["statuses"])
            counts = [statuses.total(), *(statuses[status] for status in ("ok", "cancelled", "unfinished"))]
            counts += [group["censored"], statuses["refused"], sum(failed.values()), group["short"]]
            lengths = [show(group["figures"].get(f"{kind}_tokens_p50")) for kind in ("prompt", "output")]
            words = ", ".join(f"{n} {status}" for status, n in failed.items())
            rows.append([label, side, *map(str, counts), *lengths, words, _goodput(group["goodput"])])
    return ["clients", "server", *_COUNTS, "failures", "targets met"], rows


def distinct_groups(run: Mapping[str, Any]) -> list[tuple[str, dict[str, Mapping[str, Any]]]]:
    """One entry for each set of clients: what to call it, and its median figures by side."""
    found: dict[tuple[str, ...], tuple[dict[str, str], dict[str, Mapping[str, Any]]]] = {}
    for side, groups in run["medians"].items():
        for group in groups:
            kinds, by_side = found.setdefault(tuple(group["clients"]), ({}, {}))
            kinds[group["kind"]] = group["name"]
            by_side.setdefault(side, group)
    return [(label_of(kinds), by_side) for kinds, by_side in found.values()]


def terminal_table(header: Sequence[str], rows: Iterable[Sequence[str]], title: str, caption: str = "") -> Table:
    """Rows for the terminal; each set of clients is named once."""
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    for name in header:
        table.add_column(name, justify="left" if name in _WORDS else "right", no_wrap=name != "failures")
    for label, group in groupby(rows, key=itemgetter(0)):
        for row, cells in enumerate(group):
            table.add_row("" if row else label, *cells[1:])
        table.add_section()
    return table


def label_of(kinds: Mapping[str, str]) -> str:
    """What to call a set of clients that is one or more groups: their names by kind."""
    if "client" in kinds:
        return f"{kinds['client']} ({kinds['class']})" if "class" in kinds else kinds["client"]
    if "class" in kinds:
        return f"class {kinds['class']}"
    return f"tenant {kinds['tenant']}" if "tenant" in kinds else "all"


def title_of(name: str) -> str:
    """A measure or figure as the tables call it."""
    return {
        "ttft_ms": "TTFT ms",
        "gap_ms": "gap ms",
        "max_gap_ms": "longest gap ms, max",
        "e2e_ms": "end to end ms",
        "output_tokens_per_s": "output tokens/s",
        "prompt_tokens_per_s": "prompt tokens/s",
        "stream_tokens_per_s_p50": "tokens/s per stream",
        "ttft_later_ms": "TTFT of later turns ms",
        "e2e_later_ms": "end to end of later turns ms",
        "ttft_corrected_ms": "TTFT from due ms",
        "e2e_corrected_ms": "end to end from due ms",
        "goodput_share": "goodput, share",
        "goodput_per_s": "goodput, requests/s",
    }[name]


def number(value: float) -> str:
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def show(figure: Mapping[str, Any] | None) -> str:
    """A figure with its bound; nothing where there is none."""
    return "" if figure is None else SIGNS[figure["bound"]] + number(figure["value"])


def _lines(known: Container[str], *, is_all: bool) -> list[tuple[str, tuple[str, ...]]]:
    """The rows' titles, each with the names of its three figures."""
    quantiles = {} if is_all else MEASURES | CORRECTED | LATER
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
