// The health dot and the live numbers: small documents, read once a second while the page is visible.

import { ApiError, getJson } from "./api.js";
import { byId, el } from "./dom.js";
import { UNKNOWN, count, duration, isNumber, rate } from "./format.js";
import { onKeyChange } from "./settings.js";

const PERIOD_MS = 1000;
const PERIOD_WHEN_READY_MS = 5000;
const SAMPLES = 60;
const KEY_WANTED = "This server shows its numbers to holders of an API key: enter one in Settings.";
const HEALTH_LABELS = {
  ready: "Ready",
  loading: "Loading",
  restarting: "Restarting",
  failed: "Failed",
  draining: "Stopping",
  stopped: "Stopped",
  unreachable: "No connection",
};
const CLASSES = ["interactive", "background"];

/**
 * Runs `task` again and again, one at a time, while the page is visible.
 * `task` resolves to the pause before its next run in ms, or to null to stop until wake().
 */
export class Poller {
  #task;
  #timer = 0;
  #busy = false;

  constructor(task) {
    this.#task = task;
    document.addEventListener("visibilitychange", () => this.wake());
    this.wake();
  }

  wake() {
    clearTimeout(this.#timer);
    if (!document.hidden && !this.#busy) this.#run();
  }

  async #run() {
    this.#busy = true;
    const pauseMs = await this.#task().finally(() => (this.#busy = false));
    if (pauseMs !== null && !document.hidden) this.#timer = setTimeout(() => this.wake(), pauseMs);
  }
}

/** Starts the health dot. `onReady` runs whenever the server has become ready. */
export function watchHealth(onReady) {
  let wasReady = false;
  const poller = new Poller(async () => {
    const health = await readHealth();
    showHealth(health);
    if (health.state === "ready" && !wasReady) onReady();
    wasReady = health.state === "ready";
    return wasReady ? PERIOD_WHEN_READY_MS : PERIOD_MS;
  });
  return poller;
}

/** Starts the panel. `onTrouble` runs when the numbers cannot be read, so that the health dot can look at once. */
export function watchStatus(onTrouble) {
  const history = { output: [], running: [] };
  const poller = new Poller(async () => {
    try {
      const status = await getJson("/status");
      showStatus(status, history);
      showProblem("");
      if (status.phase && status.phase !== "ready") onTrouble();
      return PERIOD_MS;
    } catch (error) {
      const keyWanted = error instanceof ApiError && (error.status === 401 || error.status === 403);
      showProblem(keyWanted ? KEY_WANTED : error.message);
      if (!keyWanted) onTrouble();
      return keyWanted ? null : PERIOD_MS;
    }
  });
  onKeyChange(() => poller.wake());
}

async function readHealth() {
  try {
    // A server that is loading or has failed answers 503 and says why in the same document.
    const health = await getJson("/health", [500, 503]);
    return { ...health, state: stateOf(health) };
  } catch (error) {
    const state = error instanceof ApiError ? "failed" : "unreachable";
    return { state, detail: error.message };
  }
}

function stateOf({ ready, status }) {
  if (ready) return "ready";
  return ["loading", "restarting", "failed", "draining", "stopped"].includes(status) ? status : "loading";
}

function showHealth(health) {
  const dot = byId("health");
  const text = byId("health-text");
  dot.dataset.state = health.state;
  const label = healthLabel(health);
  if (text.textContent !== label) text.textContent = label;
  const notice = healthNotice(health);
  byId("notice").hidden = !notice;
  byId("notice").dataset.state = health.state;
  if (byId("notice-text").textContent !== notice) byId("notice-text").textContent = notice;
  const progress = byId("notice-progress");
  progress.hidden = health.state !== "loading" || !isNumber(health.progress);
  if (!progress.hidden) progress.value = health.progress;
  if (isNumber(health.restarts)) setValue("restarts", count(health.restarts));
}

function healthLabel({ state, progress, level }) {
  if (state === "loading" && isNumber(progress)) return `Loading ${Math.floor(100 * progress)} %`;
  if (state === "ready" && level && level !== "normal") return `Ready, ${level}`;
  return HEALTH_LABELS[state];
}

function healthNotice({ state, stage, detail }) {
  const reason = detail ? `: ${detail}` : "";
  switch (state) {
    case "loading":
      // The engine's last stage is "ready", while the server still reads the vocabulary.
      return stage && stage !== "ready" ? `The server is getting ready: ${stage}.` : "The server is getting ready.";
    case "restarting":
      return `The engine is starting again${reason}. Answers go on, and messages can be sent in a moment.`;
    case "failed":
      return `The engine has failed and needs its operator${reason}.`;
    case "draining":
      return "The server is stopping. What it has begun it ends; new messages are not taken.";
    case "stopped":
      return "The server is stopping.";
    case "unreachable":
      return "The server cannot be reached. Trying again every second.";
    default:
      return "";
  }
}

function showProblem(message) {
  byId("live-problem").textContent = message;
  byId("live-problem").hidden = !message;
  byId("live-body").classList.toggle("stale", Boolean(message));
}

function showStatus(status, history) {
  const classes = status.classes ?? {};
  const running = sum(CLASSES.map((name) => classes[name]?.running));
  const output = status.tokens_per_s?.output;
  for (const name of CLASSES) showClass(name, classes[name] ?? {});
  setValue("output", rate(output));
  setValue("running", count(running));
  setValue("running-noun", running === 1 ? "request" : "requests");
  setValue("prompt-rate", isNumber(status.tokens_per_s?.prompt) ? `${rate(status.tokens_per_s.prompt)} tokens/s` : UNKNOWN);
  setValue("uptime", isNumber(status.uptime_s) ? duration(1000 * Math.floor(status.uptime_s)) : UNKNOWN);
  if (isNumber(status.restarts)) setValue("restarts", count(status.restarts));
  showPools(Array.isArray(status.pools) ? status.pools : []);
  drawSpark(byId("spark-output"), remember(history.output, output));
  drawSpark(byId("spark-running"), remember(history.running, running));
}

function showClass(name, { running, queued, wait_estimate_ms: waitMs, ttft_ms: ttft }) {
  setValue(`${name}.running`, count(running));
  setValue(`${name}.queued`, count(queued));
  setValue(`${name}.wait`, waitMs === 0 ? "none" : isNumber(waitMs) ? `about ${duration(waitMs)}` : UNKNOWN);
  // Percentiles of nothing are not zero.
  const measured = ttft && ttft.count !== 0;
  setValue(`${name}.p50`, measured ? duration(ttft.p50) : UNKNOWN);
  setValue(`${name}.p95`, measured ? duration(ttft.p95) : UNKNOWN);
}

function setValue(name, text) {
  for (const node of document.querySelectorAll(`[data-value="${name}"]`)) {
    if (node.textContent !== text) node.textContent = text;
  }
}

/** One group of bars per pool; the nodes are kept while the list of pools stays the same. */
function showPools(pools) {
  const root = byId("pools");
  const names = pools.map((pool) => pool.name).join("\n");
  if (root.dataset.names !== names) {
    root.dataset.names = names;
    root.replaceChildren(...pools.map(poolGroup));
  }
  pools.forEach((pool, index) => {
    const [slots, cells] = root.children[index].querySelectorAll(".use");
    fillBar(slots, pool.slots_held, pool.slots);
    fillBar(cells, pool.cells_used, pool.cells);
  });
}

function poolGroup({ name }) {
  return el("div", { className: "pool" }, el("h3", { textContent: `Pool ${name}` }), bar("Slots"), bar("KV cells"));
}

function bar(label) {
  const track = el("div", { className: "track", "aria-hidden": "true" }, el("div"));
  const use = el("span", { className: "use-text" });
  return el("div", { className: "use" }, el("span", { textContent: label }), use, track);
}

function fillBar(use, part, whole) {
  use.querySelector(".use-text").textContent = `${count(part)} of ${count(whole)}`;
  const share = isNumber(part) && whole > 0 ? Math.min(1, part / whole) : 0;
  use.querySelector(".track > div").style.width = `${(100 * share).toFixed(1)}%`;
}

function remember(samples, value) {
  samples.push(isNumber(value) ? value : 0);
  if (samples.length > SAMPLES) samples.shift();
  return samples;
}

/** The last minute as a line over a soft area, the newest sample at the right edge. */
function drawSpark(svg, samples) {
  const top = Math.max(1, ...samples);
  const points = samples.map((value, index) => {
    const x = 120 * (1 - (samples.length - 1 - index) / (SAMPLES - 1));
    return `${x.toFixed(1)},${(30.5 - 28 * (value / top)).toFixed(1)}`;
  });
  const first = points[0].split(",")[0];
  if (!svg.firstChild) svg.append(svgNode("polygon"), svgNode("polyline"));
  svg.children[0].setAttribute("points", `${first},32 ${points.join(" ")} 120,32`);
  svg.children[1].setAttribute("points", points.join(" "));
}

function svgNode(tag) {
  return document.createElementNS("http://www.w3.org/2000/svg", tag);
}

function sum(values) {
  const numbers = values.filter(isNumber);
  return numbers.length ? numbers.reduce((total, value) => total + value, 0) : undefined;
}
