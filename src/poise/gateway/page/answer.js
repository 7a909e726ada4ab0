// One answer on the page: its text while it grows, what it waits for, how it ended, and its figures.

import { ApiError } from "./api.js";
import { copyButton, el } from "./dom.js";
import { count, duration, plural, rate, waiting } from "./format.js";
import { MarkdownView } from "./markdown.js";
import { Outline } from "./outline.js";
import { Structure } from "./segments.js";

// Drawing takes from the same processor that the model may be running on, and nobody reads faster than this.
const DRAW_EVERY_MS = 50;

const ENDINGS = {
  length: "cut at the token limit",
  cancelled: "stopped",
  server_stopping: "cut, because the server was stopped",
  content_filter: "ended by a content filter",
  tool_calls: "ended with a tool call",
};

export class Answer {
  text = "";
  done = false;
  #figures = new Figures();
  #status = el("p", { className: "status", textContent: "Sent, waiting for the first token" });
  #thoughts = el("p");
  #thinking = el("details", { className: "thinking", hidden: true }, el("summary", { textContent: "Reasoning" }), this.#thoughts);
  #body = el("div", { className: "body" });
  #foot = el("div", { className: "foot" });
  #view = new MarkdownView(this.#body);
  #structure = new Structure();
  #outline = new Outline((i) => this.#show(i));
  #timer = 0;
  #drawnAt = 0;
  #onGrowth;

  /** `onGrowth` runs after each change of the answer's height. */
  constructor(onGrowth) {
    this.#onGrowth = onGrowth;
    const props = { className: "answer", "aria-label": "Answer", "aria-busy": "true" };
    this.element = el("article", props, this.#outline.element, this.#thinking, this.#body, this.#status, this.#foot);
  }

  wait(place) {
    this.#status.textContent = waiting(place);
    return this.#status.textContent;
  }

  /** Reasoning stays folded: it is there for who wants it. */
  think(text) {
    this.#figures.piece();
    this.#thinking.hidden = false;
    this.#thoughts.append(text);
    this.#status.textContent = "Thinking";
    this.#onGrowth();
  }

  /** `marks` say what this text made certain of the answer's segments. */
  append(text, marks) {
    this.#structure.add(text, marks);
    if (text) this.#figures.piece();
    this.text += text;
    this.#status.hidden = true;
    this.element.classList.add("streaming");
    this.#timer ||= setTimeout(() => this.#draw(), this.#drawnAt + DRAW_EVERY_MS - performance.now());
  }

  /** Who answers: "local", or another server; "cloud:" stands before one that is not on this host. */
  from(backend) {
    this.#figures.backend = backend;
  }

  usage(usage) {
    this.#figures.usage = usage;
  }

  /** The answer is complete, as far as the server is concerned. */
  finish(reason) {
    const note = ENDINGS[reason] ?? (this.text ? "" : "The model answered with no text.");
    this.#end(note, [...this.#figures.list(), `finish: ${reason}`]);
    return note || `Answer complete, ${this.#figures.list().at(-1)}`;
  }

  stopped() {
    this.#end(this.text ? "Stopped" : "Stopped before the first token", this.#figures.list());
    return "Stopped";
  }

  /** `actions` are buttons that help with this error. */
  fail(error, actions) {
    this.#end("", this.text ? this.#figures.list() : []);
    const kept = this.text ? " What had arrived is kept above." : "";
    const line = el("p", { className: "error-text", textContent: error.message + kept });
    // Outside the alert: a screen reader is to hear the error once, not each second of the countdown.
    const advice = el("p", { className: "help" });
    const row = el("div", { className: "row" }, ...actions, advice);
    const box = el("div", { className: "error" }, el("div", { role: "alert" }, line), row);
    this.#status.replaceWith(box);
    if (error instanceof ApiError && error.retryAfterS !== null) countDown(advice, error.retryAfterS);
    this.#onGrowth();
  }

  /** The buttons below the answer. They move to the latest answer, so the caller hands them out. */
  offer(...buttons) {
    this.#foot.querySelector(".row").append(...buttons);
  }

  #draw() {
    this.#timer = 0;
    this.#drawnAt = performance.now();
    this.#view.render(this.text, this.#structure, this.done);
    const headings = this.#structure.headings.map(({ level, node }) => ({ level, title: node.textContent || "…" }));
    this.#outline.update(headings, !this.done);
    this.#onGrowth();
  }

  /** Takes the reader to a heading, and the keyboard's focus with it. */
  #show(i) {
    const heading = this.#body.querySelectorAll(":scope > :is(h3, h4, h5, h6)")[i];
    if (!heading) return;
    heading.tabIndex = -1;
    heading.focus({ preventScroll: true });
    heading.scrollIntoView();
  }

  #end(note, figures) {
    clearTimeout(this.#timer);
    this.done = true;
    this.element.classList.remove("streaming");
    this.element.removeAttribute("aria-busy");
    this.#status.hidden = !note;
    this.#status.textContent = note;
    const list = el("ul", { className: "figures", "aria-label": "Figures of this answer" });
    list.append(...figures.map((text) => el("li", { textContent: text })));
    const buttons = el("div", { className: "row" }, ...(this.text ? [copyButton(() => this.text)] : []));
    this.#foot.replaceChildren(buttons, list);
    this.#draw();
  }
}

/** What this browser measured, network included; token counts are the server's where it sent them. */
class Figures {
  usage = null;
  backend = "";
  #sentAt = performance.now();
  #firstAt = null;
  #lastAt = null;
  #pieces = 0;

  piece() {
    this.#lastAt = performance.now();
    this.#firstAt ??= this.#lastAt;
    this.#pieces++;
  }

  list() {
    if (this.#firstAt === null) return [];
    const tokens = this.usage?.completion_tokens ?? this.#pieces;
    const seconds = (this.#lastAt - this.#firstAt) / 1000;
    const figures = this.backend ? [`from ${this.backend.replace("cloud:", "the cloud: ")}`] : [];
    figures.push(`first token ${duration(this.#firstAt - this.#sentAt)}`);
    // The first token ends the wait; the rate is that of the others.
    if (tokens > 1 && seconds > 0) figures.push(`${rate((tokens - 1) / seconds)} tokens/s`);
    if (this.usage?.prompt_tokens !== undefined) {
      const cached = this.usage.prompt_tokens_details?.cached_tokens;
      figures.push(`${count(this.usage.prompt_tokens)} in${cached ? ` (${count(cached)} cached)` : ""}`);
    }
    figures.push(this.usage ? plural(tokens, "token") : `about ${plural(tokens, "token")}`);
    return figures;
  }
}

/** Says when the server wants to be asked again. Trying earlier stays possible: the estimate may be too long. */
function countDown(node, seconds) {
  const end = performance.now() + seconds * 1000;
  const tick = () => {
    const left = Math.ceil((end - performance.now()) / 1000);
    node.textContent = left > 0 ? `The server suggests in ${left} s.` : "The suggested wait is over.";
    if (left > 0 && node.isConnected) setTimeout(tick, 1000);
  };
  tick();
}
