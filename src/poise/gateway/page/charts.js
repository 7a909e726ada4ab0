// The charts of the last ten minutes, drawn by plotly.js, each with a table that says the same.
//
// An open dashboard must cost its host almost nothing: only charts that are on the screen are drawn, and of those a few each
// second, in turn. In ten minutes on a few hundred pixels, one second more or less cannot be seen.

import { SERIES } from "./chartseries.js";
import { byId, el } from "./dom.js";
import { UNKNOWN, isNumber, rate } from "./format.js";
import { setText } from "./figures.js";

const SCRIPT = "./page/plotly.min.js";
const MISSING = "There are no charts: this server lacks the package plotly. To have them: pip install plotly";
const WINDOW_MS = 600_000;
const WINDOW_MS_MIN = 60_000;
/** Of a shorter time, ticks say the second. */
const SECONDS_BELOW_MS = 300_000;
const LABEL_EVERY_MS = 10_000;
const TURNS = 5;
const LIGHT = ["#22695f", "#c2731a", "#3f66b0", "#a0437f", "#7d8a2e", "#6b7680", "#b3362f"];
const DARK = ["#83ccbc", "#e9b266", "#8fb2f0", "#e19ac6", "#c3cf72", "#a3adb5", "#f08b80"];
const CONFIG = { displayModeBar: false, responsive: true, doubleClick: false, showTips: false };

