// The dashboard's figures: the state of the server, the cards of the classes, and the pools with their slots.

import { byId, el } from "./dom.js";
import { UNKNOWN, count, duration, isNumber, plural, rate } from "./format.js";

const CLASSES = { interactive: "Interactive", background: "Background" };
const PHASES = {
  loading: "Loading",
  ready: "Ready",
  restarting: "Restarting",
  failed: "Failed",
  stopped: "Stopped",
};
const LIMITS = {
  compute: "Compute: the model is busy in every step",
  kv_cells: "KV cells: requests wait for a slot",
  host_memory: "Host memory: dropped KV cells are computed again",
  tenant_limits: "Tenant limits: who waits already runs as much as it may",
  power: "Power: the host's power, heat or quota leaves no more",
  readers: "Readers: clients are behind with reading",
  none: "Nothing: all that is asked for is being computed",
  idle: "Nothing: there is nothing to do",
};
const RECENT_SAMPLES = 60;

export function limitInWords(limit) {
  return LIMITS[limit] ?? UNKNOWN;
}

export function showHealth({ phase, model, level, reasons, detail, stage, progress }) {
  const held = phase === "ready" && level !== "normal";
  setText(byId("model"), model ?? "");
  byId("health").dataset.state = phase;
  setText(byId("health-text"), `${PHASES[phase] ?? phase}${held ? `, ${level}` : ""}`);
  const loading = phase === "loading" ? `The server is getting ready: ${stage}, ${Math.floor(100 * progress)} %.` : "";
  const trouble = phase !== "ready" && detail ? `${PHASES[phase]}: ${detail}.` : "";
  showNotice([loading || trouble, ...(reasons ?? [])].filter(Boolean).join(" "), phase);
}

export function showUnreachable(message) {
  byId("health").dataset.state = "unreachable";
  setText(byId("health-text"), "No connection");
  showNotice(`${message} Trying again every second.`, "unreachable");
}

/** What concerns the whole server. `sample` is the newest one of the history, or undefined. */
export function showFacts(status, sample) {
  const memory = sample?.memory ?? {};
  fill(byId("facts"), [
    ["Limited by", limitInWords(status.bottleneck)],
    ["Level", status.level],
    ["Output", isNumber(sample?.output_tokens_per_s) ? `${rate(sample.output_tokens_per_s)} tokens/s` : UNKNOWN],
    ["Prompts", isNumber(sample?.prompt_tokens_per_s) ? `${rate(sample.prompt_tokens_per_s)} tokens/s` : UNKNOWN],
    ["Step", sample?.steps ? `${rate(sample.steps.p50_ms)} ms, p95 ${rate(sample.steps.p95_ms)} ms` : UNKNOWN],
    ["In a step", sample?.steps ? inAStep(sample.steps) : UNKNOWN],
    ["Engine memory", mib(memory.engine_rss_bytes)],
    ["Readers behind", count(sample?.readers?.behind)],
    ["Engine restarts", count(status.restarts)],
    ["Up for", duration(1000 * Math.floor(status.uptime_s))],
  ]);
}

/** A card for each class. */
export function showCards(status, samples) {
  const root = byId("cards");
  if (!root.firstChild) root.append(...Object.entries(CLASSES).map(card));
  const recent = samples.slice(-RECENT_SAMPLES);
  for (const name of Object.keys(CLASSES)) {
    const { running, queued, paused, swapped, wait_estimate_ms: waitMs, ttft_ms: ttft } = status.classes[name];
    const itl = recent.findLast((sample) => sample.classes[name].itl_ms)?.classes[name].itl_ms;
    const gapMs = samples.at(-1)?.classes[name].gap_ms;
    const first = ttft.count ? ttft : {};
    fill(root.querySelector(`[data-class="${name}"] dl`), [
      ["First token, p50", duration(first.p50)],
      ["First token, p95", duration(first.p95)],
      ["Between tokens, p50", duration(itl?.p50)],
      ["Between tokens, p99", duration(itl?.p99)],
      ["Running", count(running)],
      ["Waiting", count(queued)],
      ["Paused", count(paused)],
      ["Swapped", count(swapped)],
      ["Wait, if sent now", waitMs === 0 ? "none" : isNumber(waitMs) ? `about ${duration(waitMs)}` : UNKNOWN],
      ["Gap between tenants", gapMs === 0 ? "none" : duration(gapMs)],
    ]);
  }
}

/** Each pool as a picture of its slots; the nodes are kept while the pools stay the same. */
export function showSlots(pools) {
  const root = byId("slots");
  const shape = pools.map(({ name, slots }) => `${name} ${slots}`).join("\n");
  if (root.dataset.shape !== shape) {
    root.dataset.shape = shape;
    root.replaceChildren(...pools.map(poolPicture));
  }
  pools.forEach((pool, index) => fillPool(root.children[index], pool));
}

function card([name, label]) {
  return el(
    "article",
    { className: "card", "data-class": name, "aria-label": label },
    el("h3", { textContent: label }),
    el("dl", { className: "figures-grid" }),
  );
}

/** Terms and values of a list; its nodes are made once. */
function fill(list, entries) {
  if (list.children.length !== entries.length) {
    const nodes = entries.map(([term]) => el("div", {}, el("dt", { textContent: term }), el("dd")));
    list.replaceChildren(...nodes);
  }
  entries.forEach(([, value], index) => setText(list.children[index].lastChild, value));
}

function inAStep({ sequences, decode_tokens: decode, prompt_tokens: prompt }) {
  return `${rate(sequences)} sequences, ${rate(decode)} decode and ${rate(prompt)} prompt tokens`;
}

function poolPicture({ name, slots }) {
  const bars = Array.from({ length: slots }, () => el("span", { className: "slot" }, el("span")));
  const picture = el("div", { className: "slots", role: "img" }, ...bars);
  const text = el("p", { className: "help" });
  return el("div", { className: "pool-picture" }, el("h3", { textContent: `Pool ${name}` }), picture, text);
}

function fillPool(node, pool) {
  const [, picture, text] = node.children;
  const occupied = new Map((pool.occupied ?? []).map((slot) => [slot.slot, slot]));
  [...picture.children].forEach((bar, index) => {
    const slot = occupied.get(index);
    const state = slot ? (slot.state === "running" ? slot.class : slot.state) : "free";
    if (bar.dataset.state !== state) bar.dataset.state = state;
    const height = `${slot ? Math.max(3, Math.round((100 * slot.cells) / pool.slot_cells)) : 0}%`;
    if (bar.firstChild.style.height !== height) bar.firstChild.style.height = height;
    const title = slot ? `Slot ${index}: ${state}, ${count(slot.cells)} of ${plural(pool.slot_cells, "cell")}` : `Slot ${index}: free`;
    if (bar.title !== title) bar.title = title;
  });
  const warm = pool.slots_warm ? `, ${count(pool.slots_warm)} warm` : "";
  const holes = pool.holes ? `, ${plural(pool.holes, "hole")}` : "";
  const slots = `${count(pool.slots_held)} of ${count(pool.slots)} slots held${warm}${holes}`;
  const line = `${slots}; ${count(pool.cells_used)} of ${count(pool.cells)} cells used`;
  setText(text, line);
  if (picture.getAttribute("aria-label") !== line) picture.setAttribute("aria-label", line);
}

function showNotice(message, state) {
  byId("notice").hidden = !message;
  byId("notice").dataset.state = state;
  setText(byId("notice-text"), message);
}

export function mib(bytes) {
  return isNumber(bytes) ? `${count(bytes / 2 ** 20)} MiB` : UNKNOWN;
}

export function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}
