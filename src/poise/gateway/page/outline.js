// The outline of an answer: a bar that stays in view, with the heading that is being written, and all of them on request.

import { el } from "./dom.js";

const HEADINGS_MIN = 2;
const DEPTH_MAX = 3;

export class Outline {
  #count = el("span", { className: "outline-count" });
  #now = el("span", { className: "outline-now" });
  #list = el("ol");
  #shown = "";
  #goTo;

  /** `goTo(i)` shows the i-th heading. */
  constructor(goTo) {
    this.#goTo = goTo;
    const name = el("span", { className: "outline-name", textContent: "Outline" });
    const summary = el("summary", {}, name, this.#count, this.#now);
    const nav = el("nav", { "aria-label": "Outline of this answer" }, this.#list);
    this.element = el("details", { className: "outline", hidden: true }, summary, nav);
    this.element.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !this.element.open) return;
      event.stopPropagation(); // elsewhere Escape stops the answer
      this.#close();
      summary.focus();
    });
  }

  /** `headings` are {level, title}; while `writing`, the last one is the place where the answer grows. */
  update(headings, writing) {
    const now = JSON.stringify([headings, writing]);
    if (now === this.#shown) return;
    this.#shown = now;
    this.element.hidden = headings.length < HEADINGS_MIN;
    this.#count.textContent = `${headings.length} headings`;
    this.#now.textContent = writing ? (headings.at(-1)?.title ?? "") : "";
    const top = Math.min(...headings.map(({ level }) => level));
    headings.forEach(({ level, title }, i) => {
      const button = this.#button(i);
      button.textContent = title;
      button.dataset.depth = Math.min(level - top, DEPTH_MAX);
      if (writing && i === headings.length - 1) button.setAttribute("aria-current", "location");
      else button.removeAttribute("aria-current");
    });
  }

  /** The button of the i-th heading. It keeps its node, and with it the focus, while others are added. */
  #button(i) {
    if (!this.#list.children[i]) {
      const button = el("button", { type: "button" });
      button.addEventListener("click", () => {
        this.#close();
        this.#goTo(i);
      });
      this.#list.append(el("li", {}, button));
    }
    return this.#list.children[i].firstElementChild;
  }

  #close() {
    this.element.open = false;
  }
}
