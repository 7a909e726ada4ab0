// One request in detail: its timeline as bars, what happened in sentences, and every moment as a table.

import { adminKey } from "./adminkey.js";
import { getJson } from "./api.js";
import { byId, el } from "./dom.js";
import { setText } from "./figures.js";
import { count, duration, plural } from "./format.js";
import { drawLanes, spansOf } from "./timeline.js";

const DONE = {
  pause: "Paused.",
  resume: "It goes on.",
  downgrade: "It goes on as background work.",
  cancel: "Cancelled. Its client gets what there is.",
};
const EXPLAIN_EVERY_MS = 10_000;
const KNOWN_FIELDS = ["what", "ms", "tokens", "choice"];

export class RequestView {
  /** `onClose(id)` runs when somebody has closed it. */
  constructor(onClose) {
    this.id = null;
    this.isOver = false;
    this.explained = { state: null, atMs: 0 };
    this.onClose = onClose;
    byId("view-close").addEventListener("click", () => this.close());
    byId("view").addEventListener("keydown", ({ key }) => {
      if (key === "Escape") this.close();
    });
  }

  async open(id) {
    this.id = id;
    this.isOver = false;
    this.explained = { state: null, atMs: 0 };
    this.tell(null, null);
    showSentences([]);
    setText(byId("view-title"), id);
    byId("view").hidden = false;
    for (const button of document.querySelectorAll(".row-button")) {
      button.setAttribute("aria-expanded", String(button.title === id));
    }
    await this.refresh();
    byId("view").focus();
  }

  close() {
    if (this.id === null) return;
    const { id } = this;
    this.id = null;
    byId("view").hidden = true;
    for (const button of document.querySelectorAll(".row-button")) button.setAttribute("aria-expanded", "false");
    this.onClose(id);
  }

  /** What was done, or why it was not. */
  tell(error, action) {
    const told = byId("view-told");
    told.dataset.state = error ? "bad" : "good";
    setText(told, error ? error.message : (DONE[action] ?? ""));
  }

  /** Nothing changes any more once it has ended. */
  async refresh() {
    const { id } = this;
    if (id === null || this.isOver) return;
    const path = `/admin/requests/${encodeURIComponent(id)}`;
    try {
      const request = await getJson(path, [], adminKey());
      if (id !== this.id) return;
      this.isOver = request.state === "ended";
      show(request);
      if (this.isExplained(request.state)) return;
      const { verdict, sentences } = await getJson(`${path}/explanation`, [], adminKey());
      if (id === this.id) showSentences([verdict, ...sentences].filter(Boolean));
    } catch (error) {
      if (id === this.id) this.tell(error, null);
    }
  }

  /** An explanation looks at hundreds of other requests: it is asked for when something has changed, and now and then. */
  isExplained(state) {
    const now = performance.now();
    if (state === this.explained.state && now - this.explained.atMs < EXPLAIN_EVERY_MS) return true;
    this.explained = { state, atMs: now };
    return false;
  }
}

function show(request) {
  const { state, outcome, error, tenant, timeline, choices } = request;
  const how = state === "ended" ? `ended: ${error ?? outcome}` : state;
  const wholeMs = Math.max(1, request.took_ms ?? request.age_ms);
  const tokens = `${count(request.prompt_tokens)} prompt (${count(request.cached_tokens)} cached) and ${plural(request.output_tokens, "output token")}`;
  setText(byId("view-state"), `${how}; tenant ${tenant}, ${request.class}; ${tokens}; ${duration(wholeMs)}`);
  drawLanes(byId("lanes"), spansOf(timeline, choices.length, wholeMs), wholeMs);
  byId("view-actions").hidden = state === "ended";
  byId("moments").replaceChildren(...timeline.map(momentRow));
}

function momentRow(moment) {
  const detail = Object.entries(moment).filter(([name]) => !KNOWN_FIELDS.includes(name));
  const words = detail.map(([name, value]) => `${name.replaceAll("_", " ")} ${value}`).join(", ");
  const values = [duration(moment.ms), moment.what.replaceAll("_", " "), moment.choice ?? "", count(moment.tokens), words];
  return el("tr", {}, ...values.map((value) => el("td", { textContent: String(value) })));
}

function showSentences(sentences) {
  const list = byId("sentences");
  list.hidden = !sentences.length;
  list.replaceChildren(...sentences.map((text) => el("li", { textContent: text })));
}
