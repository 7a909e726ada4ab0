// A request's timeline: from the moments that the server tells to spans, and the spans as bars.

import { GOES_ON, STOPS, STOP_LABELS } from "./changes.js";
import { el } from "./dom.js";
import { duration } from "./format.js";

const LABELS = {
  arriving: "taken in",
  summarizing: "summarizing",
  queued: "waiting",
  prefill: "prompt",
  decode: "answer",
  ...STOP_LABELS,
};
const AFTER = {
  arrived: "arriving",
  summarizing: "summarizing",
  queued: "queued",
  ...STOPS,
};
/** It is being computed, or (after a recovery) goes on as before. */
const RUNNING = ["started", "prefill", "first_token", ...GOES_ON];

/** For each choice its spans {state, fromMs, toMs}, in order. What has not ended goes on until `nowMs`. */
export function spansOf(timeline, n, nowMs) {
  return Array.from({ length: n }, (_, index) => {
    const own = timeline.filter(({ choice }) => choice === undefined || choice === index);
    return lane(own, nowMs);
  });
}

function lane(moments, nowMs) {
  const spans = [];
  let state = null;
  let fromMs = 0;
  let started = false;
  let answers = false;
  const turnTo = (next, ms) => {
    if (next === state) return;
    if (state !== null && ms > fromMs) spans.push({ state, fromMs, toMs: ms });
    state = next;
    fromMs = ms;
  };
  for (const { what, ms } of moments) {
    if (what === "finished") {
      turnTo(null, ms);
      return spans;
    }
    started ||= what === "started";
    answers ||= what === "first_token";
    if (AFTER[what]) turnTo(AFTER[what], ms);
    else if (RUNNING.includes(what)) turnTo(answers ? "decode" : started ? "prefill" : "queued", ms);
  }
  turnTo(null, Math.max(nowMs, fromMs));
  return spans;
}

/** "waiting 120 ms, prompt 0.4 s, answer 2.1 s": what the bars show, added up by state. */
export function inWords(spans) {
  const sums = new Map();
  for (const { state, fromMs, toMs } of spans) sums.set(state, (sums.get(state) ?? 0) + toMs - fromMs);
  return [...sums].map(([state, ms]) => `${LABELS[state]} ${duration(ms)}`).join(", ");
}

/** One bar for each choice, with its words below. The colours are said in the words' keys. */
export function drawLanes(root, lanes, wholeMs) {
  const drawn = lanes.map((spans, index) => {
    const words = inWords(spans);
    const bars = spans.map(({ state, fromMs, toMs }) => {
      const bar = el("span", { className: "span", title: `${LABELS[state]} ${duration(toMs - fromMs)}` });
      bar.dataset.state = state;
      bar.style.left = `${(100 * fromMs) / wholeMs}%`;
      bar.style.width = `${(100 * (toMs - fromMs)) / wholeMs}%`;
      return bar;
    });
    const name = lanes.length > 1 ? `Choice ${index}: ` : "";
    const keys = [...new Set(spans.map(({ state }) => state))].map((state) => {
      const key = el("span", { className: "key" });
      key.dataset.state = state;
      return el("span", { className: "lane-key" }, key, wordsOf(spans, state));
    });
    const bar = el("div", { className: "lane", role: "img", "aria-label": `${name}${words || "nothing yet"}` }, ...bars);
    return el("div", {}, bar, el("p", { className: "help lane-words", "aria-hidden": "true" }, name, ...keys));
  });
  root.replaceChildren(...drawn);
}

function wordsOf(spans, state) {
  return inWords(spans.filter((span) => span.state === state));
}
