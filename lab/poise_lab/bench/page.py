"""A result as one self-contained HTML page: the tables, and plots drawn by the plotly.js that the plotly package carries.

The script is taken from the installed package and put into the page: it works from a mail or an archive, and asks no other host.
"""

import importlib.util
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise
from pathlib import Path
from typing import Any

from poise_lab.bench.tables import count_rows, figure_rows, provenance, run_line
from poise_lab.scenarios.files import InputError

_STYLE = """
:root { color-scheme: light dark; --line: #8886; --text: light-dark(#222, #ddd); --page: light-dark(#fff, #181a1d); }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto; max-width: 1100px;
  padding: 1rem; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid var(--line); padding: 2px 8px; text-align: right; white-space: nowrap; }
th:nth-child(-n+2), td:nth-child(-n+2) { text-align: left; }
.scroll { overflow-x: auto; margin: 1rem 0; }
.plot { height: 380px; margin: 1rem 0; }
dt { font-weight: 600; } dd { margin: 0 0 .3rem 1rem; overflow-wrap: anywhere; }
"""
_SCRIPT = """
const plots = JSON.parse(document.getElementById("plots").textContent);
function draw() {
  const style = getComputedStyle(document.body);
  for (const [id, plot] of Object.entries(plots)) {
    const axis = { gridcolor: "#8884", zerolinecolor: "#8884" };
    Plotly.react(id, plot.data, {
      ...plot.layout, title: { text: plot.title, y: 0.98 },
      paper_bgcolor: style.backgroundColor, plot_bgcolor: style.backgroundColor,
      font: { color: style.color }, margin: { t: 80, r: 20 },
      showlegend: true, legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      xaxis: { ...axis, ...plot.layout.xaxis }, yaxis: { ...axis, ...plot.layout.yaxis },
    }, { responsive: true, displaylogo: false });
  }
}
draw();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
"""


def plotly_script() -> str:
    """plotly.min.js out of the installed package, which is not imported: that would take a second. Raises InputError."""
    spec = importlib.util.find_spec("plotly")
    for folder in (spec.submodule_search_locations or []) if spec is not None else []:
        path = Path(folder) / "package_data" / "plotly.min.js"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise InputError("--html needs the package plotly, which is not installed: pip install plotly")


