"""A result as one self-contained HTML page: the tables, and plots drawn by the plotly.js that the plotly package carries.

The script is taken from the installed package and put into the page: it works from a mail or an archive, and asks no other host.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from poise.bench.plots import plots
from poise.bench.tables import count_rows, figure_rows, provenance, run_line
from poise.scenarios.files import InputError

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