/** Makes the charts' places in `root`. `show(samples)` of what is returned draws them. */
export function setUpCharts(root) {
  const charts = SERIES.map((spec) => new Chart(spec));
  root.append(...charts.map((chart) => chart.node));
  const watch = new IntersectionObserver((entries) => {
    for (const { target, isIntersecting } of entries) charts.find(({ node }) => node === target).onScreen = isIntersecting;
    drawAll((chart) => chart.drawnSeq < 0);
  });
  for (const { node } of charts) watch.observe(node);
  let latest = [];
  const drawAll = (wanted) => {
    for (const chart of charts) if (chart.onScreen && wanted(chart)) chart.draw(latest);
  };
  const redraw = () => {
    for (const chart of charts) chart.drawnSeq = -1;
    drawAll(() => true);
  };
  /** Those first that were drawn longest ago. */
  const show = (samples) => {
    latest = samples;
    const seen = charts.filter(({ onScreen }) => onScreen).sort((a, b) => a.drawnSeq - b.drawnSeq);
    for (const chart of seen) if (chart.drawnSeq < 0) chart.draw(samples);
    for (const chart of seen.slice(0, Math.ceil(seen.length / TURNS))) chart.draw(samples);
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  loadPlotly().then(
    () => redraw(),
    () => {
      for (const chart of charts) chart.withoutPlot();
      setText(byId("charts-problem"), MISSING);
      byId("charts-problem").hidden = false;
      redraw();
    },
  );
  return { show };
}

function loadPlotly() {
  return new Promise((resolve, reject) => {
    const script = el("script", { src: SCRIPT, async: true });
    script.addEventListener("load", resolve);
    script.addEventListener("error", reject);
    document.head.append(script);
  });
}

class Chart {
  constructor(spec) {
    this.spec = spec;
    this.onScreen = false;
    this.drawnSeq = -1;
    this.labelledMs = 0;
    this.plot = el("div", { className: "plot", role: "img", "aria-label": spec.title, "data-chart": spec.id });
    this.body = el("tbody");
    const head = el("tr", {}, ...["Series", "Now", "Mean", "Highest"].map((text) => el("th", { scope: "col", textContent: text })));
    const table = el("table", { className: "data" }, el("thead", {}, head), this.body);
    this.details = el("details", {}, el("summary", { textContent: "As a table" }), el("div", { className: "table-scroll" }, table));
    this.details.addEventListener("toggle", () => this.fillTable());
    const unit = el("span", { className: "unit", textContent: spec.unit });
    const caption = el("figcaption", {}, el("span", { textContent: spec.title }), unit);
    this.node = el("figure", { className: "panel" }, caption, this.plot, this.details);
    this.series = [];
  }

  /** Nothing is done when there is no new sample. */
  draw(samples) {
    const seq = samples.at(-1)?.seq ?? -1;
    if (seq < 0 || seq === this.drawnSeq) return;
    this.drawnSeq = seq;
    this.series = this.spec.series(samples);
    if (this.details.open) this.fillTable();
    if (!globalThis.Plotly) return;
    const times = samples.map(({ at }) => new Date(1000 * at));
    const { traces, layout } = figure(this.spec, this.series, times);
    globalThis.Plotly.react(this.plot, traces, layout, CONFIG);
    if (Date.now() - this.labelledMs > LABEL_EVERY_MS) {
      this.labelledMs = Date.now();
      this.plot.setAttribute("aria-label", this.label());
    }
    this.plot.dataset.drawn = String(seq);
  }

  /** The table is all that there is. */
  withoutPlot() {
    this.plot.hidden = true;
    this.details.open = true;
  }

  label() {
    const now = this.series.map(({ name, values }) => `${name} ${shown(values.at(-1))}`).join(", ");
    return `${this.spec.title}, in ${this.spec.unit}. Now: ${now || "nothing"}.`;
  }

  fillTable() {
    if (!this.details.open) return;
    const rows = this.series.map(({ name, values }) => {
      const known = values.filter(isNumber);
      const mean = known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
      const highest = known.length ? Math.max(...known) : null;
      const cells = [values.at(-1), mean, highest].map((value) => el("td", { textContent: shown(value) }));
      return el("tr", {}, el("th", { scope: "row", textContent: name }), ...cells);
    });
    this.body.replaceChildren(...rows);
  }
}

function figure(spec, series, times) {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const style = getComputedStyle(document.documentElement);
  const palette = dark ? DARK : LIGHT;
  // Dates, not numbers: plotly.js shows dates in local time, and takes numbers for UTC.
  const last = times.at(-1);
  const lengthMs = Math.min(WINDOW_MS, Math.max(WINDOW_MS_MIN, last - times[0]));
  const first = new Date(last - lengthMs);
  const grid = style.getPropertyValue("--line");
  const axis = { gridcolor: grid, linecolor: grid, zeroline: false, fixedrange: true };
  const traces = series.map(({ name, values }, index) => ({
    name,
    x: times,
    y: values,
    ...look(spec.kind, palette[index % palette.length]),
  }));
  const layout = {
    height: 200,
    margin: { t: 6, r: 10, b: 58, l: 40 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { color: style.getPropertyValue("--muted"), family: "system-ui, sans-serif", size: 11 },
    barmode: "stack",
    bargap: 0,
    dragmode: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: style.getPropertyValue("--surface"), font: { color: style.getPropertyValue("--ink") } },
    showlegend: series.length > 0,
    legend: { orientation: "h", x: 0, y: -0.16, yanchor: "top", font: { size: 11 } },
    uirevision: "kept",
    xaxis: { ...axis, type: "date", range: [first, last], tickformat: lengthMs < SECONDS_BELOW_MS ? "%H:%M:%S" : "%H:%M", nticks: 5, hoverformat: "%H:%M:%S" },
    yaxis: { ...axis, rangemode: "tozero", nticks: 5, ...(spec.range ? { range: spec.range, autorange: false } : {}) },
  };
  return { traces, layout };
}

function look(kind, color) {
  const common = { type: "scatter", hovertemplate: "%{y:.4~g}" };
  switch (kind) {
    case "points":
      return { ...common, mode: "markers", marker: { color, size: 4 } };
    case "stack":
      return { ...common, mode: "lines", stackgroup: "all", line: { color, width: 0 }, fillcolor: color };
    case "bars":
      return { ...common, type: "bar", marker: { color, line: { width: 0 } } };
    default:
      return { ...common, mode: "lines", line: { color, width: 1.5 }, connectgaps: false };
  }
}

function shown(value) {
  return isNumber(value) ? (Math.abs(value) < 1 && value !== 0 ? value.toFixed(2) : rate(value)) : UNKNOWN;
}