def to_html(document: Mapping[str, Any], plotly: str) -> str:
    """The page. `plotly` is the script's text."""
    names = ", ".join(run["name"] for run in document["scenarios"])
    body = [f"<h1>poise bench: {escape(names)}</h1>", "<dl>"]
    body += [f"<dt>{escape(key)}</dt><dd>{escape(value)}</dd>" for key, value in provenance(document)]
    body.append("</dl>")
    drawn: dict[str, Any] = {}
    for number, run in enumerate(document["scenarios"]):
        body += [f"<h2>{escape(run['name'])}</h2>", f"<p>{escape(run_line(run))}</p>"]
        body += [_table(*figure_rows(run)), _table(*count_rows(run))]
        if run["notes"]:
            body += ["<ul>", *(f"<li>{escape(note)}</li>" for note in run["notes"]), "</ul>"]
        for index, plot in enumerate(plots(run)):
            drawn[f"plot-{number}-{index}"] = plot
            label = escape(plot["title"], quote=True)
            body.append(f'<div class="plot" id="plot-{number}-{index}" role="img" aria-label="{label}"></div>')
    data = json.dumps(drawn, separators=(",", ":")).replace("<", "\\u003c")
    return "\n".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>poise bench: {escape(names)}</title><style>{_STYLE}</style></head><body>",
            *body,
            f'<script type="application/json" id="plots">{data}</script>',
            f"<script>{plotly}</script><script>{_SCRIPT}</script></body></html>",
        ]
    )


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    lines = ["<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'


POINTS_MAX = 400
"""Of a distribution: more points look the same and make the page heavy."""
REQUESTS_MAX = 4000

Plot = dict[str, Any]


def plots(run: Mapping[str, Any]) -> list[Plot]:
    """The plots of one scenario, those without data left out."""
    made = [_ttft_distribution(run), _gap_distribution(run), _rate_over_time(run), _requests(run), _by_round(run)]
    return [plot for plot in made if plot["data"]]


def _ttft_distribution(run: Mapping[str, Any]) -> Plot:
    """Waiting times by class and side, all rounds together; requests that were cut without a token are not in it."""

    data, is_open = [], {client["name"]: client["open_loop"] for client in run["clients"]}
    for label, requests in _by_class(run):
        begun = [r for r in requests if r["chunks_ms"]]
        waits = [r["chunks_ms"][0] + (r["late_ms"] if is_open[r["client"]] else 0.0) for r in begun]
        data.append(_distribution(label, waits))
    return _plot("Time to first token", "ms, all rounds", "share of requests", data, log_x=True)


def _gap_distribution(run: Mapping[str, Any]) -> Plot:
    data = []
    for label, requests in _by_class(run):
        streams = [r["chunks_ms"] for r in requests if not r["slow_reader"]]
        gaps = [later - earlier for chunks_ms in streams for earlier, later in pairwise(chunks_ms)]
        data.append(_distribution(label, gaps))
    return _plot("Gaps between tokens", "ms, all rounds", "share of gaps", data, log_x=True)


def _rate_over_time(run: Mapping[str, Any]) -> Plot:
    """Chunks with text in each second of the first round, with the moments at which an engine was killed."""
    data: list[Plot] = []
    shapes = []
    for side, result in run["rounds"][0]["sides"].items():
        for name in dict.fromkeys(client["class"] for client in run["clients"]):
            members = {client["name"] for client in run["clients"] if client["class"] == name}
            own, last = [r for r in result["requests"] if r["client"] in members], int(result["elapsed_s"])
            counts = Counter(min(last, int((r["start_ms"] + ms) / 1000)) for r in own for ms in r["chunks_ms"])
            if counts:
                x, y = list(range(last + 1)), [counts[second] for second in range(last + 1)]
                data.append({"type": "scatter", "mode": "lines", "name": f"{side} {name}", "x": x, "y": y})
        mark = {"type": "line", "y0": 0, "y1": 1, "yref": "paper", "line": {"dash": "dot"}}
        shapes += [mark | {"x0": e["at_s"], "x1": e["at_s"]} for e in result["events"] if e["done"]]
    plot = _plot("Tokens over time", "s of the first round", "tokens/s", data)
    plot["layout"]["shapes"] = shapes
    return plot


def _requests(run: Mapping[str, Any]) -> Plot:
    """Every request of the first round: when it was sent, how long its first token took (or its end, without one)."""
    data: list[Plot] = []
    for side, result in run["rounds"][0]["sides"].items():
        by_status: dict[str, list[Mapping[str, Any]]] = {}
        for r in result["requests"][:REQUESTS_MAX]:
            by_status.setdefault(r["status"], []).append(r)
        for status, requests in by_status.items():
            data.append(
                {
                    "type": "scattergl" if len(requests) > 1000 else "scatter",
                    "mode": "markers",
                    "name": f"{side} {status}",
                    "x": [round(r["start_ms"] / 1000, 3) for r in requests],
                    "y": [r["chunks_ms"][0] if r["chunks_ms"] else r["end_ms"] for r in requests],
                    "text": [f"{r['client']} {r['instance']}/{r['index']}" for r in requests],
                }
            )
    plot = _plot("Requests", "sent, s of the first round", "ms to first token (or end)", data)
    plot["layout"]["yaxis"] |= {"type": "log", "dtick": 1}
    return plot


def _by_round(run: Mapping[str, Any]) -> Plot:
    """Throughput round by round: whether the rounds agree, and whether the machine drifted."""
    data = []
    if len(run["rounds"]) > 1:
        for side in run["medians"]:
            points = [
                (finished["round"], group["figures"]["output_tokens_per_s"]["value"])
                for finished in run["rounds"]
                for group in finished["sides"].get(side, {"groups": []})["groups"][:1]
                if "output_tokens_per_s" in group["figures"]
            ]
            x, y = [p[0] for p in points], [p[1] for p in points]
            data.append({"type": "scatter", "mode": "lines+markers", "name": side, "x": x, "y": y})
    return _plot("Rounds", "round", "output tokens/s", data)


def _by_class(run: Mapping[str, Any]) -> Iterator[tuple[str, list[Mapping[str, Any]]]]:
    """The requests of all rounds, for each side and class."""
    classes = {client["name"]: client["class"] for client in run["clients"]}
    for side in run["medians"]:
        requests = [r for finished in run["rounds"] for r in finished["sides"].get(side, {"requests": []})["requests"]]
        for name in dict.fromkeys(classes.values()):
            yield f"{side} {name}", [r for r in requests if classes[r["client"]] == name]


def _distribution(name: str, values: Sequence[float]) -> Plot:
    """The share of values up to each one, thinned out evenly in rank; the smallest and the largest stay."""
    ordered = sorted(values)
    n = len(ordered)
    ranks = range(n) if n <= POINTS_MAX else sorted({round(i * (n - 1) / (POINTS_MAX - 1)) for i in range(POINTS_MAX)})
    x, y = [round(max(ordered[r], 0.001), 3) for r in ranks], [(r + 1) / n for r in ranks]
    return {"type": "scatter", "mode": "lines", "line": {"shape": "hv"}, "name": f"{name} ({n})", "x": x, "y": y}


def _plot(title: str, x: str, y: str, data: Sequence[Plot], *, log_x: bool = False) -> Plot:
    x_axis: Plot = {"title": {"text": x}} | ({"type": "log"} if log_x else {})
    return {
        "title": title,
        "data": [trace for trace in data if trace["x"]],
        "layout": {"xaxis": x_axis, "yaxis": {"title": {"text": y}}},
    }
